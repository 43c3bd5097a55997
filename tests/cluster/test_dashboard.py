"""The dashboard and the alerts: every metric that they name exists, in this project or in the installed Ray."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dream_ray.feedback import measures
from dream_ray.pipeline.measures import NAMES
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "cluster" / "grafana"
OWN = {f"ray_{measures.ITEMS}", f"ray_{measures.SECONDS}_bucket"} | {f"ray_{name}" for name in NAMES}
METRIC = re.compile(r"\b(?:ray|autoscaler)_[a-z0-9_]+\b")


def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
    return content


def alerts() -> list[dict[str, Any]]:
    content = yaml.safe_load((FOLDER / "alerts.yaml").read_text())
    return [rule for group in content["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    panels = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]
    return panels + [rule["expr"] for rule in alerts()]


def names_in_ray() -> set[str]:
    """Every metric that Ray's own dashboards draw."""
    import ray.dashboard.modules.metrics

    folder = Path(ray.dashboard.modules.metrics.__file__).parent / "dashboards"
    return {name for path in folder.glob("*_panels.py") for name in METRIC.findall(path.read_text())}


def test_every_metric_exists() -> None:
    known = OWN | names_in_ray()
    named = {name for expression in expressions() for name in METRIC.findall(expression)}
    assert named
    assert not named - known
    assert named >= OWN


def test_the_page_names_every_metric_of_ours() -> None:
    page = (REPOSITORY / "docs" / "monitoring.md").read_text()
    told = set(METRIC.findall(page))
    assert told >= {name.removesuffix("_bucket") for name in OWN}


def test_expressions_are_promql() -> None:
    parser = pytest.importorskip("promql_parser")
    for expression in expressions():
        parser.parse(expression.replace("$session", ".*").replace("$__range", "1h"))
    with pytest.raises(ValueError, match=r"."):
        parser.parse("sum(rate(ray_tasks[5m])")


def test_panels_have_a_place_each() -> None:
    board = dashboard()
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
    variables = {f"${item['name']}" for item in board["templating"]["list"]}
    assert variables >= set(
        re.findall(r"\$(?!__)\w+", " ".join(target["expr"] for p in panels for target in p.get("targets", ())))
    )


def test_alerts_say_what_happened_and_what_to_do() -> None:
    assert len({rule["alert"] for rule in alerts()}) == len(alerts())
    for rule in alerts():
        assert rule["labels"]["severity"] in {"page", "warn"}
        assert rule["annotations"].keys() == {"summary", "action"}
