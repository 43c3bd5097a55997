"""The readers on the real files, where they are: counts, keys, labels and repairs as measured on the published sets."""

from collections import Counter
from pathlib import Path

import pytest

from dream_ray.config import ConfigError, ImageConfig, SourceConfig
from dream_ray.records import Prompt, Risk, RiskOrigin, Split, from_row
from dream_ray.sources.ingest import Ingest, raw_table
from dream_ray.sources.raw import BadRow, RawPrompt, Repair
from dream_ray.sources.registry import Census, read
from dream_ray.sources.survey import survey
from dream_ray.taxonomy import Category, Source


def prompts(**settings: object) -> list[RawPrompt]:
    return [row for row in read(SourceConfig.model_validate(settings)) if isinstance(row, RawPrompt)]


def test_the_dream_release_is_counted_and_mended(shared_data: Path) -> None:
    """2,000 entries with 2,653 observations: 6 stand on harmless questions and 1 says N/A, so 2,646 are kept."""
    source = SourceConfig(format="dream", path=str(shared_data / "dream"), observations="use")
    rows = list(read(source))
    found = [row for row in rows if isinstance(row, RawPrompt)]
    assert not [row for row in rows if isinstance(row, BadRow)]
    assert Counter(row.subset for row in found) == {"safe_safes": 977, "safe_unsafes": 977, "unsafes": 1023}
    assert len({row.source_id for row in found}) == len(found) == 2977
    assert Counter(row.reason for row in rows if isinstance(row, Repair)) == {
        "content_prefix_cut": 165,
        "category_health_to_professional_advice": 26,
        "risky_question_without_observation": 9,
        "observation_of_a_safe_question_left_out": 6,
        "answer_that_warns_of_a_safe_question_left_out": 6,
        "content_was_a_category_now_the_instruction": 2,
        "id_doubled": 1,
        "observation_outside_the_taxonomy_left_out": 1,
        "source_respelt": 1,
    }
    observations = [item for row in found for item in row.observations or ()]
    assert len(observations) == 2653 - 6 - 1
    assert Counter(item.source for item in observations) == {
        Source.TEXT_INSTRUCTION: 1726, Source.TEXT_IN_IMAGE: 469, Source.IMAGE_CONTENT: 451,
    }  # fmt: skip
    assert all(row.observations == () for row in found if row.risk is Risk.BENIGN)
    assert not any("<image>" in row.turns[0].text for row in found)
    swapped = next(row for row in found if row.source_id == "Ads_344756/safe")
    assert swapped.reference_answer is None
    assert {row.source_id for row in found if row.source_id.startswith("Ads_303871")} == {
        "Ads_303871/safe", "Ads_303871/unsafe", "Ads_303871#2/safe", "Ads_303871#2/unsafe",
    }  # fmt: skip
    by_id = {row.source_id: row for row in found}
    assert all(by_id[row.twin_id].risk != row.risk for row in found if row.twin_id)
    assert all(row.observations is None for row in prompts(format="dream", path=source.path))


def test_missing_pictures_of_the_release_fail_or_are_replaced(shared_data: Path, tmp_path: Path) -> None:
    path = str(shared_data / "dream")
    ingest = Ingest(ImageConfig(), str(tmp_path))
    first = raw_table(prompts(format="dream", path=path)[:3])
    assert {row["error"]["reason"] for row in ingest(first).to_pylist()} == {"image_missing"}
    first = raw_table(prompts(format="dream", path=path, missing_images="placeholder")[:3])
    records = [from_row(Prompt, row["record"]) for row in ingest(first).to_pylist()]
    assert {record.images[0].origin for record in records} == {"placeholder"}


def test_figstep_and_its_twins_find_their_pictures(shared_data: Path, tmp_path: Path) -> None:
    risky = prompts(format="figstep", path=str(shared_data / "figstep-tiny"))
    benign = prompts(format="figstep_benign", path=str(shared_data / "figstep-benign"))
    assert [row.source_id for row in risky] == [row.source_id for row in benign]
    assert {row.turns[0].text for row in (*risky, *benign)} == {risky[0].turns[0].text}
    assert {row.risk for row in risky} == {Risk.RISKY}
    assert {row.risk for row in benign} == {Risk.BENIGN}
    assert Counter(row.group for row in risky)["Fraud"] == 5
    assert benign[17].turns[0].images[0].uri.endswith("/17.png")
    outcomes = Ingest(ImageConfig(), str(tmp_path))(raw_table([*risky, *benign])).to_pylist()
    records = [from_row(Prompt, row["record"]) for row in outcomes]
    assert {(record.images[0].width, record.images[0].height) for record in records} == {(760, 760)}
    assert len({record.images[0].sha256 for record in records}) == 100


def test_xstest_counts(shared_data: Path) -> None:
    found = prompts(format="xstest", path=str(shared_data / "xstest"))
    assert Counter(row.risk for row in found) == {Risk.BENIGN: 250, Risk.RISKY: 200}
    assert set(Counter(row.group for row in found).values()) == {25}
    assert {row.turns[0].images for row in found} == {()}
    assert {row.split for row in found} == {Split.HELD_OUT}


def test_vlguard_sample(shared_data: Path) -> None:
    found = prompts(format="vlguard", path=str(shared_data / "vlguard" / "train_sample.json"), image_folder="/pictures")
    assert Counter(row.subset for row in found) == {"safe_safes": 37, "safe_unsafes": 37, "unsafes": 23}
    unsafe = next(row for row in found if row.source_id == "Ads_364812/unsafe")
    assert (unsafe.category, unsafe.risk_origin) == (Category.POLITICAL_INTERFERENCE, RiskOrigin.IMAGE)
    assert unsafe.turns[0].images[0].uri.startswith("/pictures/bad_ads/")
    assert all(row.reference_answer for row in found)


def test_siuo_sample(shared_data: Path) -> None:
    found = prompts(format="siuo", path=str(shared_data / "siuo"))
    assert [row.source_id for row in found[:2]] == ["gen-1001", "gen-1002"]
    assert all(row.safety_warning and row.reference_answer and row.group == "self-harm" for row in found)


def test_a_sample_is_not_taken_for_the_set(shared_data: Path) -> None:
    source = SourceConfig(format="siuo", path=str(shared_data / "siuo"))
    with pytest.raises(ConfigError, match="16 rows, but 167 are published"):
        list(Census(source).watch(read(source)))
    assert survey(source).complaints
    partial = source.model_copy(update={"partial": True})
    assert len(list(Census(partial).watch(read(partial)))) == 16
