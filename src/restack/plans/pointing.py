"""Errors that show the place in a text."""

from restack.errors import PlanError

WIDTH = 80  # of the excerpt, in characters


def error_at(text: str, start: int, end: int, wrong: str, remedy: str) -> PlanError:
    """A `PlanError` that shows the text, carets under characters start..end, what is wrong and what to write."""
    shown = "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )
    first = max(0, start - WIDTH // 2)
    left = "..." if first else ""
    right = "..." if len(shown) > first + WIDTH else ""
    excerpt = f"{left}{shown[first : first + WIDTH]}{right}"
    carets = "^" * max(1, min(end, first + WIDTH) - start)
    return PlanError(f"{excerpt}\n{' ' * (len(left) + start - first)}{carets} {wrong}; {remedy}")
