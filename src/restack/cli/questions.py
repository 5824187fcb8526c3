"""What a person asks a program: typed in a terminal, or one question a line along a pipe."""

import sys
from collections.abc import Callable

from restack.chat.programs import Stage
from restack.chat.programs.stage import over
from restack.cli.line_editing import messages
from restack.errors import RestackError, UsageError
from restack.runtime import ContextFull

PROMPT = "You  > "
HELP = """\
/restart       forget the conversation
/help          this
/exit, /quit   end it; so do Ctrl-D, and Ctrl-C at the prompt
A question of several lines: end them with \\, or put them between two lines of three quotes.
Ctrl-C stops an answer. Along a pipe, the first mistake ends it with exit status 2."""
COMMANDS = ("/exit", "/help", "/quit", "/restart")


class Questions:
    """Has each question answered, until there are no more.

    In a terminal, a mistake is told and it goes on. Along a pipe, where nobody would read it, the first one
    ends it with exit status 2.
    """

    def __init__(
        self, stage: Stage, ask: Callable[[str], object], restart: Callable[[], None], turns: int | None
    ) -> None:
        """Questions to a program.

        Args:
            stage: of the program.
            ask: has it answer one.
            restart: has it forget the conversation.
            turns: how many it answers at most.
        """
        self.stage = stage
        self.ask = ask
        self.restart = restart
        self.turns = turns

    def run(self) -> None:
        """Answer them all.

        Raises:
            KeyboardInterrupt: somebody ended it.
            RestackError: a line of a pipe was a mistake.
        """
        for message in messages(PROMPT, COMMANDS):
            text = message.strip()
            if text in ("/exit", "/quit"):
                return
            if text:
                self._hear(text)
            if self.turns is not None and self.stage.turn >= self.turns:
                self.stage.note(f"{over(self.turns)}.")
                return

    def _hear(self, text: str) -> None:
        said = len(self.stage.lines)
        try:
            match text:
                case "/restart":
                    self.restart()
                    self.stage.note("The conversation is forgotten.")
                case "/help":
                    self.stage.note(HELP)
                case _ if text.startswith("/"):
                    raise UsageError(f"there is no {text.split()[0]}; /help lists what there is")
                case _:
                    self.ask(text)
        except RestackError as error:
            if isinstance(error, ContextFull) and self.stage.lines:
                error = UsageError(f"{error}, or forget the conversation with /restart")
            if not sys.stdin.isatty():
                raise error from None
            self.stage.note(str(error))
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            kept = len(self.stage.lines) > said and self.stage.lines[-1].message.pieces
            what = "what was said is kept" if kept else "nothing was said, and the question is forgotten"
            self.stage.note(f"Stopped; {what}. Ctrl-C again ends it.")
