"""lm-eval without its chatter."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

LOUD = "LMEVAL_LOG_LEVEL"  # lm-eval's own variable: who sets it wants to read its log


@contextmanager
def level(name: str, threshold: int = logging.ERROR) -> Iterator[None]:
    """A logger that says only what is at least so grave."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(max(before, threshold))
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing but progress bars, on standard error, and these only in a terminal.

    With LMEVAL_LOG_LEVEL set, all is said, on standard error.
    """
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(sys.stderr))  # it prints there too
        if LOUD in os.environ:
            from lm_eval.utils import setup_logging  # type: ignore[import-untyped]

            setup_logging()
        else:
            stack.enter_context(level("lm_eval"))
            stack.enter_context(level("datasets"))
            if not sys.stderr.isatty():
                nowhere = stack.enter_context(Path(os.devnull).open("w"))
                stack.enter_context(redirect_stdout(nowhere))
                stack.enter_context(redirect_stderr(nowhere))
        yield
