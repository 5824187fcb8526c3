"""Everything that decides how a model is trained, but for the model and the data."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from restack.errors import UsageError

SCHEDULES = ("cosine", "constant")
PARALLEL = ("auto", "ddp", "fsdp")
BATCH = 8  # rows, where nothing is said
MOST_BETWEEN = 500  # steps between two evaluations, or two checkpoints, where nothing is said
FULL_RATE, LORA_RATE = 2e-5, 2e-4
FULL_DECAY, LORA_DECAY = 0.01, 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How to train; None leaves a setting to what is said beside it.

    The optimiser is AdamW (Loshchilov & Hutter 2019) with PyTorch's betas; biases and norms do not decay.

    Attributes:
        steps: how many; without it, as many as `epochs` need.
        epochs: how often the rows are read; 1 if `steps` is not given either.
        batch: rows that each process takes at once.
        accumulate: batches of a step, one after the other; it saves memory.
        length: tokens of a row; without it 1024, or the model's context if that is shorter.
        lr: the highest learning rate; without it 2e-5, and 2e-4 for adapters.
        warmup: the share of the steps in which the rate rises to it, in a line.
        schedule: "cosine" (the rate falls to 0 along half a cosine: Loshchilov & Hutter 2017) or "constant".
        weight_decay: without it 0.01, and 0 for adapters.
        clip: the longest gradient (2-norm over all weights); 0: any.
        seed: of the order of the rows, of which rows are kept for evaluation, of adapters and of dropout.
        bf16: compute in bfloat16 by autocast; weights and the optimiser's numbers keep their dtype.
        gradient_checkpointing: keep the input of each visit only, and compute it again (Chen et al. 2016).
        eval_share: of the rows, kept for evaluation where no evaluation data are given; 0: none.
        eval_every: steps; without it a tenth of the run, at most 500.
        save_every: steps between checkpoints; without it a tenth of the run, at most 500.
        keep_checkpoints: leave the last two there when the run is finished.
        parallel: several processes shard the model ("fsdp": FSDP2, on GPUs) or hold all of it each ("ddp");
            "auto" is fsdp on GPUs and ddp on CPUs.
        lora: the rank of adapters to train (Hu et al. 2021), one for each linear layer of each chosen visit;
            None trains the weights.
        lora_visits: "repeated" (every visit of a layer that runs more than once; all if none does), "all", or
            a spec over the numbers of the visits: "4:8".
        lora_alpha: what an adapter makes counts alpha / rank; without it 2 * rank.
        column: the key of a .jsonl file, or the column of a dataset; without it "text", or else "messages".
        split: of a dataset.
        skip_bad_lines: leave out lines that cannot be used, instead of refusing the file.

    Raises:
        UsageError: a setting cannot be.
    """

    steps: int | None = None
    epochs: float | None = None
    batch: int = BATCH
    accumulate: int = 1
    length: int | None = None
    lr: float | None = None
    warmup: float = 0.03
    schedule: str = "cosine"
    weight_decay: float | None = None
    clip: float = 1.0
    seed: int = 0
    bf16: bool = False
    gradient_checkpointing: bool = False
    eval_share: float = 0.05
    eval_every: int | None = None
    save_every: int | None = None
    keep_checkpoints: bool = False
    parallel: str = "auto"
    lora: int | None = None
    lora_visits: str = "repeated"
    lora_alpha: float | None = None
    column: str | None = None
    split: str = "train"
    skip_bad_lines: bool = False

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise UsageError("steps and epochs both say how long to train; give one of them")
        for name in ("steps", "batch", "accumulate", "eval_every", "save_every", "lora"):
            _check(name, getattr(self, name), lambda value: value >= 1, "a whole number from 1 up")
        _check("length", self.length, lambda value: value >= 2, "2 or more: a token is learned after another")
        _check("seed", self.seed, lambda value: 0 <= value < 2**32, "a whole number from 0 to 4294967295")
        for name in ("epochs", "lr", "lora_alpha"):
            _check(name, getattr(self, name), lambda value: 0 < value < math.inf, "a number above 0")
        for name in ("weight_decay", "clip"):
            _check(name, getattr(self, name), lambda value: 0 <= value < math.inf, "0 or more")
        for name in ("warmup", "eval_share"):
            _check(name, getattr(self, name), lambda value: 0 <= value < 1, "a share from 0 to below 1")
        _check("schedule", self.schedule, SCHEDULES.__contains__, " or ".join(SCHEDULES))
        _check("parallel", self.parallel, PARALLEL.__contains__, " or ".join(PARALLEL))
        if self.lora is None and (self.lora_alpha is not None or self.lora_visits != "repeated"):
            raise UsageError("there are settings of adapters, and no rank for them; write lora (--lora 8)")

    def to_json(self) -> dict[str, Any]:
        """The settings by their names."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Course:
    """The settings of a run whose data are known: nothing is left open.

    Attributes:
        steps: of the whole run.
        rows_per_step: over all processes and accumulated batches.
        lr, weight_decay: of AdamW.
        eval_every, save_every: steps.
    """

    steps: int
    rows_per_step: int
    lr: float
    weight_decay: float
    eval_every: int
    save_every: int

    @classmethod
    def of(cls, settings: Training, rows: int, processes: int, trains_adapters: bool) -> "Course":
        """What is left open, decided."""
        rows_per_step = settings.batch * settings.accumulate * processes
        epochs = 1.0 if settings.epochs is None else settings.epochs
        steps = settings.steps or max(1, math.ceil(epochs * rows / rows_per_step))
        seldom = min(MOST_BETWEEN, max(1, steps // 10))
        rate, decay = (LORA_RATE, LORA_DECAY) if trains_adapters else (FULL_RATE, FULL_DECAY)
        return cls(
            steps=steps,
            rows_per_step=rows_per_step,
            lr=rate if settings.lr is None else settings.lr,
            weight_decay=decay if settings.weight_decay is None else settings.weight_decay,
            eval_every=settings.eval_every or seldom,
            save_every=settings.save_every or seldom,
        )


def rate_at(settings: Training, steps: int, step: int) -> float:
    """The share of the highest learning rate that a step is taken with; it is above 0 for each of them.

    Args:
        settings: with the schedule and the warm-up's share.
        steps: of the run.
        step: from 0 up.
    """
    rise = math.ceil(settings.warmup * steps)
    if step < rise:
        return (step + 1) / rise
    if settings.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _check(name: str, value: Any, is_fine: Any, remedy: str) -> None:
    """Refuse a value that is there and cannot be."""
    kinds = {"schedule": str, "parallel": str}
    expected = kinds.get(name, (int,) if "whole" in remedy or name == "length" else (int, float))
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, expected) or not is_fine(value):
        option = name.replace("_", "-")
        raise UsageError(f"--{option} is {value!r}; write {remedy}")
