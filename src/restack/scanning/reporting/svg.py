"""Inline SVG: marks that tell what they stand for, and axes. Colours are classes of the page's style."""

from collections.abc import Iterable
from html import escape


class Scale:
    """Where a number lies along an axis.

    Attributes:
        ticks: round numbers along it.
    """

    def __init__(self, low: float, high: float, start: float, stop: float, pad: float = 0.0) -> None:
        """Lay numbers along an axis.

        Args:
            low, high: the numbers at its ends.
            start, stop: the ends' places.
            pad: how far from the ends of the axis those places are; the same unit.
        """
        from matplotlib.ticker import MaxNLocator

        self.low, self.high = low, high if high > low else low + 1.0
        step = pad if stop > start else -pad
        self.start, self.stop = start + step, stop - step
        places = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        self.ticks = [float(tick) for tick in places if self.low <= tick <= self.high]

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


def chart(left: float, top: float, width: float, height: float, parts: Iterable[str], name: str) -> str:
    """A chart of its parts; the name is for those who cannot see it."""
    box = f"{left:.0f} {top:.0f} {width:.0f} {height:.0f}"
    return f'<svg viewBox="{box}" role="img" aria-label="{escape(name)}">{"".join(parts)}</svg>'


def mark(kind: str, told: str, style: str, place: str) -> str:
    """A shape that tells something to who points at it."""
    return f'<{kind} class="{style}" data-tip {place}><title>{escape(told)}</title></{kind}>'


def box(x: float, y: float, width: float, height: float) -> str:
    """The place of a rectangle."""
    return f'x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}"'


def label(x: float, y: float, told: str, anchor: str = "middle", style: str = "") -> str:
    """A text at a place."""
    kind = f' class="{style}"' if style else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(told)}</text>'


def upright(x: float, y: float, told: str) -> str:
    """A text that is read from below."""
    place = f"translate({x:.1f} {y:.1f}) rotate(-90)"
    return f'<text transform="{place}" text-anchor="middle">{escape(told)}</text>'


def path(style: str, d: str) -> str:
    """A line."""
    return f'<path class="{style}" d="{d}"/>'


def swatch(width: float, parts: Iterable[str]) -> str:
    """A piece of a chart in a line of text."""
    return f'<svg viewBox="0 0 {width:g} 12" aria-hidden="true">{"".join(parts)}</svg>'


def key(parts: Iterable[str]) -> str:
    """What the colours of a chart mean."""
    return '<p class="key">' + "".join(f"<span>{part}</span>" for part in parts) + "</p>"


BASE = swatch(12, ['<rect class="base" x="1" y="1" width="10" height="10"/>']) + "base"
