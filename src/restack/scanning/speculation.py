"""What speculative decoding on one set of weights costs, and how much faster it is expected to be.

The cost model is that of Leviathan et al. 2023 (arXiv 2211.17192, theorem 3.8), with the price of checking
added:

    speed-up = (1 - a^(g+1)) / ((1 - a) (g c + v))

a is the acceptance: how often the draft's token is the model's own. c is the time of a draft's step, v that
of checking g + 1 tokens in one pass, both relative to a step of the model; the theorem's v is 1, which holds
where a step takes as long as reading the weights. Tokens are taken to be accepted independently of each
other, and texts to be long; what the rounds on a text at hand take is told by `rounds`.
"""

import copy
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from restack.errors import UsageError
from restack.plans import Plan
from restack.plans.pointing import counted
from restack.scanning.pruning import without
from restack.views import view
from restack.views.anatomy import input_device
from restack.views.cost import cost
from restack.views.planned import visit_count

MEASURED, VISITS = COSTS = ("measured", "visits")
ROUNDS, SECONDS = 25, 60.0  # of timing: so many, or fewer (but three) if they take longer


@dataclass(frozen=True, slots=True)
class Costs:
    """What steps cost, relative to a step of the model that decodes one token.

    Attributes:
        how: "measured" or "visits".
        drafts: c, of each plan.
        checks: v, of reading 2, 3 ... tokens at once: checks[g - 1] of g drafted ones and one more.
        seconds: of a step of the model; None if nothing was timed.
    """

    how: str
    drafts: tuple[float, ...]
    checks: tuple[float, ...]
    seconds: float | None = None


def tokens_per_round(acceptance: float, length: int) -> float:
    """The mean number of tokens that a round brings: (1 - a^(g+1)) / (1 - a), eq. 1 of Leviathan et al. 2023.

    Args:
        acceptance: a, 0 to 1, of each drafted token by itself.
        length: g, tokens drafted in a round; one more is the model's own.
    """
    return math.fsum(acceptance**number for number in range(length + 1))


def speed_up(acceptance: float, length: int, cost: float, check: float = 1.0) -> float:
    """How much faster speculative decoding is expected to be than the model alone.

    Args:
        acceptance: a.
        length: g.
        cost: c, of a draft's step, relative to a step of the model.
        check: v, of the model's pass over g + 1 tokens, relative to its step of one.
    """
    return tokens_per_round(acceptance, length) / (length * cost + check)


def best_length(acceptance: float, cost: float, checks: Sequence[float]) -> int:
    """The number of drafted tokens, 1 to len(checks), with the highest expected speed-up."""
    lengths = range(1, len(checks) + 1)
    return max(lengths, key=lambda length: speed_up(acceptance, length, cost, checks[length - 1]))


@dataclass(frozen=True, slots=True)
class Rounds:
    """The rounds in which a text is written.

    Attributes:
        drafted: tokens drafted in each round.
        tokens: of the text.
    """

    drafted: tuple[int, ...]
    tokens: int

    def seconds(self, costs: Costs, draft: float) -> float:
        """What they take, in steps of the model."""
        return math.fsum(count * draft + costs.checks[count - 1] for count in self.drafted)


def rounds(accepted: torch.Tensor, length: int) -> Rounds:
    """The rounds in which a text is written, each after the last.

    A greedy draft is only ever checked after words of the model's own, so whether it would say the next one
    after each of them is all that matters. It stops early where it says the word that ends the text.

    Args:
        accepted: shape (tokens,), whether the draft's token is the model's own at each place.
        length: tokens drafted in a round.
    """
    answers: list[bool] = accepted.tolist()
    drafted, at = [], 0
    while at < len(answers):
        ahead = answers[at : at + length]
        run = ahead.index(False) if False in ahead else len(ahead)
        drafted.append(length if run < len(ahead) else len(ahead))
        at += run + 1
    return Rounds(tuple(drafted), len(answers))


def visit_costs(model: Any, plans: Sequence[Plan]) -> list[float]:
    """c of each plan by its visits alone: bytes of weights that a step reads, relative to the model's.

    Those are the visited layers, the final norm and the head; of an embedding that is not the head too, a
    step reads one row, which is left out.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    is_tied = head is None or getattr(head, "weight", None) is embedding.weight
    beside = 0 if is_tied else embedding.weight.nbytes
    whole = cost(model, without((), visit_count(model))).effective_bytes - beside
    return [(cost(model, plan).effective_bytes - beside) / whole for plan in plans]


@torch.no_grad()
def measured_costs(model: Any, plans: Sequence[Plan], tokens: Sequence[int], longest: int) -> Costs:
    """c of each plan and v of each length, timed here: the median of up to nine rounds.

    In a round, the model decodes one token, then 2, 3 ... at once, and each view one, all after the same
    tokens, with a copy of the same KV cache.

    Args:
        model: in evaluation mode.
        plans: over its layers.
        tokens: of a text; its last `longest` + 1 are decoded, after those before, in the context.
        longest: tokens drafted at once, at most.

    Raises:
        UsageError: the text is not longer than `longest` + 1.
    """
    decoded = longest + 1
    if len(tokens) <= decoded:
        raise UsageError(
            f"a text of {counted(len(tokens), 'token')} is too short to time drafts of {longest}; draft "
            "fewer tokens at once, or give longer texts"
        )
    text = torch.tensor([list(tokens)], device=input_device(model))
    read, more = text[:, :-decoded], text[:, -decoded:]
    jobs = [_Step(model, read, more[:, :count]) for count in range(1, decoded + 1)]
    jobs += [_Step(view(model, plan).eval(), read, more[:, :1]) for plan in plans]
    times: list[list[float]] = []
    for _ in range(2):  # the first time, memory is got
        for job in jobs:
            job.seconds()
    began = perf_counter()
    while len(times) < ROUNDS and (len(times) < 3 or perf_counter() - began < SECONDS):
        times.append([job.seconds() for job in jobs])
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    one = medians[0]
    checks, drafts = medians[1:decoded], medians[decoded:]
    return Costs(MEASURED, tuple(time / one for time in drafts), tuple(time / one for time in checks), one)


class _Step:
    """A decoding step that can be timed again and again: the KV cache before it is kept."""

    def __init__(self, model: Any, read: torch.Tensor, more: torch.Tensor) -> None:
        self.model, self.more = model, more
        self.cache = model(read, use_cache=True).past_key_values

    def seconds(self) -> float:
        """How long it takes."""
        cache = copy.deepcopy(self.cache)
        _wait(self.more.device)
        began = perf_counter()
        self.model(self.more, past_key_values=cache, use_cache=True)
        _wait(self.more.device)
        return perf_counter() - began


def _wait(device: torch.device) -> None:
    """Until a device has done what it was told."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()
