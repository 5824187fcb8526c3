"""The command line: `restack show | generate | chat | save`."""

import os
import sys
from contextlib import suppress
from io import BytesIO, TextIOWrapper

from restack.errors import RestackError, UsageError


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 2 wrong input or closed output, 130 interrupted."""
    try:
        _open_streams()
        try:
            return _run(arguments)
        except SystemExit as leave:  # rich, when it finds the output closed; we end the same way everywhere
            if isinstance(leave.__context__, BrokenPipeError):
                raise leave.__context__ from None
            raise
    except RestackError as error:
        return _end(str(error), 2)
    except KeyboardInterrupt:
        return _end("interrupted", 130)
    except BrokenPipeError:
        _discard_output()
        return _end("the output was closed before the end", 2)
    except OSError as error:
        _discard_output()
        place = f" {error.filename}" if error.filename else ""
        return _end(f"cannot write or read{place}: {error.strerror or error}", 2)


def _run(arguments: list[str] | None) -> int:
    import typer

    from restack.cli.app import app

    if "_RESTACK_COMPLETE" in os.environ:  # a shell asks for completions
        app(prog_name="restack")
    command = typer.main.get_command(app)
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        # Not `app()`: it would end by itself, with other statuses than ours, on Ctrl-C and a closed pipe.
        with command.make_context("restack", list(arguments)) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as leave:
        return leave.exit_code
    except _usage_error(typer.BadParameter) as error:
        message = error.format_message().rstrip(".")  # type: ignore[attr-defined]
        return _end(f"{message}; see restack --help", 2) if message else 2  # without: the help was printed
    return 0


def _open_streams() -> None:
    """Make the standard streams usable, and a width that is one.

    Closed streams are None, some encodings lack our characters, some locales let through what is not UTF-8.
    """
    if sys.stdout is None:
        raise UsageError("standard output is closed; there is nowhere to write to")
    if sys.stdin is None:
        sys.stdin = TextIOWrapper(BytesIO())
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="strict")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) == 0:  # "not known"; rich would print nothing in no columns
        del os.environ["COLUMNS"]


def _usage_error(bad_parameter: type[Exception]) -> type[Exception]:
    """What click raises for any wrong usage; typer carries its own click or uses the installed one."""
    return next(base for base in bad_parameter.__mro__ if base.__name__ == "ClickException")


def _discard_output() -> None:
    """Let nothing more be written, not even by the interpreter when it flushes at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end(message: str, status: int) -> int:
    with suppress(OSError, ValueError, AttributeError):  # closed, or never open
        sys.stdout.flush()
    with suppress(OSError, ValueError):
        print(message if "\n" in message else f"restack: {message}", file=sys.stderr)
    return status
