"""What the user types, message by message, or what comes along a pipe."""

import sys
from collections.abc import Callable, Iterator, Sequence

from restack.cli.text_input import read_lines

QUOTE = '"""'
GO_ON = " ... > "

Read = Callable[
    [str], str | None
]  # a line without its end, asked for by a prompt; None at the end of the input


def messages(prompt: str, commands: Sequence[str]) -> Iterator[str]:
    '''Each message until the input ends: a line; or several, that end with a backslash or stand between """.

    In a terminal there are line editing, a history, and completion of commands.

    Raises:
        KeyboardInterrupt: Ctrl-C in the middle of a line.
        UsageError: what comes along a pipe is not UTF-8.
    '''
    read = _typed(commands) if sys.stdin.isatty() else _piped()
    while (line := read(prompt)) is not None:
        yield _whole(line, read)


def _whole(line: str, read: Read) -> str:
    """The message that a line begins."""
    lines = []
    if line.strip() == QUOTE:
        while (quoted := read(GO_ON)) is not None and quoted.strip() != QUOTE:
            lines.append(quoted)
        return "\n".join(lines)
    following: str | None = line
    while following is not None and following.endswith("\\"):
        lines.append(following[:-1])
        following = read(GO_ON)
    return "\n".join(lines if following is None else [*lines, following])


def _piped() -> Read:
    lines = read_lines(sys.stdin)

    def read(prompt: str) -> str | None:
        line = next(lines, None)
        return None if line is None else line.rstrip("\r\n")

    return read


def _typed(commands: Sequence[str]) -> Read:
    _edit_lines(commands)

    def read(prompt: str) -> str | None:
        while True:
            try:
                return input(prompt)
            except EOFError:
                print()
                return None
            except KeyboardInterrupt:
                print()  # what is said of it begins a line of its own
                raise
            except UnicodeDecodeError:
                print("That was not UTF-8; please type it again.", file=sys.stderr)

    return read


def _edit_lines(commands: Sequence[str]) -> None:
    """Give `input` line editing, a history and completion, where Python has them."""
    try:
        import readline
    except ImportError:
        return
    readline.set_completer_delims("")
    readline.set_completer(lambda line, number: completion(line, number, commands))
    is_libedit = "libedit" in (readline.__doc__ or "")  # on macOS
    readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")


def completion(line: str, number: int, commands: Sequence[str]) -> str | None:
    """One of the commands that a line begins, as readline asks for them."""
    found = [command for command in commands if line.startswith("/") and command.startswith(line)]
    return found[number] if number < len(found) else None
