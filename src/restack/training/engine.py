"""Transformers' Trainer, with the rows in a given order, and checkpoints that are whole or not there."""

import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from restack.errors import RestackError, UsageError
from restack.recipes.whole_file import PART
from restack.training.folder import Entry, Folder, flush
from restack.training.packing import Data, Order
from restack.training.processes import Processes
from restack.training.settings import Course, Training, rate_at

WEIGHTS = "trained.pt"  # in a checkpoint: the weights that are trained, and no others
SHARDED = {
    "version": 2,
    "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "reshard_after_forward": True,
    "state_dict_type": "SHARDED_STATE_DICT",  # a checkpoint never gathers the whole model
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a run is: all that its parts have to know."""

    model: Any  # as it is trained
    data: Data
    settings: Training
    course: Course
    folder: Folder
    processes: Processes
    mode: str  # "one", "ddp" or "fsdp"
    device: torch.device

    @property
    def length(self) -> int:
        """Of a row, in tokens."""
        return self.data.rows.shape[1]


def arguments(job: Job) -> TrainingArguments:
    """What Trainer is to be told; it decides nothing but this.

    Raises:
        UsageError: bfloat16 is asked for, and cannot be computed with here.
    """
    settings, device = job.settings, job.device
    if device.type == "cuda" and job.processes.count == 1:
        torch.cuda.set_device(device)  # Trainer knows only "the current one"
    try:
        made = TrainingArguments(
            output_dir=str(job.folder.checkpoints),
            max_steps=job.course.steps,
            per_device_train_batch_size=settings.batch,
            gradient_accumulation_steps=settings.accumulate,
            learning_rate=job.course.lr,
            weight_decay=job.course.weight_decay,
            max_grad_norm=settings.clip,
            seed=settings.seed,
            bf16=settings.bf16,
            use_cpu=device.type == "cpu",
            fsdp=True if job.mode == "fsdp" else None,
            fsdp_config=dict(SHARDED) if job.mode == "fsdp" else None,
            ddp_find_unused_parameters=job.mode == "ddp" and job.processes.any(may_leave_out(job)),
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",  # `Flow` decides
            eval_strategy="no",
            report_to="none",
            disable_tqdm=True,
            log_level="passive",
            remove_unused_columns=False,
        )
    except (ValueError, RuntimeError) as error:
        if settings.bf16 and "bf16" in str(error).lower():
            raise UsageError(f"{device} cannot compute in bfloat16; leave out --bf16") from None
        raise
    made._n_gpu = min(1, made.n_gpu)  # else Trainer would copy the model to every GPU of the machine
    return made


def may_leave_out(job: Job) -> bool:
    """Whether a step may leave weights without a gradient: layers that a plan never runs, or experts.

    Where DDP is told to look for such weights and finds none, it warns; where it is not, and there are some,
    it fails. So a few tokens are tried.
    """
    model = job.model
    if any(".experts." in name for name, _ in model.named_parameters()):
        return True
    tokens = job.data.rows[:1, :16].long().to(model.device)
    with torch.random.fork_rng():
        model.train()
        model(input_ids=tokens, labels=tokens).loss.backward()
    found = any(weight.requires_grad and weight.grad is None for weight in model.parameters())
    model.zero_grad(set_to_none=True)
    return found


class HouseTrainer(Trainer):  # type: ignore[misc]
    """Trains a job; its log and its checkpoints go to the job's folder."""

    def __init__(self, job: Job, watch: Callable[[Entry], None], stopped: Callable[[], bool]) -> None:
        self.job, self.watch = job, watch
        self.seconds_before, self.began = 0.0, time.monotonic()
        self.lr_scheduler: Any = None
        self.rate = 0.0  # of the last step
        self.part: Path | None = None  # of the checkpoint that is being written
        rows = Order(job.data.rows, job.course.steps * job.course.rows_per_step, job.settings.seed)
        super().__init__(
            model=job.model,
            args=arguments(job),
            train_dataset=rows,
            data_collator=collate,
            callbacks=[Flow(self, stopped)],
        )
        self.remove_callback(PrinterCallback)
        if (job.mode == "fsdp") is not bool(self.is_fsdp_enabled):
            raise RestackError(f"Trainer did not take {job.mode} for this machine; use --parallel ddp")

    def run(self, log: list[Entry], checkpoint: Path | None) -> None:
        """Train to the end, or until it is stopped.

        Args:
            log: of the steps before the checkpoint.
            checkpoint: to go on from.
        """
        self.seconds_before = log[-1]["seconds"] if log else 0.0
        self.began = time.monotonic()
        self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))

    # What follows is called by Trainer.

    # To torch, "cpu:0" is not where "cpu" is; a view would get weights of its own there. So nothing is moved.

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self.accelerator.device_placement &= self.job.device.type != "cpu"

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        if self.job.device.type != "cpu":
            super()._move_model_to_device(model, device)

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Trainer's own would take the first step of a warm-up with a rate of 0."""
        if self.lr_scheduler is None:
            settings, steps = self.job.settings, self.job.course.steps
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, lambda step: rate_at(settings, steps, step)
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write a line of the log. Trainer's own log would grow in each checkpoint."""
        self.control.should_log = False
        if "loss" not in logs:
            return
        for what, value in (("loss", logs["loss"]), ("gradient", logs.get("grad_norm", 0.0))):
            self._refuse_no_number(what, float(value))
        entry = {"loss": logs["loss"], "lr": self.rate}
        if "grad_norm" in logs:
            entry["grad_norm"] = logs["grad_norm"]
        self._write(entry)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The mean loss over the evaluation rows, each counted once: in nats a token."""
        loss = evaluated(self, self.job)
        self._refuse_no_number("evaluation loss", loss)
        self._write({"eval_loss": loss, "perplexity": math.exp(min(loss, 700.0))})
        self.control.should_evaluate = False
        return {"eval_loss": loss}

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        return self.evaluate()

    def _refuse_no_number(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            step = self.state.global_step
            raise RestackError(f"the {what} is {value} at step {step}; begin anew with a lower --lr")

    def _write(self, values: Entry) -> None:
        step = self.state.global_step
        tokens = step * self.job.course.rows_per_step * self.job.length
        seconds = round(self.seconds_before + time.monotonic() - self.began, 3)
        entry = {"step": step, **values, "tokens": tokens, "seconds": seconds}
        if self.job.processes.is_first:
            append(self.job.folder, entry)
        self.watch(entry)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.part or self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Have Trainer write into a folder of another name; what is in it is renamed when it is whole."""
        folder, name = self.job.folder, f"checkpoint-{self.state.global_step}"
        if (folder.checkpoints / name).exists():
            return
        self.part = folder.checkpoints / f"{name}{PART}"
        try:
            super()._save_checkpoint(model, trial)
            if self.job.processes.is_first:
                flush(self.part)
            self.job.processes.wait()
            if self.job.processes.is_first:
                (self.part / name).rename(folder.checkpoints / name)
                self.part.rmdir()
                folder.rotate()
        except (OSError, RuntimeError, ValueError) as error:
            self._give_up(error)
        finally:
            if self.job.processes.is_first:
                shutil.rmtree(self.part, ignore_errors=True)
            self.part = None
        self.job.processes.wait()

    def _give_up(self, error: Exception) -> None:
        """Tell that a checkpoint could not be written, and from where the run can go on."""
        reason = reason_of(error)
        if reason is None:
            raise error
        whole = self.job.folder.whole_checkpoints()
        last = f"the last whole one, {whole[-1].name}, is kept" if whole else "there is none before it"
        raise RestackError(
            f"the checkpoint after step {self.state.global_step} could not be written: {reason}; {last}: "
            "make room and give the same command to go on"
        ) from None

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Of all kinds of model the same: the weights that are trained, each once, by their first names."""
        if not self.args.should_save:
            return
        assert output_dir is not None
        place = Path(output_dir)
        place.mkdir(parents=True, exist_ok=True)
        torch.save(trained_weights(self.model), place / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        stored = torch.load(Path(resume_from_checkpoint) / WEIGHTS, map_location="cpu", weights_only=True)
        ours = trained_weights(self.model)
        if ours.keys() != stored.keys():
            raise RestackError(f"{resume_from_checkpoint} is of another model; name another folder")
        with torch.no_grad():
            for name, weight in ours.items():
                weight.copy_(stored[name])


class Flow(TrainerCallback):  # type: ignore[misc]
    """Decides when to evaluate, to save and to stop."""

    def __init__(self, trainer: HouseTrainer, stopped: Callable[[], bool]) -> None:
        self.trainer, self.stopped = trainer, stopped

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What the model can do before it is trained."""
        if state.global_step == 0 and self.trainer.job.data.evaluation is not None:
            self.trainer.evaluate()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.rate = kwargs["optimizer"].param_groups[0]["lr"]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Nothing is saved or evaluated but here."""
        job, step = self.trainer.job, state.global_step
        is_last = step >= job.course.steps
        is_stopped = job.processes.any(self.stopped()) and not is_last
        wants_evaluation = is_last or step % job.course.eval_every == 0
        control.should_evaluate = wants_evaluation and job.data.evaluation is not None
        control.should_save = is_last or is_stopped or step % job.course.save_every == 0
        control.should_training_stop = is_last or is_stopped


def collate(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A batch of rows."""
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


def trained_weights(model: Any) -> dict[str, Tensor]:
    """The weights that are trained, each once, by their first names."""
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


@torch.no_grad()
def evaluated(trainer: Any, job: Job) -> float:
    """The mean loss over the evaluation rows, in nats a token. Processes take batches in turn.

    Each computes equally many, for sharded models to gather their weights together; what is too much does
    not count.
    """
    assert job.data.evaluation is not None
    batches, count = torch.split(job.data.evaluation.long(), job.settings.batch), job.processes.count
    total = torch.zeros((), dtype=torch.float64)
    model = trainer.model
    model.eval()
    for first in range(0, len(batches), count):
        number = first + job.processes.rank
        batch = batches[min(number, len(batches) - 1)]
        with trainer.compute_loss_context_manager():
            inputs = trainer._prepare_inputs({"input_ids": batch, "labels": batch})
            loss = model(**inputs).loss
        if number < len(batches):
            total += loss.double().cpu() * len(batch)
    model.train()
    return math.fsum(job.processes.gathered(float(total))) / len(job.data.evaluation)


def append(folder: Folder, entry: Entry) -> None:
    """Add a line to the log."""
    with folder.log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def reason_of(error: Exception) -> str | None:
    """Why something could not be written, as the system, torch or safetensors says it; None if it could."""
    if isinstance(error, OSError):
        return str(error.strerror or error)
    text = " ".join(str(error).split())
    if type(error).__name__ == "SafetensorError":
        return text
    told_by_torch = ("inline_container", "PytorchStreamWriter", "unexpected pos")
    return "the disk is full, or a limit reached" if any(words in text for words in told_by_torch) else None
