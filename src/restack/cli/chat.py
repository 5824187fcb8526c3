"""`restack chat`: a conversation in the terminal, or along a pipe."""

import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from restack.chat import Conversation
from restack.cli.generate import write
from restack.cli.loading import Source
from restack.cli.text_input import read_lines
from restack.cli.units import in_parameters
from restack.errors import RestackError, UsageError
from restack.plans import plan as read_plan
from restack.runtime import ContextFull, Sampling
from restack.views import view
from restack.views.cost import cost

HELP = """\
/layers SPEC   go on with other layers: /layers 0:8,4:12, or /layers all for the model as it is
/reset         forget the conversation
/help          this
/exit, /quit   end the chat; so do Ctrl-D, and Ctrl-C at the prompt
Ctrl-C stops an answer. Along a pipe, the first mistake ends the chat with exit status 2."""
COMMANDS = ("/exit", "/help", "/layers ", "/quit", "/reset")  # as they are completed
USER, ASSISTANT = "You  > ", "A.I. > "


def run(source: Source, system: str | None, ai_prefix: str, sampling: Sampling) -> None:
    """Talk until the input ends, or the user ends it.

    In a terminal, a mistake is told and the chat goes on. Along a pipe, the first one ends it with exit
    status 2: the lines after a wrong /layers were meant for other layers, and their answers would mislead.
    """
    base, model, tokenizer = source.load()
    conversation = Conversation(model, tokenizer, system=system, ai_prefix=ai_prefix, sampling=sampling)
    chat = Chat(base, source.plan, conversation)
    chat.introduce(source.reference.model)
    for line in lines():
        text = line.strip()
        if text in ("/exit", "/quit"):
            break
        if text:
            chat.hear(text)


class Chat:
    """The conversation, and what can be done to it with a slash."""

    def __init__(self, base: Any, plan: Any, conversation: Conversation) -> None:
        self.base = base
        self.plan = plan
        self.conversation = conversation
        self.notes = Console(highlight=False, markup=False, soft_wrap=True)

    def introduce(self, name: str) -> None:
        self.note(f"{name}, {self.describe()}. /help lists what else you can type.")

    def describe(self) -> str:
        costs = cost(self.base, self.plan)
        return (
            f"plan {self.plan}: {len(self.plan)} visits, "
            f"{in_parameters(costs.effective_parameters)} effective parameters "
            f"from {in_parameters(costs.base_parameters)} in memory"
        )

    def hear(self, text: str) -> None:
        """A line that the user typed: something to answer, or a command."""
        if not text.startswith("/"):
            self.answer(text)
            return
        command, _, argument = text.partition(" ")
        try:
            match command:
                case "/layers":
                    self.layers(argument.strip())
                case "/reset":
                    self.conversation.reset()
                    self.note("The conversation is forgotten.")
                case "/help":
                    self.note(HELP)
                case _:
                    raise UsageError(f"there is no {command}; /help lists what there is")
        except RestackError as error:
            self.refuse(error)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            self.note("Stopped; the conversation goes on as it was.")

    def layers(self, spec: str) -> None:
        """Go on with another view of the same weights."""
        if not spec:
            self.note(self.describe())
            return
        plan = read_plan(spec, self.base)
        self.conversation.model = self.base if plan.is_identity else view(self.base, plan)
        self.plan = plan
        self.note(f"Going on with {self.describe()}.")

    def answer(self, text: str) -> None:
        before = len(self.conversation.messages)
        said: list[str] = []

        def hear(piece: str) -> None:
            write(piece if said else ASSISTANT + piece)
            said.append(piece)

        try:
            self.conversation.ask(text, hear)
        except KeyboardInterrupt:
            print(flush=True)
            if not sys.stdin.isatty():
                raise
            kept = len(self.conversation.messages) > before
            what = "what was said is kept" if kept else "nothing was said, and the question is forgotten"
            self.note(f"Stopped; {what}. Ctrl-C again ends the chat.")
            return
        except UsageError as error:
            if said:
                print(flush=True)
            if isinstance(error, ContextFull) and self.has_history:
                error = UsageError(f"{error}, or forget the conversation with /reset")
            self.refuse(error)
            return
        print(flush=True)

    @property
    def has_history(self) -> bool:
        return any(message["role"] != "system" for message in self.conversation.messages)

    def note(self, text: str) -> None:
        self.notes.print(text, style="dim")

    def refuse(self, error: RestackError) -> None:
        """In a terminal, say what is wrong and go on; along a pipe, nobody reads it: end."""
        if not sys.stdin.isatty():
            raise error
        self.note(str(error))


def lines() -> Iterator[str]:
    """What the user types, with line editing, or the lines of a pipe; until it ends."""
    if not sys.stdin.isatty():
        yield from read_lines(sys.stdin)
        return
    edit_lines()
    while True:
        try:
            yield input(USER)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()  # what is said of it begins a line of its own
            raise
        except UnicodeDecodeError:
            print("That was not UTF-8; please type it again.", file=sys.stderr)


def edit_lines() -> None:
    """Give `input` line editing, a history and completion, where Python has them."""
    try:
        import readline
    except ImportError:
        return
    readline.set_completer_delims("")
    readline.set_completer(completion)
    is_libedit = "libedit" in (readline.__doc__ or "")  # on macOS
    readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")


def completion(line: str, number: int) -> str | None:
    """One of the commands that a line begins, as readline asks for them."""
    found = [command for command in COMMANDS if line.startswith("/") and command.startswith(line)]
    return found[number] if number < len(found) else None
