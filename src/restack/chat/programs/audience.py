"""Who listens to a program: a terminal, a transcript, a program of yours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from restack.chat.messages import Message, Piece


@dataclass(frozen=True, slots=True)
class Line:
    """A message, as it stands in a transcript.

    Attributes:
        turn: from 1; a turn has one message of each speaker.
        speaker: who said it.
        message: what was said.
        details: what the program tells of it: which expert was chosen, for one.
    """

    turn: int
    speaker: str
    message: Message
    details: Mapping[str, Any] = field(default_factory=dict)


class Audience(Protocol):
    """What a program tells while it runs, in this order for each message: begin, piece, piece, ..., end."""

    def begin(self, speaker: str, heading: str = "") -> None:
        """Somebody is about to speak; a heading, if any, is of a part of the message."""

    def piece(self, piece: Piece) -> None:
        """As soon as it is generated."""

    def end(self, line: Line | None) -> None:
        """The whole message, also one without pieces; None where it was broken off and forgotten."""

    def note(self, text: str) -> None:
        """What the program has to say itself."""


class Silent:
    """Nobody."""

    def begin(self, speaker: str, heading: str = "") -> None:
        pass

    def piece(self, piece: Piece) -> None:
        pass

    def end(self, line: Line | None) -> None:
        pass

    def note(self, text: str) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Listeners:
    """Several audiences."""

    each: Sequence[Audience]

    def begin(self, speaker: str, heading: str = "") -> None:
        for one in self.each:
            one.begin(speaker, heading)

    def piece(self, piece: Piece) -> None:
        for one in self.each:
            one.piece(piece)

    def end(self, line: Line | None) -> None:
        for one in self.each:
            one.end(line)

    def note(self, text: str) -> None:
        for one in self.each:
            one.note(text)
