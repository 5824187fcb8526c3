"""How errors show what they were given: a place in a text, or a value of any size."""

import reprlib
import unicodedata
from typing import Any

from restack.errors import PlanError

WIDTH = 80  # of the excerpt, in characters
MAX_DIGITS = 9  # of a number: more cannot be a layer, and Python refuses to read very long integers


def error_at(text: str, start: int, end: int, wrong: str, remedy: str) -> PlanError:
    """A `PlanError` that shows the text, carets under text[start:end], what is wrong and what to write."""
    first = max(0, start - WIDTH // 2)
    last = first + WIDTH
    lead = "..." if first else ""
    trail = "..." if len(text) > last else ""
    excerpt = "".join(map(_printable, text[first:last]))
    blank = " " * (len(lead) + sum(map(_columns, text[first:start])))
    carets = "^" * max(1, sum(map(_columns, text[start : min(end, last)])))
    return PlanError(f"{lead}{excerpt}{trail}\n{blank}{carets} {wrong}; {remedy}")


def number_at(text: str, start: int, end: int) -> int:
    """The whole number that the digits start..end of a text write, perhaps after a minus.

    Raises:
        PlanError: it has too many digits to be a layer.
    """
    sign = text.startswith("-", start)
    digits = text[start + sign : end].lstrip("0")
    if len(digits) > MAX_DIGITS:
        raise error_at(text, start, end, "this number is past any model's layers", "write fewer digits")
    number = int(digits or "0")
    return -number if sign else number


def shown(value: Any) -> str:
    """A short text of any value, for an error: a `repr` may be endless, or fail."""
    try:
        return _SHORT.repr(value)
    except Exception:  # whatever a stranger's __repr__ raises, the error to report is ours
        return f"a {type(value).__name__}"


def counted(number: int, what: str) -> str:
    """`1 layer`, `2 layers`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def extent(depth: int) -> str:
    """How errors name the layers of a model that has `depth`: `the model's 32 layers (0..31)`."""
    return f"the model's {depth} layers (0..{depth - 1})" if depth > 1 else "the model's one layer (0)"


def _printable(character: str) -> str:
    return (
        character
        if character.isprintable() and not unicodedata.combining(character)
        else "\N{REPLACEMENT CHARACTER}"
    )


def _columns(character: str) -> int:
    """How many columns of a terminal the character takes: East Asian ones take two."""
    return 2 if character.isprintable() and unicodedata.east_asian_width(character) in "WF" else 1


_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxstring = _SHORT.maxother = 60
