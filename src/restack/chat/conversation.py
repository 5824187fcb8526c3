"""A conversation: messages, and a model that answers the last one."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch

from restack.chat.messages import Message
from restack.chat.speech import FOLLOWS, Hear, Speech
from restack.chat.template import ChatTemplate
from restack.chat.thoughts import Tags, special_tokens, tags_of
from restack.chat.window import Window
from restack.errors import UsageError
from restack.runtime import Drafter, Generated, PromptCache, Sampling, generate_all

OTHER = {"assistant": "user", "user": "assistant"}


def _ignore(said: Any) -> None:
    pass


class Conversation:
    """Messages, and the model that speaks next.

    The keys and values of what the model has read are kept: only what is new passes through it, also after
    `continue_`, `edit` or `undo`. A model whose cache cannot be cropped reads all anew; `on_note` is told.

    Attributes:
        model: speaks; it may be changed for another view at any time, and the conversation goes on. It reads
            what was said before with the visits that the one before had not in common with it.
        tokenizer: of the model, with its chat template; `PLAIN_TEMPLATE` if it has none.
        messages: all that was said, the system prompt first.
        ai_prefix: all that the model says begins with these words (DeepSeek's prefix completion,
            chatllm.cpp's `--ai_prefix`); they are part of the message, and can be told from the rest.
        sampling: how tokens are chosen.
        speaks: the role of the model; "user" lets it play the user (chatllm.cpp's `--reversed_role`).
        tags: a thought stands between them.
        window: what the model is shown when the conversation is longer than its context.
        cache: the keys and values of what the model has read last.
        drafter: drafts what the model then checks, for speed alone; None: nothing does.
        on_note: is told what the user should know.
        last: what generating the last message took; None before.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        system: str | None = None,
        ai_prefix: str = "",
        sampling: Sampling | None = None,
        speaks: str = "assistant",
        tags: Tags | None = None,
        overflow: str = "stop",
        drafter: Drafter | None = None,
        on_note: Callable[[str], None] = _ignore,
    ) -> None:
        """A conversation without messages.

        Args:
            model, tokenizer, ai_prefix, sampling, speaks, drafter, on_note: see above.
            system: the system prompt.
            tags: without them, those of its template or vocabulary, or else <think> and </think>.
            overflow: what to do when the context is full: "stop", "drop" or "shift"; see `Window`.

        Raises:
            UsageError: there is no such role or overflow.
        """
        if speaks not in OTHER:
            raise UsageError(f"the model cannot speak as {speaks!r}; write one of {', '.join(OTHER)}")
        self.model = model
        self.tokenizer = tokenizer
        self.system = system
        self.ai_prefix = ai_prefix
        self.sampling = sampling or Sampling()
        self.speaks = speaks
        self.tags = tags or tags_of(tokenizer)
        self.window = Window(overflow)
        self.drafter = drafter
        self.on_note = on_note
        self.last: Generated | None = None
        self.messages: list[Message] = []
        self.cache = PromptCache()
        self._told: set[str] = set()
        self.reset()

    def reset(self) -> None:
        """Forget all but the system prompt."""
        self.window = Window(self.window.overflow)
        self.messages = [Message.of("system", self.system)] if self.system else []

    def ask(self, text: str, on_piece: Hear = _ignore) -> Message:
        """The answer to a message; its pieces go to `on_piece` as they are written, what is given first.

        The first piece, the prefix or an empty one, comes as soon as the model begins to read.

        An answer that is interrupted (KeyboardInterrupt) stays in the conversation as far as it came; if the
        model had not said anything yet, the conversation is as before.

        Raises:
            UsageError: the message is empty, the context is full (`ContextFull`), or the model's chat
                template refuses the conversation, which is then as before.
        """
        before = self.messages
        self.hear(text)
        return self._answer_or(before, on_piece)

    def hear(self, text: str, role: str | None = None) -> None:
        """Take in a message, and do not answer yet.

        Args:
            text: of the message.
            role: whose it is; without, the other side's.

        Raises:
            UsageError: it is empty, or there is no such role.
        """
        _refuse_empty(text)
        if role not in (None, *OTHER):
            raise UsageError(f"there is no role {role!r}; write one of {', '.join(OTHER)}")
        self.messages = [*self.messages, Message.of(role or OTHER[self.speaks], text)]

    def answer(self, on_piece: Hear = _ignore) -> Message:
        """What the model says next; as `ask`, without a message."""
        return self._speak(Speech(self, self.messages, self.ai_prefix, self.sampling, on_piece))

    def continue_(
        self, suffix: str = "", on_piece: Hear = _ignore, *, sampling: Sampling | None = None
    ) -> Message:
        """The model's last message, gone on with after a suffix (chatllm.cpp's `ai_continue`).

        It takes the place of the message that it goes on with. Only what is new goes to `on_piece`.

        Args:
            suffix: words that are put into its mouth; may be empty.
            on_piece: as of `ask`.
            sampling: of this part alone.

        Raises:
            UsageError: the model has said nothing to go on with; or as `ask`.
        """
        if not self.messages or self.messages[-1].role != self.speaks:
            raise UsageError("there is no message of the model to go on with; ask something first")
        *history, last = self.messages
        return self._speak(
            Speech(self, history, suffix, sampling or self.sampling, on_piece, list(last.pieces))
        )

    def regenerate(self, on_piece: Hear = _ignore) -> Message:
        """Another answer in the place of the last one.

        Raises:
            UsageError: there is none; or as `ask`.
        """
        if not self.messages or self.messages[-1].role != self.speaks:
            raise UsageError("there is no answer to take back; ask something first")
        before = self.messages
        self.messages = before[:-1]
        return self._answer_or(before, on_piece)

    def undo(self) -> list[Message]:
        """Take back the last message of the other side and what came after; they are returned.

        Raises:
            UsageError: there is none.
        """
        other = OTHER[self.speaks]
        asked = [number for number, message in enumerate(self.messages) if message.role == other]
        if not asked:
            raise UsageError("there is nothing to take back")
        self.messages, taken = self.messages[: asked[-1]], self.messages[asked[-1] :]
        return taken

    def edit(self, number: int, text: str) -> None:
        """Change a message, counted from 0 in `messages`; those after it are forgotten.

        Raises:
            UsageError: there is no such message, or the text is empty.
        """
        if not 0 <= number < len(self.messages):
            raise UsageError(f"there is no message {number}; there are {len(self.messages)}, counted from 0")
        _refuse_empty(text)
        role = self.messages[number].role
        if role == "system":
            self.system = text
        self.messages = [*self.messages[:number], Message.of(role, text)]

    def fork(self) -> "Conversation":
        """Another conversation that has come as far; keys and values are shared, not copied."""
        result = copy.copy(self)
        result.messages = list(self.messages)
        result.cache = self.cache.fork()
        result._told = set(self._told)
        return result

    def ask_all(self, texts: Sequence[str]) -> list[str]:
        """The answers to several messages, each as if it alone came next; the conversation stays as it is.

        They are generated as one batch: `runtime.generate_all`.

        Raises:
            UsageError: as `ask` does.
        """
        prompts = []
        for text in texts:
            _refuse_empty(text)
            turn = [*self.messages, Message.of(OTHER[self.speaks], text)]
            prompts.append(self.tensor(self.tokens(turn, self.ai_prefix)))
        answers = generate_all(
            self.model,
            self.tokenizer,
            prompts,
            self.sampling,
            stop=ChatTemplate(self.tokenizer).stops(self.speaks),
            follows=FOLLOWS if self.ai_prefix else 0,
            shown=special_tokens(self.tags, self.tokenizer),
        )
        return [self.ai_prefix + answer for answer in answers]

    def prompt(self) -> torch.Tensor:
        """The conversation and the beginning of what the model says next, as tokens of shape (1, tokens)."""
        return self.tensor(self.tokens(self.messages, self.ai_prefix))

    def tokens(self, messages: Sequence[Message], begun: str = "") -> list[int]:
        """Messages in tokens, up to where the model goes on, having begun with some words.

        Raises:
            UsageError: the chat template refuses them.
        """
        text = ChatTemplate(self.tokenizer).opened(messages, self.speaks, begun)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def tensor(self, tokens: list[int]) -> torch.Tensor:
        """Tokens as the model takes them, shape (1, tokens)."""
        return torch.tensor([tokens], device=self.model.device)

    def note_once(self, text: str) -> None:
        """Tell what the user need be told only once."""
        if text not in self._told:
            self._told.add(text)
            self.on_note(text)

    def _answer_or(self, before: list[Message], on_piece: Hear) -> Message:
        """What the model says next; where that comes to nothing, the conversation is as before."""
        asked = self.messages
        try:
            return self.answer(on_piece)
        except BaseException:
            if self.messages is asked:
                self.messages = before
            raise

    def _speak(self, speech: Speech) -> Message:
        """Let the model say something, and put it after its history."""
        try:
            speech.speak()
        except KeyboardInterrupt:
            if speech.has_said:
                self.messages = [*speech.history, speech.message("interrupted")]
            raise
        self.messages = [*speech.history, speech.message()]
        self.last = speech.taken()
        return self.messages[-1]


def _refuse_empty(text: str) -> None:
    if not text.strip():
        raise UsageError("the message is empty; write something to answer")
