"""Any task of lm-evaluation-harness as a probe: a question is one of its documents."""

import copy
import json
import re
import sys
from collections import defaultdict
from collections.abc import Hashable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from restack.errors import UsageError
from restack.plans.pointing import counted
from restack.scanning.harness.quiet import level, quiet
from restack.scanning.harness.tasks import SEED, check_installed, find_tasks, prepare
from restack.scanning.probe import ForcedProbe, FreeProbe, Outcome, Probe, Row
from restack.scanning.probes.digest import digest

LIKELIEST = ("acc", "acc_norm", "acc_bytes")  # metrics of which choice is likeliest
ADDRESS = re.compile(r" at 0x[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class Questions:
    """What lm-eval asks of a model for a task, and what it makes of the answers.

    Attributes:
        name: of the task, as it was asked for.
        task: lm-eval's.
        instances: the requests of each document.
        metric: the one that is taken.
    """

    name: str
    task: Any
    instances: tuple[tuple[Any, ...], ...]
    metric: str

    def score(self, question: int, responses: Sequence[Sequence[Any]]) -> float:
        """What the task's own filters and code make of a model's responses.

        Args:
            question: the number of the document.
            responses: to each of its requests, as often as it is repeated.
        """
        answered = [
            replace(instance, resps=list(given), filtered_resps={})
            for instance, given in zip(self.instances[question], responses, strict=True)
        ]
        for ensemble in self.task._filters:
            ensemble.apply(answered)
        name = next(iter(answered[0].filtered_resps))
        found = self.task.process_results(answered[0].doc, [one.filtered_resps[name] for one in answered])
        value = found.get(self.metric)
        if not isinstance(value, int | float | np.generic):
            raise UsageError(
                f"task {self.name}: {self.metric} is no number for a question (it gives "
                f"{', '.join(found) or 'nothing'}); name another metric, as in {self.name}:acc"
            )
        return float(value)

    @property
    def lower_is_better(self) -> bool:
        return self.task.higher_is_better().get(self.metric) is False

    @property
    def chance(self) -> float | None:
        """Of guessing among the choices; None where the answers are no choices."""
        if self.task.OUTPUT_TYPE != "multiple_choice" or self.metric not in LIKELIEST:
            return None
        if getattr(self.task, "multiple_target", 0):
            return None
        counts = [len(self.task.doc_to_choice(requests[0].doc)) for requests in self.instances]
        return sum(1 / count for count in counts) / len(counts)

    def told(self) -> Any:
        """All that makes these questions what they are, in JSON's types."""
        config = self.task.dump_config()
        config["metadata"] = {
            name: value
            for name, value in (config.get("metadata") or {}).items()
            if name != "config_source"  # where the file lies
        }
        asked = [[[one.request_type, one.args, one.doc] for one in some] for some in self.instances]
        return json.loads(json.dumps([config, self.metric, asked], default=_text))


class ForcedTask(ForcedProbe):
    """A task whose requests are all about how likely a text is: multiple choice, and its like."""

    def __init__(self, name: str, questions: Questions, rows: Sequence[Sequence[Row]], context: int) -> None:
        self.name, self.measure = name, questions.metric
        self.lower_is_better, self.chance = questions.lower_is_better, questions.chance
        self._questions, self._rows = questions, rows
        self._fingerprint = digest([questions.told(), context])

    def __len__(self) -> int:
        return len(self._rows)

    def fingerprint(self) -> str:
        return self._fingerprint

    def rows(self, question: int) -> list[Row]:
        return list(self._rows[question])

    def score(self, question: int, outcomes: Sequence[Outcome]) -> float:
        responses = [
            (float(outcome.log_probabilities.sum()), bool(outcome.is_top.all())) for outcome in outcomes
        ]
        requests = self._questions.instances[question]
        return self._questions.score(
            question,
            [[response] * request.repeats for response, request in zip(responses, requests, strict=True)],
        )


class FreeTask(FreeProbe):
    """A task for which the model writes, or that asks for something else by itself."""

    def __init__(
        self, name: str, questions: Questions, tokenizer: Any, context: int | None, batch_size: int | str
    ) -> None:
        self.name, self.measure = name, questions.metric
        self.lower_is_better = questions.lower_is_better
        self._questions, self._tokenizer = questions, tokenizer
        self._context, self._batch_size = context, batch_size
        self._fingerprint = digest([questions.told(), context])  # now: lm-eval adds to requests that it runs

    def __len__(self) -> int:
        return len(self._questions.instances)

    def fingerprint(self) -> str:
        return self._fingerprint

    def question_key(self, question: int) -> Hashable:
        return tuple(str(request.args) for request in self._questions.instances[question])

    def scores(self, model: Any, questions: Sequence[int]) -> list[float]:
        from restack.scanning.harness.model import RestackLM

        lm = RestackLM(
            model,
            tokenizer=self._tokenizer,
            max_length=self._context,
            batch_size=self._batch_size,
            softmax_dtype="float32",
        )
        asked = [request for question in questions for request in self._questions.instances[question]]
        kinds: dict[str, list[tuple[int, Any]]] = defaultdict(list)
        for place, request in enumerate(asked):
            kinds[request.request_type] += [(place, request)] * request.repeats
        responses: list[list[Any]] = [[] for _ in asked]
        gpus = [model.device] if model.device.type == "cuda" else []
        with level("lm_eval"), redirect_stdout(sys.stderr), torch.random.fork_rng(gpus):
            torch.manual_seed(SEED)
            for kind, some in kinds.items():
                given = getattr(lm, kind)([request for _, request in some], disable_tqdm=True)
                for (place, _), response in zip(some, given, strict=True):
                    responses[place].append(response)
        found, start = [], 0
        for question in questions:
            end = start + len(self._questions.instances[question])
            found.append(self._questions.score(question, responses[start:end]))
            start = end
        return found


def task_probe(
    name: str,
    tokenizer: Any,
    *,
    include_path: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    context: int | None = None,
    batch_size: int | str = 8,
) -> Probe:
    """A task of lm-eval as a probe.

    Requests are lm-eval's own, made once, so a question has the same examples whenever it is asked; log-
    probabilities are of float32, which for models in a shorter dtype is finer than lm-eval's default.

    Args:
        name: of a task, or a .yaml file; NAME:METRIC takes another metric than the task's first.
        tokenizer: of the models that are to be asked.
        include_path: a folder of task files.
        limit: the first so many documents; None for all.
        num_fewshot: examples before each question; None as the task has it.
        context: tokens that the models read; longer requests lose their beginning. Without, as lm-eval has
            it for a model whose config does not say.
        batch_size: requests at once where the model writes.

    Returns:
        A `ForcedProbe` where all requests are log-likelihoods, and otherwise a `FreeProbe`.

    Raises:
        UsageError: lm-eval is not installed; there is no such task, or its data are not here; it is several
            tasks; its metric is no mean over documents; a request has no tokens, or an answer is longer than
            the context; it runs code, or has pictures or sounds.
    """
    check_installed()
    if limit is not None and limit < 1:
        raise UsageError(f"the limit is {limit} questions; write 1 or more")
    tokenizer = copy.deepcopy(tokenizer)  # lm-eval sets its padding token
    task_name, metric = _parts(name)
    task = _one_task(task_name, include_path)
    chosen = _metric(task_name, task, metric)
    prepare(task, num_fewshot, SEED)
    with quiet():
        instances = _requests(task, limit)
    questions = Questions(task_name, task, instances, chosen)
    if any(request.request_type != "loglikelihood" for some in instances for request in some):
        return FreeTask(name, questions, tokenizer, context, batch_size)
    from restack.scanning.harness.model import Reader

    reader = Reader(tokenizer, context)
    rows = [_rows(reader, task_name, number, some) for number, some in enumerate(instances)]
    probe = ForcedTask(name, questions, rows, reader.max_length)
    with quiet():
        questions.score(0, [[(-1.0, False)] * request.repeats for request in instances[0]])  # or refused now
    return probe


def _parts(name: str) -> tuple[str, str | None]:
    """The task and the metric in NAME:METRIC."""
    if ":" not in name or Path(name).is_file():
        return name, None
    task, _, metric = name.rpartition(":")
    return task, metric


def _one_task(name: str, include_path: Path | None) -> Any:
    found = find_tasks([name], include_path).load()["tasks"]
    if len(found) != 1:
        some = ", ".join(list(found)[:3])
        raise UsageError(f"{name} is {counted(len(found), 'task')}, and a probe is one; name one: {some}...")
    task = next(iter(found.values()))
    if getattr(task, "UNSAFE_CODE", False):
        raise UsageError(
            f"task {name} runs code that the model writes; restack eval does that if you confirm it"
        )
    if getattr(task, "MULTIMODAL", False):
        raise UsageError(f"task {name} has pictures or sounds; choose one of text alone")
    return task


def _metric(name: str, task: Any, asked: str | None) -> str:
    from lm_eval.api.metrics import mean  # type: ignore[import-untyped]

    aggregations = task.aggregation()
    if asked is not None and asked not in aggregations:
        raise UsageError(f"task {name} has no metric {asked}; it has {', '.join(aggregations)}")
    chosen: str | None = asked or next(iter(aggregations), None)
    if chosen is not None and aggregations[chosen] is mean:
        return chosen
    means = [metric for metric, how in aggregations.items() if how is mean]
    remedy = (
        f"take {means[0]}, as {name}:{means[0]}"
        if means
        else "choose a task with a metric such as acc, whose aggregation is mean"
    )
    raise UsageError(
        f"task {name}: {chosen or 'it has no metric that'} is no mean over its questions, so models cannot "
        f"be compared question by question; {remedy}"
    )


def _requests(task: Any, limit: int | None) -> tuple[tuple[Any, ...], ...]:
    """The requests of each document, as lm-eval makes them when it asks all of them in order."""
    task.build_all_requests(limit=limit)
    found: dict[int, list[Any]] = defaultdict(list)
    for instance in task.instances:
        found[instance.doc_id].append(instance)
    return tuple(tuple(sorted(found[doc], key=lambda one: one.idx)) for doc in sorted(found))


def _rows(reader: Any, name: str, number: int, requests: Sequence[Any]) -> list[Row]:
    if any(not "".join(request.args[:2]) for request in requests):
        raise UsageError(f"task {name}, question {number} is empty; correct its file")
    rows = []
    for context, target in reader.loglikelihood(requests, disable_tqdm=True):
        if not context or not target or None in context:
            raise UsageError(
                f"task {name}, question {number}: the tokenizer makes no tokens of an answer, or of what is "
                "before it; choose another task"
            )
        if len(target) > reader.max_length:
            raise UsageError(
                f"task {name}, question {number}: an answer has {len(target)} tokens, and the model reads "
                f"{reader.max_length}; choose another task"
            )
        tokens = tuple((context + target)[-(reader.max_length + 1) :])  # the last is only predicted
        rows.append(Row(tokens, len(target)))
    return rows


def _text(value: Any) -> Any:
    """What JSON cannot say, as a text that is the same in every process."""
    return value.item() if isinstance(value, np.generic) else ADDRESS.sub("", str(value))
