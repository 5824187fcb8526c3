"""Products with packed weights by torch: where our kernel cannot run, and of many rows, unpacked.

On GPUs, weights of 4 bits are multiplied by `_weight_int4pack_mm`, which torchao's `Int4WeightOnlyConfig`
calls too, and those of 8 bits as its `Int8WeightOnlyConfig` does it.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from restack.runtime.packed.formats import Packed, numbers

if TYPE_CHECKING:
    from restack.runtime.packed.linear import PackedLinear

HEIGHT, HEIGHT_ON_GPU = 64, 8  # rows of weights that a kernel takes at once
TILES = 2  # innerKTiles, which the kernels on CPUs do not look at
TILES_ON_GPU, TILE = (8, 4, 2), 16  # a row is a whole number of so many tiles, of so many inputs each
TOLERANCE = 2e-2  # of the largest output: what bfloat16 and another order of sums may make
# As torch's `get_capabilities` names them, of processors of x86 and of ARM.
MULTIPLY_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def prepared(packed: Packed) -> tuple[torch.Tensor, torch.Tensor] | None:
    """4-bit weights as torch's kernel of their device wants them, as many bytes again, and scales with zeros.

    None where it cannot take them; other products are left then.
    """
    if packed.zeros is None:
        return None
    q, by = numbers(packed.weight), torch.stack([packed.scales.T, packed.zeros.T], dim=2).contiguous()
    if packed.weight.device.type == "cuda":
        return _prepared_on_gpu(packed, q, by)
    if packed.weight.device.type == "cpu" and len(q) % HEIGHT == 0:
        return torch.ops.aten._convert_weight_to_int4pack_for_cpu(q.int(), TILES), by
    return None


def _prepared_on_gpu(
    packed: Packed, q: torch.Tensor, by: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Where the kernel is there, and multiplies with what the packed weights stand for."""
    if len(q) % HEIGHT_ON_GPU:
        return None
    tiles = next(tiles for tiles in TILES_ON_GPU if q.shape[1] % (tiles * TILE) == 0)  # 32 divides a row
    x = torch.linspace(-1, 1, q.shape[1], device=q.device).bfloat16()[None]
    expected = x.float() @ packed.unpacked(torch.float32).T
    pairs = (q[:, ::2] << 4 | q[:, 1::2]).contiguous()
    try:
        for_torch = torch.ops.aten._convert_weight_to_int4pack(pairs, tiles), by
        found = _int4_product_on_gpu(x, for_torch, packed).float()
    except RuntimeError:  # the GPU is older than Ampere
        return None
    is_right = (found - expected).abs().max() <= TOLERANCE * expected.abs().max()
    return for_torch if is_right else None


def product(x: torch.Tensor, layer: "PackedLinear", *, is_few: bool) -> torch.Tensor:
    """(rows, inputs) to (rows, outputs).

    Args:
        x: activations.
        layer: whose weights are multiplied with them.
        is_few: whether weights are to be multiplied as they are packed, if there is a kernel that does it.
    """
    is_on_cpu, packed = x.device.type == "cpu", layer.packed
    if layer.bits == 8 and not is_on_cpu:
        y = _int8_product_on_gpu(x, packed)
    elif layer.bits == 8 and is_few:
        y = torch.ops.aten._weight_int8pack_mm(x, packed.weight, packed.scales.to(x.dtype))
    elif layer.for_torch is not None and is_few and is_on_cpu:
        y = _int4_product_on_cpu(x, layer.for_torch, packed)
    elif layer.for_torch is not None and is_few and x.dtype != torch.float32:
        y = _int4_product_on_gpu(x, layer.for_torch, packed)
    else:
        return unpacked_product(x, layer)
    return y if layer.bias is None else y + layer.bias


def unpacked_product(x: torch.Tensor, layer: "PackedLinear") -> torch.Tensor:
    """(rows, inputs) to (rows, outputs), with the weights unpacked.

    In float32 where the processor has no instructions for bfloat16: torch would take 6 times as long.
    """
    if x.device.type != "cpu" or x.dtype == torch.float32 or multiplies_bfloat16():
        return F.linear(x, layer.unpacked(x.dtype), layer.bias)
    bias = None if layer.bias is None else layer.bias.float()
    return F.linear(x.float(), layer.unpacked(torch.float32), bias).to(x.dtype)


@cache
def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions that do; where torch does not tell, no."""
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(known.get(name, False) for name in MULTIPLY_BFLOAT16)


def _int4_product_on_cpu(
    x: torch.Tensor, for_torch: tuple[torch.Tensor, torch.Tensor], packed: Packed
) -> torch.Tensor:
    (weights, by), group = for_torch, packed.group
    return torch.ops.aten._weight_int4pack_mm_for_cpu(x, weights, group, by.to(x.dtype))  # type: ignore[no-any-return]


def _int4_product_on_gpu(
    x: torch.Tensor, for_torch: tuple[torch.Tensor, torch.Tensor], packed: Packed
) -> torch.Tensor:
    weights, by = for_torch
    y: torch.Tensor = torch.ops.aten._weight_int4pack_mm(x.bfloat16(), weights, packed.group, by)
    return y.to(x.dtype)


def _int8_product_on_gpu(x: torch.Tensor, packed: Packed) -> torch.Tensor:
    """Compiled, it is one kernel, which reads the bytes."""
    return F.linear(x, packed.weight.to(x.dtype)) * packed.scales.to(x.dtype)
