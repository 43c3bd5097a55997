"""The report: what it says, that it needs nothing from outside, that nothing risky is seen before a click."""

import base64
import dataclasses
import hashlib
import io
import random
import re
from html.parser import HTMLParser

import pytest
from PIL import Image as Pixels

from dream_ray.evaluate.metrics import share_metric
from dream_ray.evaluate.page import MAX_TEXT
from dream_ray.evaluate.paired import Comparison, paired_bootstrap
from dream_ray.evaluate.report import MAX_BYTES, ChatRow, ReportData, StageRow, build_report
from dream_ray.records import Metric, Risk, Turn
from tests.evaluate.conftest import png, sample

VOID = {"meta", "img", "br", "link"}
LOADERS = {"src", "href", "srcset", "action", "data", "poster", "background", "xlink:href"}


class Page(HTMLParser):
    """The page's elements, and its text inside and outside of <details> (a <summary> is outside: it shows at once)."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.hidden: list[str] = []
        self.visible: list[str] = []
        self.images_outside = 0
        self.feed(page)
        self.close()

    @property
    def concealed(self) -> bool:
        return "details" in self.open and "summary" not in self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.images_outside += tag == "img" and not self.concealed
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and "script" not in self.open:
            (self.hidden if self.concealed else self.visible).append(data)

    def text(self, concealed: bool) -> str:
        return " ".join(" ".join(self.hidden if concealed else self.visible).split())


HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)></details></div>{{ 7 * 7 }}'


def hostile(data: ReportData) -> ReportData:
    """The same run with markup in every string that somebody else may have written."""
    base = sample(text=HOSTILE, chosen=HOSTILE, rejected=HOSTILE)
    observations = tuple(dataclasses.replace(item, content=HOSTILE) for item in base.observations)
    stage = dataclasses.replace(data.stages[0], key=HOSTILE, failures={HOSTILE: 1})
    return dataclasses.replace(
        data,
        run_name=HOSTILE,
        config_digest=HOSTILE,
        chats=(ChatRow(HOSTILE, "openai", HOSTILE),),
        rounds=tuple(dataclasses.replace(row, reason=HOSTILE) for row in data.rounds),
        stages=(stage,),
        samples=(dataclasses.replace(base, observations=observations),),
        student=HOSTILE,
        counts={HOSTILE: 1},
        caveats=(HOSTILE,),
    )


def test_the_page_is_well_formed_and_says_the_result(report_data: ReportData) -> None:
    page = Page(build_report(report_data))
    assert page.open == []
    text = page.text(concealed=False)
    for expected in (
        "The run ends with the policy policy-1 . 1 of 2 rounds was taken.",
        "Teacher and judge: rules, not a model.",
        "✓ taken",
        "✕ refused",
        "refused: the dev gap went from +0.65 to +0.35.",
        "safe 87%",
        "One seed.",
        "9f2c41d07be3",
        "image_broken",
        "4.7 GiB",
    ):
        assert expected in text


def test_the_notice_about_rules_is_only_there_for_rules(report_data: ReportData) -> None:
    model = dataclasses.replace(report_data, chats=(ChatRow("judge", "openai", "some-model"),))
    assert "rules, not a model" not in build_report(model)
    assert "some-model" in build_report(model)


def test_markup_in_any_text_stays_text(report_data: ReportData) -> None:
    html = build_report(hostile(report_data))
    page = Page(html)
    assert page.open == []
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert html.lower().count("<script") == 1
    assert "&lt;script&gt;" in html
    assert HOSTILE in page.text(concealed=True)


def test_nothing_is_fetched_from_elsewhere(report_data: ReportData) -> None:
    html = build_report(report_data)
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html
    assert "@import" not in html
    page = Page(html)
    loaded = [
        (tag, value) for tag, attributes in page.elements for name, value in attributes.items() if name in LOADERS
    ]
    assert loaded
    assert loaded.pop(0) == ("link", "data:,")  # no icon, or the browser would ask for one
    assert loaded
    assert all(tag == "img" and (value or "").startswith("data:image/jpeg;base64,") for tag, value in loaded)
    policies = [item["content"] for tag, item in page.elements if tag == "meta" and "http-equiv" in item]
    assert len(policies) == 1
    assert (policies[0] or "").startswith("default-src 'none'; img-src data:;")
    script = html.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in (policies[0] or "")


def test_a_link_in_an_answer_is_no_resource(report_data: ReportData) -> None:
    linked = dataclasses.replace(report_data, samples=(sample(chosen="see https://example.org/help"),))
    page = Page(build_report(linked))
    assert "see https://example.org/help" in page.text(concealed=True)
    assert not [tag for tag, _ in page.elements if tag in ("a", "iframe", "object")]


def test_nothing_of_a_pair_is_seen_before_a_click(report_data: ReportData) -> None:
    one = sample(text="PROMPT-TEXT", chosen="CHOSEN-TEXT", rejected="REJECTED-TEXT")
    page = Page(build_report(dataclasses.replace(report_data, samples=(one,))))
    secrets = ("PROMPT-TEXT", "CHOSEN-TEXT", "REJECTED-TEXT", one.observations[0].content)
    for secret in secrets:
        assert secret in page.text(concealed=True)
        assert secret not in page.text(concealed=False)
    assert page.images_outside == 0
    assert "Content warning" in page.text(concealed=False)
    details = [attributes for tag, attributes in page.elements if tag == "details"]
    assert details
    assert all("open" not in attributes for attributes in details)
    attribute_text = " ".join(str(value) for _, attributes in page.elements for value in attributes.values())
    assert not [secret for secret in secrets if secret in attribute_text]


def test_pictures_are_small_and_a_broken_one_is_named(report_data: ReportData) -> None:
    pair = dataclasses.replace(sample(), images=(png(900, 300), b"not a picture"))
    page = Page(build_report(dataclasses.replace(report_data, samples=(pair,))))
    sources = [attributes["src"] for tag, attributes in page.elements if tag == "img"]
    assert len(sources) == 1
    with Pixels.open(io.BytesIO(base64.b64decode((sources[0] or "").partition(",")[2]))) as picture:
        assert picture.size == (256, 85)
    assert "could not be shown: image_unknown_format" in page.text(concealed=True)


def test_every_turn_of_a_dialogue_is_shown(report_data: ReportData) -> None:
    pair = sample()
    turns = (Turn("user", "FIRST", ()), Turn("assistant", "SECOND", ()), Turn("user", "THIRD", ()))
    pair = dataclasses.replace(pair, images=(), prompt=dataclasses.replace(pair.prompt, turns=turns))
    text = Page(build_report(dataclasses.replace(report_data, samples=(pair,)))).text(concealed=True)
    assert "user FIRST assistant SECOND user THIRD" in text


def test_the_page_stays_small_whatever_it_is_given(report_data: ReportData) -> None:
    noise = random.Random(0)
    pixels = Pixels.frombytes("RGB", (256, 256), noise.randbytes(256 * 256 * 3))
    buffer = io.BytesIO()
    pixels.save(buffer, format="PNG")
    pair = dataclasses.replace(sample(text="<" * 50_000), images=(buffer.getvalue(),) * 6)
    html = build_report(dataclasses.replace(report_data, samples=(pair,) * 40))
    assert len(html.encode()) <= MAX_BYTES
    shown = html.count('<details class="sample"')
    assert shown > 0
    assert f"{40 - shown} more were left out" in html
    stated = re.search(r"This page is about ([\d.]+) MB", html)
    assert stated is not None
    assert float(stated[1]) == pytest.approx(len(html.encode()) / 1e6, abs=0.1)
    assert f"(cut here, {50_000 - MAX_TEXT} more characters)" in html


def test_payments_of_one_pass_are_counted_once(report_data: ReportData) -> None:
    paid = [
        dataclasses.replace(row, cached_tokens=64, cost_usd=2.0, paid_usd=1.25) if row.passed_with else row
        for row in report_data.stages
    ]
    text = Page(build_report(dataclasses.replace(report_data, stages=tuple(paid)))).text(concealed=False)
    assert "all stages 6 9,600 128 41,000 $4.00 $1.25" in text


def test_stages_of_one_pass_share_their_seconds(report_data: ReportData) -> None:
    text = Page(build_report(report_data)).text(concealed=False)
    assert "same pass as round-1/rollout" in text
    assert "all stages 6 9,600 0 41,000 $0.00 $0.00 10 min 00 s" in text  # 3.2 + 215 + 260 + 122, the 260 once
    assert "43%" in text  # 260 of 600.2 seconds


def test_memory_has_a_column_only_where_it_was_measured(report_data: ReportData) -> None:
    bare = tuple(dataclasses.replace(row, peak_memory_bytes=None) for row in report_data.stages)
    assert "peak memory" not in build_report(dataclasses.replace(report_data, stages=bare))
    assert "peak memory" in build_report(report_data)


def test_gpu_time_has_columns_only_where_gpus_were_held(report_data: ReportData) -> None:
    assert "GPU time" not in build_report(report_data)
    held = {"round-1/rollout": (7200.0, 360.0), "round-1/judge": (7200.0, 360.0), "sft": (100.0, 50.0)}
    rows = tuple(
        dataclasses.replace(row, gpu_held_s=held[row.key][0], gpu_idle_s=held[row.key][1]) if row.key in held else row
        for row in report_data.stages
    )
    text = Page(build_report(dataclasses.replace(report_data, stages=rows))).text(concealed=False)
    assert "2 h 00 min 6 min 00 s 5%" in text
    assert "1 min 40 s 50.0 s 50%" in text
    assert "2 h 01 min 6 min 50 s 6%" in text  # the pass of rollout and judge once
    assert "\N{EN DASH} \N{EN DASH}" in text  # a stage without GPUs


def test_a_run_without_rounds_pairs_and_caveats_has_no_empty_sections(report_data: ReportData) -> None:
    metrics = tuple(row for row in report_data.metrics if row.policy in ("base", "policy-0"))
    stage = StageRow("ingest", 0, 0, 0, {}, 0, 0, 0.0, 0.0, (), None)
    data = dataclasses.replace(
        report_data,
        standing="policy-0",
        rounds=(),
        metrics=metrics,
        samples=(),
        caveats=(),
        stages=(stage,),
        distributions=(),
        counts={},
    )
    page = Page(build_report(data))
    assert page.open == []
    text = page.text(concealed=False)
    assert "No round of preference optimisation was run." in text
    for section in ("Samples", "What this run cannot tell", "Chosen and rejected", "Data ", "Benchmarks"):
        assert section not in text


def test_a_benign_sample_says_so(report_data: ReportData) -> None:
    one = sample()
    one = dataclasses.replace(one, observations=(), prompt=dataclasses.replace(one.prompt, risk=Risk.BENIGN))
    page = Page(build_report(dataclasses.replace(report_data, samples=(one,))))
    assert "benign prompt" in page.text(concealed=False)
    assert "the teacher found nothing risky" in page.text(concealed=True)


def test_numbers_of_benchmarks_have_their_own_table(report_data: ReportData) -> None:
    rows = [
        Metric("policy-1", "siuo", "safe", "all", 0.5, 10, 0.2, 0.8, 0),
        Metric("base", "dev", "asr", "all", None, 0, None, None, 3),
    ]
    data = dataclasses.replace(report_data, metrics=(*report_data.metrics, *rows))
    text = Page(build_report(data)).text(concealed=False)
    assert "Benchmarks" in text
    assert "siuo number policy-1 safe 50%" in text
    assert "dev number base asr \N{EN DASH} n 0, 3 unjudged" in text
    assert "McNemar" not in text  # nothing was compared


def test_changes_on_benchmarks_stand_with_their_interval_and_the_failures_of_the_judge(report_data: ReportData) -> None:
    before = {str(index): index < 40 for index in range(50)}
    after = {str(index): None if index > 47 else index < 10 for index in range(50)}
    doubtful = after | {"49": False, "0": False}
    values = {"base": before, "policy-0": after, "policy-1": doubtful}
    rows = [
        share_metric(policy, "xstest", "asr_hard", label, list(found.values()))
        for policy, found in values.items()
        for label in ("all", "puns")
    ]
    rows += [
        share_metric(policy, "xstest", "judge_failures", "all", [value is None for value in found.values()])
        for policy, found in values.items()
    ]
    comparisons = tuple(
        Comparison(old, new, "xstest", "asr_hard", wants_high, paired_bootstrap(values[old], values[new], 0))
        for old, new, wants_high in (
            ("base", "policy-0", False),
            ("base", "policy-1", True),
            ("policy-0", "policy-1", False),
        )
    )
    comparisons += (Comparison("base", "policy-1", "xstest", "asr_soft", False, paired_bootstrap({}, {"0": True}, 0)),)
    data = dataclasses.replace(report_data, metrics=(*report_data.metrics, *rows), comparisons=comparisons)
    html = build_report(data)
    page = Page(html)
    assert page.open == []
    text = page.text(concealed=False)
    assert "policy-0 judge failed on 4% of 50 answers policy-1 judge failed on 2% of 50 answers" in text
    assert "asr_hard 80% 67\N{EN DASH}89, n 50 21%" in text
    assert "n 48, 2 unjudged (4%)" in text
    low, high = (100 * (end or 0) for end in (comparisons[0].difference.low, comparisons[0].difference.high))
    assert low < high < 0
    changed = f"-62 points ✓ better {low:+.0f} to {high:+.0f}; of 48 prompts 0 up, 30 down; 2 left out"
    assert f"base → policy-0 asr_hard {changed}" in text
    assert "base → policy-1 asr_hard -63 points ✕ worse" in text
    assert "asr_soft no prompt has a verdict for both" in text
    assert "policy-0 → policy-1 asr_hard -2 points no clear change" in text
    assert "puns asr_hard" in page.text(concealed=True)
    assert "puns asr_hard" not in text
    marks = [float(item["cx"] or 0) for tag, item in page.elements if tag == "circle" and item.get("r") == "3.5"]
    assert len(marks) == 3
    # From -100 points at 6 to +100 at 234.
    assert marks[0] == pytest.approx(120 - 114 * 30 / 48, abs=0.1)


def test_a_standing_policy_without_metrics_is_an_error(report_data: ReportData) -> None:
    with pytest.raises(ValueError, match="names 'policy-9'"):
        build_report(dataclasses.replace(report_data, standing="policy-9"))
