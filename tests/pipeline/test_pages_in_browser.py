"""Both pages in a real browser, as a reader sees them. Needs the package playwright and a Chromium on this machine."""

import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dream_ray.evaluate.samples import DISAGREEMENTS
from dream_ray.pipeline.reporting import write_comparison, write_report
from tests.pipeline.run_dirs import MARKS, REFUSED, RunDir

pytestmark = pytest.mark.slow

PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    chromium = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if chromium is None:
        pytest.skip("needs a Chromium: chromium, chromium-browser or google-chrome on the PATH")
    with playwright.sync_playwright() as driver:
        # No sandbox of its own: it cannot make one as root in a container, and the pages are ours.
        started = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    RunDir(folder / "one").whole().benchmark("xstest")
    RunDir(folder / "two", dpo={"beta": 0.3}).whole(refused=REFUSED | {"policy-1": (6, 0)})
    write_report(str(folder / "one"))
    write_comparison([str(folder / "one"), str(folder / "two")], str(folder / "comparison.html"))
    return {"report": folder / "one" / "report.html", "comparison": folder / "comparison.html"}


class Opened:
    """A page with everything that it asked for or complained about."""

    def __init__(self, browser: Any, path: Path, **options: Any):
        self.page = browser.new_context(**options).new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(path.as_uri())

    def background(self) -> int:
        """How bright the page's ground is, 0 to 3 * 255."""
        colour = self.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")[:3])

    def shown(self) -> list[dict[str, str]]:
        """The data attributes of the samples that can be seen, with the text of their summaries."""
        read = (
            "all => all.filter((one) => one.checkVisibility()).map((one) => ({...one.dataset, summary: one.innerText}))"
        )
        return list(self.page.locator("details.sample").evaluate_all(read))


@pytest.mark.parametrize("name", ["report", "comparison"])
def test_opens_without_a_complaint_and_asks_for_nothing(browser: Any, pages: dict[str, Path], name: str) -> None:
    opened = Opened(browser, pages[name])
    opened.page.locator("button#theme").click()
    for select in opened.page.locator("select").all():
        select.select_option(index=1)
    assert opened.complaints == []
    requests = [url for url in opened.requests if not url.startswith("data:")]
    assert requests == [pages[name].as_uri()]


def test_not_even_code_in_the_page_gets_a_request_out(browser: Any, pages: dict[str, Path]) -> None:
    hits: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hits.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    ask = """async (url) => {
        const image = new Image();
        const end = new Promise((done) => { image.onload = image.onerror = done; });
        image.src = url + "/image";
        await end;
        await fetch(url + "/fetch", {mode: "no-cors"}).catch(() => null);
    }"""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        Opened(browser, pages["report"]).page.evaluate(ask, url)
        assert hits == []
        # The same code in a page without the policy is heard: the check above can fail.
        bare = browser.new_context().new_page()
        bare.goto(f"{url}/bare")
        bare.evaluate(ask, url)
        assert "/image" in hits
        server.shutdown()


def test_injected_code_does_not_run(browser: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    injected = pages["report"].read_text().replace("<main>", '<main><script>document.title = "taken over"</script>', 1)
    path = tmp_path / "injected.html"
    path.write_text(injected)
    opened = Opened(browser, path)
    assert "taken over" not in opened.page.title()
    assert any("Content Security Policy" in text for text in opened.complaints)


def test_risky_text_is_hidden_until_it_is_asked_for(browser: Any, pages: dict[str, Path]) -> None:
    page = Opened(browser, pages["report"]).page
    seen = page.locator("body").inner_text()
    assert not [mark for mark in MARKS if mark in seen]
    assert not [image for image in page.locator("img").all() if image.is_visible()]

    first = page.locator("details.sample").filter(has_text="evaluation").filter(has_text="OBSERVATION-MARK").first
    first.locator("summary").first.click()
    text = first.inner_text()
    assert all(mark in text for mark in MARKS)
    assert first.locator("img").is_visible()
    assert '"verdict"' not in text
    first.get_by_text("raw judgement").first.click()
    assert '"verdict"' in first.inner_text()
    others = [one for one in page.locator("details.sample").all() if one.get_attribute("open") is None]
    assert len(others) == page.locator("details.sample").count() - 1

    first.locator("summary").first.click()
    assert "PROMPT-MARK" not in page.locator("body").inner_text()


def test_filters_leave_what_was_asked_for(browser: Any, pages: dict[str, Path]) -> None:
    opened = Opened(browser, pages["report"])
    page = opened.page
    everything = opened.shown()
    assert len(everything) == page.locator("details.sample").count() > 30
    filters = page.locator("select").evaluate_all(
        "all => all.map((one) => [one.name, [...one.options].map((option) => option.value).slice(1)])"
    )
    assert [name for name, _ in filters] == ["stage", "category", "verdict", "disagreement"]
    for name, values in filters:
        assert values
        for value in values:
            page.select_option(f"select[name={name}]", value)
            expected = [one for one in everything if value in one[name].split("|")]
            assert opened.shown() == expected != []
            assert page.locator("#shown").inner_text() == str(len(expected))
        page.select_option(f"select[name={name}]", "")
    assert opened.shown() == everything

    page.select_option("select[name=stage]", "evaluation: held_out")
    page.select_option("select[name=disagreement]", "label")
    both = opened.shown()
    assert 0 < len(both) < len(everything)
    for one in both:
        assert "evaluation: held_out" in one["summary"]
        assert DISAGREEMENTS["label"] in one["summary"]
    page.select_option("select[name=verdict]", "refuses")
    assert [one for one in both if "refuses" in one["verdict"].split("|")] == opened.shown()
    page.select_option("select[name=stage]", "demonstrations")
    assert opened.shown() == []


@pytest.mark.parametrize("name", ["report", "comparison"])
def test_a_phone_never_scrolls_sideways(browser: Any, pages: dict[str, Path], name: str) -> None:
    page = Opened(browser, pages[name], viewport=PHONE, is_mobile=True, device_scale_factor=2).page
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert page.evaluate("window.innerWidth") == PHONE["width"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_changes_on_benchmarks_are_read_on_a_phone(browser: Any, pages: dict[str, Path], scheme: str) -> None:
    page = Opened(browser, pages["report"], viewport=PHONE, is_mobile=True, color_scheme=scheme).page
    changes = page.locator("ul.differences li")
    assert changes.count() == 6
    fits = changes.evaluate_all("all => all.map((one) => one.scrollWidth <= one.clientWidth)")
    assert all(fits)
    for change in changes.all():
        drawn = change.locator("svg").bounding_box()
        assert drawn["x"] >= 0
        assert drawn["x"] + drawn["width"] <= PHONE["width"]
        assert drawn["width"] > 200
    colours = [
        page.locator(f"svg.change.{kind}").first.evaluate("one => getComputedStyle(one).color")
        for kind in ("taken", "refused", "none")
    ]
    assert len(set(colours)) == 3


@pytest.mark.parametrize("name", ["report", "comparison"])
def test_light_and_dark_by_the_system_and_by_the_switch(browser: Any, pages: dict[str, Path], name: str) -> None:
    for scheme in ("light", "dark"):
        opened = Opened(browser, pages[name], color_scheme=scheme)
        dark = scheme == "dark"
        assert (opened.background() < 200) == dark
        opened.page.locator("button#theme").click()
        assert (opened.background() < 200) != dark
        opened.page.locator("button#theme").click()
        assert (opened.background() < 200) == dark


def test_without_its_script_the_page_still_shows_everything(browser: Any, pages: dict[str, Path]) -> None:
    opened = Opened(browser, pages["report"], java_script_enabled=False)
    page = opened.page
    assert not page.locator(".filters").is_visible()
    assert not page.locator("button#theme").is_visible()
    assert "PROMPT-MARK" not in page.locator("main").inner_text()
    page.locator("details.sample summary").first.click()
    assert "PROMPT-MARK" in page.locator("main").inner_text()
