"""Whether a config's trainings and engines fit into memory, and what to change where one does not.

Contract: `examine` reads model folders' small files and returns one `Finding` a training and engine; nothing is loaded, Ray
and torch are not imported. It raises ConfigError for a folder that cannot be read and for a config that uses GPUs whose size
nobody told.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from dream_ray.config import ChatConfig, Config, ConfigError, DpoConfig, TrainConfig, VllmConfig
from dream_ray.doctor import memory
from dream_ray.doctor.memory import GIB, EngineUse, Parts, Training
from dream_ray.doctor.shape import ModelShape, read_shape, targets
from dream_ray.rollout.sampler import ADAPTERS_AT_ONCE, LORA_RANKS
from dream_ray.train.policy import check_model_folder
from dream_ray.train.scaling import check_strategy


@dataclass(frozen=True)
class Finding:
    """One training or engine.

    `parts` are bytes on one GPU, or in one process where `on_gpu` is False, `copies` how many of those stand on one machine
    of the latter kind. `limit` is what they may take. `note` says what is left for, `problem` why it does not fit ("" where
    it does), `advice` what to change. `counts` is False for what the config does not ask for and is shown to compare.
    """

    name: str
    model: ModelShape
    on_gpu: bool
    copies: int
    parts: Parts
    limit: float
    note: str
    problem: str = ""
    advice: str = ""
    counts: bool = True

    @property
    def total(self) -> float:
        """Bytes of all parts and copies."""
        return self.copies * sum(self.parts.values())


@dataclass(frozen=True)
class Diagnosis:
    """All findings, and how many GPUs are held at once while training and while sampling and judging."""

    findings: tuple[Finding, ...]
    training_gpus: int
    sampling_gpus: int

    @property
    def fits(self) -> bool:
        """True where nothing that the config asks for is too large."""
        return not any(found.problem for found in self.findings if found.counts)


@dataclass(frozen=True)
class Machine:
    """What there is: GiB of one GPU (None where nobody said) and GiB of this machine's memory."""

    gpu_gib: float | None
    host_gib: float

    def limit(self, on_gpu: bool) -> float:
        """Bytes of a GPU or of this machine. Raises ConfigError where the GPU's size is not known."""
        if not on_gpu:
            return self.host_gib * GIB
        if self.gpu_gib is None:
            raise ConfigError(
                "The config uses GPUs, but neither cluster.gpu_gib nor --gpu-gib says how much memory one has, so nothing "
                "can be said about what fits. Take the figure that nvidia-smi shows, in GiB: 23.9 for a card sold as "
                "24 GB, 79 for 80 GB."
            )
        return self.gpu_gib * GIB


def examine(config: Config, machine: Machine) -> Diagnosis:
    """Every training and engine of a config. Raises ConfigError where one cannot be estimated."""
    check_model_folder(config.student.model)
    student = read_shape(config.student.model, "student.model")
    trainings = [("sft", config.sft)] + ([("dpo", config.dpo)] if config.rounds else [])
    findings = [_training(config, name, train, student, machine) for name, train in trainings]
    if config.sft.use_gpu and config.lora is not None:
        findings.append(_full(config, student, machine))
    findings.append(_student_engine(config, student, machine))
    chats: tuple[tuple[str, ChatConfig, int], ...] = (
        ("teacher", config.teacher.chat, config.teacher.actors),
        ("judge", config.judge.chat, _most(config)),
    )
    for role, chat, copies in chats:
        if isinstance(chat, VllmConfig):
            use = EngineUse(chat.gpus, chat.dtype, chat.max_model_len)
            shape = read_shape(chat.model, f"{role}.chat.model")
            findings.append(_engine(role, f"{role}.chat", shape, use, chat.kv_cache_gib, copies, machine))
    if served := config.judge.serve_model:
        use = EngineUse(served.gpus, served.dtype, served.max_model_len)
        shape = read_shape(served.path, "judge.serve_model.path")
        name = "judge.serve_model"
        findings.append(_engine(name, name, shape, use, served.kv_cache_gib, served.autoscale[1], machine))
    judge_gpus = config.judge.chat.gpus * _most(config) if isinstance(config.judge.chat, VllmConfig) else 0
    return Diagnosis(
        tuple(findings),
        max(train.workers[1] if train.use_gpu else 0 for _, train in trainings),
        config.rollout.engines * config.rollout.gpus_per_engine + judge_gpus,
    )


def _most(config: Config) -> int:
    """The most replicas of the scorer."""
    return config.judge.autoscale[1] if config.judge.autoscale else config.judge.replicas


def _settings(config: Config, train: TrainConfig, micro_batch_size: int) -> Training:
    """What a step of SFT or DPO works on, at its longest."""
    dpo = isinstance(train, DpoConfig)
    return Training(
        sequences=micro_batch_size * (2 if dpo else 1),
        tokens=config.student.max_model_len,
        bf16=train.bf16,
        checkpointing=train.checkpointing,
        workers=train.workers[0],
        rank=config.lora.rank if config.lora else 0,
        target_modules=config.lora.target_modules if config.lora else "",
        # A reference that is a model of its own has left the memory when the first step starts.
        reference=dpo and config.dpo.reference == "initial" and config.lora is not None,
        on_gpu=train.use_gpu,
        shards=1 if train.strategy == "ddp" else train.workers[0],
    )


def _training(config: Config, name: str, train: TrainConfig, shape: ModelShape, machine: Machine) -> Finding:
    if config.lora is not None and not targets(shape, config.lora.target_modules):
        raise ConfigError(
            f"lora.target_modules = {config.lora.target_modules!r} matches no weight matrix of {config.student.model}, so "
            f"there would be nothing to train. Its matrices are named like {next(iter(shape.matrices), '(none)')}."
        )
    check_strategy(train)
    limit = machine.limit(train.use_gpu) * (1 - memory.RESERVE)
    copies = 1 if train.use_gpu else train.workers[1]

    def needed(settings: Training) -> Parts:
        return memory.full_training(shape, settings) if config.lora is None else memory.lora_training(shape, settings)

    settings = _settings(config, train, train.micro_batch_size)
    cut = f", cut over {settings.shards} workers" if settings.shards > 1 else ""
    what = (
        f"{settings.sequences} sequence{'s' if settings.sequences > 1 else ''} of {settings.tokens} tokens, "
        f"gradient checkpointing {'on' if settings.checkpointing else 'off'}{cut}"
    )
    found = Finding(name, shape, train.use_gpu, copies, needed(settings), limit, what)
    if found.total <= limit:
        return found
    problem = f"{found.total / GIB:.1f} GiB, {limit / GIB:.1f} GiB may be used"
    return dataclasses.replace(found, problem=problem, advice=_training_advice(config, name, train, found, needed))


def _training_advice(
    config: Config, name: str, train: TrainConfig, found: Finding, needed: Callable[[Training], Parts]
) -> str:
    """The gentlest change that makes a training fit, found by trying; what else there is where none does."""
    sizes = [train.micro_batch_size, *_halves(train.micro_batch_size)]
    # bf16 is asked for first, cutting the model last: it costs time in every step.
    kept = [(size, train.bf16, train.strategy) for size in sizes]
    if train.use_gpu and not train.bf16:
        kept = [(sizes[0], True, train.strategy), *kept, *((size, True, train.strategy) for size in sizes[1:])]
    cuts = train.use_gpu and train.strategy == "ddp" and train.workers[0] > 1
    cut = [(size, True, "fsdp2") for size in sizes] if cuts else []
    for size, bf16, strategy in [*kept, *cut]:
        settings = dataclasses.replace(
            _settings(config, train, size), bf16=bf16, shards=1 if strategy == "ddp" else train.workers[0]
        )
        total = found.copies * sum(needed(settings).values())
        if total <= found.limit:
            changes = [f"{name}.bf16=true"] if bf16 != train.bf16 else []
            changes += [f"{name}.strategy={strategy}"] if strategy != train.strategy else []
            changes += [f"{name}.micro_batch_size={size}"] if size != train.micro_batch_size else []
            return f"set {' '.join(changes)}: {total / GIB:.1f} GiB"
    if not found.on_gpu and found.copies > 1:
        return f"lower {name}.num_workers (each worker holds the whole model), or student.max_model_len"
    return (
        f"no {name}.micro_batch_size makes it fit: lower student.max_model_len, or take a smaller student, a larger GPU or, "
        f"with {name}.strategy=fsdp2, more of them"
    )


def _halves(size: int) -> list[int]:
    """Smaller micro batches that divide every batch that this one divides."""
    return [smaller for smaller in range(size - 1, 0, -1) if size % smaller == 0]


def _full(config: Config, shape: ModelShape, machine: Machine) -> Finding:
    """What training all weights would take (`lora: null`)."""
    settings = dataclasses.replace(_settings(config, config.sft, config.sft.micro_batch_size), target_modules="")
    parts = memory.full_training(shape, settings)
    limit = machine.limit(on_gpu=True) * (1 - memory.RESERVE)
    over = sum(parts.values()) > limit
    return Finding(
        "sft of all weights", shape, True, 1, parts, limit, "to compare: lora is set",
        problem="would not fit on one GPU" if over else "", counts=False,
    )  # fmt: skip


def _student_engine(config: Config, shape: ModelShape, machine: Machine) -> Finding:
    rollout = config.rollout
    adapted = config.lora.rank if config.lora else 0
    ranks = [rank for rank in LORA_RANKS if rank >= adapted]
    if not ranks:
        raise ConfigError(
            f"lora.rank = {adapted}, but vLLM serves adapters up to rank {LORA_RANKS[-1]}. Set lora.rank lower."
        )
    use = EngineUse(
        rollout.gpus_per_engine,
        rollout.dtype,
        config.student.max_model_len,
        adapters=ADAPTERS_AT_ONCE if adapted and not rollout.merges_adapters else 0,
        rank=ranks[0],
    )
    return _engine("student", "rollout", shape, use, rollout.kv_cache_gib, rollout.engines, machine)


def _engine(
    name: str, section: str, shape: ModelShape, use: EngineUse, kv_cache_gib: int, copies: int, machine: Machine
) -> Finding:
    on_gpu = use.gpus > 0
    parts = dict(memory.engine(shape, use))
    per_sequence = memory.kv_bytes_per_token(shape, use) * use.max_model_len
    length = "student.max_model_len" if section == "rollout" else f"{section}.max_model_len"
    gpus = "rollout.gpus_per_engine" if section == "rollout" else f"{section}.gpus"
    title = f"{name} engine" + (f", {use.gpus} GPU{'s' if use.gpus > 1 else ''}" if on_gpu else "")
    if not on_gpu:
        cache = kv_cache_gib * GIB
        note = f"{cache // per_sequence:.0f} sequences of {use.max_model_len} tokens"
        found = Finding(title, shape, False, copies, parts | {"KV cache": float(cache)}, machine.limit(on_gpu), note)
        if cache < per_sequence:
            need = per_sequence / GIB
            return dataclasses.replace(
                found, problem=f"the KV cache holds no whole sequence ({need:.2f} GiB)",
                advice=f"raise {section}.kv_cache_gib, or lower {length}",
            )  # fmt: skip
        if found.total > found.limit:
            return dataclasses.replace(
                found, problem=f"{found.total / GIB:.1f} GiB, this machine has {found.limit / GIB:.1f}",
                advice="take fewer engines, a smaller KV cache, or a machine with more memory",
            )  # fmt: skip
        return found
    limit = machine.limit(on_gpu) * memory.UTILISATION
    room = limit - sum(parts.values())
    found = Finding(title, shape, True, 1, parts | {"KV cache": max(0.0, room)}, limit, "")
    if shape.heads % use.gpus:
        return dataclasses.replace(
            found, problem=f"{shape.heads} attention heads cannot be split over {use.gpus} GPUs",
            advice=f"set {gpus} to a divisor of {shape.heads}",
        )  # fmt: skip
    if room >= per_sequence:
        return dataclasses.replace(found, note=f"{room // per_sequence:.0f} sequences of {use.max_model_len} tokens")
    for more in range(use.gpus + 1, 17):
        wider = dataclasses.replace(use, gpus=more)
        left = limit - sum(memory.engine(shape, wider).values())
        if shape.heads % more == 0 and left >= memory.kv_bytes_per_token(shape, wider) * use.max_model_len:
            advice = f"{gpus}={more}" + (", on machines that have so many" if more > 8 else "")
            break
    else:
        advice = f"{section} to a smaller or a quantised model, or take larger GPUs"
    if memory.DTYPE_BYTES.get(use.dtype) == memory.FLOAT:
        advice = f"{section}.dtype=bfloat16, or {advice}"
    if room > 0:
        fitting = int(room // memory.kv_bytes_per_token(shape, use))
        advice += f", or {length}={fitting}"
        problem = f"{room / GIB:.1f} GiB are left for the KV cache, one sequence takes {per_sequence / GIB:.1f}"
    else:
        problem = f"{sum(parts.values()) / GIB:.1f} GiB before the KV cache, {limit / GIB:.1f} GiB may be used"
    return dataclasses.replace(found, problem=problem, advice=f"set {advice}")
