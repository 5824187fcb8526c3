"""What a model is shown of a conversation that is longer than its context."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from restack.chat.messages import Message
from restack.errors import UsageError

OVERFLOWS = ("stop", "drop", "shift")
SINKS = 4  # the first tokens, which attention rests on (StreamingLLM, Xiao et al. 2023, 2309.17453)
FREED, LEAST = 4, 16  # one in so many tokens of the context is made free, when fewer than one in so many are

Tokens = Callable[[Sequence[Message]], list[int]]


@dataclass(slots=True)
class Window:
    """The part of a conversation that is shown.

    Attributes:
        overflow: what to do when it does not fit: "stop" refuses to go on; "drop" leaves out the oldest
            turns; "shift" leaves out the oldest tokens but the first few, the attention sinks. What is left
            is read again, at new positions: that works with every architecture.
        dropped: messages that are left out, after the system prompt.
        shifted: tokens that are left out, after the sinks.
    """

    overflow: str = "stop"
    dropped: int = 0
    shifted: int = 0

    def __post_init__(self) -> None:
        if self.overflow not in OVERFLOWS:
            raise UsageError(f"overflow is {self.overflow!r}; write one of {', '.join(OVERFLOWS)}")

    def fit(
        self, messages: Sequence[Message], tokens_of: Tokens, context: int | None, answer: int
    ) -> tuple[list[int], str]:
        """The tokens to show, and what is to be said of those left out now; "" if no more than before.

        They may still be too many: with "stop", or where the last message alone fills the context.

        Args:
            messages: the conversation.
            tokens_of: what a conversation is in tokens, up to where the model speaks.
            context: of the model, in tokens; None without a limit.
            answer: how many tokens the answer may have.
        """
        tokens = tokens_of(messages)
        if context is None or self.overflow == "stop":
            return tokens, ""
        most, wanted = context - min(answer, context // LEAST), context - context // FREED
        if len(tokens) <= most:
            self.dropped = self.shifted = 0
            return tokens, ""
        full = f"the context of {context} tokens is full: the model is no longer shown"
        if self.overflow == "drop":
            before = self.dropped
            tokens = self._drop(messages, tokens_of, most, wanted)
            return tokens, f"{full} the first {self.dropped} messages" if self.dropped != before else ""
        before = self.shifted
        if len(tokens) - self.shifted > most or not self.shifted:
            self.shifted = len(tokens) - wanted
        tokens = tokens[:SINKS] + tokens[SINKS + self.shifted :]
        note = f"{full} {self.shifted} tokens after the first {SINKS}"
        return tokens, note if self.shifted != before else ""

    def _drop(self, messages: Sequence[Message], tokens_of: Tokens, most: int, wanted: int) -> list[int]:
        """The tokens without the oldest turns: those left out already, if that is enough, or some more."""
        first = 1 if messages and messages[0].role == "system" else 0
        said = messages[first:]
        turns = [number for number, message in enumerate(said) if message.role == said[-1].role]
        self.dropped = min(self.dropped, turns[-1])  # some may have been taken back
        begins = [self.dropped, *(turn for turn in turns if turn > self.dropped)]
        tokens: list[int] = []
        for begin in begins:
            tokens = tokens_of([*messages[:first], *said[begin:]])
            if len(tokens) <= (most if begin == self.dropped else wanted):
                break
        self.dropped = begin
        return tokens
