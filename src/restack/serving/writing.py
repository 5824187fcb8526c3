"""Answers, written several at once."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.generation import LogitsProcessorList, StoppingCriteria

from restack.errors import UsageError
from restack.runtime import Generated, Sampling, generate
from restack.runtime.decoding import Step
from restack.serving.catalogue import Served
from restack.serving.kept_prompts import KeptPrompts
from restack.serving.scores import Bias, LogProbabilities, Penalties, TokenScore
from restack.serving.turns import Turns


class Busy(Exception):
    """So many texts wait already that no more are taken."""


class Gone(Exception):
    """Nobody waits for the text any more."""


@dataclass(eq=False, slots=True)
class Task:
    """An answer that is to be written.

    Attributes:
        served: the model.
        prompt: tokens.
        sampling: how tokens are chosen.
        seed: of the random numbers.
        on_piece: is called, from another thread, with each piece of text and the scores of the tokens since
            the one before.
        stop: strings that end the answer.
        frequency_penalty, presence_penalty: as OpenAI has them.
        bias: added to the logits of tokens.
        likeliest: how many tokens' log probabilities are asked for, beside that of each; None: not even that.
        ignores_end: whether the answer goes on where the model would end it.
        follows: tokens at the end of the prompt that the answer goes on from within a sentence.
        shown: special tokens that are part of the answer.
        is_gone: set when nobody waits for it any more.
    """

    served: Served
    prompt: list[int]
    sampling: Sampling
    seed: int
    on_piece: Callable[[str, list[TokenScore]], None]
    stop: tuple[str, ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    bias: dict[int, float] = field(default_factory=dict)
    likeliest: int | None = None
    ignores_end: bool = False
    follows: int = 0
    shown: frozenset[int] = frozenset()
    is_gone: threading.Event = field(default_factory=threading.Event)


class Writers:
    """Threads that write answers; one of them runs a model at a time, and takes steps of the others along."""

    def __init__(self, slots: int, queue: int, kept: KeptPrompts) -> None:
        """So many threads.

        Args:
            slots: answers that are written at once.
            queue: answers that may wait for one of these to end.
            kept: keys and values of what was read before.
        """
        self.slots, self.queue, self.kept = slots, queue, kept
        self._pool = ThreadPoolExecutor(slots, thread_name_prefix="writer")
        self._turns = Turns()
        self._lock = threading.Lock()
        self._taken, self._is_closed = 0, False
        self._tasks: dict[Task, Future[Generated]] = {}

    @property
    def running(self) -> int:
        """Answers that are being written."""
        return min(self._taken, self.slots)

    @property
    def waiting(self) -> int:
        """Answers that wait for others to end."""
        return max(0, self._taken - self.slots)

    def admit(self, tasks: int) -> None:
        """Keep places for so many answers.

        Raises:
            Busy: there are not so many left.
            UsageError: there never are.
        """
        if tasks > self.slots + self.queue:
            raise UsageError(
                f"{tasks} answers at once, and {self.slots + self.queue} are taken at most; ask for fewer"
            )
        with self._lock:
            if self._is_closed:
                raise Busy("the server is ending")
            if self._taken + tasks > self.slots + self.queue:
                raise Busy(
                    f"{self.running} answers are being written and {self.waiting} wait, of {self.queue} that "
                    "may; try again later"
                )
            self._taken += tasks

    def _end(self, task: Task) -> None:
        with self._lock:
            self._taken -= 1
        self._tasks.pop(task, None)

    def write(self, task: Task) -> Future[Generated]:
        """Begin an answer that a place was kept for; it fails with Gone where nobody waits for it."""
        self._tasks[task] = future = self._pool.submit(self._write, task)
        future.add_done_callback(lambda done: self._end(task))
        return future

    def give_up(self, task: Task) -> None:
        """End an answer that nobody waits for: at once if it has not begun, else after the next token."""
        task.is_gone.set()
        future = self._tasks.get(task)
        if future is not None:
            future.cancel()

    def close(self) -> None:
        """Take no more, and give up what is being written."""
        self._is_closed = True
        for task in list(self._tasks):
            self.give_up(task)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _write(self, task: Task) -> Generated:
        with self._turns.taken():
            _refuse_gone(task)
            torch.manual_seed(task.seed)
            answer = _Answer(task)
            model = task.served.model
            with self.kept.for_prompt(model, task.prompt) as known:
                written = generate(
                    model,
                    task.served.tokenizer,
                    torch.tensor([task.prompt], device=model.device),
                    task.sampling,
                    answer.take,
                    stop=task.stop,
                    prompt_cache=known,
                    follows=task.follows,
                    shown=task.shown,
                    company=_Company(task, self._turns),
                    stopping_criteria=[answer],
                    logits_processor=LogitsProcessorList(answer.processors),
                    **({"eos_token_id": None} if task.ignores_end else {}),
                )
            answer.tell()
            return written


@dataclass(frozen=True, slots=True)
class _Company:
    """The other writers, for the one that writes a task: a `decoding.Company`."""

    task: Task
    turns: Turns

    def between(self) -> None:
        _refuse_gone(self.task)
        self.turns.pass_on()

    def run(self, step: Step) -> torch.Tensor:
        _refuse_gone(self.task)
        return self.turns.run(step)


def _refuse_gone(task: Task) -> None:
    if task.is_gone.is_set():
        raise Gone


class _Answer(StoppingCriteria):  # type: ignore[misc]
    """Tells a text and the scores of its tokens as they come: transformers calls it after each token."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._text: list[str] = []
        self._scores: list[TokenScore] = []
        prompt = len(task.prompt)
        self._logs = None if task.likeliest is None else LogProbabilities(prompt, task.likeliest)
        self.processors: list[Any] = [] if self._logs is None else [self._logs]
        if task.frequency_penalty or task.presence_penalty:
            self.processors.append(Penalties(prompt, task.frequency_penalty, task.presence_penalty))
        if task.bias:
            self.processors.append(Bias(task.bias))

    def take(self, text: str) -> None:
        """Take a piece of text, which comes before the call for its last token."""
        self._text.append(text)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if self._logs is not None:
            place = input_ids.shape[1] - len(self._task.prompt) - 1
            self._scores.append(self._logs.of(place, int(input_ids[0, -1])))
        if self._text:
            self.tell()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def tell(self) -> None:
        """Tell what has come since the last time, if that is text; scores of tokens without any are not."""
        if self._text:
            self._task.on_piece("".join(self._text), self._scores)
            self._text, self._scores = [], []
