"""The scan: all candidates are asked, the best once more what it was not chosen by, and all is judged."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from restack.errors import UsageError
from restack.plans import Plan
from restack.scanning.asking import Answers, Asker, Questions, Task
from restack.scanning.beam import Beam, composed, is_single
from restack.scanning.candidates import Candidate, base, distinct
from restack.scanning.findings import Findings
from restack.scanning.judging import judge, leader, name_of, objective_gains, refuse_failed_base
from restack.scanning.probe import Probe
from restack.scanning.results import HELD_OUT, SEARCHED, Results
from restack.scanning.schedule import cuts, schedule
from restack.scanning.setting import Setting, settle

TASKS = 6  # for each worker, so that none waits long for the last
FEWEST = 4  # plans of a task: what they begin with is run once for each task


class Stopped(KeyboardInterrupt):
    """Somebody stopped the scan; the text says what of the part that ran then was done."""


class Workers(Protocol):
    """Who does the work: this process, others on this machine, or a cluster."""

    workers: int

    def map(self, tasks: Iterable[Task]) -> Iterator[Answers]:
        """The answers of all tasks, in any order, as they are ready."""


class InProcess:
    """This process alone."""

    workers = 1

    def __init__(self, asker: Asker) -> None:
        self.asker = asker

    def map(self, tasks: Iterable[Task]) -> Iterator[Answers]:
        """The answers of all tasks, as they are ready."""
        for task in tasks:
            yield from self.asker(task)


class Watch:
    """What is told of a scan while it runs; nothing, here."""

    def begin(self, what: str, total: int, done: int) -> None:
        """A part of the work begins, of so many candidates, some of them done before."""

    def advance(self, candidate: Candidate, answers: Answers) -> None:
        """A candidate is done."""


def scan(
    model: Any,
    tokenizer: Any,
    candidates: Iterable[Candidate],
    probes: Sequence[Probe],
    folder: str | Path | None = None,
    *,
    beam: Beam | None = None,
    memory: int | None = None,
    watch: Watch | None = None,
    **setting: Any,
) -> Findings:
    """Which stack of a model's layers is better than the model, and whether that is more than chance.

    Every candidate and the base are asked the same questions; the best by the objective is asked others,
    which took no part in the choice, and so is the base: that is the figure to quote.

    Args:
        model: loaded; a view, too: then candidates are over its visits.
        tokenizer: of the model.
        candidates: of `restack.scanning.grid`, `named`...; the base need not be among them.
        probes: what they are asked.
        folder: where results and the report go, and where a scan that was stopped goes on; None: nowhere.
        beam: put the best blocks together, too.
        memory: bytes of hidden states to keep at most.
        watch: is told how it goes.
        setting: `name`, `objective`, `held_out`, `seed` and `layers`, as `settle` has them.

    Raises:
        UsageError: the folder holds a scan of something else; the probes do not go together; or the base
            itself cannot be scored.
    """
    settled = settle(model, tokenizer, probes, **setting)
    results = Results(settled.depth, None if folder is None else Path(folder))
    work = InProcess(Asker(model, probes, memory))
    return run(settled, candidates, results, work, beam=beam, watch=watch)


def run(
    setting: Setting,
    candidates: Iterable[Candidate],
    results: Results,
    workers: Workers,
    *,
    beam: Beam | None = None,
    watch: Watch | None = None,
) -> Findings:
    """The same of what is settled, by whoever does the work; the arguments are those of `scan`.

    Raises:
        UsageError: as `scan` does; or there is no candidate beside the base.
        Stopped: somebody stopped it; what was done is kept, and the report is of that.
    """
    watch = watch or Watch()
    reference = base(setting.depth)
    others = distinct([reference, *candidates])[1:]
    if beam is not None and not any(is_single(candidate) for candidate in others):
        raise UsageError(
            "a beam puts together blocks that run twice, undamped, and there are none; try those too"
        )
    if not others:
        raise UsageError("there is no candidate beside the base itself; name blocks or plans to try")
    with results.opened(setting.identity):
        try:
            # Alone, and first: all others are compared with it, and a probe that fails does so at once.
            _ask_all("base", [reference], SEARCHED, setting.searched, results, workers, watch)
            refuse_failed_base(results)
            _ask_all("candidates", others, SEARCHED, setting.searched, results, workers, watch)
            if beam is not None:
                _search(beam, setting, results, workers, watch)
            objectives = [setting, *setting.of_each_probe().values()]
            best: dict[Candidate, list[str]] = {}
            for each in objectives:
                winner, _ = leader(each, results)
                if winner is not None:
                    best.setdefault(winner, []).append(name_of(each.objective))
            if best:
                some = [reference, *best]
                _ask_all(
                    "held-out questions", some, HELD_OUT, setting.held_out, results, workers, watch, best
                )
        except Stopped as stop:
            with suppress(Exception):  # what there is may not be enough for a report
                _report(judge(setting, results, stopped=str(stop)), results)
            raise
        findings = judge(setting, results)
        _report(findings, results)
        return findings


def _report(findings: Findings, results: Results) -> None:
    if results.folder is not None:
        from restack.scanning.reporting import write_report  # pictures take a second to import

        write_report(findings, results.folder)


def _ask_all(
    what: str,
    candidates: Sequence[Candidate],
    asked: str,
    questions: Questions,
    results: Results,
    workers: Workers,
    watch: Watch,
    chosen_by: Mapping[Candidate, Sequence[str]] | None = None,
) -> None:
    """Ask those that are not done yet."""
    left = {c.plan: c for c in candidates if not results.has(c.plan, asked)}
    done = len(candidates) - len(left)
    watch.begin(what, len(candidates), done)
    try:
        for answers in workers.map(_tasks(list(left), questions, workers.workers)):
            candidate = left[answers.plan]
            results.add(candidate, answers, asked, (chosen_by or {}).get(candidate, ()))
            done += 1
            watch.advance(candidate, answers)
    except KeyboardInterrupt:
        raise Stopped(f"{done} of {len(candidates)} done of the {what}") from None


def _tasks(plans: Sequence[Plan], questions: Questions, workers: int) -> list[Task]:
    """The plans in tasks for so many workers, those that begin alike together."""
    if not plans:
        return []
    steps = schedule(plans, [cuts(plan) for plan in plans])
    ordered = [plans[step.number] for step in steps]
    size = len(ordered) if workers == 1 else max(FEWEST, -(-len(ordered) // (workers * TASKS)))
    return [Task(tuple(ordered[n : n + size]), questions) for n in range(0, len(ordered), size)]


def _search(beam: Beam, setting: Setting, results: Results, workers: Workers, watch: Watch) -> None:
    """Put the best single blocks together, two and more of them."""
    depth = setting.depth
    singles = beam.singles(_gains(setting, results), depth)
    kept = singles[: beam.width]
    for size in range(2, beam.most + 1):
        sets = beam.larger(kept, singles)
        if not sets:
            return
        stacks = [composed(blocks, depth) for blocks in sets]
        _ask_all(f"stacks of {size} blocks", stacks, SEARCHED, setting.searched, results, workers, watch)
        kept = beam.best(sets, _gains(setting, results), depth)


def _gains(setting: Setting, results: Results) -> dict[Plan, float]:
    """The mean gain of each scored plan by the objective."""
    records = [r for (asked, _), r in results.records.items() if asked == SEARCHED and "scores" in r]
    means = objective_gains(setting, results, records, SEARCHED).mean(axis=1)
    depth = results.depth
    return {
        Plan.from_json({"plan": r["plan"], "depths": [depth]}): float(mean)
        for r, mean in zip(records, means, strict=True)
    }
