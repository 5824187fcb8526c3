"""Multiple choice: the option that the model finds likeliest is its answer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from restack.errors import UsageError
from restack.scanning.probe import ForcedProbe, Outcome, Row
from restack.scanning.probes.digest import digest
from restack.scanning.probes.questions import check_length, continued, prompt_of, read_questions


class Choice(ForcedProbe):
    """Questions with several options, one of them right; scored by the options' summed log-probabilities.

    The score is 1 where the right option is likelier than all others, as `acc` is in lm-evaluation-harness.
    """

    def __init__(self, name: str, tokenizer: Any, path: Path, *, context: int | None = None) -> None:
        """Read the questions: {"question": ..., "choices": [...], "answer": NUMBER or one of the choices}.

        Options follow a `prompt` as they stand: begin them with a blank where one belongs between.

        Raises:
            UsageError: a line is no such question, or too long for the model.
        """
        self.name = name
        self._questions: list[tuple[list[Row], int]] = []
        for where, said in read_questions(path, ("choices", "answer")):
            choices, answer = _choices(said, where)
            prompt = prompt_of(tokenizer, said, where)
            rows = [check_length(continued(tokenizer, prompt, text), context, where) for text in choices]
            # An option's first letter may melt into the prompt's last token; then all are charged for that.
            start = min(len(row.tokens) - row.targets for row in rows)
            rows = [Row(row.tokens, len(row.tokens) - start) for row in rows]
            self._questions.append((rows, answer))
        self.chance = sum(1 / len(rows) for rows, _ in self._questions) / len(self)

    def __len__(self) -> int:
        return len(self._questions)

    def fingerprint(self) -> str:
        return digest([([row.tokens for row in rows], answer) for rows, answer in self._questions])

    def rows(self, question: int) -> list[Row]:
        return self._questions[question][0]

    def score(self, question: int, outcomes: Sequence[Outcome]) -> float:
        likely = [float(outcome.log_probabilities.double().sum()) for outcome in outcomes]
        right = likely.pop(self._questions[question][1])
        return float(right > max(likely))


def _choices(said: dict[str, Any], where: str) -> tuple[list[str], int]:
    choices, answer = said.get("choices"), said.get("answer")
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(c, str) and c for c in choices)
    ):
        raise UsageError(f"{where}: choices is {choices!r:.60}; write a list of two texts or more")
    if len(set(choices)) < len(choices):
        raise UsageError(f"{where}: two choices are alike; write each once")
    if isinstance(answer, str) and answer in choices:
        return choices, choices.index(answer)
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return choices, answer
    raise UsageError(
        f"{where}: answer is {answer!r:.60}; write one of the choices, or its number from 0 to "
        f"{len(choices) - 1}"
    )
