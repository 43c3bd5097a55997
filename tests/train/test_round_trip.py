"""What training writes, vLLM serves: for each family, SFT and then DPO, and from the adapter and from the merged model the
greedy answers that transformers gives, from the same tokens.

One family runs by default; DREAM_RAY_FAMILIES=all (or a list of names, tests/families.py) runs the others.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from dream_ray import files
from dream_ray.config import DpoConfig, ImageConfig, LoraConfig, RolloutConfig, SftConfig, StudentConfig
from dream_ray.engine.engine import Engine, Query
from dream_ray.records import Turn
from dream_ray.rollout.sampler import engine_arguments, sampler_arguments
from dream_ray.student import StudentReader
from dream_ray.train import ray_adapter
from dream_ray.train.dpo import build_trainer as build_dpo
from dream_ray.train.dpo import train_dpo
from dream_ray.train.families import check_student
from dream_ray.train.policy import Policy, check_model_folder, merge_adapter
from dream_ray.train.sft import build_trainer as build_sft
from dream_ray.train.sft import train_sft
from tests import families
from tests.train.conftest import QUESTIONS, draw

pytestmark = pytest.mark.slow

TOKENS = 24
LORA = LoraConfig()
TRAINING = {"batch_size": 4, "micro_batch_size": 4, "num_workers": 0}
ROLLOUT = RolloutConfig(dtype="float32", adapters="request")


@pytest.fixture(scope="module", params=families.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    families.needs(request.param)
    return str(request.param)


@pytest.fixture(scope="module")
def student(family: str, tmp_path_factory: pytest.TempPathFactory) -> StudentConfig:
    folder = families.build(family, tmp_path_factory.mktemp("model") / family)
    return StudentConfig(model=str(folder), max_model_len=512, max_pixels=4096)


@pytest.fixture
def sft(family: str) -> SftConfig:
    return SftConfig(epochs=2, learning_rate=families.learning_rate(family), **TRAINING)


@pytest.fixture
def dpo(family: str) -> DpoConfig:
    return DpoConfig(epochs=1, learning_rate=families.learning_rate(family), **TRAINING)


@pytest.fixture
def engine_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in sampler_arguments(ROLLOUT)["runtime_env"]["env_vars"].items():
        monkeypatch.setenv(name, value)


def settings(student: StudentConfig, run_files: dict[str, str], **more: object) -> dict[str, object]:
    given = {name: [uri] for name, uri in run_files.items()}
    return given | {
        "model": student.model, "student": student, "lora": LORA, "images": ImageConfig(), "seed": 0, "skip": (),
    } | more  # fmt: skip


def test_training_reads_the_tokens_that_are_sampled_from(
    student: StudentConfig, sft: SftConfig, dpo: DpoConfig, run_files: dict[str, str], tmp_path: Path
) -> None:
    reader = StudentReader(Path(student.model), student, ImageConfig())
    end = reader.processor.tokenizer.eos_token_id
    more = {
        "dpo": dpo, "start_adapter": None, "reference_adapter": None, "stored": str(tmp_path), "output": str(tmp_path),
        "probes": (),
    }  # fmt: skip
    for build, config in ((build_sft, sft), (build_dpo, dpo)):
        arguments = ray_adapter._arguments(config, tmp_path / "scratch")
        trainer = build(settings(student, run_files, **more), arguments)
        rows = [trainer.train_dataset[index] for index in (0, 3, 7, 11)]  # 11 has no picture
        wanted = [reader.ids(row["prompt"], row["images"]) for row in rows]
        batch = trainer.data_collator(rows)
        answered = batch["completion_mask"].bool() if build is build_dpo else batch["labels"] != -100
        for ids, mask, answer in list(zip(batch["input_ids"], batch["attention_mask"], answered, strict=True))[:4]:
            prompt = tuple(ids[mask.bool() & ~answer].tolist())
            assert prompt == wanted.pop(0)
            assert end in ids[answer].tolist()  # or it would never learn to stop
        assert not wanted
    for turns in ([Turn("user", "?", (draw(tmp_path / "a.png", 7),))], [Turn("user", "What is this?", ())]):
        assert reader.length(turns) == len(reader.ids(reader.prompt(turns), reader.pixels(turns)))


def test_vllm_answers_as_transformers_does(
    student: StudentConfig,
    sft: SftConfig,
    dpo: DpoConfig,
    run_files: dict[str, str],
    tmp_path: Path,
    engine_environment: None,
) -> None:
    check_model_folder(student.model)
    check_student(student, LORA, ROLLOUT)
    common = {"prompts": [run_files["prompts"]], "student": student, "lora": LORA, "images": ImageConfig(), "seed": 0}
    for name in ("sft", "dpo"):
        (tmp_path / name).mkdir()
    learnt = train_sft(demonstrations=[run_files["demonstrations"]], sft=sft, output=str(tmp_path / "sft"), **common)
    start = Policy("policy-0", student.model, learnt.adapter)
    improved = train_dpo(
        pairs=[run_files["pairs"]], start=start, reference=start, dpo=dpo, output=str(tmp_path / "dpo"), **common
    )
    merged = merge_adapter(Policy("policy-1", student.model, improved.adapter), str(tmp_path / "merged"))
    assert (tmp_path / "merged" / "generation_config.json").is_file()

    reader = StudentReader(Path(student.model), student, ImageConfig())
    dialogues = [
        [Turn("user", question, (draw(tmp_path / f"asked-{number}.png", 3 * number),))]
        for number, question in enumerate(QUESTIONS)
    ]
    dialogues.append([Turn("user", QUESTIONS[0], ())])
    wanted = in_transformers(Path(student.model), improved.adapter, reader, dialogues)
    assert in_transformers(Path(merged), None, reader, dialogues) == wanted
    # Equal answers of a model that repeats itself would prove nothing.
    assert len(set(wanted)) == len(wanted)
    assert all(len(set(answer)) > 5 for answer in wanted)

    base, after_sft, adapted = in_vllm(
        student, student.model, [None, learnt.adapter, improved.adapter], reader, dialogues
    )
    assert adapted == wanted
    assert len({tuple(base), tuple(after_sft), tuple(adapted)}) == 3
    assert in_vllm(student, merged, [None], reader, dialogues) == [wanted]


def in_transformers(
    model: Path, adapter: str | None, reader: StudentReader, dialogues: Sequence[Sequence[Turn]]
) -> list[tuple[int, ...]]:
    """Greedy token ids of each answer, in float32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    policy = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()
    if adapter:
        policy = PeftModel.from_pretrained(policy, str(files.as_path(adapter))).eval()
    answers = []
    for turns in dialogues:
        pictures: list[Image.Image] = reader.pixels(turns)
        inputs = reader.processor(
            text=[reader.prompt(turns)],
            images=[pictures] if pictures else None,
            return_tensors="pt",
            add_special_tokens=False,
        )
        output = policy.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        answers.append(tuple(output[0, inputs["input_ids"].shape[1] :].tolist()))
    return answers


def in_vllm(
    student: StudentConfig,
    model: str,
    adapters: Sequence[str | None],
    reader: StudentReader,
    dialogues: Sequence[Sequence[Turn]],
) -> list[list[tuple[int, ...]]]:
    """The same from an engine with each of the adapters. It has to read the tokens that training reads."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    rollout = ROLLOUT if adapters != [None] else ROLLOUT.model_copy(update={"adapters": "merge"})
    engine = Engine(engine_arguments(student, rollout, LORA.rank, model), rollout.engine_timeout_s)
    greedy = SamplingParams(temperature=0, max_tokens=TOKENS, output_kind=RequestOutputKind.FINAL_ONLY)
    answers = []
    for adapter in adapters:
        queries = []
        for turns in dialogues:
            text, pictures = reader.prompt(turns), tuple(reader.pixels(turns))
            queries.append(
                Query(
                    text=text,
                    special_tokens=False,
                    images=pictures,
                    image_keys=tuple(image.sha256 for turn in turns for image in turn.images),
                    params=greedy,
                    max_tokens=TOKENS,
                    adapter=adapter and str(files.as_path(adapter)),
                    expected_ids=reader.ids(text, pictures),
                )
            )
        found = [answer.result() for answer in engine.submit(queries)]
        answers.append([tuple(output.outputs[0].token_ids) for output in found])
    engine.close()
    return answers
