"""The readers on mild rows of our own in the published form of each set, for the sets whose files are not at hand.

The forms are those that the sets' own repositories, cards and loaders document; what only the whole set would show (a row
unlike the others) is not tested here. Each is read twice, from a disk and from an object store.
"""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dream_ray.config import ConfigError, ImageConfig, SourceConfig
from dream_ray.records import Prompt, Risk, RiskOrigin, Split, from_row
from dream_ray.sources.format import LETTER_ONLY
from dream_ray.sources.ingest import Ingest, raw_table
from dream_ray.sources.raw import BadRow, RawPrompt, Row
from dream_ray.sources.registry import read
from dream_ray.taxonomy import Category
from tests.object_store import object_store


def picture(colour: str = "teal") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 6), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(content), path)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


Uri = Callable[[Path], str]
Read = Callable[..., list[Any]]


@pytest.fixture(params=["disk", "object store"], autouse=True)
def uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Uri]:
    """The address of a path: itself, or its place in a bucket that holds what the test has written so far."""
    if request.param == "disk":
        yield str
        return
    with object_store(monkeypatch) as store:

        def uploaded(path: Path) -> str:
            store.objects.clear()
            store.upload(tmp_path, f"bucket{tmp_path}")
            return f"s3://bucket{path}"

        yield uploaded
        assert store.requests


@pytest.fixture
def rows(uri: Uri) -> Read:
    def read_all(form: str, path: Path, **settings: object) -> list[Row]:
        settings = {name: uri(value) if isinstance(value, Path) else value for name, value in settings.items()}
        return list(read(SourceConfig.model_validate({"format": form, "path": uri(path), **settings})))

    return read_all


@pytest.fixture
def prompts(rows: Read) -> Read:
    def read_good(form: str, path: Path, **settings: object) -> list[RawPrompt]:
        found = rows(form, path, **settings)
        assert not [row for row in found if isinstance(row, BadRow)]
        return [row for row in found if isinstance(row, RawPrompt)]

    return read_good


def opened(found: list[RawPrompt], tmp_path: Path) -> list[Prompt]:
    """All pictures really read."""
    outcomes = Ingest(ImageConfig(), str(tmp_path / "store"))(raw_table(found)).to_pylist()
    return [from_row(Prompt, row["record"]) for row in outcomes]


def test_llava_keeps_conversations_whole(tmp_path: Path, rows: Read) -> None:
    write(tmp_path / "img" / "a.png", picture())
    talk = [
        {"from": "human", "value": "<image>\nWhat is this?"},
        {"from": "gpt", "value": "A teal square."},
        {"from": "human", "value": "And its colour?"},
        {"from": "gpt", "value": "Teal."},
    ]
    path = write(tmp_path / "mix.json", [
        {"id": "1", "image": "a.png", "conversations": talk},
        {"id": "2", "conversations": [{"from": "human", "value": "Hello"}]},
        {"id": "3", "image": ["a.png", "a.png"], "conversations": talk},
        {"id": "4", "conversations": talk},
        {"id": "5", "conversations": [{"from": "gpt", "value": "Hm"}]},
    ])  # fmt: skip
    found = rows("llava", path, image_folder=tmp_path / "img")
    first, second = (row for row in found if isinstance(row, RawPrompt))
    assert [turn.role for turn in first.turns] == ["user", "assistant", "user"]
    assert (first.turns[0].text, first.reference_answer) == ("What is this?", "Teal.")
    assert (second.turns[0].images, second.reference_answer) == ((), None)
    assert opened([first], tmp_path)[0].images[0].width == 6
    assert [row.reason for row in found if isinstance(row, BadRow)] == ["image_count", "image_count", "no_question"]


def test_vlguard_test_set_is_held_out(tmp_path: Path, prompts: Read) -> None:
    write(tmp_path / "test" / "HOD" / "1.png", picture())
    write(tmp_path / "test.json", [
        {"id": "a", "image": "HOD/1.png", "safe": True, "instr-resp": [
            {"safe_instruction": "What is shown?", "response": "A square."},
            {"unsafe_instruction": "Tell me who lives here.", "response": "I cannot."}]},
        {"id": "b", "image": "HOD/1.png", "safe": False, "harmful_category": "privacy",
         "harmful_subcategory": "personal data", "instr-resp": [{"instruction": "Read it out.", "response": "No."}]},
    ])  # fmt: skip
    found = prompts("vlguard", tmp_path)
    assert [row.subset for row in found] == ["safe_safes", "safe_unsafes", "unsafes"]
    assert [row.risk_origin for row in found] == [None, RiskOrigin.TEXT, RiskOrigin.IMAGE]
    assert (found[0].twin_id, found[1].twin_id) == (found[1].source_id, found[0].source_id)
    assert {row.split for row in found} == {Split.HELD_OUT}
    assert len(opened(found, tmp_path)) == 3


def test_spa_vl_with_pictures_inside(tmp_path: Path, prompts: Read) -> None:
    row = {"image": {"bytes": picture(), "path": "1.jpg"}, "question": "What now?", "chosen": "Take care.",
           "rejected": "No idea.", "class1": "Representation & Toxicity Harms", "class2": "Unfair Representation",
           "class3": "Racism"}  # fmt: skip
    write(tmp_path / "data" / "train-00000-of-00001.parquet", [row, row])
    write(tmp_path / "validation" / "validation-00000-of-00001.parquet", [row])
    asked = {name: cell for name, cell in row.items() if name not in ("chosen", "rejected")}
    for kind in ("harm", "help"):
        write(tmp_path / "test" / f"{kind}-00000-of-00001.parquet", [asked])
    found = prompts("spa_vl", tmp_path)
    assert [(row.subset, row.split, row.risk) for row in found] == [
        ("train", Split.TRAIN, None), ("train", Split.TRAIN, None), ("harm", Split.HELD_OUT, Risk.RISKY),
        ("help", Split.HELD_OUT, Risk.BENIGN), ("validation", Split.DEV, None),
    ]  # fmt: skip
    assert len({row.source_id for row in found}) == 5
    assert (found[0].category, found[0].reference_answer) == (Category.DISCRIMINATION, "Take care.")
    assert opened(found, tmp_path)[0].images[0].height == 6


def test_beavertails_v_in_both_schemas(tmp_path: Path, prompts: Read, rows: Read) -> None:
    shared = {"question": "What now?", "image": {"bytes": picture(), "path": None}, "category": "privacy_violation",
              "image_severity": 1}  # fmt: skip
    rated = shared | {
        "response_1": "Tell all.", "response_2": "Keep it private.", "response_1_from": "x", "response_2_from": "y",
        "more_helpful_response_id": "1", "is_response_1_safe": "no", "is_response_2_safe": "yes",
        "safer_response_id": "2", "response_1_harmless_rate": -2, "response_2_harmless_rate": 3,
    }  # fmt: skip
    write(tmp_path / "privacy_violation" / "train-0.parquet", [rated, rated | {"is_response_2_safe": "no"}])
    write(tmp_path / "privacy_violation" / "evaluation-0.parquet", [rated])
    found = prompts("beavertails_v", tmp_path)
    assert [(row.split, row.reference_answer) for row in found] == [
        (Split.HELD_OUT, "Keep it private."), (Split.TRAIN, "Keep it private."), (Split.TRAIN, None),
    ]  # fmt: skip
    assert {row.category for row in found} == {Category.PRIVACY}
    assert len({row.source_id for row in found}) == 3
    single = write(tmp_path / "other" / "train.parquet", [shared | {"response": "Be kind.", "is_response_safe": "yes"}])
    assert [row.reference_answer for row in prompts("beavertails_v", single)] == ["Be kind."]
    neither = write(tmp_path / "neither.parquet", [shared])
    assert [row.reason for row in rows("beavertails_v", neither) if isinstance(row, BadRow)] == ["bad_row"]


def test_siuo_multiple_choice(tmp_path: Path, prompts: Read) -> None:
    write(tmp_path / "images" / "S-01.png", picture())
    write(tmp_path / "siuo_mcqa.json", [
        {"question_id": 1001, "image": "S-01.png", "question": "May I step out here?", "category": "self-harm",
         "options": {"B": "Step back.", "A": "Go on."}, "correct_option": "B"}])  # fmt: skip
    (found,) = opened(prompts("siuo", tmp_path), tmp_path)
    assert found.text == f"May I step out here?\nA. Go on.\nB. Step back.\n{LETTER_ONLY}"
    assert (found.options, found.correct_option, found.subset) == (("Go on.", "Step back."), "B", "mcqa")


def test_figstep_repository_layout(tmp_path: Path, prompts: Read) -> None:
    write(tmp_path / "data/question/safebench.csv",
          "dataset,category_id,task_id,category_name,question,instruction\nForbidQI,8,3,Legal Opinion,q,i\n")  # fmt: skip
    write(tmp_path / "data/images/SafeBench/query_ForbidQI_8_3_6.png", picture())
    (found,) = opened(prompts("figstep", tmp_path), tmp_path)
    assert (found.source_id, found.subset, found.category) == ("8_3", "SafeBench", Category.PROFESSIONAL_ADVICE)


def test_mm_safetybench_pairs_texts_with_their_pictures(tmp_path: Path, prompts: Read) -> None:
    write(tmp_path / "processed_questions" / "07-Sex.json", {
        "0": {"Question": "q", "GPT-Pred": "p", "Changed Question": "c", "Key Phrase": "k", "Phrase Type": "t",
              "Rephrased Question": "About the phrase?", "Rephrased Question(SD)": "About the scene?"}})  # fmt: skip
    for kind in ("SD", "SD_TYPO", "TYPO"):
        write(tmp_path / "imgs" / "07-Sex" / kind / "0.jpg", picture())
    found = prompts("mm_safetybench", tmp_path)
    assert {row.subset: row.turns[0].text for row in found} == {
        "SD": "About the scene?", "SD_TYPO": "About the phrase?", "TYPO": "About the phrase?",
    }  # fmt: skip
    assert {(row.group, row.category) for row in found} == {("07-Sex", Category.SEXUAL_CONTENT)}
    assert len(opened(found, tmp_path)) == 3
    assert [row.subset for row in prompts("mm_safetybench", tmp_path, subsets=["TYPO"])] == ["TYPO"]


def test_mssbench_makes_twins_of_safe_and_unsafe_pictures(tmp_path: Path, prompts: Read) -> None:
    for name in ("chat/s.jpg", "chat/u.jpg", "embodied/s.png", "embodied/u.png"):
        write(tmp_path / name, picture())
    write(tmp_path / "combined.json", {
        "chat": [{"safe_image_path": "s.jpg", "unsafe_image_path": "u.jpg", "intent": "practice a swing",
                  "unsafe_image": "a china shop", "Type": "property damage",
                  "queries": ["How do I swing further?", "How do I hold the bat?"]}],
        "embodied": [{"task": "t", "category": "place", "safe": "s.png", "unsafe": "u.png",
                      "safe_instruction": "Put the vase on the table.", "unsafe_instruction": "Put the vase on the stove.",
                      "safe_instructions": ["Put the vase on the table."],
                      "unsafe_instructions": ["Put the vase on the stove."],
                      "observation_safe": "", "observation_unsafe": ""}]})  # fmt: skip
    found = prompts("mssbench", tmp_path)
    assert [row.subset for row in found] == ["chat"] * 4 + ["embodied"] * 2
    by_id = {row.source_id: row for row in found}
    assert all(by_id[str(row.twin_id)].risk != row.risk for row in found)
    assert by_id["chat-0-1-unsafe"].turns[0].images[0].uri.endswith("chat/u.jpg")
    said = by_id["embodied-0-0-unsafe"].turns[0].text
    assert said.startswith("You are a robot")
    assert said.endswith("\n\nPut the vase on the stove.")
    chat = {row.turns[0].text for row in found if row.source_id.startswith("chat-0-1")}
    assert len(chat) == 1  # only the picture tells the twins apart
    assert chat.pop().startswith("The picture is what you see around you")
    assert len(opened(found, tmp_path)) == 6


def test_mossbench_with_its_counterparts(tmp_path: Path, prompts: Read) -> None:
    row = {"image": "images/1.png", "short description": "toys", "description": "toys", "pid": "1",
           "question": "Describe a game with these toys.",
           "metadata": {"over": "type 1", "human": 0, "child": 1, "syn": 1, "ocr": 0, "harm": [3]}}  # fmt: skip
    for folder in ("data", "data_contrast"):
        write(tmp_path / folder / "images_information" / "information.json", {"1": row})
        buffer = io.BytesIO()
        Image.new("RGB", (5, 5)).save(buffer, "WEBP")
        write(tmp_path / folder / "images" / "1.png", buffer.getvalue())
    found = prompts("mossbench", tmp_path)
    assert found == prompts("mossbench", tmp_path, image_folder=tmp_path)
    assert "data_contrast" in found[1].turns[0].images[0].uri
    assert ".." not in found[0].turns[0].images[0].uri
    assert [(row.subset, row.risk, row.group) for row in found] == [
        ("over", Risk.BENIGN, "type 1"), ("contrast", Risk.RISKY, "type 1"),
    ]  # fmt: skip
    assert len(opened(found, tmp_path)) == 2


def test_jailbreakv(tmp_path: Path, prompts: Read) -> None:
    head = "id,jailbreak_query,redteam_query,format,policy,image_path,from,selected_mini,transfer_from_llm\n"
    write(tmp_path / "mini_JailBreakV_28K.csv", head
          + '0,"A long, odd text.",q,Template,Privacy Violation,llm_transfer_attack/nature_1.png,x,True,True\n'
          + "1,See the picture.,q,figstep,Fraud,figstep/figstep_1.png,x,True,False\n")  # fmt: skip
    write(tmp_path / "llm_transfer_attack" / "nature_1.png", picture())
    write(tmp_path / "figstep" / "figstep_1.png", picture())
    found = prompts("jailbreakv", tmp_path)
    assert [(row.subset, row.risk_origin) for row in found] == [
        ("Template", RiskOrigin.TEXT), ("figstep", RiskOrigin.IMAGE),
    ]  # fmt: skip
    assert len(opened(found, tmp_path)) == 2


@pytest.mark.parametrize("packed", [None, json.dumps, str], ids=["list", "json string", "python string"])
def test_safemt_dialogues_stay_whole(tmp_path: Path, packed: Any, prompts: Read, rows: Read) -> None:
    talk = [{"role": "user", "content": "Where is this?"}, {"role": "assistant", "content": "At the sea."},
            {"role": "user", "content": "Who's there, \"today\"?"}]  # fmt: skip
    write(tmp_path / "images" / "fraud" / "fraud_1.jpg", picture())
    name, key = ("2_turn.json", "image_path") if packed is None else ("2_turn.json", "image_rel_path")
    write(tmp_path / name, [{"id": "mllm_fraud_1", "scenario": "Fraud", key: "images/fraud/fraud_1.jpg",
                             "dialogue": talk if packed is None else packed(talk), "question": "q"}])  # fmt: skip
    (found,) = opened(prompts("safemt", tmp_path), tmp_path)
    assert (found.source_id, found.subset, found.text) == ("2_turn/mllm_fraud_1", "2_turn", 'Who\'s there, "today"?')
    assert [len(turn.images) for turn in found.turns] == [1, 0, 0]
    write(tmp_path / name, [{"id": "1", "scenario": "Fraud", "dialogue": "no list"},
                            {"id": "2", "scenario": "Fraud", "dialogue": talk[:2]}])  # fmt: skip
    assert [row.reason for row in rows("safemt", tmp_path) if isinstance(row, BadRow)] == ["bad_row", "bad_row"]


def test_mmstar_options_are_read_from_the_question(tmp_path: Path, prompts: Read) -> None:
    question = "What colour is it?\nOptions: A: Red, or pink, B: Teal, C: Grey, D: None of them"
    write(tmp_path / "mmstar.parquet", [
        {"index": 0, "question": question, "image": picture(), "answer": "B", "category": "coarse perception",
         "l2_category": "image style", "meta_info": {"source": "x"}}])  # fmt: skip
    (found,) = opened(prompts("mmstar", tmp_path), tmp_path)
    assert (found.options, found.correct_option) == (("Red, or pink", "Teal", "Grey", "None of them"), "B")
    assert (found.text, found.risk) == (f"{question}\n{LETTER_ONLY}", Risk.BENIGN)


def test_a_folder_of_another_set_is_refused(tmp_path: Path, rows: Read) -> None:
    with pytest.raises(ConfigError, match=r"holds none of combined\.json"):
        rows("mssbench", tmp_path)
    with pytest.raises(ConfigError, match="is not there"):
        rows("mssbench", tmp_path / "nowhere")
