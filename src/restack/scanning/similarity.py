"""How much the visits of a model change what runs through them: influence, angles, similarity.

Notation: x^i is what enters visit i, from 0; x^L is what leaves the last of L visits, before the final norm.
"""

import inspect
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch

from restack.errors import UsageError
from restack.runtime import context_length
from restack.scanning.findings import LayerFacts
from restack.scanning.probe import Row
from restack.scanning.probes.text import WINDOW, text_rows
from restack.views.anatomy import input_device
from restack.views.planned import visit_count
from restack.views.recording import recording

AT_ONCE = 1024  # tokens of a batch
CHUNK = 2**24  # numbers of all hidden states that are turned to float64 together


class HiddenSums:
    """Sums over tokens and samples, in float64, of what compares the hidden states between visits.

    Attributes:
        cosines: shape (L + 1, L + 1), of x^i and x^j, summed over all tokens.
        angles: shape (L + 1, L + 1), arccos(cosine) / pi at the last token, summed over the samples.
        tokens: how many were added.
        samples: how many texts they are of.
    """

    def __init__(self, count: int) -> None:
        """No sums yet, of `count` hidden states: L + 1."""
        self.cosines = torch.zeros(count, count, dtype=torch.float64)
        self.angles = torch.zeros(count, count, dtype=torch.float64)
        self.tokens = self.samples = 0

    def add(self, hidden: Sequence[torch.Tensor]) -> None:
        """Add a batch: x^0 to x^L, each of the shape (B, T, C), without padding.

        Raises:
            UsageError: a hidden state is not finite.
        """
        batch, length, width = hidden[0].shape
        flat = [states.reshape(-1, width) for states in hidden]  # (B * T, C)
        step = max(1, CHUNK // (len(flat) * width))
        for start in range(0, batch * length, step):
            units = _units([states[start : start + step] for states in flat])  # (L + 1, tokens, C)
            units = units.reshape(len(flat), -1)
            self.cosines += (units @ units.T).cpu()
        for sample in range(batch):
            last = _units([states[sample, -1:] for states in hidden])[:, 0]  # (L + 1, C)
            self.angles += (last @ last.T).cpu().clamp(-1, 1).arccos() / math.pi
        self.tokens += batch * length
        self.samples += batch

    @property
    def similarity(self) -> torch.Tensor:
        """Shape (L + 1, L + 1), as `similarity` has it."""
        return self.cosines / self.tokens

    @property
    def influence(self) -> torch.Tensor:
        """Shape (L,), as `block_influence` has it."""
        return 1 - self.similarity.diagonal(1)

    def distances(self, n: int) -> torch.Tensor:
        """Shape (L - n + 1,), as `angular_distances` has it."""
        return self.angles.diagonal(n) / self.samples


def block_influence(hidden: Sequence[torch.Tensor]) -> torch.Tensor:
    """ShortGPT's block influence of each visit (Men et al. 2024, arXiv 2403.03853, eq. 1): shape (L,).

        BI_i = 1 - E_{X,t} [ X_{i,t}^T X_{i+1,t} / (|X_{i,t}|_2 |X_{i+1,t}|_2) ]

    where X_{i,t} is x^i at token t and the mean is over all tokens of all texts. A visit that changes
    nothing, or only lengths, has 0.

    Args:
        hidden: x^0 to x^L, each of the shape (B, T, C).
    """
    return _sums(hidden).influence


def angular_distances(hidden: Sequence[torch.Tensor], n: int) -> torch.Tensor:
    """The angular distance over each block of n visits (Gromov et al. 2024, arXiv 2403.17887, section 3.2).

        d(x^l, x^{l+n}) = 1/pi arccos( x_T^l . x_T^{l+n} / (|x_T^l| |x_T^{l+n}|) )

    at the last token T of each text, and then the mean over the texts; from 0, the same direction, to 1, the
    opposite one.

    Args:
        hidden: x^0 to x^L, each of the shape (B, T, C).
        n: visits of a block, 1 to L.

    Returns:
        Shape (L - n + 1,), float64: of the blocks that begin at visit 0, 1 ... L - n.
    """
    return _sums(hidden).distances(n)


def similarity(hidden: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean cosine over all tokens of x^i and x^j: shape (L + 1, L + 1), float64.

    Args:
        hidden: x^0 to x^L, each of the shape (B, T, C).
    """
    return _sums(hidden).similarity


def layer_facts(model: Any, tokenizer: Any, text: str | Sequence[Row], said: str) -> LayerFacts:
    """The influence of each visit of a model on a text, and how alike the hidden states between them are.

    Args:
        model: in evaluation mode; a view or a restack-llama, too.
        tokenizer: its tokenizer; not used for rows.
        text: read in windows; or rows, which are read as they are.
        said: what the text is, in a few words.

    Raises:
        UsageError: as `hidden_sums` has it, and as `text_rows` refuses a text.
    """
    if isinstance(text, str):
        text = text_rows(tokenizer, text, WINDOW, context_length(model.config))
    sums = hidden_sums(model, text)
    return LayerFacts(said, sums.similarity.numpy(), sums.influence.numpy())


@torch.no_grad()
def hidden_sums(model: Any, rows: Sequence[Row]) -> HiddenSums:
    """Run a model over rows, a batch at a time, and compare what enters its visits.

    Holds the hidden states of one batch, of `AT_ONCE` tokens if rows are not longer than that.

    Args:
        model: in evaluation mode; a view or a restack-llama, too.
        rows: texts; which of their tokens are targets does not matter.

    Raises:
        UsageError: there are no rows; what enters a visit is no single hidden state, or is not final because
            the visit is iterated; or a hidden state is not finite.
    """
    if not rows:
        raise UsageError("there is no text to read; give one of two tokens or more")
    check_tokens(model, [row.tokens for row in rows])
    count, device = visit_count(model), input_device(model)
    takes_last = "logits_to_keep" in inspect.signature(type(model).forward).parameters
    keep = {"logits_to_keep": 1} if takes_last else {}  # logits are not looked at
    sums = HiddenSums(count + 1)
    for batch in _batches(rows):
        with recording(model, range(count + 1)) as record:
            model(torch.tensor(batch, device=device), use_cache=False, **keep)
        missing = [number for number in range(count + 1) if number not in record]
        if missing:
            raise UsageError(
                f"what enters visit {missing[0]} of this model cannot be compared: it is iterated with "
                "visits before it, or is more than one hidden state; choose by the loss (sleb, contiguous)"
            )
        sums.add([record[number] for number in range(count + 1)])
    return sums


def check_tokens(model: Any, texts: Iterable[Sequence[int]]) -> None:
    """Refuse texts of another model's tokenizer.

    Raises:
        UsageError: there is a token that the model does not know, or a text without tokens.
    """
    vocabulary = model.get_input_embeddings().num_embeddings
    for tokens in texts:
        if not tokens or max(tokens) >= vocabulary:
            wrong = (
                f"has token {max(tokens)}, and the model knows {vocabulary}" if tokens else "has no tokens"
            )
            raise UsageError(f"a text {wrong}; give texts, and the model's own tokenizer")


def _batches(rows: Sequence[Row]) -> Iterator[list[tuple[int, ...]]]:
    """The tokens of rows of one length together, so that none is padded."""
    in_order = sorted((row.tokens for row in rows), key=len)
    for length, same in groupby(in_order, key=len):
        together, size = list(same), max(1, AT_ONCE // max(1, length))
        for start in range(0, len(together), size):
            yield together[start : start + size]


def _sums(hidden: Sequence[torch.Tensor]) -> HiddenSums:
    sums = HiddenSums(len(hidden))
    sums.add(hidden)
    return sums


def _units(hidden: Sequence[torch.Tensor]) -> torch.Tensor:
    """Hidden states (N, C) of several visits as vectors of length 1: shape (visits, N, C); 0 stays 0."""
    device = hidden[0].device  # of a model that is spread over several, the first
    exact = torch.float32 if device.type == "mps" else torch.float64  # which has no float64
    stacked = torch.stack([states.to(device, exact) for states in hidden])
    lengths = stacked.norm(dim=-1, keepdim=True)
    finite = lengths.isfinite().flatten(1).all(dim=1).tolist()
    if not all(finite):
        raise UsageError(
            f"the hidden states that enter visit {finite.index(False)} are not finite; load the model with "
            "--dtype bfloat16 or float32"
        )
    units: torch.Tensor = stacked / lengths.clamp_min(torch.finfo(exact).tiny)
    return units
