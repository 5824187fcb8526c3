"""The parts of an answer in which a thinking model thinks."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from restack.chat.messages import Kind, Piece
from restack.errors import UsageError


@dataclass(frozen=True, slots=True)
class Tags:
    """What begins a thought, and what ends it.

    Raises:
        UsageError: one of them is empty, or they are the same.
    """

    begin: str = "<think>"
    end: str = "</think>"

    def __post_init__(self) -> None:
        if not (self.begin.strip() and self.end.strip()) or self.begin == self.end:
            raise UsageError(
                f"thoughts between {self.begin!r} and {self.end!r} cannot be found; write two different tags"
            )


KNOWN = (
    Tags(),
    Tags("◁think▷", "◁/think▷"),
    Tags("[THINK]", "[/THINK]"),
    Tags("<thought>", "</thought>"),
    Tags("<reasoning>", "</reasoning>"),
)


def tags_of(tokenizer: Any) -> Tags:
    """The tags that a model thinks between: those of the known that its template or its vocabulary has."""
    template = str(tokenizer.chat_template or "")
    found = (tags for tags in KNOWN if tags.end in template or _token(tags.end, tokenizer) is not None)
    return next(found, KNOWN[0])


def special_tokens(tags: Tags, tokenizer: Any) -> set[int]:
    """The tokens that the tags are, where each is one."""
    found = (_token(tag, tokenizer) for tag in (tags.begin, tags.end))
    return {token for token in found if token is not None}


def _token(text: str, tokenizer: Any) -> int | None:
    token = tokenizer.convert_tokens_to_ids(text)
    return token if token is not None and tokenizer.convert_ids_to_tokens(token) == text else None


class ThoughtSplitter:
    """Tells thoughts from the answer, in a text that comes in pieces of any size.

    What may be the beginning of a tag is held back until it is known.

    Attributes:
        tags: of the thoughts.
        is_thinking: whether the text goes on with a thought.
    """

    def __init__(self, tags: Tags, *, is_thinking: bool = False) -> None:
        """A splitter of one answer; `is_thinking` if the chat template has begun a thought already."""
        self.tags = tags
        self.is_thinking = is_thinking
        self._held: list[tuple[str, bool]] = []  # texts, and whether they were given

    @property
    def held(self) -> str:
        """What is held back."""
        return "".join(text for text, _ in self._held)

    def feed(self, text: str, *, given: bool = False) -> list[Piece]:
        """The pieces that are known with this text."""
        self._held.append((text, given))
        text = self.held
        pieces: list[Piece] = []
        while True:
            tag = self.tags.end if self.is_thinking else self.tags.begin
            before, found, text = text.partition(tag)
            if not found:
                break
            pieces += [*self._let_go(len(before), self._kind), *self._let_go(len(tag), "tag")]
            self.is_thinking = not self.is_thinking
        sure = next((at for at in range(len(before)) if tag.startswith(before[at:])), len(before))
        return [*pieces, *self._let_go(sure, self._kind)]

    def end(self) -> list[Piece]:
        """What was held back."""
        return self._let_go(len(self.held), self._kind)

    def _let_go(self, count: int, kind: Kind) -> list[Piece]:
        """The first characters of what is held, which may have been given in part."""
        pieces = []
        while self._held and (count or not self._held[0][0]):
            text, given = self._held.pop(0)
            pieces.append(Piece(text[:count], kind, given))
            if len(text) > count:
                self._held.insert(0, (text[count:], given))
            count -= min(count, len(text))
        return [piece for piece in pieces if piece.text]

    @property
    def _kind(self) -> Kind:
        return "thought" if self.is_thinking else "answer"


def split_again(pieces: Iterable[Piece], tags: Tags, *, is_thinking: bool) -> list[Piece]:
    """Pieces of a whole text, which may have been split before all of it was known."""
    splitter = ThoughtSplitter(tags, is_thinking=is_thinking)
    found = [part for piece in pieces for part in splitter.feed(piece.text, given=piece.given)]
    return [*found, *splitter.end()]
