"""How well a model predicts a text."""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from torch.nn import functional as F

from restack.errors import UsageError
from restack.runtime.generation import check_room, context_length

WINDOW = 1024  # tokens


@dataclass(frozen=True, slots=True)
class Perplexity:
    """What `perplexity` found.

    Attributes:
        value: exp of the mean negative log-likelihood of a token.
        tokens: how many were predicted.
        loss: that mean, in nats.
    """

    value: float
    tokens: int
    loss: float


def sample_text() -> str:
    """The text that models are compared on where no other is given: six hundred words of plain prose."""
    return files("restack.runtime").joinpath("sample.txt").read_text(encoding="utf-8")


@torch.no_grad()
def perplexity(model: Any, tokenizer: Any, text: str, *, window: int = WINDOW) -> Perplexity:
    """The perplexity of a model on a text, in windows one after another, each without what is before it.

    Args:
        model: in evaluation mode, on any device.
        tokenizer: its tokenizer; what it puts before a text stands before the first window.
        text: of two tokens or more.
        window: tokens that are read at once; no more than the model's context. The first of each window is
            not predicted.

    Raises:
        UsageError: the text has fewer than two tokens, or one that the model does not know.
    """
    tokens = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    if len(tokens) < 2:
        raise UsageError(f"the text has {len(tokens)} tokens; perplexity needs two or more")
    vocabulary = model.get_input_embeddings().num_embeddings
    if int(tokens.max()) >= vocabulary:
        raise UsageError(
            f"the tokenizer makes token {int(tokens.max())}, and the model knows {vocabulary}; "
            "it is another model's"
        )
    window = min(window, context_length(model.config) or window)
    total, count = 0.0, 0
    for start in range(0, len(tokens) - 1, window):
        row = tokens[start : start + window][None].to(model.device)  # (1, T)
        if row.shape[1] > 1:
            logits = model(row, use_cache=False).logits[0, :-1].float()  # (T - 1, V)
            total += F.cross_entropy(logits, row[0, 1:], reduction="sum").item()
            count += row.shape[1] - 1
    return Perplexity(math.exp(min(total / count, 700)), count, total / count)


@torch.no_grad()
def option_log_probabilities(
    model: Any, tokenizer: Any, prompt: torch.Tensor, options: Sequence[str]
) -> list[float]:
    """How likely a model goes on with each of some texts: log-probabilities, summed over a text's tokens.

    Nothing is drawn; what would follow a text is left open, so a text is at least as likely as a longer one
    that begins with it. Their softmax is how the model chooses among them.

    Args:
        model: in evaluation mode, on any device.
        tokenizer: its tokenizer.
        prompt: shape (1, T), T at least 1.
        options: texts of one token or more.

    Returns:
        Natural logarithms, one for each option.

    Raises:
        UsageError: there are no options, or one has no tokens.
        ContextFull: the prompt and the longest option do not fit into the model's context.
    """
    rows = [tokenizer(option, add_special_tokens=False)["input_ids"] for option in options]
    empty = next((option for option, row in zip(options, rows, strict=True) if not row), None)
    if not rows or empty is not None:
        raise UsageError(
            "there is no option to choose" if not rows else f"the option {empty!r} has no tokens"
        )
    lengths = torch.tensor([len(row) for row in rows], device=prompt.device)
    width = int(lengths.max())
    # Filled up behind, where a causal model does not look.
    added = torch.tensor(
        [row + row[-1:] * (width - len(row)) for row in rows], device=prompt.device
    )  # (N, W)
    tokens = torch.cat([prompt.expand(len(rows), -1), added], dim=1)[:, :-1]  # (N, T + W - 1)
    check_room(model, tokens)
    output = model(tokens, use_cache=False, **keeping_last(model, width))
    logits = output.logits[:, -width:].float()  # (N, W, V)
    chosen = logits.log_softmax(-1).gather(-1, added[..., None])[..., 0]  # (N, W)
    is_text = torch.arange(width, device=prompt.device) < lengths[:, None]
    return [float(total) for total in (chosen * is_text).sum(-1)]


def keeping_last(model: Any, positions: int) -> dict[str, int]:
    """The option by which a model computes the logits of the last positions only, if it has one."""
    takes_it = "logits_to_keep" in inspect.signature(type(model).forward).parameters
    return {"logits_to_keep": positions} if takes_it else {}
