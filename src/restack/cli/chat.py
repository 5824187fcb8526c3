"""`restack chat`: a conversation in the terminal, or along a pipe."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from restack.chat import Conversation, Message, Piece, load_session, save_session
from restack.chat.programs.terminal import Terminal
from restack.cli.line_editing import messages
from restack.cli.loading import Source
from restack.cli.options import unescaped
from restack.cli.units import in_bytes, in_parameters
from restack.errors import RestackError, UsageError
from restack.plans import plan as read_plan
from restack.runtime import ContextFull, context_length
from restack.views import view
from restack.views.cost import cost

HELP = r'''
/layers SPEC      go on with other layers: /layers 0:8,4:12, or /layers all for the model as it is
/prefix TEXT      every answer begins with this; without a text, with nothing
/continue TEXT    go on with the last answer, after this text if there is one; \n is a newline
/again            another answer in the place of the last
/undo             take back the last question and its answer
/fork NAME        go on in a fork of the conversation, or go to one that is there; without a name: list them
/save FILE        keep the conversation; /save --kv FILE also what the model has read
/load FILE        go on with one that was kept
/reset            forget the conversation
/help             this
/exit, /quit      end the chat; so do Ctrl-D, and Ctrl-C at the prompt
A message that begins with a slash: type a blank before it.
A message of several lines: end them with \, or put them between two lines of three quotes (""").
Ctrl-C stops an answer. Along a pipe, the first mistake ends the chat with exit status 2.'''.strip()
ENDS = ("/exit", "/quit")
COMMANDS = (  # as they are completed
    *("/again", "/continue", "/exit", "/fork ", "/help", "/layers ", "/load ", "/prefix ", "/quit", "/reset"),
    *("/save ", "/undo"),
)
USER, ASSISTANT = "You  > ", "A.I."
FIRST_FORK = "main"

Hear = Callable[[Piece], None]


def run(source: Source, options: dict[str, Any], *, session: Path | None, shows_thoughts: bool) -> None:
    """Talk until the input ends, or the user ends it.

    In a terminal, a mistake is told and the chat goes on. Along a pipe, the first one ends it with exit
    status 2: the lines after a wrong /layers were meant for other layers, and their answers would mislead.

    Args:
        source: the model.
        options: of the `Conversation`.
        session: a file with a conversation to go on with.
        shows_thoughts: whether thoughts are shown, dimmed.
    """
    base, model, tokenizer = source.load()
    options["drafter"] = source.drafter(base, tokenizer)
    terminal = Terminal(thoughts=shows_thoughts)
    chat = Chat(base, source.plan, Conversation(model, tokenizer, **options, on_note=terminal.note), terminal)
    chat.introduce(source.reference.model)
    if session is not None:
        chat.load(str(session))
    if chat.conversation.speaks == "user" and not chat.has_history:
        chat.begin()
    for text in messages(USER, COMMANDS):
        if text.strip() in ENDS:
            break
        if text.strip():
            chat.hear(text)


class Chat:
    """The conversation, and what can be done to it with a slash."""

    def __init__(self, base: Any, plan: Any, conversation: Conversation, terminal: Terminal) -> None:
        self.base = base
        self.plan = plan
        self.conversation = conversation
        self.terminal = terminal
        self.fork_name = FIRST_FORK
        self.forks: dict[str, tuple[Conversation, Any]] = {}  # the others, with their plans

    def introduce(self, name: str) -> None:
        self.terminal.note(f"{name}, {self.describe()}. /help lists what else you can type.")

    def describe(self) -> str:
        costs = cost(self.base, self.plan)
        return (
            f"plan {self.plan}: {len(self.plan)} visits, "
            f"{in_parameters(costs.effective_parameters)} effective parameters "
            f"from {in_parameters(costs.base_parameters)} in memory"
        )

    def begin(self) -> None:
        """Let the model say the first words, as the user that it plays."""
        self.speak(self.conversation.answer)

    def hear(self, text: str) -> None:
        """What the user typed: something to answer, or a command."""
        command, _, argument = text.partition(" ")
        command = command.strip()
        commands: dict[str, Callable[[str], None]] = {
            "/layers": self.layers,
            "/prefix": self.prefix,
            "/continue": self.continue_,
            "/again": lambda _: self.speak(self.conversation.regenerate),
            "/undo": self.undo,
            "/fork": self.fork,
            "/save": self.save,
            "/load": self.load,
            "/reset": self.reset,
            "/help": lambda _: self.terminal.note(HELP),
        }
        try:
            if not command.startswith("/"):
                self.speak(lambda hear: self.conversation.ask(text.strip(), hear))
            elif command in commands:
                commands[command](argument)
            else:
                raise UsageError(f"there is no {command}; /help lists what there is")
        except RestackError as error:
            self.refuse(error)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            self.terminal.note("Stopped; the conversation goes on as it was.")

    def layers(self, spec: str) -> None:
        """Go on with another view of the same weights."""
        if not spec.strip():
            self.terminal.note(self.describe())
            return
        plan = read_plan(spec.strip(), self.base)
        self.conversation.model = self.base if plan.is_identity else view(self.base, plan)
        self.plan = plan
        self.terminal.note(f"Going on with {self.describe()}.")

    def prefix(self, text: str) -> None:
        """Have every answer begin with other words."""
        self.conversation.ai_prefix = unescaped(text)
        self.terminal.note(f"Every answer begins with {unescaped(text)!r}." if text else "No prefix.")

    def continue_(self, suffix: str) -> None:
        """Go on with the last answer."""
        self.speak(lambda hear: self.conversation.continue_(unescaped(suffix), hear))

    def undo(self, _: str) -> None:
        """Take back a question and its answer."""
        taken = self.conversation.undo()
        self.terminal.note(f"Taken back: {taken[0].content}")

    def fork(self, name: str) -> None:
        """Go on in a fork; or list them."""
        name = name.strip()
        if not name:
            self.terminal.note(", ".join(sorted([*self.forks, f"{self.fork_name} (here)"])))
            return
        if name == self.fork_name:
            raise UsageError(f"this is {name}; name another")
        self.forks[self.fork_name] = self.conversation, self.plan
        is_new = name not in self.forks
        self.conversation, self.plan = (
            (self.conversation.fork(), self.plan) if is_new else self.forks.pop(name)
        )
        before, self.fork_name = self.fork_name, name
        count = len(self.conversation.messages)
        self.terminal.note(f"{name} has {count} messages; /fork {before} leads back. {self.describe()}.")

    def save(self, argument: str) -> None:
        """Keep the conversation in a file."""
        with_cache = argument.split()[:1] == ["--kv"]
        name = argument.strip().removeprefix("--kv").strip() if with_cache else argument.strip()
        if not name:
            raise UsageError("name the file: /save FILE")
        path = save_session(self.conversation, name, with_cache=with_cache)
        self.terminal.note(f"Kept in {path} ({in_bytes(path.stat().st_size)}).")

    def load(self, name: str) -> None:
        """Go on with a conversation that was kept."""
        if not name.strip():
            raise UsageError("name the file: /load FILE")
        before = self.conversation
        loaded = load_session(name.strip(), before.model, before.tokenizer)
        loaded.on_note = before.on_note
        loaded.drafter = before.drafter
        self.conversation = loaded
        self.terminal.note(f"Going on with {len(loaded.messages)} messages of {name.strip()}.")
        for message in loaded.messages[-2:]:
            if message.role != "system":
                self.show(message)

    def reset(self, _: str) -> None:
        """Forget all that was said."""
        self.conversation.reset()
        self.terminal.note("The conversation is forgotten.")

    def show(self, message: Message) -> None:
        """Show a message that was said before."""
        self.terminal.begin(ASSISTANT if message.role == self.conversation.speaks else "You ")
        for piece in message.pieces:
            self.terminal.piece(piece)
        self.terminal.end(None)

    def speak(self, how: Callable[[Hear], Message]) -> None:
        """Let the model say something, and show it as it comes."""
        before = self.conversation.messages
        is_begun = False

        def hear(piece: Piece) -> None:
            nonlocal is_begun
            if not is_begun:
                self.terminal.begin(ASSISTANT)
                is_begun = True
            self.terminal.piece(piece)

        try:
            how(hear)
        except KeyboardInterrupt:
            self.terminal.end(None)
            if not sys.stdin.isatty():
                raise
            kept = self.conversation.messages is not before
            what = "what was said is kept" if kept else "nothing was said, and the conversation is as before"
            self.terminal.note(f"Stopped; {what}. Ctrl-C again ends the chat.")
            return
        except ContextFull as error:
            self.terminal.end(None)
            if not self.has_history:
                raise
            raise UsageError(f"{error}, or forget the conversation with /reset") from None
        self.terminal.end(None)
        if sys.stdin.isatty():
            self.terminal.note(self.status())

    def status(self) -> str:
        """How fast the last answer came, and what is kept."""
        conversation, last = self.conversation, self.conversation.last
        assert last is not None
        seconds = last.seconds - last.first_token_seconds
        speed = f", {(len(last.tokens) - 1) / seconds:.1f} tokens/s" if len(last.tokens) > 1 else ""
        cut = {"length": " (cut off; /continue goes on)", "context": " (the context is full)"}
        again = "" if last.first_visit is None else f" up to visit {last.first_visit}"
        context = context_length(conversation.model.config)
        held = f"{len(conversation.cache.tokens):,}" + (f" of {context:,}" if context else "")
        return (
            f"[{len(last.tokens)} tokens{cut.get(last.finish, '')}{speed}; {last.read} read, "
            f"{last.reused} known{again}; context {held}, KV {in_bytes(conversation.cache.kv_bytes)}]"
        )

    @property
    def has_history(self) -> bool:
        return any(message.role != "system" for message in self.conversation.messages)

    def refuse(self, error: RestackError) -> None:
        """In a terminal, say what is wrong and go on; along a pipe, nobody reads it: end."""
        if not sys.stdin.isatty():
            raise error
        self.terminal.note(str(error))
