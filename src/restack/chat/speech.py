"""A message of a model, as it is generated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from restack.chat.messages import Message, Piece
from restack.chat.template import ChatTemplate
from restack.chat.thoughts import ThoughtSplitter, special_tokens, split_again
from restack.runtime import Generated, Sampling, check_room, context_length, generate

if TYPE_CHECKING:
    from restack.chat.conversation import Conversation

FOLLOWS = 8  # tokens: enough for the longest character, and for whatever a tokenizer makes of a blank

Hear = Callable[[Piece], None]


@dataclass(slots=True)
class Speech:
    """What a model says after a history; generated again from where it came to when the context is full.

    Attributes:
        talk: the conversation that it belongs to.
        history: the messages before it.
        given: words that are put into the model's mouth, after the pieces that are there already.
        sampling: how tokens are chosen.
        hear: is given each piece as it comes.
        pieces: of the message: those that it goes on with, then the new ones.
        made: what each generation took.
    """

    talk: "Conversation"
    history: Sequence[Message]
    given: str
    sampling: Sampling
    hear: Hear
    pieces: list[Piece] = field(default_factory=list)
    made: list[Generated] = field(default_factory=list)
    has_said: bool = False  # anything of its own
    begins_thinking: bool = False  # as some templates have it

    def speak(self) -> None:
        """Generate the message.

        Raises:
            UsageError: as `Conversation.ask`; then nothing was heard of it.
        """
        begun = self._content + self.given
        self._check_last_message()
        tokens = self._fitted(begun, or_refused=True)
        splitter = self._splitter_so_far()
        self.hear(Piece("", given=True))
        self._take(splitter, self.given, is_given=True)
        while tokens:
            self._generate(tokens, bool(begun), splitter)
            if self.made[-1].finish != "context" or self.talk.window.overflow == "stop" or self._left < 1:
                break
            begun = self._content
            tokens = self._fitted(begun)
        for piece in splitter.end():
            self.hear(piece)

    def message(self, finish: str | None = None) -> Message:
        """The message so far."""
        pieces = split_again(self.pieces, self.talk.tags, is_thinking=self.begins_thinking)
        return Message.of_pieces(self.talk.speaks, pieces, finish or self.made[-1].finish)

    def taken(self) -> Generated:
        """What it took in all."""
        first = self.made[0]
        return replace(
            first,
            text="".join(made.text for made in self.made),
            tokens=tuple(token for made in self.made for token in made.tokens),
            finish=self.made[-1].finish,
            read=sum(made.read for made in self.made),
            seconds=sum(made.seconds for made in self.made),
        )

    def _generate(self, tokens: list[int], follows: bool, splitter: ThoughtSplitter) -> None:
        talk = self.talk

        def hear(text: str) -> None:
            self.has_said |= bool(text)
            self._take(splitter, text)

        made = generate(
            talk.model,
            talk.tokenizer,
            talk.tensor(tokens),
            replace(self.sampling, max_tokens=self._left),
            hear,
            stop=ChatTemplate(talk.tokenizer).stops(talk.speaks),
            prompt_cache=talk.cache,
            drafter=talk.drafter,
            follows=min(FOLLOWS, len(tokens)) if follows else 0,
            shown=special_tokens(talk.tags, talk.tokenizer),
        )
        self.made.append(made)
        if made.reason:
            talk.note_once(f"the conversation is read again from its beginning: {made.reason}")

    def _fitted(self, begun: str, *, or_refused: bool = False) -> list[int]:
        """The tokens that the model is shown, as many as its context allows.

        If they fill it all the same: none, or an error with `or_refused`; the window is left as it was.
        """
        talk, context = self.talk, context_length(self.talk.model.config)
        window, tokens, note = talk.window.fit(
            self.history, lambda messages: talk.tokens(messages, begun), context, self.sampling.max_tokens
        )
        if or_refused:
            check_room(talk.model, talk.tensor(tokens))
        elif context is not None and len(tokens) >= context:
            return []
        talk.window = window
        if note:
            talk.on_note(note)
        return tokens

    def _check_last_message(self) -> None:
        """Refuse a message that has no room even alone: shifting would cut it."""
        talk, last = self.talk, self.history[-1:]
        if talk.window.overflow == "shift" and last and last[0].role != talk.speaks:
            system = [message for message in self.history[:-1][:1] if message.role == "system"]
            check_room(talk.model, talk.tensor(talk.tokens([*system, *last])))

    def _splitter_so_far(self) -> ThoughtSplitter:
        """A splitter that knows whether a thought has begun: in the template, or in the message so far."""
        talk = self.talk
        opened = ChatTemplate(talk.tokenizer).opened(self.history, talk.speaks)
        self.begins_thinking = opened.rstrip().endswith(talk.tags.begin)
        splitter = ThoughtSplitter(talk.tags, is_thinking=self.begins_thinking)
        splitter.feed(self._content)
        splitter.end()  # that was heard
        return splitter

    def _take(self, splitter: ThoughtSplitter, text: str, *, is_given: bool = False) -> None:
        """Keep a text, and pass on what is known of it."""
        if text:
            self.pieces.append(Piece(text, given=is_given))
        for piece in splitter.feed(text, given=is_given):
            self.hear(piece)

    @property
    def _left(self) -> int:
        """How many tokens it may still have."""
        return self.sampling.max_tokens - sum(len(made.tokens) for made in self.made)

    @property
    def _content(self) -> str:
        return "".join(piece.text for piece in self.pieces)
