"""What a probe is: questions, and how well a model answers each of them."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from restack.errors import UsageError


@dataclass(frozen=True, slots=True)
class Row:
    """A text to read in one pass, whose last tokens are looked at.

    Attributes:
        tokens: of the whole text.
        targets: how many tokens at its end the model is to predict, each from all before it; fewer than
            there are tokens.
    """

    tokens: tuple[int, ...]
    targets: int

    def __post_init__(self) -> None:
        if not 0 < self.targets < len(self.tokens):
            raise UsageError(
                f"a row of {len(self.tokens)} tokens cannot have {self.targets} targets; 1 or more, but not "
                "its first token, which has none before it"
            )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a model made of a row.

    Attributes:
        log_probabilities: shape (targets,), float32, natural logarithms of the target tokens' probabilities.
        is_top: shape (targets,), whether each target token is the likeliest: greedy decoding would say it.
    """

    log_probabilities: torch.Tensor
    is_top: torch.Tensor


class Probe(ABC):
    """Questions that are asked of each candidate, and a score for each answer.

    Attributes:
        name: as it is asked for on the command line; no two of a scan are the same.
        measure: what the scores are, for tables and axes: "accuracy", "loss, nats a token"...
        lower_is_better: of scores.
        chance: the score of a guesser, where that is known.
        groups: the group that each question belongs to, if they are of several; for a table by group.
    """

    name: str
    measure: str = "accuracy"
    lower_is_better: bool = False
    chance: float | None = None
    groups: Sequence[str] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """How many questions there are. They are numbered from 0."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that tell these questions from others."""

    def question_key(self, question: int) -> Hashable:
        """What two questions share that are the same: a scan asks one of them, so that none is held out
        that was searched with."""
        return question


class ForcedProbe(Probe):
    """A probe that is answered by reading: each question is some rows, run in one pass (teacher forcing).

    Candidates that begin alike share that work.
    """

    @abstractmethod
    def rows(self, question: int) -> list[Row]:
        """What is to be read for a question: always the same."""

    def question_key(self, question: int) -> Hashable:
        return tuple(self.rows(question))

    @abstractmethod
    def score(self, question: int, outcomes: Sequence[Outcome]) -> float:
        """The score of a question, from what the model made of its rows."""


class FreeProbe(Probe):
    """A probe that runs the model by itself: it generates, or does what a user's function does."""

    @abstractmethod
    def scores(self, model: Any, questions: Sequence[int]) -> list[float]:
        """The scores of some questions.

        Args:
            model: a loaded model or view, in evaluation mode.
            questions: their numbers.
        """
