"""torch's own products with packed weights, for machines where our kernel cannot be compiled."""

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from restack.runtime.packed.formats import Packed, numbers

if TYPE_CHECKING:
    from restack.runtime.packed.linear import PackedLinear

TILES = 2  # innerKTiles of torch, which its kernels on CPUs do not look at
HEIGHT = 64  # rows that its kernel takes at once; others are left to a plain product


def prepared(packed: Packed) -> tuple[torch.Tensor, torch.Tensor] | None:
    """4-bit weights as torch's kernel wants them, as many bytes again; None where it cannot take them."""
    if packed.zeros is None or packed.weight.shape[0] % HEIGHT:
        return None
    laid_out = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers(packed.weight).int(), TILES)
    return laid_out, torch.stack([packed.scales.T, packed.zeros.T], dim=2).contiguous()


def product(x: torch.Tensor, layer: "PackedLinear") -> torch.Tensor:
    """(rows, inputs) to (rows, outputs)."""
    if layer.zeros is None:
        y: torch.Tensor = torch.ops.aten._weight_int8pack_mm(x, layer.weight, layer.scales.to(x.dtype))
    elif layer._for_torch is not None:
        weights, by = layer._for_torch
        group = layer.in_features // layer.scales.shape[1]
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(x, weights, group, by.to(x.dtype))
    else:
        return F.linear(x, layer.unpacked(x.dtype), layer.bias)
    return y if layer.bias is None else y + layer.bias
