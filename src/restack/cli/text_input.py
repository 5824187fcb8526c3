"""Text from a pipe."""

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
    """One line after the other, each as soon as it is there.

    Raises:
        UsageError: one is not UTF-8; it names the line and the byte.
    """
    for number, line in enumerate(stream.buffer, start=1):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            wrong = f"byte 0x{line[error.start]:02x} at column {error.start + 1} of input line {number}"
            raise UsageError(
                f"{wrong} is not UTF-8; convert the input, for example with iconv -t UTF-8"
            ) from None
