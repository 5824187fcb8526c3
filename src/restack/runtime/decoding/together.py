"""Steps of several texts at once, of any plans over one set of weights: each weight is read once for all."""

from collections.abc import Hashable, Mapping, Sequence

import torch

from restack.runtime.decoding.routes import Leg, Route, legs
from restack.runtime.decoding.stepper import Stepper
from restack.runtime.native import Tokens


class Step:
    """The newest token of a text, to be run through its model.

    Attributes:
        kind: steps of one kind can be run together.
        logits: float32, shape (1, V), after it has been run.
        entered: the hidden states, (1, 1, C), by the visit that they entered, of those that were asked for.
    """

    def __init__(self, stepper: Stepper, route: Route, token: int) -> None:
        """What can fail for one text alone is done here.

        Args:
            stepper: of this text only.
            route: of its model; what enters the visits at which it stops is kept.
            token: the newest.
        """
        self.stepper, self.route, self.kind = stepper, route, stepper.kind
        self.logits: torch.Tensor | None = None
        self.entered: dict[int, torch.Tensor] = {}
        stepper.make_room(stepper.lengths[0] + 1)
        self.hidden = stepper.enter([[token]])

    def row(self, leg: Leg) -> tuple[int, ...]:
        """What the kernel is told of it."""
        return self.stepper.row(0, self.stepper.lengths[0], leg.starts[self.route])


@torch.no_grad()
def run_together(steps: Sequence[Step]) -> None:
    """Run steps of one kind: each gets the logits that it gets alone, and its text is a token longer.

    Where plans differ, texts wait for each other until their next visits are of one layer. Where this fails,
    nothing has happened to any text.
    """
    kernel = steps[0].stepper.kernel
    hidden = torch.cat([step.hidden for step in steps])
    for leg in legs(frozenset(step.route for step in steps)):
        going = [number for number, step in enumerate(steps) if step.route in leg.starts]
        part = hidden if len(going) == len(steps) else hidden[going]
        _note([steps[number] for number in going], leg.starts, part)
        kernel.step(range(leg.length), Tokens.of([steps[number].row(leg) for number in going]), part)
        if part is not hidden:
            hidden[going] = part
    _note(steps, {step.route: len(step.route.reads) for step in steps}, hidden)
    of_heads: dict[Hashable, list[int]] = {}
    for number, step in enumerate(steps):
        of_heads.setdefault(step.stepper.head_reads, []).append(number)
    found = [(numbers, steps[numbers[0]].stepper.logits(hidden[numbers])) for numbers in of_heads.values()]
    for numbers, logits in found:
        for row, number in enumerate(numbers):
            steps[number].logits = logits[row : row + 1]
            steps[number].stepper.lengths[0] += 1


def _note(steps: Sequence[Step], visits: Mapping[Route, int], hidden: torch.Tensor) -> None:
    """Keep what enters a visit of each, (rows, C), where that was asked for."""
    if not any(visit in route.stops for route, visit in visits.items()):
        return
    kept = hidden.to(steps[0].stepper.structure.dtype, copy=True)[:, None, None]
    for step, entered in zip(steps, kept, strict=True):
        if visits[step.route] in step.route.stops:
            step.entered[visits[step.route]] = entered
