"""What many plans of a model make of the same texts, with the visits that they share run once."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from restack.errors import RestackError, UsageError
from restack.plans import Plan
from restack.runtime.likelihood import keeping_last
from restack.scanning.probe import Outcome, Row
from restack.scanning.schedule import Step, cuts, most_kept, schedule
from restack.views import view
from restack.views.anatomy import decoder_config
from restack.views.cost import running
from restack.views.midway import entering
from restack.views.planned import iterated, runs_plans, visit_count
from restack.views.recording import recording

BATCH = 4096  # tokens
CHECKED = 16  # of them, to see whether a model can be entered midway
BY_LENGTH = ("dynamic", "longrope")  # rotary embeddings that stretch with the text
LOGITS = 2**26  # numbers that are looked at in float32 at once
MEMORY = 2**30  # bytes of hidden states, if nothing else is said
_enterable: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()  # models that were checked
TOGETHER = 64  # plans that are run over some of the texts before the next texts, where memory is short


@dataclass(slots=True)
class LayerRuns:
    """How many layers were run over batches, and how many each plan run by itself takes."""

    run: int = 0
    alone: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of about one length.

    Attributes:
        tokens: shape (B, T), filled up behind; the last token of the longest row is only a target.
        rows: the numbers of the rows.
        places: of every target in turn, its row in the batch and the position that predicts it.
        targets: the target tokens.
        counts: how many of them each row has.
    """

    tokens: torch.Tensor
    rows: tuple[int, ...]
    places: tuple[torch.Tensor, torch.Tensor]
    targets: torch.Tensor
    counts: list[int]


def read(
    model: Any,
    plans: Sequence[Plan],
    rows: Sequence[Row],
    *,
    memory: int | None = None,
    runs: LayerRuns | None = None,
) -> Iterator[tuple[int, list[Outcome] | Exception]]:
    """What each plan's view of a model makes of some rows, without gradients.

    Hidden states that enter a visit up to which plans are alike are computed once for each batch, and kept
    until the last such plan has gone on from them. The outcomes are those of each view run by itself: the
    batches are the same, and so is all that is computed. Models that cannot be entered midway, because their
    layers hand on more than hidden states, are run from the start each time.

    Args:
        model: loaded, in evaluation mode; a view, too.
        plans: over its layers, or its visits if it is a view.
        rows: within the model's context. They are put in batches of about 4,096 tokens.
        memory: bytes of hidden states to keep at most; where those of all rows are more, the rows are taken
            in parts, and the plans 64 at a time. At least one batch is kept.
        runs: counts what is run.

    Yields:
        The number of a plan, and its outcomes in the order of the rows; or what went wrong with it. In an
        order of its own: as soon as each plan is done.
    """
    if rows and model not in _enterable:
        _enterable[model] = _can_be_entered(model, rows[0])
    midway = _enterable.get(model, False)
    known = [_known(model, plan, midway) for plan in plans]
    whole, entries = [plan for plan, _ in known], [entries for _, entries in known]
    most = batch_tokens(model.get_input_embeddings().num_embeddings)
    batches = _batches(rows, model.device, most, mixed=not _rotates_by_length(model))
    steps = schedule(whole, entries)
    parts = _parts(model, batches, most_kept(steps), MEMORY if memory is None else memory)
    runs = LayerRuns() if runs is None else runs
    if len(parts) == 1:
        yield from _run(model, plans, steps, batches, len(rows), runs)
        return
    order = [step.number for step in steps]
    for first in range(0, len(order), TOGETHER):
        some = order[first : first + TOGETHER]
        chosen = schedule([whole[n] for n in some], [entries[n] for n in some])
        found: dict[int, list[Outcome] | Exception] = {}
        for part in parts:
            for number, result in _run(model, [plans[n] for n in some], chosen, part, len(rows), runs):
                found[number] = _merged(found.get(number), result)
        yield from ((some[number], result) for number, result in found.items())


@torch.no_grad()
def _can_be_entered(model: Any, row: Row) -> bool:
    """Whether a model gives the same from the middle on, over the hidden states that entered there.

    Not if its layers hand on more than hidden states.

    Raises:
        UsageError: the model reads what comes after a token too, so that it would see the answers.
    """
    depth = visit_count(model)
    tokens = torch.tensor([row.tokens[:CHECKED]], device=model.device)
    identity = Plan.of(range(depth), depth)
    with recording(model, [depth // 2]) as seen:
        whole = model(input_ids=tokens, use_cache=False).logits
    if tokens.shape[1] > 1:
        other = tokens.clone()
        other[0, -1] = tokens[0, 0] if tokens[0, 0] != tokens[0, -1] else (tokens[0, -1] + 1) % 2
        ahead = model(input_ids=other, use_cache=False).logits
        if not torch.allclose(whole[:, :-1].float(), ahead[:, :-1].float(), rtol=1e-2, atol=1e-2):
            raise UsageError(
                f"a {type(model).__name__} reads what comes after a token too, so it would see the answers; "
                "use probes that have it write (exact, math)"
            )
    if depth // 2 not in seen or depth < 2:
        return runs_plans(model)  # which iterates there; then nothing is entered there
    try:
        rest = view(model, identity.tail(depth // 2)).eval()
    except RestackError:  # of a hybrid: no attention there; of a view that shares: an owner before
        return True
    with entering(rest, seen[depth // 2], tokens) as given:
        return torch.equal(rest(**given, use_cache=False).logits.nan_to_num(), whole.nan_to_num())


def _known(model: Any, plan: Plan, midway: bool) -> tuple[Plan, frozenset[int]]:
    """What a model runs when it runs a plan, and the visits that this can go on from."""
    try:
        whole = running(model, plan)
        if not midway:
            return whole, frozenset()
        inside = iterated(view(model, plan)) if runs_plans(model) else frozenset()
    except RestackError:  # what is wrong with it is told when it is run
        return plan, frozenset()
    return whole, cuts(whole) - inside


def _run(
    model: Any,
    plans: Sequence[Plan],
    steps: Sequence[Step],
    batches: Sequence[Batch],
    rows: int,
    runs: LayerRuns,
) -> Iterator[tuple[int, list[Any] | Exception]]:
    """The outcomes of each step's plan; None for rows that are in none of the batches."""
    kept: dict[int, list[torch.Tensor]] = {}
    for step in steps:
        plan = plans[step.number]
        found: list[Any] = [None] * rows
        result: list[Any] | Exception = found
        start = 0
        try:
            start, rest = _rest(model, plan, step.start if step.start in kept else 0)
            kept |= _run_rest(rest, start, step.saves, batches, kept.get(start), found)
        except Exception as error:  # of one candidate of many: it is told, and the others go on
            result = error.with_traceback(None)
        runs.run += (len(plan) - start) * len(batches)
        runs.alone += len(plan) * len(batches)
        for visit in step.drops:
            kept.pop(visit, None)
        yield step.number, result


def _rest(model: Any, plan: Plan, start: int) -> tuple[int, Any]:
    """The view of a plan's visits from one on; from the first, where those alone are no model."""
    if start:
        with suppress(RestackError):  # of a hybrid, whose last visits may have no attention among them
            return start, view(model, plan.tail(start)).eval()
    return 0, view(model, plan).eval()


@torch.no_grad()
def _run_rest(
    rest: Any,
    start: int,
    saves: Sequence[int],
    batches: Sequence[Batch],
    hidden: Sequence[torch.Tensor] | None,
    found: list[Any],
) -> dict[int, list[torch.Tensor]]:
    """Run visits from one on; put the outcomes where they belong, return what later plans go on from."""
    saved: dict[int, list[torch.Tensor]] = {visit: [] for visit in saves}
    for number, batch in enumerate(batches):
        keep = batch.tokens.shape[1] - int(batch.places[1].min())
        options = {"use_cache": False} | keeping_last(rest, keep)
        watched: AbstractContextManager[Mapping[int, torch.Tensor]] = nullcontext({})
        if saves:
            watched = recording(rest, [visit - start for visit in saves])
        with watched as seen:
            if hidden is None:
                logits = rest(input_ids=batch.tokens, **options).logits
            else:
                with entering(rest, hidden[number], batch.tokens) as given:
                    logits = rest(**given, **options).logits
        for visit in saves:
            if visit - start in seen:  # not where a restack-llama iterates: then nobody goes on from it
                saved[visit].append(seen[visit - start])
        for row, outcome in zip(batch.rows, _outcomes(batch, logits[:, -keep:]), strict=True):
            found[row] = outcome
    return {visit: hidden for visit, hidden in saved.items() if len(hidden) == len(batches)}


def _outcomes(batch: Batch, logits: torch.Tensor) -> list[Outcome]:
    """What the logits (B, last positions, V) say of the targets of each row."""
    row, place = batch.places
    place = place - (batch.tokens.shape[1] - logits.shape[1])
    likely, top = [], []
    step = max(1, LOGITS // logits.shape[2])
    for start in range(0, len(row), step):
        part = slice(start, start + step)
        chosen = logits[row[part], place[part]].float()  # (M, V)
        targets = batch.targets[part]
        likely.append(chosen.gather(1, targets[:, None])[:, 0] - chosen.logsumexp(1))
        top.append(chosen.argmax(1) == targets)
    log_probabilities, is_top = torch.cat(likely).cpu(), torch.cat(top).cpu()
    parts = [torch.split(each, batch.counts) for each in (log_probabilities, is_top)]  # type: ignore[no-untyped-call]
    return [Outcome(*pair) for pair in zip(*parts, strict=True)]


def _rotates_by_length(model: Any) -> bool:
    """Whether the rotary embedding depends on the longest row of a batch."""
    config = decoder_config(model)
    settings = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [settings, *(kind for kind in settings.values() if isinstance(kind, dict))]
    return any(kind.get("rope_type", kind.get("type")) in BY_LENGTH for kind in kinds)


def batch_tokens(vocabulary: int) -> int:
    """How many tokens are read at once, so that their logits stay within reason."""
    return max(1, min(BATCH, 4 * LOGITS // vocabulary))


def _batches(rows: Sequence[Row], device: torch.device, most: int, *, mixed: bool) -> list[Batch]:
    """The rows, shortest first, as many at a time as fit into a batch; of one length, if not mixed."""
    order = sorted(range(len(rows)), key=lambda number: (len(rows[number].tokens), number))
    batches: list[Batch] = []
    some: list[int] = []
    for number in order:
        length = len(rows[number].tokens)
        differs = some and not mixed and length != len(rows[some[0]].tokens)
        if differs or (some and (len(some) + 1) * length > most):
            batches.append(_batch(rows, some, device))
            some = []
        some.append(number)
    return [*batches, _batch(rows, some, device)] if some else []


def _batch(rows: Sequence[Row], numbers: Sequence[int], device: torch.device) -> Batch:
    width = max(len(rows[number].tokens) for number in numbers)
    # A causal model does not look behind; and what stands there is a token that it knows.
    filled = [rows[n].tokens + rows[n].tokens[-1:] * (width - len(rows[n].tokens)) for n in numbers]
    row: list[int] = []
    place: list[int] = []
    targets: list[int] = []
    for at, number in enumerate(numbers):
        tokens, count = rows[number].tokens, rows[number].targets
        row += [at] * count
        place += range(len(tokens) - count - 1, len(tokens) - 1)
        targets += tokens[len(tokens) - count :]
    return Batch(
        torch.tensor(filled, device=device)[:, :-1],
        tuple(numbers),
        (torch.tensor(row, device=device), torch.tensor(place, device=device)),
        torch.tensor(targets, device=device),
        [rows[number].targets for number in numbers],
    )


def _parts(model: Any, batches: Sequence[Batch], kept: int, memory: int) -> list[list[Batch]]:
    """The batches in parts whose hidden states, at so many visits at once, fit into memory."""
    width = decoder_config(model).hidden_size * model.dtype.itemsize
    parts: list[list[Batch]] = [[]]
    room = memory
    for batch in batches:
        size = batch.tokens.numel() * width * max(kept, 1)
        if parts[-1] and size > room:
            parts.append([])
            room = memory
        parts[-1].append(batch)
        room -= size
    return parts


def _merged(one: list[Any] | Exception | None, other: list[Any] | Exception) -> list[Any] | Exception:
    """Outcomes of two parts of the rows as one."""
    if one is None or isinstance(other, Exception):
        return other
    if isinstance(one, Exception):
        return one
    return [a if b is None else b for a, b in zip(one, other, strict=True)]
