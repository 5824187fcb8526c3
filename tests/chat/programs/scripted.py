"""Agents that say what is written down for them, in place of a model."""

from types import SimpleNamespace

from restack.chat.messages import Message, Piece
from restack.chat.programs import Agent

OTHER = {"assistant": "user", "user": "assistant"}


class Stopped(str):
    """A text in the middle of which somebody presses Ctrl-C; an empty one: before it begins."""


class Talk:
    """Has of a `Conversation` what the programs use."""

    def __init__(self, agent, on_note):
        self.agent, self.on_note = agent, on_note
        self.speaks, self.ai_prefix, self.sampling = agent.speaks, agent.ai_prefix, agent.sampling
        self.last = None
        self.reset()

    def reset(self):
        self.messages = [Message.of("system", self.agent.system)] if self.agent.system else []

    def hear(self, text, role=None):
        assert text.strip()
        self.messages = [*self.messages, Message.of(role or OTHER[self.speaks], text)]

    def prompt(self):
        pass

    def ask(self, text, on_piece):
        before = self.messages
        self.hear(text)
        try:
            return self._say(self.messages, [], self.ai_prefix, on_piece)
        except BaseException:
            if self.messages[-1].role != self.speaks:
                self.messages = before
            raise

    def continue_(self, suffix="", on_piece=None, *, sampling=None):
        *history, last = self.messages
        self.sampling_used = sampling
        return self._say(history, list(last.pieces), suffix, on_piece)

    def _say(self, history, pieces, given, on_piece):
        text = self.agent.model.pop(0)
        if isinstance(text, Exception):
            raise text
        new = [Piece(given, given=True)] if given else []
        new += [Piece(text)] if isinstance(text, str) and text else []
        new += text if isinstance(text, list) else []
        on_piece(Piece("", given=True))
        for piece in new:
            on_piece(piece)
        is_stopped = isinstance(text, Stopped)
        self.last = SimpleNamespace(tokens=tuple(str(text).split()))
        message = Message.of_pieces(self.speaks, [*pieces, *new], "interrupted" if is_stopped else "stop")
        if not is_stopped or text:
            self.messages = [*history, message]
        if is_stopped:
            raise KeyboardInterrupt
        return message


class Scripted(Agent):
    """An agent whose model is a list of texts, pieces, or errors."""

    def conversation(self, on_note):
        return Talk(self, on_note)


def agent(name, *texts, **settings):
    return Scripted(name, list(texts), SimpleNamespace(chat_template="any"), **settings)


class Heard:
    """An audience that writes down what it is told."""

    def __init__(self):
        self.events = []

    def begin(self, speaker, heading=""):
        self.events.append(("begin", speaker, heading))

    def piece(self, piece):
        if piece.text:
            self.events.append((piece.kind, piece.text))

    def end(self, line):
        self.events.append(("end", line and (line.turn, line.speaker, line.message.content)))

    def note(self, text):
        self.events.append(("note", text))

    @property
    def notes(self):
        return [event[1] for event in self.events if event[0] == "note"]


def said(lines):
    return [(line.turn, line.speaker, line.message.content) for line in lines]
