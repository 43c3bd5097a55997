"use strict";
// The page works without this script: it only adds the switch between light and dark and the filters of the samples.
const root = document.documentElement;
const theme = document.getElementById("theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  root.dataset.theme = (root.dataset.theme || system) === "dark" ? "light" : "dark";
});

const filters = document.querySelector(".filters");
if (filters) {
  const selects = [...filters.querySelectorAll("select")];
  const samples = [...document.querySelectorAll("details.sample")];
  const count = document.getElementById("shown");
  const apply = () => {
    for (const sample of samples) {
      sample.hidden = !selects.every(({ name, value }) => !value || sample.dataset[name].split("|").includes(value));
    }
    count.textContent = samples.filter((sample) => !sample.hidden).length;
  };
  filters.hidden = false;
  filters.addEventListener("change", apply);
  apply(); // a browser that goes back to the page fills in the choices of before
}
