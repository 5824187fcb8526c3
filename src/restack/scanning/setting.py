"""What a scan asks, fixed before the first candidate is seen: the questions, and which are held out."""

from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from restack.errors import RestackError, UsageError
from restack.plans.pointing import counted
from restack.recipes.description import described
from restack.runtime import sample_text
from restack.scanning.asking import Questions
from restack.scanning.findings import LayerFacts, ProbeFacts
from restack.scanning.probe import ForcedProbe, Probe
from restack.scanning.probes.function import Function
from restack.scanning.similarity import layer_facts
from restack.views.planned import visit_count

FEWEST = 2  # questions on either side
READ = 200  # questions, to see how layers change what runs through them


@dataclass(frozen=True, slots=True)
class Setting:
    """A model and questions, as far as a scan has to know them.

    Attributes:
        model: its name.
        depth: its layers; of a view, its visits.
        identity: what decides the scores.
        probes: what a report says of each.
        searched, held_out: the questions for every candidate, and those for the base and the best alone.
        objective: the probes that candidates are chosen by; of several, each counts the same.
        layers: how its layers change what runs through them.
    """

    model: str
    depth: int
    identity: Mapping[str, Any]
    probes: tuple[ProbeFacts, ...]
    searched: Questions
    held_out: Questions
    objective: tuple[str, ...]
    layers: LayerFacts | None

    def of_each_probe(self) -> "dict[str, Setting]":
        """The same with one probe alone as the objective; none if there is but one."""
        names = [probe.name for probe in self.probes]
        return {name: replace(self, objective=(name,)) for name in names} if len(names) > 1 else {}


def settle(
    model: Any,
    tokenizer: Any,
    probes: Sequence[Probe],
    *,
    name: str = "the model",
    objective: Sequence[str] = (),
    held_out: float = 0.5,
    seed: int = 0,
    layers: bool = True,
) -> Setting:
    """Fix what a scan asks.

    Args:
        model: loaded, in evaluation mode.
        tokenizer: of the model.
        probes: of the scan; the first is what candidates are chosen by if no objective is named.
        name: of the model, for the report.
        objective: names of the probes that candidates are chosen by.
        held_out: the share of each probe's questions, drawn by the seed and from each of its groups alike,
            that takes no part in the choice.
        seed: of that draw.
        layers: measure how the layers change what runs through them, too.

    Raises:
        UsageError: no probes, two of one name, too few questions, no such objective.
    """
    names = [probe.name for probe in probes]
    objective = (objective,) if isinstance(objective, str) else objective
    check_objective(names, objective)
    if not 0 < held_out < 1:
        raise UsageError(f"a share of {held_out:g} cannot be held out; write a number between 0 and 1")
    for probe in probes:
        if isinstance(probe, Function):
            probe.ask(model)  # how many questions it has is not known before
    split = {probe.name: _split(probe, held_out, seed) for probe in probes}
    return Setting(
        name,
        visit_count(model),
        {
            "model": described(model),
            "probes": {p.name: f"{len(p)} questions, {p.fingerprint()}" for p in probes},
            "split": f"{held_out:g} of the questions held out, seed {seed}",
        },
        tuple(_facts(probe, *split[probe.name]) for probe in probes),
        {name: searched for name, (searched, _) in split.items()},
        {name: kept for name, (_, kept) in split.items()},
        tuple(objective) or (names[0],),
        _layer_facts(model, tokenizer, probes) if layers else None,
    )


def check_objective(names: Sequence[str], objective: Sequence[str]) -> None:
    """Refuse probes and an objective that do not go together.

    Args:
        names: of the probes.
        objective: those that candidates are chosen by.

    Raises:
        UsageError: no probes, two of one name, no such objective.
    """
    if not names:
        raise UsageError("there is nothing to ask; name a probe")
    if twice := next((probe for probe in names if names.count(probe) > 1), None):
        raise UsageError(f"the probe {twice} is given twice; give it once")
    for wanted in objective:
        if wanted not in names:
            some = ", ".join(names)
            raise UsageError(f"the objective {wanted!r} is none of the probes; choose from {some}")


def _layer_facts(model: Any, tokenizer: Any, probes: Sequence[Probe]) -> LayerFacts | None:
    """How layers change what runs through them, on a probe that is read, or else on plain prose."""
    read = next((probe for probe in probes if isinstance(probe, ForcedProbe)), None)
    with suppress(RestackError):  # not every model hands on what can be compared
        if read is None:
            return layer_facts(model, tokenizer, sample_text(), "plain prose, 600 words")
        every = range(0, len(read), max(1, len(read) // READ))
        rows = [row for question in every for row in read.rows(question)]
        return layer_facts(model, tokenizer, rows, f"{len(every)} questions of {read.name}")
    return None


def _split(probe: Probe, held_out: float, seed: int) -> tuple[list[int], list[int]]:
    """The numbers of a probe's questions, each once: to search with, and held out."""
    rng = np.random.default_rng(seed)
    firsts: dict[Hashable, int] = {}
    for number in range(len(probe)):
        firsts.setdefault(probe.question_key(number), number)
    groups: dict[str, list[int]] = {}
    for number in firsts.values():
        groups.setdefault(probe.groups[number] if probe.groups else "", []).append(number)
    kept: list[int] = []
    for members in groups.values():
        kept += rng.permutation(members)[: round(len(members) * held_out)].tolist()
    searched = sorted(set(firsts.values()).difference(kept))
    if min(len(searched), len(kept)) < FEWEST:
        raise UsageError(
            f"{probe.name} has {counted(len(firsts), 'different question')}, {len(searched)} to search with "
            f"and {len(kept)} held out; both need {FEWEST} or more, and some hundred to tell stacks apart"
        )
    return searched, sorted(kept)


def _facts(probe: Probe, searched: Sequence[int], held_out: Sequence[int]) -> ProbeFacts:
    groups = probe.groups
    return ProbeFacts(
        probe.name,
        probe.measure,
        probe.lower_is_better,
        probe.chance,
        len(searched),
        len(held_out),
        None if groups is None else (tuple(groups[n] for n in searched), tuple(groups[n] for n in held_out)),
    )
