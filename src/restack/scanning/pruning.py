"""Which layers of a model to leave out: by what they change, or by what the model loses without them.

Layers are numbered from 0, as plans number them; of a view, they are its visits.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from restack.errors import PlanError, UsageError
from restack.plans import Plan
from restack.plans.pointing import counted, shown
from restack.runtime import context_length
from restack.scanning.probe import Outcome, Row
from restack.scanning.probes.text import WINDOW, text_rows
from restack.scanning.reading import read
from restack.scanning.similarity import check_tokens, hidden_sums
from restack.views.cost import running
from restack.views.planned import visit_count

BLOCK_INFLUENCE, ANGULAR, SLEB, CONTIGUOUS, DEEPEST = METHODS = (
    "block-influence",
    "angular",
    "sleb",
    "contiguous",
    "deepest",
)
MEASURES = {
    BLOCK_INFLUENCE: "block influence",
    ANGULAR: "angular distance over the block",
    SLEB: "loss without it, nats a token",
    CONTIGUOUS: "loss without the block, nats a token",
    DEEPEST: "",
}
AMOUNT = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)%|([0-9]{1,9})", re.ASCII)

Watch = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Tried:
    """One or more layers that could have been left out.

    Attributes:
        step: of the search, from 0; only SLEB takes more than one.
        layers: that would be left out in this step.
        value: what decides; the least is taken.
        taken: whether they were left out.
    """

    step: int
    layers: tuple[int, ...]
    value: float
    taken: bool


@dataclass(frozen=True, slots=True)
class Losses:
    """The mean negative log-likelihood of a token before and after, in nats, and of how many tokens."""

    base: float
    pruned: float
    tokens: int

    @property
    def perplexities(self) -> tuple[float, float]:
        """Before and after."""
        return math.exp(min(self.base, 700)), math.exp(min(self.pruned, 700))


@dataclass(frozen=True, slots=True)
class Pruning:
    """What `prune` chose to leave out.

    Attributes:
        by: the method.
        plan: what is left, over the layers of the model (its visits, if it is a view).
        dropped: the layers left out, in the order in which they were chosen.
        tried: all that was compared; nothing was by the method `deepest`.
        chosen_on: losses on the text that the layers were chosen on.
        held_out: losses on another text, or on the half that was kept back.
    """

    by: str
    plan: Plan
    dropped: tuple[int, ...]
    tried: tuple[Tried, ...]
    chosen_on: Losses
    held_out: Losses


def layers_to_drop(drop: str | int, depth: int, name: str = "drop") -> int:
    """How many layers of `depth` a share or a number says.

    Args:
        drop: "25%", "8" or 8. A share is rounded to the nearest whole number, a half down: 25% of 10 layers
            are 2.
        depth: layers of the model.
        name: of the option, for errors.

    Raises:
        UsageError: it is neither, or no layer or every layer would go.
    """
    text = str(drop).strip()
    found = None if isinstance(drop, bool) else AMOUNT.fullmatch(text)
    if not found:
        raise UsageError(f"{name} is {shown(drop)}; write a share, 25%, or a number of layers, 8")
    exact = Fraction(found[1]) * depth / 100 if found[1] else Fraction(found[2])
    count = math.ceil(exact - Fraction(1, 2))
    if 1 <= count < depth:
        return count
    layers = counted(depth, "layer")
    amount = f"{text} of {layers} is {counted(count, 'layer')}" if found[1] else f"{text} of {layers}"
    if depth == 1:
        raise UsageError(f"{name} {amount}, and a model needs one; there is nothing to leave out")
    wrong = "nothing" if count < 1 else "everything"
    raise UsageError(
        f"{name} {amount}: {wrong} would go; write 1 to {depth - 1}, or a share that comes to it"
    )


def prune(
    model: Any,
    tokenizer: Any,
    text: str | Sequence[Row],
    drop: str | int,
    by: str = BLOCK_INFLUENCE,
    *,
    held_out: str | Sequence[Row] | None = None,
    window: int = WINDOW,
    memory: int | None = None,
    watch: Watch = lambda done, all: None,
) -> Pruning:
    """Choose layers to leave out on a text, and measure what is lost, there and on another text.

    The methods, n being the number of layers that go:

    - block-influence: the n layers with the lowest block influence (ShortGPT; Men et al. 2024, arXiv
      2403.03853, eq. 1: 1 - the mean cosine of what enters and what leaves a layer).
    - angular: the n layers l .. l+n-1 in a row with the least angular distance between what enters the first
      and what leaves the last, at the last token of each window (Gromov et al. 2024, arXiv 2403.17887,
      section 3.2).
    - sleb: the layer without which the loss -1/K sum_k log p(x_k | x_<k) is least, n times, each time of the
      model without those that went before (SLEB; Song et al. 2024, arXiv 2402.09025, algorithm 1).
    - contiguous: the n layers in a row without which the loss is least; all such blocks are run.
    - deepest: the last n layers but one, depth-1-n .. depth-2 (Gromov et al.'s simpler strategy, which they
      heal afterwards); nothing is measured for it.

    Where values are equal, the lowest layers go. A layer whose keys and values a later one reads is not
    left out before that one is.

    Args:
        model: loaded, in evaluation mode; a view, too.
        tokenizer: its tokenizer; not used for rows.
        text: to choose on; it is cut into windows. Or rows, of which the targets count for the loss.
        drop: as `layers_to_drop` reads it.
        by: one of `METHODS`.
        held_out: another text, for the losses alone; None: the second half of the windows of `text`.
        window: tokens of a window; no more than the model's context.
        memory: as `read` has it.
        watch: is told how many plans were run, and of how many.

    Raises:
        UsageError: there is no such method; the text is too short; nothing or everything would go; or the
            hidden states cannot be compared (`hidden_sums`).
        PlanError, ViewError: no view of the model can run the plan.
    """
    if by not in METHODS:
        raise UsageError(f"there is no method {shown(by)}; choose one of {', '.join(METHODS)}")
    depth = visit_count(model)
    count = layers_to_drop(drop, depth)
    context = context_length(model.config)
    rows = text_rows(tokenizer, text, window, context) if isinstance(text, str) else list(text)
    if held_out is None:
        if len(rows) < 2:
            raise UsageError(f"the text has {counted(len(rows), 'window')}; one half is held out: give two")
        rows, others = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    elif isinstance(held_out, str):
        others = text_rows(tokenizer, held_out, window, context)
    else:
        others = list(held_out)
    check_tokens(model, [row.tokens for row in [*rows, *others]])
    search = _Search(model, rows, depth, count, memory, watch)
    dropped, tried = search.by(by)
    plan = without(dropped, depth)
    read_all = _losses(model, [without((), depth), plan], [*rows, *others], memory, len(rows))
    watch(search.total, search.total)
    (base, base_held), (pruned, pruned_held) = read_all
    return Pruning(
        by,
        plan,
        dropped,
        tuple(tried),
        Losses(base, pruned, sum(row.targets for row in rows)),
        Losses(base_held, pruned_held, sum(row.targets for row in others)),
    )


def without(layers: Iterable[int], depth: int) -> Plan:
    """The plan that leaves out some layers of a model."""
    left_out = set(layers)
    return Plan.of([layer for layer in range(depth) if layer not in left_out], depth)


def runs(model: Any, plan: Plan) -> bool:
    """Whether each visit of a plan finds the keys and values that it reads."""
    try:
        running(model, plan)
    except PlanError:
        return False
    return True


def outcomes(
    model: Any,
    plans: Sequence[Plan],
    rows: Sequence[Row],
    memory: int | None = None,
    each: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, list[Outcome]]]:
    """What `read` yields, without what went wrong.

    Args:
        model, plans, rows, memory: as `read` has them.
        each: is called after each plan.

    Raises:
        UsageError, or what `read` told of a plan: a plan could not be run.
    """
    for number, found in read(model, plans, rows, memory=memory):
        if isinstance(found, UsageError | PlanError):
            raise found
        if isinstance(found, Exception):
            reason = " ".join(str(found).split())
            raise UsageError(
                f"{plans[number]} cannot be run: {type(found).__name__}: {reason:.200}"
            ) from found
        each()
        yield number, found


class _Search:
    """The layers that go, by each method."""

    def __init__(
        self, model: Any, rows: Sequence[Row], depth: int, count: int, memory: int | None, watch: Watch
    ) -> None:
        self.model, self.rows, self.depth, self.count = model, rows, depth, count
        self.memory, self.watch = memory, watch
        self.done, self.total = 0, 1

    def by(self, method: str) -> tuple[tuple[int, ...], list[Tried]]:
        """The layers in the order they go, and all that was tried."""
        match method:
            case "block-influence":
                return self._influence()
            case "angular":
                distances = hidden_sums(self.model, self.rows).distances(self.count).tolist()
                blocks = self._blocks()
                return self._least_block([(block, distances[block[0]]) for block in blocks])
            case "sleb":
                return self._one_by_one()
            case "contiguous":
                blocks = self._blocks()
                self.total = len(blocks)
                return self._least_block(list(zip(blocks, self._read(blocks), strict=True)))
        block = tuple(range(self.depth - 1 - self.count, self.depth - 1))
        if not runs(self.model, without(block, self.depth)):
            raise _read_by_others(block)
        return block, []

    def _influence(self) -> tuple[tuple[int, ...], list[Tried]]:
        influence = hidden_sums(self.model, self.rows).influence.tolist()
        rising = sorted(range(self.depth), key=lambda layer: influence[layer])
        dropped: list[int] = []
        while len(dropped) < self.count:
            left = (layer for layer in rising if layer not in dropped)
            free = (n for n in left if runs(self.model, without([*dropped, n], self.depth)))
            layer = next(free, None)
            if layer is None:
                raise _read_by_others(tuple(dropped))
            dropped.append(layer)
        tried = [Tried(0, (layer,), influence[layer], layer in dropped) for layer in range(self.depth)]
        return tuple(dropped), tried

    def _one_by_one(self) -> tuple[tuple[int, ...], list[Tried]]:
        self.total = sum(self.depth - step for step in range(self.count))
        dropped: list[int] = []
        tried: list[Tried] = []
        for step in range(self.count):
            left = [layer for layer in range(self.depth) if layer not in dropped]
            free = [n for n in left if runs(self.model, without([*dropped, n], self.depth))]
            if not free:
                raise _read_by_others(tuple(dropped))
            losses = self._read([(*dropped, layer) for layer in free])
            least = _least(losses)
            tried += [
                Tried(step, (layer,), loss, number == least)
                for number, (layer, loss) in enumerate(zip(free, losses, strict=True))
            ]
            dropped.append(free[least])
        return tuple(dropped), tried

    def _blocks(self) -> list[tuple[int, ...]]:
        """All blocks of as many layers as are to go that a view can do without."""
        starts = range(self.depth - self.count + 1)
        blocks = [tuple(range(start, start + self.count)) for start in starts]
        free = [block for block in blocks if runs(self.model, without(block, self.depth))]
        if not free:
            raise _read_by_others(blocks[0])
        return free

    def _least_block(
        self, valued: Sequence[tuple[tuple[int, ...], float]]
    ) -> tuple[tuple[int, ...], list[Tried]]:
        least = _least([value for _, value in valued])
        tried = [Tried(0, block, value, n == least) for n, (block, value) in enumerate(valued)]
        return valued[least][0], tried

    def _read(self, left_out: Sequence[Sequence[int]]) -> list[float]:
        """The loss without some layers, of several choices of them."""
        plans = [without(layers, self.depth) for layers in left_out]
        found = _losses(self.model, plans, self.rows, self.memory, len(self.rows), self._count_one)
        return [loss for loss, _ in found]

    def _count_one(self) -> None:
        self.done += 1
        self.watch(self.done, self.total)


def _losses(
    model: Any,
    plans: Sequence[Plan],
    rows: Sequence[Row],
    memory: int | None,
    split: int,
    each: Callable[[], None] = lambda: None,
) -> list[tuple[float, float]]:
    """The loss of each plan on the rows before `split` and on those from there on."""
    found = [(math.nan, math.nan)] * len(plans)
    for number, answers in outcomes(model, plans, rows, memory, each):
        found[number] = (_loss(answers[:split]), _loss(answers[split:]))
    return found


def _loss(answers: Sequence[Outcome]) -> float:
    """The mean negative log-likelihood of a token; of no tokens, no number."""
    tokens = sum(len(answer.log_probabilities) for answer in answers)
    total = sum(float(answer.log_probabilities.double().sum()) for answer in answers)
    return -total / tokens if tokens else math.nan


def _least(values: Sequence[float]) -> int:
    """Where the least value is; one that is no number is the most."""
    return min(range(len(values)), key=lambda n: math.inf if math.isnan(values[n]) else values[n])


def _read_by_others(layers: tuple[int, ...]) -> UsageError:
    told = ", ".join(map(str, layers)) or "none"
    return UsageError(
        f"no more layers can be left out (so far: {told}): others read their keys and values; drop fewer, or "
        "take a method that chooses layers one by one (sleb, block-influence)"
    )
