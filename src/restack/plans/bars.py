"""Drawings of plans in plain text: a bar for each run of neighbouring layers."""

from restack.plans.value import Plan

MOST_BARS = 40
NARROWEST, WIDEST = 10, 80  # characters of the longest bar there can be
NAME = 16  # characters before a bar: the layers' numbers and the spaces around them


def bars(plan: Plan, width: int) -> list[str]:
    """The visits as one line a run, each drawn where its layers lie in their model, in `width` columns."""
    runs = _joined(plan)
    scale = max(1.0, max(plan.depths) / max(NARROWEST, min(width - NAME, WIDEST)))
    lines = []
    for donor, run in runs[:MOST_BARS]:
        start, length = int(min(run) / scale), max(1, round(len(run) / scale))
        name = str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}"
        if len(plan.depths) > 1:
            name = f"{donor}/{name}"
        lines.append(f"  {name:>9}  {' ' * start}{'█' * length}")
    if len(runs) > MOST_BARS:
        lines.append(f"  and {len(runs) - MOST_BARS} more such runs of layers")
    return lines


def _joined(plan: Plan) -> list[tuple[int, range]]:
    """The runs with their donors; single layers that descend one by one are joined into a run downwards."""
    joined: list[tuple[int, range]] = []
    number = 0
    for run in plan.runs:
        donor = plan.visits[number].donor
        number += len(run)
        before, last = joined[-1] if joined else (donor, range(0))
        descends = last and len(run) == 1 and run[0] == last[-1] - 1 and (len(last) == 1 or last.step == -1)
        if descends and donor == before:
            joined[-1] = donor, range(last[0], run[0] - 1, -1)
        else:
            joined.append((donor, run))
    return joined
