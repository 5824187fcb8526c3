"""Transcripts: Markdown to read, JSON lines to work with."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from restack.chat.messages import Piece
from restack.chat.programs.audience import Line
from restack.errors import UsageError


def check_transcript(path: Path) -> None:
    """Refuse a place where no transcript can be begun.

    Raises:
        UsageError: its ending is neither .md nor .jsonl, it is there already, or it cannot be written.
    """
    if path.suffix.lower() not in ENDINGS:
        raise UsageError(
            f"{path} cannot be a transcript; name a file that ends with {' or '.join(ENDINGS)}: Markdown, or "
            "a JSON object a line"
        )
    if os.path.lexists(path):
        raise UsageError(f"{path} is there already; remove it, or name another file")
    folder = path.parent
    if not folder.is_dir():
        raise UsageError(f"{path}: there is no folder {folder}; make it, or name another")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{path}: {folder} cannot be written into; name another folder")


class Transcript:
    """Writes each message into a file as soon as it has ended."""

    def __init__(self, path: str | Path, title: str = "transcript") -> None:
        """A transcript that begins with its first line; there is no file before.

        Args:
            path: of a file that ends with .md or .jsonl, and is not there yet.
            title: the heading, in Markdown.

        Raises:
            UsageError: as `check_transcript` does.
        """
        self.path = Path(path)
        check_transcript(self.path)
        self._written = ENDINGS[self.path.suffix.lower()]
        self._is_markdown = self._written is markdown
        self._waiting = f"# {title}\n\n" if self._is_markdown else ""
        self._turn = 0
        self._is_begun = False

    def begin(self, speaker: str, heading: str = "") -> None:
        pass

    def piece(self, piece: Piece) -> None:
        pass

    def end(self, line: Line | None) -> None:
        if line is None:
            return
        heading = f"## Turn {line.turn}\n\n" if self._is_markdown and line.turn != self._turn else ""
        self._turn = line.turn
        self._write(self._waiting + heading + self._written(line))
        self._waiting = ""

    def note(self, text: str) -> None:
        if not self._is_markdown:
            return
        if self._is_begun:
            self._write(f"*{text}*\n\n")
        else:
            self._waiting += f"{text}\n\n"

    def _write(self, text: str) -> None:
        with self.path.open("a" if self._is_begun else "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
        self._is_begun = True


def json_line(line: Line) -> str:
    """A message as a JSON object on a line of its own."""
    message = line.message
    optional = {"given": message.given, "thought": message.thought}
    values = {
        "turn": line.turn,
        "speaker": line.speaker,
        "role": message.role,
        "content": message.content,
        **{key: text for key, text in optional.items() if text},
        "finish": message.finish,
        **line.details,
    }
    return json.dumps(values, ensure_ascii=False) + "\n"


def markdown(line: Line) -> str:
    """A message under its speaker's name; thoughts are quoted."""
    message, parts = line.message, []
    thoughts = line.details.get("thoughts") or ([message.thought] if message.thought else [])
    for number, thought in enumerate(thoughts, start=1):
        heading = f"> *think #{number}*\n>\n" if len(thoughts) > 1 else ""
        parts.append(heading + "\n".join(f"> {text}".rstrip() for text in thought.strip("\n").split("\n")))
    if "thoughts" not in line.details:
        parts.append(message.answer.strip("\n"))
    if message.finish in ENDS:
        parts.append(f"*({ENDS[message.finish]})*")
    sure = f" ({line.details['confidence']:.0%})" if line.details.get("confidence") is not None else ""
    return f"**{line.speaker}**{sure}\n\n" + "".join(f"{part}\n\n" for part in parts if part)


ENDS = {
    "interrupted": "interrupted",
    "length": "cut off: the limit of tokens",
    "context": "cut off: the context is full",
}
ENDINGS: dict[str, Callable[[Line], str]] = {".md": markdown, ".jsonl": json_line}
