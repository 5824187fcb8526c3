"""What is said in a conversation, and which words of it the model chose."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["answer", "thought", "tag"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a message.

    Attributes:
        text: of any length.
        kind: "thought" between the tags of a thinking model, "tag" for these themselves, otherwise "answer".
        given: whether it was put into the model's mouth, and not generated.
    """

    text: str
    kind: Kind = "answer"
    given: bool = False


@dataclass(frozen=True, slots=True)
class Message:
    """A message.

    Attributes:
        role: "system", "user" or "assistant".
        pieces: what it consists of.
        finish: why it ended: "stop" where the speaker ended it, "length" at the sampling's max_tokens,
            "context" where the model's context was full, or "interrupted".
    """

    role: str
    pieces: tuple[Piece, ...]
    finish: str = "stop"

    @classmethod
    def of(cls, role: str, text: str) -> "Message":
        """A message that no model wrote."""
        return cls(role, (Piece(text, given=True),) if text else ())

    @classmethod
    def of_pieces(cls, role: str, pieces: Iterable[Piece], finish: str) -> "Message":
        """A message of pieces as they came, neighbours of one sort put together."""
        merged: list[Piece] = []
        for piece in pieces:
            last = merged[-1] if merged else None
            if last is not None and (last.kind, last.given) == (piece.kind, piece.given):
                merged[-1] = Piece(last.text + piece.text, piece.kind, piece.given)
            elif piece.text:
                merged.append(piece)
        return cls(role, tuple(merged), finish)

    @property
    def content(self) -> str:
        """All of it, as the chat template is given it."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def given(self) -> str:
        """What was put into the model's mouth."""
        return "".join(piece.text for piece in self.pieces if piece.given)

    @property
    def generated(self) -> str:
        """What the model wrote."""
        return "".join(piece.text for piece in self.pieces if not piece.given)

    @property
    def thought(self) -> str:
        """What stands between the tags of a thinking model, and is no part of the answer."""
        return "".join(piece.text for piece in self.pieces if piece.kind == "thought").strip("\n")

    @property
    def answer(self) -> str:
        """All but the thoughts."""
        text = "".join(piece.text for piece in self.pieces if piece.kind == "answer")
        return text.lstrip("\n") if any(piece.kind == "tag" for piece in self.pieces) else text
