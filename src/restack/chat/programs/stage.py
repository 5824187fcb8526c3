"""Where agents speak: what the programs have in common."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from restack.chat.messages import Message, Piece
from restack.chat.programs.agent import Agent
from restack.chat.programs.audience import Audience, Line, Silent
from restack.plans.pointing import counted

YOU = "You"  # who asks
Hear = Callable[[Piece], None]


class Stage:
    """Counts the turns of a program, keeps what is said, and tells it to an audience.

    Attributes:
        audience: hears each piece as it is generated.
        turn: the present one.
        lines: what was said so far.
    """

    def __init__(self, audience: Audience | None = None) -> None:
        self.audience = audience or Silent()
        self.turn = 0
        self.lines: list[Line] = []
        self._waiting: list[Callable[[], None]] = []  # tell what is told only when there is an answer
        self._beginning: tuple[str, str] | None = None  # who is about to speak
        self._question: Line | None = None

    def enter(self, agent: Agent) -> "Part":
        """An agent's part in the program, with a conversation of its own."""
        return Part(self, agent)

    @contextmanager
    def next_turn(self) -> Iterator[int]:
        """A turn and its number; one that ends before anybody has said anything does not count."""
        self.turn += 1
        before = len(self.lines)
        try:
            yield self.turn
        except BaseException:
            self._waiting.clear()
            if len(self.lines) == before:
                self.turn -= 1
            raise
        self._tell_what_waits()

    def question(self, text: str, speaker: str = YOU) -> None:
        """What a person says; it becomes a line when it is being answered."""
        line = self._question = Line(self.turn, speaker, Message("user", (Piece(text),)))
        self._waiting.append(lambda: self._add(line))

    def quote(self, speaker: str, message: Message) -> None:
        """What is put into somebody's mouth; it is told when it is being answered."""
        line = Line(self.turn, speaker, message)

        def tell() -> None:
            self.audience.begin(speaker)
            for piece in message.pieces:
                self.audience.piece(piece)
            self._add(line)

        self._waiting.append(tell)

    def note(self, text: str) -> None:
        """What the program has to say, about a question perhaps that waits for its answer."""
        if self._waiting:
            self._waiting.append(lambda: self.audience.note(text))
        else:
            self.audience.note(text)

    def begin(self, speaker: str, heading: str = "") -> None:
        """Somebody is about to speak; told with the first piece."""
        self._beginning = (speaker, heading)

    def piece(self, piece: Piece) -> None:
        """Somebody speaks, and so the question is being answered."""
        self._tell_what_waits()
        self.audience.piece(piece)

    def end(self, speaker: str, message: Message | None, details: Mapping[str, Any]) -> None:
        """Somebody has spoken, or was broken off before there was anything to keep."""
        if message is None and self.lines and self.lines[-1] is self._question:  # which is told already
            message = Message("assistant", (), "interrupted")
        if message is None:
            if self._beginning is None:
                self.audience.end(None)
            self._beginning = None
            return
        self._tell_what_waits()
        self._add(Line(self.turn, speaker, message, details))
        if not message.answer.strip() and message.finish != "interrupted":
            self.audience.note(f"{speaker} said nothing.")

    def _tell_what_waits(self) -> None:
        waiting, self._waiting = self._waiting, []
        for tell in waiting:
            tell()
        if self._beginning is not None:
            self.audience.begin(*self._beginning)
            self._beginning = None

    def _add(self, line: Line) -> None:
        self.lines.append(line)
        self.audience.end(line)


def over(turns: int) -> str:
    """What is said after the last turn."""
    return f"{counted(turns, 'turn')} {'is' if turns == 1 else 'are'} over"


class Part:
    """An agent on a stage.

    Attributes:
        agent: whose part it is.
        conversation: what this agent has heard and said.
    """

    def __init__(self, stage: Stage, agent: Agent) -> None:
        self.stage = stage
        self.agent = agent
        self.conversation = agent.conversation(lambda text: stage.note(f"{agent.name}: {text}"))

    @property
    def name(self) -> str:
        return self.agent.name

    def ask(self, text: str, **details: Any) -> Message:
        """The agent's answer to a message.

        Raises:
            UsageError: as `Conversation.ask` does; nothing is kept then.
        """
        return self.speak(lambda hear: self.conversation.ask(text, hear), details)

    def say(self, text: str, *, is_remembered: bool = True) -> Message:
        """Put a whole message into the agent's mouth."""
        message = Message.of(self.agent.speaks, text)
        if is_remembered:
            self.conversation.hear(text, role=self.agent.speaks)
        self.stage.quote(self.name, message)
        return message

    def speak(
        self, how: Callable[[Hear], Message], details: Mapping[str, Any] | None = None, heading: str = ""
    ) -> Message:
        """A message that the agent says.

        Args:
            how: has the conversation generate it, and is given what is to hear its pieces.
            details: for the transcript; `how` may fill them in.
            heading: of the message, or of its first part.

        Raises:
            KeyboardInterrupt: somebody stopped it; what had been said is a line with finish "interrupted".
        """
        before = self._last
        self.stage.begin(self.name, heading)
        try:
            message = how(self.stage.piece)
        except KeyboardInterrupt:
            last = self._last
            said = None if last is before or last is None else replace(last, finish="interrupted")
            self.stage.end(self.name, said, details or {})
            raise
        except BaseException:
            self.stage.end(self.name, None, {})
            raise
        self.stage.end(self.name, message, details or {})
        return message

    @property
    def _last(self) -> Message | None:
        messages = self.conversation.messages
        return messages[-1] if messages else None
