"""From documents to rows of tokens that are all equally long."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor

from restack.errors import UsageError
from restack.training.documents import BadLine, Document, Reading

IGNORED = -100  # of labels, as transformers and torch have it
AT_ONCE = 256  # documents that are tokenized together
SMALLEST_TO_SHARE = 20  # rows; of fewer, a small share may be none at all


@dataclass(frozen=True, slots=True)
class Data:
    """What is trained on and evaluated on.

    Attributes:
        rows: (rows, length) tokens.
        evaluation: (rows, its length) tokens, or None.
        skipped: bad lines that were left out.
    """

    rows: Tensor
    evaluation: Tensor | None
    skipped: int = 0

    @property
    def digest(self) -> str:
        """The same for the same tokens only."""
        parts = [self.rows] if self.evaluation is None else [self.rows, self.evaluation]
        found = hashlib.sha256()
        for part in parts:
            found.update(f"{tuple(part.shape)}".encode() + part.numpy().tobytes())
        return found.hexdigest()[:16]


def tokens_of(documents: Iterable[Document], tokenizer: Any, reading: Reading) -> Tensor:
    """All documents as one run of tokens, with the tokenizer's end token between them.

    Each begins as the tokenizer begins a text (Llama's: with its begin token); a chat as its template says.

    Args:
        documents: texts and chats.
        tokenizer: of the model.
        reading: whether bad lines are skipped.

    Returns:
        (tokens,) of int32.

    Raises:
        UsageError: there is a chat, and the tokenizer has no chat template.
        BadLine: the template refuses a chat.
    """
    end = tokenizer.eos_token_id
    parts: list[Tensor] = []
    for ids in _tokenized(documents, tokenizer, reading):
        if parts and end is not None and int(parts[-1][-1]) != end:
            parts.append(torch.tensor([end], dtype=torch.int32))
        parts.append(torch.tensor(ids, dtype=torch.int32))
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int32)


def pack(tokens: Tensor, length: int) -> Tensor:
    """Cut tokens into rows; what is left over is dropped, unless it is all there is.

    Args:
        tokens: (tokens,).
        length: of a row.

    Returns:
        (rows, length); one shorter row if there are fewer tokens than that.

    Raises:
        UsageError: there are not even two tokens.
    """
    count = tokens.numel()
    if count < 2:
        raise UsageError(f"the data have {count} tokens, and training needs 2 at least; give more text")
    if count < length:
        return tokens[None]
    return tokens[: count // length * length].view(-1, length)


def split(rows: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor | None]:
    """Take rows for evaluation, the same ones for the same seed, and leave the others in their order.

    Args:
        rows: (rows, length).
        share: how many; at least one if there are 20 rows or more, none if 0.
        seed: which.
    """
    count = len(rows)
    taken = round(share * count)
    if share > 0 and count >= SMALLEST_TO_SHARE:
        taken = max(1, taken)
    taken = min(taken, count - 1)
    if taken == 0:
        return rows, None
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return rows[order[taken:].sort().values], rows[order[:taken].sort().values]


def given_rows(rows: Sequence[Sequence[int]] | Tensor) -> Tensor:
    """Rows that were given as lists of token ids.

    Raises:
        UsageError: there are none, they differ in length, or are shorter than two tokens.
    """
    try:
        made = torch.as_tensor(rows)
    except (ValueError, TypeError):
        raise UsageError(
            "the rows are not lists of token ids that are all equally long; pad or cut them"
        ) from None
    if made.ndim != 2 or made.is_floating_point() or made.shape[0] == 0 or made.shape[1] < 2:
        raise UsageError(
            f"the rows have the shape {tuple(made.shape)}; give one row of token ids at least, of two or more"
        )
    return made.to("cpu", torch.int32)


def check_vocabulary(rows: Tensor, model: Any) -> None:
    """Refuse tokens that the model does not have.

    Raises:
        UsageError: the tokenizer is not the model's.
    """
    size = model.get_input_embeddings().num_embeddings
    lowest, highest = int(rows.min()), int(rows.max())
    if lowest < 0 or highest >= size:
        wrong = lowest if lowest < 0 else highest
        raise UsageError(
            f"the data have token {wrong}, and the model knows 0 to {size - 1}; use the model's own tokenizer"
        )


class Order(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The rows of a whole run, one after the other: every reading of the data in an order of its own.

    Step s takes the places s * n up to (s + 1) * n, where n is the rows of a step. So it does not matter how
    a step's rows are dealt to processes and batches, nor where a run was interrupted.
    """

    def __init__(self, rows: Tensor, places: int, seed: int) -> None:
        self.rows, self.places, self.seed = rows, places, seed
        self._reading, self._order = -1, torch.empty(0)

    def __len__(self) -> int:
        return self.places

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        reading, number = divmod(place, len(self.rows))
        if reading != self._reading:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + reading)
            self._reading, self._order = reading, torch.randperm(len(self.rows), generator=generator)
        ids = self.rows[self._order[number]].long()
        labels = ids.clone()  # transformers' models shift them by one themselves
        labels[0] = IGNORED  # nothing foretells it; not every version of Trainer knows that when it counts
        return {"input_ids": ids, "labels": labels}


def _tokenized(documents: Iterable[Document], tokenizer: Any, reading: Reading) -> Iterator[list[int]]:
    """The tokens of each document that has any."""
    remaining = iter(documents)
    while some := list(islice(remaining, AT_ONCE)):
        texts = [document.content for document in some if isinstance(document.content, str)]
        of_texts = iter(tokenizer(texts, verbose=False)["input_ids"] if texts else [])
        for document in some:
            is_text = isinstance(document.content, str)
            ids = next(of_texts) if is_text else _of_chat(document, tokenizer, reading)
            if ids:
                yield list(ids)


def _of_chat(document: Document, tokenizer: Any, reading: Reading) -> list[int]:
    if not tokenizer.chat_template:
        raise UsageError(
            f"{document.place} is a chat, and the model's tokenizer has no chat template; write it as text"
        )
    try:
        text = tokenizer.apply_chat_template(document.content, tokenize=False)
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        reading.refuse(BadLine(f"{document.place}: the chat template refuses it ({reason:.120})"))
        return []
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
