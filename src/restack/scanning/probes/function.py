"""A Python function of the user's as a probe."""

import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from tokenize import TokenError
from types import ModuleType
from typing import Any

import torch

from restack.errors import UsageError
from restack.scanning.probe import FreeProbe
from restack.scanning.probes.digest import digest


class Function(FreeProbe):
    """Scores that a function gives: function(model, tokenizer) -> one number for each question.

    It must return as many numbers each time, in the same order, since they are compared question by question.
    `function.lower_is_better` and `function.measure` are taken if it has them.
    """

    measure = "score"

    def __init__(self, name: str, tokenizer: Any, function: Callable[[Any, Any], Sequence[float]]) -> None:
        """A function; `ask` it once, of the base, to know how many questions it has."""
        self.name, self.tokenizer, self.function = name, tokenizer, function
        self.measure = str(getattr(function, "measure", self.measure))
        self.lower_is_better = bool(getattr(function, "lower_is_better", False))
        self._count: int | None = None

    def ask(self, model: Any) -> list[float]:
        """All scores of a model.

        Raises:
            UsageError: the function does not give as many numbers as before, or what are none.
        """
        try:
            with torch.no_grad(), redirect_stdout(sys.stderr):  # what it prints would spoil --json
                given = self.function(model, self.tokenizer)
        except (Exception, SystemExit) as error:  # whatever the user's own code may raise
            line = " ".join(str(error).split())
            raise UsageError(
                f"{self.name} failed: {type(error).__name__}: {line:.200}; correct it"
            ) from error
        try:
            if isinstance(given, str | bytes | Mapping):  # float() would take their characters or keys
                raise TypeError
            scores = [float(score) for score in given]
        except (TypeError, ValueError):
            raise UsageError(
                f"{self.name} returned {given!r:.60}; let it return a number for each question"
            ) from None
        if not all(map(math.isfinite, scores)):
            raise UsageError(f"{self.name} returned numbers that are not finite; let it return others")
        if self._count is None:
            self._count = len(scores)
        if len(scores) != self._count:
            raise UsageError(
                f"{self.name} returned {len(scores)} numbers, and {self._count} before; let it return as "
                "many each time, in the same order"
            )
        return scores

    def __len__(self) -> int:
        if self._count is None:
            raise UsageError(f"{self.name} was not asked yet; how many questions it has is not known")
        return self._count

    def fingerprint(self) -> str:
        module = inspect.getmodule(self.function)
        try:
            # of its whole module: what it asks often stands beside it
            return digest([inspect.getsource(module or self.function), self.name, self._count])
        except (OSError, TypeError, SyntaxError, TokenError):  # written in another language, or in a prompt
            return digest([getattr(self.function, "__qualname__", type(self.function).__name__), self._count])

    def scores(self, model: Any, questions: Sequence[int]) -> list[float]:
        found = self.ask(model)
        return [found[question] for question in questions]


def load_function(name: str) -> Callable[[Any, Any], Sequence[float]]:
    """The function that MODULE:NAME or FILE.py:NAME names.

    Raises:
        UsageError: there is none, or its file or module fails when it is imported.
    """
    where, colon, attribute = name.rpartition(":")
    if not colon or not where or not attribute:
        raise UsageError(f"{name!r} names no function; write FILE.py:NAME or package.module:NAME")
    try:
        with redirect_stdout(sys.stderr):
            module = _imported(where)
    except (Exception, SystemExit) as error:  # whatever the user's own code may raise
        raise UsageError(f"{where} cannot be imported: {type(error).__name__}: {error}; correct it") from None
    function = getattr(module, attribute, None)
    if not callable(function):
        raise UsageError(f"{where} has no function {attribute!r}; name one that takes (model, tokenizer)")
    found: Callable[[Any, Any], Sequence[float]] = function
    return found


def _imported(where: str) -> ModuleType:
    if not where.endswith(".py"):
        return importlib.import_module(where)
    spec = importlib.util.spec_from_file_location(f"restack_probe_{Path(where).stem}", where)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # or nobody finds its source
    spec.loader.exec_module(module)
    return module
