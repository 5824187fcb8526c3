"""Which shallower view of a model to draft with, when the model itself checks what was drafted.

Self-speculative decoding: a view that leaves layers out drafts g tokens one after another, the model reads
them in one pass, keeps those that it would have said itself, and says one more. What is written stays the
model's own; what changes is the time.

How much faster that is expected to be: `speculation`.

What others report for drafts of the same weights that leave layers out, chosen while they generate: 1.3 to
1.6 times (SWIFT, arXiv 2410.06916) and 1.3 to 1.7 times (CLaSp, arXiv 2505.24196), of large models. There, a
draft goes on from the keys and values of the model's own passes. Here it is a view by itself, as in
transformers' `generate(assistant_model=view)`: it has read all of the text without the layers it leaves out.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from restack.errors import UsageError
from restack.plans import Plan
from restack.plans.pointing import counted, shown
from restack.runtime import check_room
from restack.scanning.probe import Row
from restack.scanning.pruning import Watch, layers_to_drop, outcomes, runs, without
from restack.scanning.similarity import check_tokens
from restack.scanning.speculation import (
    COSTS,
    MEASURED,
    VISITS,
    Costs,
    best_length,
    measured_costs,
    rounds,
    speed_up,
    visit_costs,
)
from restack.scanning.statistics import Interval, intervals
from restack.views.anatomy import input_device
from restack.views.planned import visit_count

GREEDY, CONTIGUOUS = SEARCHES = ("greedy", "contiguous")
LONGEST = 8  # tokens drafted at once
LENGTH = 64  # tokens that the model writes after each prompt
TEXTS = 4  # at least: two to choose on, two to report on
TOGETHER = 16  # texts that are written in one batch


@dataclass(frozen=True, slots=True)
class Drafter:
    """A view that drafts, and what it is worth.

    Attributes:
        plan: over the layers of the model (its visits, if it is a view).
        skipped: the layers left out.
        searched: acceptance on the texts it was chosen on.
        acceptance: on the other texts; the interval is over texts.
        tokens: of these texts.
        cost: c.
        length: g, the best on the texts it was chosen on.
        searched_speed_up: expected there.
        speed_up: expected on the other texts with this length; low and high are those of the acceptance.
        replayed: the same without taking tokens to be independent: the rounds that there would be on the
            other texts; the interval is over texts.
        round_tokens: that a round brings in these.
    """

    plan: Plan
    skipped: tuple[int, ...]
    searched: float
    acceptance: Interval
    tokens: int
    cost: float
    length: int
    searched_speed_up: float
    speed_up: Interval
    replayed: Interval
    round_tokens: float


@dataclass(frozen=True, slots=True)
class Drafting:
    """What `draft` found.

    Attributes:
        drafters: by the number of layers that they leave out; one of each number.
        best: the one with the highest expected speed-up on the texts it was chosen on.
        own: acceptance of the model by itself on the other texts: 1, but for what rounding does to ties.
        costs: of the drafters, in their order.
        search: "greedy" or "contiguous".
        texts: how many were written, and how many of these the drafters were chosen on.
    """

    drafters: tuple[Drafter, ...]
    best: Drafter
    own: float
    costs: Costs
    search: str
    texts: tuple[int, int]

    @property
    def pays(self) -> bool:
        """Whether the best is faster than the model alone where it was not chosen, and not by chance.

        Both the expected and the replayed speed-up are above 1, with all of their intervals.
        """
        return min(self.best.speed_up.low, self.best.replayed.low) > 1


def draft(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    search: str = GREEDY,
    most: str | int = "50%",
    length: int = LENGTH,
    longest: int = LONGEST,
    costs: str = MEASURED,
    memory: int | None = None,
    watch: Watch = lambda done, all: None,
) -> Drafting:
    """Choose the view of a model to draft with.

    The model goes on greedily from each prompt; a view's acceptance is the share of these words that it would
    have said too, after the same words: what it would meet when it drafts. All that is chosen is chosen on
    the first half of the texts and reported on the others.

    The first and the last layer always run, as in SWIFT. The greedy search leaves out, again and again, the
    layer without which the acceptance stays highest; it ends early when even the fewest visits at the
    acceptance reached could not beat the best so far, by the cost of visits. The contiguous one leaves out,
    for each number of layers, the block without which it is highest.

    Args:
        model: loaded, in evaluation mode; a view, too.
        prompts: tokens; four or more.
        search: one of `SEARCHES`.
        most: how many layers may be left out, as `layers_to_drop` reads it.
        length: tokens that the model writes after each prompt, unless it ends before.
        longest: tokens drafted in a round, at most.
        costs: "measured": timed on this machine, step by step in turn, medians; "visits": by the bytes of
            weights that are read, and v = 1.
        memory: as `read` has it.
        watch: is told how many plans were run, and of how many.

    Raises:
        UsageError: there are too few prompts or layers, no such search or cost, or no view could be run.
        ContextFull: a prompt fills the model's context.
    """
    depth = visit_count(model)
    for name, value, known in (("search", search, SEARCHES), ("cost", costs, COSTS)):
        if value not in known:
            raise UsageError(f"there is no {name} {shown(value)}; choose one of {', '.join(known)}")
    if longest < 1 or length < 1:
        raise UsageError(f"{min(longest, length)} tokens are none to draft or to write; give 1 or more")
    if len(prompts) < TEXTS:
        raise UsageError(
            f"{counted(len(prompts), 'prompt')} are too few to choose on and to report on; give 4"
        )
    if depth < 3:
        raise UsageError(f"the model has {counted(depth, 'layer')}, none between first and last to leave out")
    limit = min(layers_to_drop(most, depth, "most"), depth - 2)
    rows = own_words(model, prompts, length)
    half = len(rows) // 2
    chosen_on, others = rows[:half], rows[half:]
    finder = _Finder(model, chosen_on, depth, limit, longest, memory, watch)
    found = finder.one_by_one() if search == GREEDY else finder.blocks()
    if not found:
        raise UsageError(
            "each layer between the first and the last is read by others; no view leaves any out"
        )
    plans = [without(skipped, depth) for skipped, _ in found]
    if costs == MEASURED:
        priced = measured_costs(model, plans, max(rows, key=lambda row: len(row.tokens)).tokens, longest)
    else:
        priced = Costs(VISITS, tuple(visit_costs(model, plans)), (1.0,) * longest)
    accepted = acceptances(model, [without((), depth), *plans], others, memory)
    own = torch.cat(accepted[0]).double().mean().item()
    drafters = [
        _drafter(plan, skipped, searched, price, priced, places)
        for (skipped, searched), plan, price, places in zip(
            found, plans, priced.drafts, accepted[1:], strict=True
        )
    ]
    watch(finder.total, finder.total)
    best_one = max(drafters, key=lambda drafter: drafter.searched_speed_up)
    return Drafting(tuple(drafters), best_one, own, priced, search, (len(rows), half))


def _drafter(
    plan: Plan,
    skipped: tuple[int, ...],
    searched: float,
    price: float,
    costs: Costs,
    places: Sequence[torch.Tensor],
) -> Drafter:
    """What a view is worth, with the length that is best by the acceptance it was chosen by.

    Args:
        plan, skipped: of the view.
        searched: its acceptance on the texts it was chosen on.
        price: of its step.
        costs: of the model's.
        places: where it says the next token of the other texts.
    """
    length = best_length(searched, price, costs.checks)
    check = costs.checks[length - 1]
    share = share_of(places)
    written = [rounds(each, length) for each in places]
    mean, low, high = (speed_up(a, length, price, check) for a in (share.mean, share.low, share.high))
    return Drafter(
        plan=plan,
        skipped=skipped,
        searched=searched,
        acceptance=share,
        tokens=sum(map(len, places)),
        cost=price,
        length=length,
        searched_speed_up=speed_up(searched, length, price, check),
        speed_up=Interval(mean, low, high, share.n),
        replayed=ratio([text.tokens for text in written], [text.seconds(costs, price) for text in written]),
        round_tokens=sum(text.tokens for text in written) / sum(len(text.drafted) for text in written),
    )


@torch.no_grad()
def own_words(model: Any, prompts: Sequence[Sequence[int]], length: int = LENGTH) -> list[Row]:
    """What a model says after each prompt, greedily: rows whose targets are its own words.

    Args:
        model: in evaluation mode.
        prompts: tokens, one or more each.
        length: tokens after each prompt at most; the one that ends a text is the last.

    Raises:
        ContextFull: a prompt fills the model's context.
        UsageError: a prompt has a token that the model does not know.
    """
    check_tokens(model, prompts)
    device = input_device(model)
    ends = model.generation_config.eos_token_id
    ends = set() if ends is None else {ends} if isinstance(ends, int) else set(ends)
    same: dict[int, list[int]] = defaultdict(list)  # prompts of one length need no padding
    for number, prompt in enumerate(prompts):
        same[len(prompt)].append(number)
    found: dict[int, Row] = {}
    for size, numbers in same.items():
        room = check_room(model, torch.empty(1, size))
        for start in range(0, len(numbers), TOGETHER):
            some = numbers[start : start + TOGETHER]
            tokens = torch.tensor([list(prompts[number]) for number in some], device=device)
            written = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=length if room is None else min(length, room),
                do_sample=False,
                num_beams=1,
                repetition_penalty=1.0,
            )[:, size:].tolist()
            for number, new in zip(some, written, strict=True):
                count = next((at for at, token in enumerate(new, start=1) if token in ends), len(new))
                found[number] = Row((*prompts[number], *new[:count]), count)
    return [found[number] for number in range(len(prompts))]


def acceptances(
    model: Any,
    plans: Sequence[Plan],
    rows: Sequence[Row],
    memory: int | None = None,
    each: Callable[[], None] = lambda: None,
) -> list[list[torch.Tensor]]:
    """Where each plan's view would say the next token of a row, greedily: by plan and row, shape (targets,).

    Args:
        model, plans, rows, memory: as `read` has them.
        each: is called after each plan.

    Raises:
        UsageError: a plan could not be run.
    """
    found: list[list[torch.Tensor]] = [[] for _ in plans]
    for number, answers in outcomes(model, plans, rows, memory, each):
        found[number] = [answer.is_top for answer in answers]
    return found


def share_of(accepted: Sequence[torch.Tensor]) -> Interval:
    """The share of tokens that are accepted, and its 95% interval over texts.

    Args:
        accepted: of each text, shape (tokens,).
    """
    found = ratio([float(places.sum()) for places in accepted], [len(places) for places in accepted])
    return replace(found, high=min(1.0, found.high))


def ratio(above: Sequence[float], below: Sequence[float]) -> Interval:
    """A ratio of sums over texts, and its 95% interval over the texts.

    The interval is that of the mean of r + (above - r below) / mean(below), the ratio r made linear, since
    texts have different lengths.

    Args:
        above, below: of each text.
    """
    tops, bottoms = np.array(above, dtype=float), np.array(below, dtype=float)
    value = tops.sum() / bottoms.sum()
    found = intervals((value + (tops - value * bottoms) / bottoms.mean())[None])[0]
    return Interval(float(value), max(0.0, found.low), found.high, found.n)


class _Finder:
    """For each number of layers, those that are best left out, with the acceptance without them."""

    def __init__(
        self,
        model: Any,
        rows: Sequence[Row],
        depth: int,
        limit: int,
        longest: int,
        memory: int | None,
        watch: Watch,
    ) -> None:
        self.model, self.rows, self.depth, self.limit = model, rows, depth, limit
        self.longest, self.memory, self.watch = longest, memory, watch
        self.done, self.total = 0, 1

    def one_by_one(self) -> list[tuple[tuple[int, ...], float]]:
        """Layers left out one after another."""
        self.total = sum(self.depth - 2 - number for number in range(self.limit))
        cheapest = self._price(tuple(range(1, self.limit + 1)))
        skipped: tuple[int, ...] = ()
        found: list[tuple[tuple[int, ...], float]] = []
        best = 1.0
        while len(skipped) < self.limit:
            layers = (layer for layer in range(1, self.depth - 1) if layer not in skipped)
            choices = list(self._possible((*skipped, layer) for layer in layers))
            if not choices:
                break
            skipped, accepted = self._best(choices)
            found.append((skipped, accepted))
            best = max(best, self._worth(accepted, self._price(skipped)))
            if self._worth(accepted, cheapest) <= best:
                break
        return found

    def blocks(self) -> list[tuple[tuple[int, ...], float]]:
        """Layers in a row, for each number of them."""
        blocks = {
            count: list(
                self._possible(tuple(range(start, start + count)) for start in range(1, self.depth - count))
            )
            for count in range(1, self.limit + 1)
        }
        every = [block for some in blocks.values() for block in some]
        self.total = len(every)
        shares = dict(zip(every, self._shares(every), strict=True))
        best = [max(some, key=shares.__getitem__) for some in blocks.values() if some]
        return [(block, shares[block]) for block in best]

    def _possible(self, choices: Iterator[tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
        return (choice for choice in choices if runs(self.model, without(choice, self.depth)))

    def _best(self, choices: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], float]:
        shares = self._shares(choices)
        best = max(range(len(choices)), key=shares.__getitem__)
        return choices[best], shares[best]

    def _shares(self, choices: Sequence[tuple[int, ...]]) -> list[float]:
        """Acceptance without some layers, over all tokens of all texts."""
        plans = [without(choice, self.depth) for choice in choices]
        found = acceptances(self.model, plans, self.rows, self.memory, self._count_one)
        return [torch.cat(places).double().mean().item() for places in found]

    def _worth(self, acceptance: float, price: float) -> float:
        lengths = range(1, self.longest + 1)
        return max(speed_up(acceptance, length, price) for length in lengths)

    def _price(self, skipped: tuple[int, ...]) -> float:
        return visit_costs(self.model, [without(skipped, self.depth)])[0]

    def _count_one(self) -> None:
        self.done += 1
        self.watch(self.done, self.total)
