"""Trains the demo model: `python -m restack.demo.train --out DIR`; the same command resumes a run.

Look-ups are learned first, by drills. Then every step draws how often the block of layers 4..7 runs (once,
twice or three times), so that the shipped model can use a repeated block; the library's own `view` repeats
it, and gradients add up.

A step is two micro-batches. Two workers take one each, one worker takes both in turn; a sum of two
numbers does not depend on their order, so the weights are the same to the bit. Each worker computes on
one thread, with bfloat16 autocast over float32 weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from restack.demo import corpus
from restack.demo.curriculum import STAGES, Stage
from restack.errors import RestackError, UsageError
from restack.views import view

PARTS = 2  # micro-batches in a step


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the weights. The defaults are the shipped model's."""

    seed: int = 0
    steps: int = 5000
    hidden: int = 128
    layers: int = 12
    heads: int = 8
    ffn: int = 352
    block: tuple[int, int] = (4, 8)  # layers that run once, twice or three times
    repeats: tuple[float, ...] = (0.5, 0.3, 0.2)  # how likely each
    stages: tuple[Stage, ...] = STAGES
    # At twice this rate attention turns hard (entropy 0.3 nats) and look-ups are never learned.
    muon_rate: float = 0.01
    adam_rate: float = 0.003
    warmup: float = 0.01  # share of the run
    decay: float = 0.5  # share of the run, at its end, in which the rates fall to zero
    weight_decay: float = 0.1
    clip: float = 1.0  # norm of the gradients
    tokenizer_samples: int = 40_000


def stage_at(recipe: Recipe, step: int) -> Stage:
    """The stage of the curriculum that a step is in."""
    return [stage for stage in recipe.stages if step >= stage.start * recipe.steps][-1]


def tokens_until(recipe: Recipe, step: int) -> int:
    """The tokens that the steps before this one have read."""
    stages = [stage_at(recipe, done) for done in range(step)]
    return PARTS * sum(stage.rows * stage.length for stage in stages)


def repeats_at(recipe: Recipe, step: int) -> int:
    """How often the block runs in this step."""
    if not stage_at(recipe, step).looped:
        return 1
    rng = random.Random(f"repeats/{recipe.seed}/{step}")
    return rng.choices(range(1, len(recipe.repeats) + 1), recipe.repeats)[0]


def rate_at(recipe: Recipe, step: int) -> float:
    """The share of the peak learning rates: a linear rise, a plateau, a linear fall to zero."""
    rise = (step + 1) / max(1.0, recipe.warmup * recipe.steps)
    fall = (recipe.steps - step) / max(1.0, recipe.decay * recipe.steps)
    return min(1.0, rise, fall)


def new_model(recipe: Recipe, tokenizer: Any) -> LlamaForCausalLM:
    """The Llama of the recipe, in float32, with freshly drawn weights."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.ffn,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=corpus.CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config._attn_implementation = "eager"  # twice as fast as SDPA here, backward included, at this length
    model = LlamaForCausalLM(config)
    model.config.use_cache = False
    return model


def looped(model: LlamaForCausalLM, recipe: Recipe) -> list[Any]:
    """The model with its block run once, twice, ...: views of the same weights."""
    first, stop = recipe.block
    once_more = f",{first}:{stop}"
    return [
        model if times == 1 else view(model, f":{stop}{once_more * (times - 1)},{stop}:")
        for times in range(1, len(recipe.repeats) + 1)
    ]


class Worker:
    """Computes the gradients of micro-batches on one thread."""

    def __init__(self, recipe: Recipe, tokenizer: Any, model: LlamaForCausalLM):
        self.recipe, self.tokenizer = recipe, tokenizer
        self.models = looped(model, recipe)

    def backward(self, step: int, part: int) -> float:
        """Adds the gradients of one part of a step to the weights'; returns its loss (nats a token)."""
        recipe = self.recipe
        rows = corpus.batch(self.tokenizer, recipe.seed, step, part, stage_at(recipe, step))
        ids = torch.tensor([ids for ids, _ in rows])  # (rows, length + 1)
        weights = torch.tensor([weights for _, weights in rows])[:, 1:].flatten()
        model = self.models[repeats_at(recipe, step) - 1]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits  # (rows, length, vocabulary)
        nats = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        )
        loss = (nats * weights).sum() / weights.sum()
        torch.autograd.backward(loss / PARTS)
        return float(loss.detach())


def assist(
    connection: Any, recipe: Recipe, tokenizer: Any, weights: dict[str, Tensor], sums: list[Tensor]
) -> None:
    """The second worker: on a step's number, its part's gradients go to shared memory; None ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first worker decides when to stop
    torch.set_num_threads(1)
    model = new_model(recipe, tokenizer)
    for name, parameter in model.named_parameters():
        parameter.data = weights[name]
    worker = Worker(recipe, tokenizer, model)
    while (step := connection.recv()) is not None:
        model.zero_grad(set_to_none=True)
        loss = worker.backward(step, part=1)
        for parameter, total in zip(model.parameters(), sums, strict=True):
            total.copy_(_gradient(parameter))
        connection.send((loss, time.process_time()))


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


class Trainer:
    """A run: the weights, the optimisers, the log, and (with two workers) the second process."""

    def __init__(self, recipe: Recipe, out: Path, workers: int = 2):
        self.recipe, self.out, self.workers = recipe, out, workers
        self.tokenizer = corpus.train_tokenizer(recipe.seed, recipe.tokenizer_samples)
        self.model = new_model(recipe, self.tokenizer)
        matrices = [p for name, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in self.model.named_parameters() if p.ndim != 2 or "embed" in name]
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(matrices, lr=recipe.muon_rate, momentum=0.95, weight_decay=recipe.weight_decay),
            torch.optim.AdamW(others, lr=recipe.adam_rate, betas=(0.9, 0.95), weight_decay=0.0),
        )
        self.step, self.log, self.seconds_before = 0, list[dict[str, float]](), 0.0
        self.child_seconds, self.start_seconds = 0.0, time.process_time()
        self._restore()

    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoint.pt"

    @property
    def seconds(self) -> float:
        """Processor seconds of all workers, this session's and those before."""
        return self.seconds_before + time.process_time() - self.start_seconds + self.child_seconds

    def _restore(self) -> None:
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, weights_only=True)
        if state["recipe"] != _plain(self.recipe):
            raise UsageError(f"{self.out} holds a run of another recipe; choose another --out, or delete it")
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.log, self.seconds_before = state["step"], state["log"], state["seconds"]

    def save(self) -> None:
        """Writes the checkpoint and the log under temporary names, then renames them."""
        self.out.mkdir(parents=True, exist_ok=True)
        state = {
            "recipe": _plain(self.recipe),
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "log": self.log,
            "seconds": self.seconds,
        }
        partial = self.out / "checkpoint.partial"
        torch.save(state, partial)
        partial.replace(self.checkpoint)
        partial = self.out / "log.partial"
        partial.write_text("\n".join(map(json.dumps, self.log)) + "\n", encoding="utf-8")
        partial.replace(self.out / "log.jsonl")

    def export(self) -> Path:
        """Writes the model as it is shipped: bfloat16 weights, tokenizer, chat template."""
        folder = self.out / "model"
        shipped = new_model(self.recipe, self.tokenizer).to(torch.bfloat16)
        shipped.load_state_dict(self.model.state_dict())
        shipped.config.use_cache = True
        shipped.generation_config = GenerationConfig(
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        shipped.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        return folder

    def run(self, until: int | None = None, every: float = 180.0) -> bool:
        """Trains to step `until` (None: the end), saving every so many seconds; False when interrupted."""
        until = self.recipe.steps if until is None else min(until, self.recipe.steps)
        saved = time.monotonic()
        with _interruptible() as stopped, self._second_worker() as second, _progress(self.recipe) as show:
            worker = Worker(self.recipe, self.tokenizer, self.model)
            while self.step < until and not stopped:
                loss = self._one_step(worker, second)
                self.step += 1
                self._record(loss, show)
                if time.monotonic() - saved > every:
                    self.save()
                    saved = time.monotonic()
        self.save()
        return self.step >= until

    def _one_step(self, worker: Worker, second: Any) -> float:
        if second is not None:
            second[0].send(self.step)
        self.model.zero_grad(set_to_none=True)
        losses = [worker.backward(self.step, part=0)]
        if second is None:
            losses.append(worker.backward(self.step, part=1))
        else:
            loss, self.child_seconds = second[0].recv()
            losses.append(loss)
            for parameter, total in zip(self.model.parameters(), second[1], strict=True):
                parameter.grad = _gradient(parameter).add_(total)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        share = rate_at(self.recipe, self.step)
        for optimizer, peak in zip(
            self.optimizers, (self.recipe.muon_rate, self.recipe.adam_rate), strict=True
        ):
            for group in optimizer.param_groups:
                group["lr"] = peak * share
            optimizer.step()
        return sum(losses) / PARTS

    def _record(self, loss: float, show: Any) -> None:
        recipe = self.recipe
        entry = {
            "step": self.step,
            "loss": round(loss, 4),
            "repeats": repeats_at(recipe, self.step - 1),
            "hops": stage_at(recipe, self.step - 1).hops.most,
            "tokens": tokens_until(recipe, self.step),
            "cpu_seconds": round(self.seconds, 1),
        }
        if self.step % 10 == 0 or self.step == recipe.steps:
            self.log.append(entry)
        show(entry)

    @contextmanager
    def _second_worker(self) -> Iterator[Any]:
        """The pipe to a second process and its gradients in shared memory; None with one worker."""
        if self.workers == 1:
            yield None
            return
        context = torch.multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self.model.share_memory()
        weights = {name: parameter.data for name, parameter in self.model.named_parameters()}
        sums: list[Any] = [torch.zeros_like(parameter) for parameter in self.model.parameters()]
        for total in sums:
            total.share_memory_()
        arguments = (theirs, self.recipe, self.tokenizer, weights, sums)
        process = context.Process(target=assist, args=arguments, daemon=True)
        process.start()
        theirs.close()  # so that a dead child is an end of file, not a wait for ever
        try:
            yield ours, sums
        except EOFError:
            raise RestackError(
                "the second worker ended unexpectedly; run again, or use --workers 1"
            ) from None
        finally:
            if process.is_alive():
                ours.send(None)
            process.join()


def _plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON would hold it, to compare and to store."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(recipe)))
    return plain


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """A list that is no longer empty once Ctrl-C was pressed: the step in hand is finished first."""
    stopped: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: stopped.append(number))
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _progress(recipe: Recipe) -> Iterator[Any]:
    """A function that shows an entry of the log on stderr: a bar on a terminal, else a line in 100 steps."""
    from rich.console import Console
    from rich.progress import Progress

    def line(entry: dict[str, float]) -> None:
        if entry["step"] % 100 == 0:
            print(json.dumps(entry), file=sys.stderr, flush=True)

    if not sys.stderr.isatty():
        yield line
        return
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=recipe.steps)
        yield lambda entry: bar.update(task, completed=entry["step"], description=f"loss {entry['loss']:.3f}")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m restack.demo.train", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the checkpoint, the log and the model"
    )
    parser.add_argument("--workers", type=int, choices=(1, 2), default=2, help="processes of one thread each")
    parser.add_argument("--steps", type=int, default=Recipe().steps, help="length of the whole schedule")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        trainer = Trainer(Recipe(steps=options.steps), options.out, options.workers)
        finished = trainer.run()
    except RestackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not finished:
        print(f"stopped at step {trainer.step}; the same command goes on from there", file=sys.stderr)
        return 130
    print(f"{trainer.export()}: {trainer.seconds:.0f} processor seconds", file=sys.stderr)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
