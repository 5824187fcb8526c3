"""An agent: a model with a name and its ways."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from restack.chat.conversation import Conversation
from restack.chat.thoughts import Tags
from restack.errors import UsageError
from restack.runtime import Sampling


@dataclass(frozen=True)
class Agent:
    """A model, or a view of one, that takes part in a program.

    Attributes:
        name: of the speaker.
        model: several agents may have the same, or views of one: the weights are in memory once.
        tokenizer: of the model.
        system: its system prompt.
        ai_prefix: each of its messages begins with these words.
        sampling: how its tokens are chosen.
        speaks: the role that it plays: "assistant", or "user" (chatllm.cpp's --reversed_role).
        overflow: what happens when its context is full: "stop", "drop" or "shift", as `Conversation` has it.
        tags: what its thoughts stand between; None: what its template or vocabulary says.
    """

    name: str
    model: Any
    tokenizer: Any
    system: str | None = None
    ai_prefix: str = ""
    sampling: Sampling = Sampling()  # noqa: RUF009  (frozen)
    speaks: str = "assistant"
    overflow: str = "stop"
    tags: Tags | None = None

    def conversation(self, on_note: Callable[[str], None]) -> Conversation:
        """A conversation with nothing said in it."""
        return Conversation(
            self.model,
            self.tokenizer,
            system=self.system,
            ai_prefix=self.ai_prefix,
            sampling=self.sampling,
            speaks=self.speaks,
            overflow=self.overflow,
            tags=self.tags,
            on_note=on_note,
        )


def check_names(names: Sequence[str]) -> None:
    """Refuse names that do not tell speakers apart.

    Raises:
        UsageError: one is empty or of several lines, or is given twice.
    """
    for name in names:
        if not name.strip() or not name.isprintable():
            raise UsageError(f"{name!r} cannot be a speaker's name; write a word or a few, on one line")
        if names.count(name) > 1:
            raise UsageError(f"{name!r} names two speakers; give each a name of its own")
