"""Training a model, from the data to the folder with the trained model: `train`."""

import copy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from restack.errors import RestackError
from restack.recipes.whole_file import PART
from restack.training.adapters import adapted, has_adapters
from restack.training.engine import HouseTrainer, Job, reason_of
from restack.training.folder import Entry, Folder, cut_log, read_log, refuse_damaged, step_of
from restack.training.packing import Data
from restack.training.picture import draw_log
from restack.training.preparing import Source, asked_for, check_model, mode_of, names_of, read
from restack.training.processes import Processes, check_extra
from restack.training.saving import save_trained, with_weights
from restack.training.settings import Course, Training
from restack.training.stopping import interruptible


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a run.

    Attributes:
        folder: with the trained model, if the run is finished.
        model: in memory, as it was trained: with adapters, if some were.
        finished: False if it was stopped; the same call goes on with it.
        steps: that were done.
        log: of `read_log`.
    """

    folder: Path
    model: Any
    finished: bool
    steps: int
    log: list[Entry]

    @property
    def losses(self) -> list[float]:
        """The training loss of each step, in nats a token."""
        return [entry["loss"] for entry in self.log if "loss" in entry]

    @property
    def evaluations(self) -> dict[int, float]:
        """The loss over the evaluation rows by the steps before it, in nats a token."""
        return {entry["step"]: entry["eval_loss"] for entry in self.log if "eval_loss" in entry}


class Watch:
    """Is told how training goes, in the first process alone; this one does not care."""

    def begin(self, job: Job, done: int) -> None:
        """The run begins, or goes on after so many steps."""

    def entry(self, entry: Entry) -> None:
        """A line of the log."""


def train(
    model: Any,
    tokenizer: Any,
    data: Source,
    out: str | Path,
    settings: Training | None = None,
    *,
    evaluation: Source | None = None,
    name: str | None = None,
    device: str | None = None,
    watch: Watch | None = None,
) -> Result:
    """Train a model in memory; the same call goes on with a run that was interrupted.

    A repeated layer of a view gets the sum of the gradients of its visits. Under torchrun, each process calls
    this alike.

    Args:
        model: a decoder of transformers, a restack-llama, a view, or one of these with adapters; it is
            changed. Of a run that goes on, it must be as it was when the run began.
        tokenizer: its tokenizer; may be None where the data are rows of tokens.
        data: names of .txt and .jsonl files and of datasets; or rows of token ids, all equally long.
        out: the run's folder: not there, empty, or with an unfinished run of the same call.
        settings: how to train.
        evaluation: data too; without it, a share of the rows.
        name: of the model, for the run's settings and picture.
        device: to train on, where the model is not there yet: of a model that is going to be sharded.
        watch: is told how it goes.

    Raises:
        UsageError: a setting, the data or the folder cannot be used, or a package is missing.
        ModelError, ViewError: the model cannot be trained, or not in this way.
        RestackError: the loss is no number any more, or a checkpoint could not be written.
    """
    check_extra("accelerate")
    called = name or type(model).__name__
    asking = _Asking(model, tokenizer, data, evaluation, settings or Training(), called)
    job = _begun(asking, Folder(Path(out).expanduser()), device)
    # Of a model that is going to be sharded, one process keeps a copy that can be saved.
    whole = copy.deepcopy(job.model) if job.mode == "fsdp" and job.processes.is_first else job.model
    trainer = _run(job, called, watch or Watch())
    steps = trainer.state.global_step
    is_finished = steps >= job.course.steps
    if is_finished:
        _finish(trainer, whole, tokenizer)
    return Result(job.folder.path, job.model.eval(), is_finished, steps, read_log(job.folder.path))


@dataclass(frozen=True, slots=True)
class _Asking:
    """What `train` was asked for."""

    model: Any
    tokenizer: Any
    data: Source
    evaluation: Source | None
    settings: Training
    called: str

    def prepared(self, mode: str, processes: Processes) -> tuple[Any, Data, dict[str, Any]]:
        """The model with what is to be trained in it, the rows, and all that decides what comes of them."""
        found = read(self.model, self.tokenizer, self.data, self.evaluation, self.settings)
        about = {"model": self.called, "data": names_of(self.data), "eval": names_of(self.evaluation)}
        asked = asked_for(self.model, self.settings, found, processes, about)
        torch.manual_seed(self.settings.seed)  # adapters are drawn
        ready = adapted(self.model, self.settings)
        check_model(ready, self.settings, mode)
        return ready, found, asked


def _begun(asking: _Asking, folder: Folder, device: str | None) -> Job:
    """The job, checked, and its folder; nothing is written before everything was looked at."""
    settings, processes = asking.settings, Processes.of_environment()
    on = asking.model.device if device is None else torch.device(device)
    processes.join(on_cpu=on.type == "cpu")
    processes.together(folder.check)
    mode = processes.together(lambda: mode_of(on, settings, processes))
    ready, found, asked = processes.together(lambda: asking.prepared(mode, processes))
    processes.together(lambda: folder.begin(asked) if processes.is_first else None)
    return Job(
        model=ready,
        data=found,
        settings=settings,
        course=Course.of(settings, len(found.rows), processes.count, has_adapters(ready)),
        folder=folder,
        processes=processes,
        mode=mode,
        device=on,
    )


def _run(job: Job, called: str, watch: Watch) -> HouseTrainer:
    """Train from the last checkpoint, or the beginning, until the end or until somebody stops it."""
    folder, is_first = job.folder, job.processes.is_first
    checkpoint = next(reversed(folder.whole_checkpoints()), None)
    if checkpoint is not None:
        refuse_damaged(checkpoint)
    done = 0 if checkpoint is None else step_of(checkpoint) or 0
    log = cut_log(folder, -1 if checkpoint is None else done) if is_first else []
    with _prepared(job), interruptible(job.processes.count == 1) as stopped:
        trainer = HouseTrainer(job, watch.entry if is_first else Watch().entry, stopped)
        if is_first:
            watch.begin(job, done)
        try:
            trainer.run(log, checkpoint)
        except torch.OutOfMemoryError:
            raise RestackError(
                f"{job.device} has too little memory for this; write a smaller --batch and a larger "
                "--accumulate, or add --gradient-checkpointing"
            ) from None
        finally:
            if is_first:
                _draw(job, called)
    return trainer


@contextmanager
def _prepared(job: Job) -> Iterator[None]:
    """Have the model keep no keys and values, and if asked recompute its visits; afterwards as before."""
    model = job.model
    before = getattr(model.config, "use_cache", True)
    model.config.use_cache = False
    if job.settings.gradient_checkpointing:
        # Transformers 5.23 calls it so; before, it was called otherwise.
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    try:
        yield
    finally:
        if job.settings.gradient_checkpointing:
            disable = getattr(model, "activation_checkpointing_disable", None)
            (disable or model.gradient_checkpointing_disable)()
        model.config.use_cache = before


def _draw(job: Job, called: str) -> None:
    """Draw what there is; a picture that cannot be drawn is no reason to lose a run."""
    rows = job.course.rows_per_step
    title = f"{called}: {job.course.steps} steps of {rows * job.length:,} tokens"
    with suppress(OSError, ValueError):
        draw_log(read_log(job.folder.path), job.folder.picture, title, job.course.steps)


def _finish(trainer: HouseTrainer, whole: Any, tokenizer: Any) -> None:
    """Put the model into the run's folder, and throw the checkpoints away.

    Args:
        trainer: that is done.
        whole: its model; of a sharded one, what it was before.
        tokenizer: of the model.
    """
    job = trainer.job
    state = trainer.accelerator.get_state_dict(trainer.model) if job.mode == "fsdp" else None
    if job.processes.is_first:
        made = job.folder.path / f".model{PART}"
        try:
            save_trained(whole if state is None else with_weights(whole, state), tokenizer, made)
            job.folder.move_in(made)
        except Exception as error:
            reason = reason_of(error)
            if reason is None:
                raise
            raise RestackError(
                f"the trained model could not be written into {job.folder.path}: {reason}; its last "
                "checkpoint is kept: make room and give the same command to go on"
            ) from None
        finally:
            shutil.rmtree(made, ignore_errors=True)
        job.folder.finish(job.settings.keep_checkpoints)
    job.processes.wait()
