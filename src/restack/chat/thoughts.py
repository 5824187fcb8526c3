"""The parts of an answer in which a thinking model thinks."""

from collections.abc import Iterator
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
    """

    def __init__(self, tags: Tags, *, is_thinking: bool = False) -> None:
        """A splitter of one answer; `is_thinking` if the chat template has begun a thought already."""
        self.tags = tags
        self.is_thinking = is_thinking
        self._held = Piece("")

    def feed(self, text: str, *, given: bool = False) -> Iterator[Piece]:
        """The pieces that are known with this text; a tag that is half given counts as given."""
        given = given or (bool(self._held.text) and self._held.given)
        text = self._held.text + text
        while True:
            tag = self.tags.end if self.is_thinking else self.tags.begin
            before, found, text = text.partition(tag)
            if not found:
                break
            if before:
                yield Piece(before, self._kind, given)
            yield Piece(tag, "tag", given)
            self.is_thinking = not self.is_thinking
        sure = next((at for at in range(len(before)) if tag.startswith(before[at:])), len(before))
        self._held = Piece(before[sure:], self._kind, given)
        if sure:
            yield Piece(before[:sure], self._kind, given)

    @property
    def held(self) -> str:
        """What is held back."""
        return self._held.text

    def end(self) -> Iterator[Piece]:
        """What was held back."""
        if self._held.text:
            yield Piece(self._held.text, self._kind, self._held.given)
        self._held = Piece("")

    @property
    def _kind(self) -> Kind:
        return "thought" if self.is_thinking else "answer"
