"""How well candidates predict a text."""

from collections.abc import Sequence
from typing import Any

from restack.errors import UsageError
from restack.plans.pointing import counted
from restack.scanning.probe import ForcedProbe, Outcome, Row
from restack.scanning.probes.digest import digest

WINDOW, SHORTEST = 256, 32  # tokens that are read at once, and at least
ENOUGH = 32  # windows that are wanted


class Text(ForcedProbe):
    """The mean negative log-likelihood of a token, in nats; each window of the text is a question."""

    measure = "loss, nats a token"
    lower_is_better = True

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        text: str,
        *,
        window: int | None = None,
        context: int | None = None,
    ) -> None:
        """A text to be predicted.

        Args:
            name: of the probe.
            tokenizer: of the model.
            text: of at least two windows, or one that is cut in two.
            window: tokens that are read at once; if None, from 32 to 256, so that there are 32 if possible.
            context: tokens that the model has positions for.

        Raises:
            UsageError: the text is too short.
        """
        self.name = name
        if window is None:
            count = len(tokenizer(text, verbose=False)["input_ids"])
            window = max(SHORTEST, min(WINDOW, count // ENOUGH))
        self._rows = text_rows(tokenizer, text, window, context)

    def __len__(self) -> int:
        return len(self._rows)

    def fingerprint(self) -> str:
        return digest([row.tokens for row in self._rows])

    def rows(self, question: int) -> list[Row]:
        return [self._rows[question]]

    def score(self, question: int, outcomes: Sequence[Outcome]) -> float:
        return -float(outcomes[0].log_probabilities.double().mean())


def text_rows(tokenizer: Any, text: str, window: int, context: int | None = None) -> list[Row]:
    """A text in windows of one length, each without what is before it; its first token is not predicted.

    Where the tokenizer begins a text with a token of its own, each window begins with that.

    What is left over, less than a token a window, is dropped, so that all windows count the same.

    Args:
        tokenizer: of the model.
        text: to be cut.
        window: tokens of a window at most; a text of fewer tokens than two windows is cut in two.
        context: of the model, if it is limited.

    Raises:
        UsageError: the text has fewer than four tokens, or the window fewer than two.
    """
    tokens = tokenizer(text, verbose=False)["input_ids"]
    first = getattr(tokenizer, "bos_token_id", None)
    begins = tokens[:1] if tokens and tokens[0] == first else []  # then so does each window
    tokens = tokens[len(begins) :]
    window = min(window, context or window)
    if window < 2:
        raise UsageError(f"a window of {counted(window, 'token')} predicts nothing; write 2 or more")
    if len(tokens) < 4:
        raise UsageError(f"the text has {counted(len(tokens), 'token')}; four or more are needed")
    count = max(2, -(-len(tokens) // (window - len(begins))))
    size = len(tokens) // count
    windows = [[*begins, *tokens[start : start + size]] for start in range(0, count * size, size)]
    return [Row(tuple(row), len(row) - 1) for row in windows]
