"""Questions with one right answer: the model writes, greedily, and what it wrote is compared."""

import json
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from restack.errors import UsageError
from restack.scanning.probe import FreeProbe
from restack.scanning.probes.digest import digest
from restack.scanning.probes.questions import prompt_of, read_questions
from restack.scanning.probes.writing import answers

LONGEST = 64  # tokens of an answer


class Exact(FreeProbe):
    """The share of answers that are an accepted one: case, blanks and a last full stop aside."""

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        path: Path,
        *,
        context: int | None = None,
        max_tokens: int = LONGEST,
    ) -> None:
        """Read the questions: {"question" or "prompt": ..., "answer": TEXT or [TEXT, ...]}.

        Raises:
            UsageError: a line is no such question, or too long for the model.
        """
        self.name, self.tokenizer, self.max_tokens = name, tokenizer, max_tokens
        self._prompts: list[tuple[str, bool]] = []
        self._accepted: list[list[str]] = []
        for where, said in read_questions(path, ("answer",)):
            self._accepted.append(_accepted(said, where))
            self._prompts.append(prompt_of(tokenizer, said, where))
            text, special = self._prompts[-1]
            length = len(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
            if context is not None and length >= context:
                raise UsageError(f"{where} has {length} tokens, and the model's context is {context}")

    def __len__(self) -> int:
        return len(self._prompts)

    def fingerprint(self) -> str:
        return digest([self._prompts, self._accepted, self.max_tokens])

    def question_key(self, question: int) -> Hashable:
        return self._prompts[question]

    def scores(self, model: Any, questions: Sequence[int]) -> list[float]:
        prompts = [self._prompts[question] for question in questions]
        written = answers(model, self.tokenizer, prompts, self.max_tokens)
        return [
            float(normal(text) in self._accepted[question])
            for question, text in zip(questions, written, strict=True)
        ]


def normal(text: str) -> str:
    """A text as answers are compared: one blank between words, lower case, no full stop at the end."""
    return " ".join(text.split()).casefold().removesuffix(".").rstrip()


def _accepted(said: dict[str, Any], where: str) -> list[str]:
    answer = said.get("answer")
    accepted = [answer] if isinstance(answer, str) else answer
    if not isinstance(accepted, list) or not accepted or not all(isinstance(a, str) for a in accepted):
        raise UsageError(f"{where}: answer is {json.dumps(answer):.60}; write a text, or a list of them")
    if not all(normal(text) for text in accepted):
        raise UsageError(f"{where}: an answer is empty; write what the model is to say")
    return [normal(text) for text in accepted]
