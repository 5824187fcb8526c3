"""Drawings of plans in plain text: a bar for each run of neighbouring layers."""

from collections.abc import Iterable

from restack.plans.value import Plan

MOST_BARS = 40
NARROWEST, WIDEST = 10, 80  # characters of the longest bar there can be
NAME = 16  # characters before a bar: the layers' numbers and the spaces around them


def bars(plan: Plan, width: int) -> list[str]:
    """The visits as one line a run, each drawn where its layers lie in the model, in `width` columns."""
    runs = _joined(plan.runs)
    scale = max(1.0, max(plan.depths) / max(NARROWEST, min(width - NAME, WIDEST)))
    lines = []
    for run in runs[:MOST_BARS]:
        start, length = int(min(run) / scale), max(1, round(len(run) / scale))
        name = str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}"
        lines.append(f"  {name:>9}  {' ' * start}{'█' * length}")
    if len(runs) > MOST_BARS:
        lines.append(f"  and {len(runs) - MOST_BARS} more such runs of layers")
    return lines


def _joined(runs: Iterable[range]) -> list[range]:
    """The runs, with single layers that descend one by one joined into a run downwards."""
    joined: list[range] = []
    for run in runs:
        last = joined[-1] if joined else range(0)
        if len(run) == 1 and last and run[0] == last[-1] - 1 and (len(last) == 1 or last.step == -1):
            joined[-1] = range(last[0], run[0] - 1, -1)
        else:
            joined.append(run)
    return joined
