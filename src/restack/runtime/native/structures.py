"""What the C++ is given: the structures of products.h and step.h, field by field.

They hold the places of tensors and not the tensors, which must outlive them.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch

WHOLE, REAL, PLACE = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p
BITS = {torch.uint8: 4, torch.int8: 8, torch.bfloat16: 16, torch.float32: 32}


class Matrix(ctypes.Structure):
    """Weights, shape (n, k), and what belongs to them."""

    _fields_ = (
        ("bits", WHOLE), ("group", WHOLE), ("n", WHOLE), ("k", WHOLE),
        ("weight", PLACE), ("scales", PLACE), ("zeros", PLACE), ("bias", PLACE),
    )  # fmt: skip

    @classmethod
    def of(
        cls,
        weight: torch.Tensor,
        scales: torch.Tensor | None = None,
        zeros: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
    ) -> "Matrix":
        """The structure of contiguous tensors.

        Args:
            weight: as `formats.Packed` has it, or bfloat16 or float32; its type says how many bits.
            scales, zeros: of packed weights.
            bias: float32.
        """
        bits = BITS[weight.dtype]
        inputs = weight.shape[1] * (2 if bits == 4 else 1)
        group = inputs if zeros is None else inputs // zeros.shape[1]
        return cls(bits, group, weight.shape[0], inputs, *map(place, (weight, scales, zeros, bias)))


class Visit(ctypes.Structure):
    """A visit of a layer."""

    _fields_ = (
        *((name, PLACE) for name in ("attention_norm", "mlp_norm", "query_norm", "key_norm")),
        *((name, Matrix) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        *((name, PLACE) for name in ("keys", "values", "own_keys", "own_values")),
        ("window", WHOLE), ("is_strictly_past", WHOLE), ("damp", REAL),
    )  # fmt: skip


class Model(ctypes.Structure):
    """What the visits of a model have in common."""

    _fields_ = (
        *(
            (name, WHOLE)
            for name in (
                "width", "heads", "kv_heads", "head_size", "inner", "capacity", "is_narrow",
            )
        ),
        ("epsilon", REAL), ("scaling", REAL), ("cosines", PLACE), ("sines", PLACE),
    )  # fmt: skip


class Tokens(ctypes.Structure):
    """The new tokens of a step, one a row, which may be of several models of one kind.

    Each has its model, and the place in memory of the first of its visits.
    """

    _fields_ = (
        ("rows", WHOLE),
        *((name, PLACE) for name in ("model", "visits", "sequence", "place", "first", "position")),
    )  # fmt: skip

    @classmethod
    def of(cls, rows: Sequence[tuple[int, ...]]) -> "Tokens":
        """The structure of rows, each with a number or a place in memory for each field."""
        columns = torch.tensor(rows, dtype=torch.int64).T.contiguous()
        made = cls(len(rows), *map(place, columns))
        made.columns = columns  # kept as long as the structure
        return made


def place(tensor: torch.Tensor | None) -> Any:
    """Where the numbers of a contiguous tensor are; None of none."""
    return None if tensor is None else tensor.data_ptr()
