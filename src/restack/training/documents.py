"""Documents to train on, from text files, JSON lines and datasets; what is wrong is told with its line."""

import codecs
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from restack.errors import RestackError, UsageError
from restack.training.processes import check_extra

SUFFIXES = (".txt", ".jsonl")
TEXT, MESSAGES = "text", "messages"  # the keys that are read where none is named


class BadLine(UsageError):
    """A line of a file, or a row of a dataset, cannot be used."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text, or a chat that the tokenizer's template is to write.

    Attributes:
        place: the file and the line, for errors.
        content: the text, or the messages.
    """

    place: str
    content: str | list[dict[str, Any]]


@dataclass(slots=True)
class Reading:
    """What was asked of a reader, and what it left out.

    Attributes:
        column: the key to read; None: "text", or else "messages".
        split: of a dataset.
        skip_bad_lines: leave them out instead of refusing them.
        skipped: how many were left out.
    """

    column: str | None = None
    split: str = "train"
    skip_bad_lines: bool = False
    skipped: int = field(default=0)

    def refuse(self, error: BadLine) -> None:
        """Count a line that cannot be used, or refuse it.

        Raises:
            BadLine: bad lines are not to be skipped.
        """
        if not self.skip_bad_lines:
            raise BadLine(f"{error}; mend it, or leave out such lines with --skip-bad-lines")
        self.skipped += 1


def documents(names: Iterable[str | Path], reading: Reading) -> Iterator[Document]:
    """The documents of files and datasets, in their order.

    Args:
        names: a .txt file is one document, a .jsonl file has one a line; all else names a dataset.
        reading: how they are read; it counts what is left out.

    Raises:
        UsageError: there is no such file or dataset, it is empty, or a line cannot be used (`BadLine`).
    """
    return chain.from_iterable(_documents_of(str(name), reading) for name in names)


def check_names(names: Iterable[str | Path]) -> None:
    """Refuse files that are not there, or are neither kind, before anything slow is done.

    Raises:
        UsageError: there is such a name.
    """
    for name in map(str, names):
        path = Path(name).expanduser()
        if path.suffix in SUFFIXES and not path.is_file():
            raise UsageError(f"there is no file {name}; name one that is there")
        if path.suffix not in SUFFIXES and path.is_file():
            raise UsageError(f"{name} ends in neither .txt nor .jsonl; rename it to what it is")


def _documents_of(name: str, reading: Reading) -> Iterator[Document]:
    check_names([name])
    path = Path(name).expanduser()
    if path.suffix in SUFFIXES:
        return _of_text(path, reading) if path.suffix == ".txt" else _of_lines(path, reading)
    return _of_dataset(name, reading)


def _of_text(path: Path, reading: Reading) -> Iterator[Document]:
    """The file as one document; bytes that are not UTF-8 cost their lines only."""
    text = "".join(line for _, line in _decoded(path, reading))
    if not text.strip():
        raise UsageError(_nothing(path, reading))
    yield Document(str(path), text)


def _of_lines(path: Path, reading: Reading) -> Iterator[Document]:
    usable = False
    for number, line in _decoded(path, reading):
        place = f"{path} line {number}"
        try:
            content = _content(_record(line, place), place, reading.column)
        except BadLine as error:
            reading.refuse(error)
        else:
            usable = True
            yield Document(place, content)
    if not usable:
        raise UsageError(_nothing(path, reading))


def _nothing(path: Path, reading: Reading) -> str:
    what = f"has no line that can be used ({reading.skipped} skipped)" if reading.skipped else "is empty"
    return f"{path} {what}; there is nothing to learn from it"


def _decoded(path: Path, reading: Reading) -> Iterator[tuple[int, str]]:
    """Each line with its number, from 1; a byte order mark is left out."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; name a file that is there") from None
    with file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                yield number, line.decode("utf-8")
            except UnicodeDecodeError as error:
                wrong = f"byte 0x{line[error.start]:02x} at column {error.start + 1} is not UTF-8"
                reading.refuse(BadLine(f"{path} line {number}: {wrong}"))


def _record(line: str, place: str) -> dict[str, Any]:
    if not line.strip():
        raise BadLine(f"{place} is empty")
    try:
        record = json.loads(line.rstrip())
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise BadLine(f"{place} is not JSON ({reason})") from None
    if not isinstance(record, dict):
        raise BadLine(f'{place} is no JSON object, as in {{"text": "..."}}')
    return record


def _content(record: dict[str, Any], place: str, column: str | None) -> Any:
    """The text or the messages of a line or row."""
    if column is None:
        column = next((key for key in (TEXT, MESSAGES) if key in record), None)
        wanted = f'"{TEXT}" or "{MESSAGES}"'
    else:
        wanted = f'"{column}"'
    if column is None or column not in record:
        keys = ", ".join(map(str, record)) or "none at all"
        raise BadLine(f"{place} has no {wanted} but {keys:.100} (name the right one with --column)")
    content = record[column]
    if isinstance(content, str):
        if not content.strip():
            raise BadLine(f'{place} has an empty "{column}"')
    elif not _are_messages(content):
        raise BadLine(
            f'{place}: "{column}" is neither text nor messages, as in [{{"role": "user", "content": "..."}}]'
        )
    if _has_surrogates(content):
        raise BadLine(f'{place}: "{column}" has half a surrogate pair in it, which no text has')
    return content


def _has_surrogates(content: Any) -> bool:
    """JSON may write halves of pairs; tokenizers fail on them."""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return any("\ud800" <= character <= "\udfff" for character in text)


def _are_messages(content: Any) -> bool:
    return (
        isinstance(content, list)
        and bool(content)
        and all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in content)
    )


def _of_dataset(name: str, reading: Reading) -> Iterator[Document]:
    rows = load(name, reading.split)
    columns = list(getattr(rows, "column_names", None) or [])
    wanted = [TEXT, MESSAGES] if reading.column is None else [reading.column]
    if columns and not set(wanted) & set(columns):
        raise UsageError(
            f"{name} has no column {' or '.join(wanted)}; name one with --column: {', '.join(columns):.200}"
        )
    if len(rows) == 0:
        raise UsageError(f"{name} is empty; there is nothing to learn from it")
    for number, row in enumerate(rows, start=1):
        place = f"{name} row {number}"
        try:
            yield Document(place, _content(row, place, reading.column))
        except BadLine as error:
            reading.refuse(error)


def load(name: str, split: str) -> Any:
    """A split of a dataset of the hub, or of a folder that `datasets` reads.

    Raises:
        UsageError: there is no such dataset, configuration or split, or `datasets` is not installed.
    """
    check_extra("datasets")
    import datasets  # type: ignore[import-untyped]

    datasets.utils.logging.set_verbosity_error()
    datasets.utils.logging.disable_progress_bar()
    if Path(name).is_dir() and not any(Path(name).rglob("*.*")):
        raise UsageError(f"{name} is a folder without data; name files, or a folder that `datasets` reads")
    repository, _, config = (name, "", "") if Path(name).exists() else name.partition(":")
    try:
        return datasets.load_dataset(repository, config or None, split=split)
    except RestackError:
        raise
    except Exception as error:  # each kind of dataset fails in its own way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"{name} is no .txt or .jsonl file, and as a dataset it cannot be loaded: {reason:.200}; "
            "write a file, or the dataset's NAME or NAME:CONFIG (and --split)"
        ) from None
