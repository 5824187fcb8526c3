"""The audience at a terminal, or behind a pipe."""

from rich.console import Console

from restack.chat.messages import Piece
from restack.chat.programs.audience import Line

# Control characters, but for the end of a line and the tab: a model must not steer the terminal with them.
CONTROL = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {ord("\n"), ord("\t")})


class Terminal:
    """Shows each piece at once: `NAME > text`; thoughts are dimmed, or hidden.

    Along a pipe it is plain text.
    """

    def __init__(self, *, thoughts: bool = True, console: Console | None = None) -> None:
        """An audience; without `thoughts`, only headings tell that somebody thinks."""
        self.thoughts = thoughts
        self.console = console or Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._is_open = False  # whether a line was begun
        self._skips_newlines = False

    def begin(self, speaker: str, heading: str = "") -> None:
        self._close()
        if heading:
            self._write(f"{heading}\n", "green")
            self._skips_newlines = True  # of a suffix that begins a line
        else:
            self._write(f"{speaker} > ", "bold")

    def piece(self, piece: Piece) -> None:
        if piece.kind == "answer":
            self._show(piece.text, "")
        elif self.thoughts:
            self._show(piece.text, "dim")
        else:
            self._skips_newlines = True

    def end(self, line: Line | None) -> None:
        self._close()

    def note(self, text: str) -> None:
        self._close()
        self._write(f"{text}\n", "dim")

    def _show(self, text: str, style: str) -> None:
        if self._skips_newlines:  # those that set the answer apart from thoughts
            text = text.lstrip("\n")
            self._skips_newlines = not text
        self._write(text, style)

    def _close(self) -> None:
        if self._is_open:
            self._write("\n", "")
        self._skips_newlines = False

    def _write(self, text: str, style: str) -> None:
        if not text:
            return
        if self.console.is_terminal:
            text = text.translate(CONTROL)
        self._is_open = not text.endswith("\n")
        if style and self.console.is_terminal:
            with self.console.capture() as styled:  # what an interrupt leaves there would be shown again
                self.console.out(text, end="", style=style, highlight=False)
            text = styled.get()
        self.console.file.write(text)  # as it stands, tabs too
        self.console.file.flush()
