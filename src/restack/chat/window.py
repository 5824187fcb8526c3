"""What a model is shown of a conversation that is longer than its context."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from restack.chat.messages import Message
from restack.errors import UsageError

OVERFLOWS = ("stop", "drop", "shift")
SINKS = 4  # the first tokens, which attention rests on (StreamingLLM, Xiao et al. 2023, 2309.17453)
FREED, LEAST = 4, 16  # one in so many tokens of the context is made free, when fewer than one in so many are

Tokens = Callable[[Sequence[Message]], list[int]]


@dataclass(frozen=True, slots=True)
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
    ) -> tuple["Window", list[int], str]:
        """The window that is needed now, the tokens it shows, and what is to be said if they are less.

        As long as that is enough, what was left out before is left out again: the text then begins as before.
        There may still be too many tokens: with "stop", or where the last message alone fills the context.

        Args:
            messages: the conversation.
            tokens_of: what a conversation is in tokens, up to where the model speaks.
            context: of the model, in tokens; None without a limit.
            answer: how many tokens the answer may have.
        """
        tokens = tokens_of(messages)
        if context is None or self.overflow == "stop":
            return self, tokens, ""
        most, wanted = context - min(answer, context // LEAST), context - context // FREED
        if len(tokens) <= most:
            return Window(self.overflow), tokens, ""
        full = f"the context of {context} tokens is full: the model is no longer shown"
        if self.overflow == "drop":
            dropped, tokens = self._drop(messages, tokens_of, most, wanted)
            note = f"{full} the first {dropped} messages" if dropped > self.dropped else ""
            return replace(self, dropped=dropped), tokens, note
        shifted = self.shifted if wanted <= len(tokens) - self.shifted <= most else len(tokens) - wanted
        note = f"{full} {shifted} tokens after the first {SINKS}" if shifted > self.shifted else ""
        return replace(self, shifted=shifted), tokens[:SINKS] + tokens[SINKS + shifted :], note

    def _drop(
        self, messages: Sequence[Message], tokens_of: Tokens, most: int, wanted: int
    ) -> tuple[int, list[int]]:
        """How many messages to leave out, whole turns, and the tokens of the others."""
        first = 1 if messages and messages[0].role == "system" else 0
        said = messages[first:]
        dropped, tokens = 0, tokens_of(messages)
        for turn in (number for number, message in enumerate(said) if message.role == said[-1].role):
            dropped, tokens = turn, tokens_of([*messages[:first], *said[turn:]])
            if len(tokens) <= (most if turn == self.dropped else wanted):
                break
        return dropped, tokens
