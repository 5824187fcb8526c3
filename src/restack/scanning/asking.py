"""Asking candidates the questions of all probes."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from restack.errors import RestackError
from restack.plans import Plan
from restack.scanning.probe import ForcedProbe, FreeProbe, Outcome, Probe, Row
from restack.scanning.reading import LayerRuns, read
from restack.views import view

Questions = Mapping[str, Sequence[int]]  # the numbers of the questions to ask, by probe


@dataclass(frozen=True, slots=True)
class Answers:
    """What a plan scored.

    Attributes:
        plan: of the candidate.
        scores: of each question that was asked, by probe; empty after an error.
        error: why there are none, in one line; None if there are.
        is_final: whether it would fail again: the plan cannot be run. Otherwise the next run tries it again.
        seconds: that it took.
        layer_runs: how many layers were run over batches for it, and how many would have been by itself.
    """

    plan: Plan
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict)
    error: str | None = None
    is_final: bool = True
    seconds: float = 0.0
    layer_runs: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Task:
    """Plans to ask, and what to ask them. Those that begin alike should be in one task."""

    plans: tuple[Plan, ...]
    questions: Questions


class Asker:
    """A loaded model, and the probes that its plans are asked."""

    def __init__(self, model: Any, probes: Sequence[Probe], memory: int | None = None) -> None:
        """An asker.

        Args:
            model: loaded; it is put in evaluation mode.
            probes: of the scan.
            memory: bytes of hidden states to keep, as `read` has it.
        """
        self.model, self.memory = model.eval(), memory
        self.forced = [probe for probe in probes if isinstance(probe, ForcedProbe)]
        self.free = [probe for probe in probes if isinstance(probe, FreeProbe)]

    def __call__(self, task: Task) -> Iterator[Answers]:
        """The answers of each plan of a task, one by one, in an order of its own.

        A plan that cannot be run, or whose scores are not finite, is answered by its error.
        """
        runs, before, start = LayerRuns(), (0, 0), time.perf_counter()
        for plan, result in self._read(task, runs):
            scores: Mapping[str, Sequence[float]] = {}
            error, is_final = None, True
            try:
                if isinstance(result, Exception):
                    raise result
                scores = self._scores(plan, task.questions, result)
            except Exception as failure:  # of one candidate of many: it is told, and the others go on
                error, is_final = told(failure), isinstance(failure, RestackError)
            took = (runs.run - before[0], runs.alone - before[1])
            yield Answers(plan, scores, error, is_final, time.perf_counter() - start, took)
            before, start = (runs.run, runs.alone), time.perf_counter()

    def _read(self, task: Task, runs: LayerRuns) -> Iterator[tuple[Plan, list[Outcome] | Exception]]:
        rows = [row for _, _, rows in self._rows(task.questions) for row in rows]
        if not rows:
            yield from ((plan, []) for plan in task.plans)
            return
        for number, result in read(self.model, task.plans, rows, memory=self.memory, runs=runs):
            yield task.plans[number], result

    def _rows(self, questions: Questions) -> Iterator[tuple[ForcedProbe, int, list[Row]]]:
        for probe in self.forced:
            for question in questions.get(probe.name, ()):
                yield probe, question, probe.rows(question)

    def _scores(
        self, plan: Plan, questions: Questions, outcomes: Sequence[Outcome]
    ) -> dict[str, Sequence[float]]:
        scores: dict[str, Any] = {}
        at = 0
        for probe, question, rows in self._rows(questions):
            score = probe.score(question, outcomes[at : at + len(rows)])
            scores.setdefault(probe.name, []).append(score)
            at += len(rows)
        if any(questions.get(probe.name) for probe in self.free):
            model = view(self.model, plan).eval()
            for free in self.free:
                if asked := questions.get(free.name):
                    scores[free.name] = free.scores(model, asked)
        for name, found in scores.items():
            if len(found) != len(questions[name]):
                raise ValueError(f"{name} gives {len(found)} scores for {len(questions[name])} questions")
            scores[name] = [float(score) for score in found]
            if not all(map(math.isfinite, scores[name])):
                raise ArithmeticError(f"{name} gives scores that are not finite")
        return scores


def told(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"{text:.500}" if isinstance(error, RestackError) else f"{type(error).__name__}: {text:.300}"
