"""What a request asks of the scores of tokens, as processors of transformers' `generate`."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers.generation import LogitsProcessor


class Penalties(LogitsProcessor):  # type: ignore[misc]
    """OpenAI's penalties: a token that the answer has had is less likely, and the more so the oftener."""

    def __init__(self, prompt: int, frequency: float, presence: float) -> None:
        """For an answer after so many tokens.

        Args:
            prompt: tokens before the answer, which do not count.
            frequency: taken from the logit for each time that the token was there.
            presence: taken from it once.
        """
        self.prompt, self.frequency, self.presence = prompt, frequency, presence

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        counts = torch.bincount(input_ids[0, self.prompt :], minlength=scores.shape[1])
        return scores - self.frequency * counts - self.presence * (counts > 0)


class Bias(LogitsProcessor):  # type: ignore[misc]
    """Adds to the logits of some tokens."""

    def __init__(self, bias: Mapping[int, float]) -> None:
        self.tokens, self.values = torch.tensor(list(bias)), torch.tensor(list(bias.values()))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        values = self.values.to(scores.device, scores.dtype)
        return scores.index_add(1, self.tokens.to(scores.device), values[None])


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token of an answer.

    Attributes:
        token: which.
        log_probability: of it, before temperature, penalties and the like.
        likeliest: tokens and their log probabilities, the likeliest first.
    """

    token: int
    log_probability: float
    likeliest: tuple[tuple[int, float], ...]


class LogProbabilities(LogitsProcessor):  # type: ignore[misc]
    """Keeps the log probabilities of the tokens that are drawn, and of the likeliest beside them."""

    def __init__(self, prompt: int, most: int) -> None:
        """For an answer after a prompt of so many tokens.

        Args:
            prompt: tokens before the answer.
            most: how many of the likeliest tokens to keep.
        """
        self.prompt, self.most = prompt, most
        self._steps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        place = input_ids.shape[1] - self.prompt
        del self._steps[place:]
        self._steps.append(scores[0].float().log_softmax(dim=-1).cpu())
        return scores

    def of(self, place: int, token: int) -> TokenScore:
        """The score of a token that was drawn at a place of the answer; it is forgotten then."""
        logs = self._steps[place]
        values, tokens = logs.topk(self.most)
        self._steps[place] = logs[:0]
        return TokenScore(
            token, float(logs[token]), tuple(zip(tokens.tolist(), values.tolist(), strict=True))
        )
