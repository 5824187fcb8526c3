"""Text from a pipe, or from the shell."""

import codecs
from collections.abc import Iterator
from typing import TextIO

from restack.errors import UsageError


def read_all(stream: TextIO) -> str:
    """All of it.

    Raises:
        UsageError: it is not UTF-8.
    """
    return "".join(read_lines(stream))


def read_lines(stream: TextIO) -> Iterator[str]:
    """One line after the other, each as soon as it is there; a byte order mark before them is left out.

    Raises:
        UsageError: one is not UTF-8; it names the line and the byte.
    """
    for number, line in enumerate(stream.buffer, start=1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            wrong = f"byte 0x{line[error.start]:02x} at column {error.start + 1} of input line {number}"
            raise UsageError(
                f"{wrong} is not UTF-8; convert the input, for example with iconv -t UTF-8"
            ) from None


def check_argument(text: str, option: str) -> None:
    """Refuse what came from the shell and is not text.

    Raises:
        UsageError: it is not UTF-8; Python puts half a surrogate pair for each byte that it cannot read.
    """
    for column, character in enumerate(text, start=1):
        if "\ud800" <= character <= "\udfff":
            wrong = f"byte 0x{ord(character) & 0xFF:02x} at character {column} of {option}"
            raise UsageError(f"{wrong} is not UTF-8; convert the text, for example with iconv -t UTF-8")
