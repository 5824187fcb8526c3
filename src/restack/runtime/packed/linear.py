"""A linear layer whose weights are packed."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from restack.runtime.native import Matrix, kernel
from restack.runtime.packed import torch_kernels
from restack.runtime.packed.formats import Packed, group_of, pack

FEW = 12  # rows that are multiplied with weights as they are packed; for more, unpacking first is quicker


class PackedLinear(nn.Linear):
    """`nn.Linear` with 4 or 8 bits a weight, for inference.

    Few rows of activations, as in decoding, are multiplied with the packed weights; for many, as in prefill,
    the weights are unpacked and torch's own product takes them, which computes faster than it reads.

    Its `weight`, `scales` and `zeros` are those of `formats.Packed`, parameters without gradients, so that
    views share them and checkpoints hold them.
    """

    scales: nn.Parameter
    zeros: nn.Parameter | None

    def __init__(self, outputs: int, inputs: int, bits: int, has_bias: bool, dtype: torch.dtype) -> None:
        """A layer without weights (on the meta device).

        Args:
            outputs, inputs: features.
            bits: 4 or 8; 4 is 8 where no group of 4 bits divides a row.
            has_bias: whether there is one.
            dtype: of the activations, for a bias.
        """
        nn.Module.__init__(self)
        group = group_of(inputs) if bits == 4 else None
        self.in_features, self.out_features, self.bits = inputs, outputs, 8 if group is None else 4
        self._hold(Packed.empty(outputs, inputs, group, "meta"))
        bias = _frozen(torch.empty(outputs, dtype=dtype, device="meta")) if has_bias else None
        self.register_parameter("bias", bias)
        self._for_torch: tuple[torch.Tensor, torch.Tensor] | None = None  # as torch's own kernel wants them

    @classmethod
    def of(cls, weight: torch.Tensor, bias: nn.Parameter | None, bits: int) -> "PackedLinear":
        """Pack weights, shape (outputs, inputs), and take the bias itself, which may be still to be read."""
        outputs, inputs = weight.shape
        made = cls(outputs, inputs, bits, bias is not None, weight.dtype)
        made._hold(pack(weight, None if made.bits == 8 else group_of(inputs)))
        made.register_parameter("bias", bias)
        made.requires_grad_(False)
        return made

    def _hold(self, packed: Packed) -> None:
        self.weight, self.scales = _frozen(packed.weight), _frozen(packed.scales)
        self.register_parameter("zeros", None if packed.zeros is None else _frozen(packed.zeros))

    @property
    def packed(self) -> Packed:
        """The weights."""
        return Packed(self.weight, self.scales, self.zeros)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., inputs) to (..., outputs)."""
        [y] = products(x, [self])
        return y

    def unpacked(self, dtype: torch.dtype) -> torch.Tensor:
        """The weights as they are multiplied with: shape (outputs, inputs)."""
        native = kernel() if self.weight.device.type == "cpu" else None
        return self.packed.unpacked(dtype) if native is None else native.unpacked(self.matrix(), dtype)

    def matrix(self, bias: torch.Tensor | None = None) -> Matrix:
        """The weights as the kernel takes them, with a bias in float32, which is to be kept meanwhile."""
        return Matrix.of(self.weight, self.scales, self.zeros, bias)

    def prepare(self) -> None:
        """Bring 4-bit weights into the layout of torch's own kernel, if that is what will run."""
        if self.weight.device.type == "cpu" and kernel() is None and self.bits == 4:
            self._for_torch = torch_kernels.prepared(self.packed)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Move to a device; scales and zeros keep their type, whatever the model's becomes."""
        kept = {name: self._parameters.pop(name) for name in ("scales", "zeros")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in kept.items():
            moved = None if value is None else fn(value.view(torch.int16)).view(torch.bfloat16)
            self._parameters[name] = None if moved is None else _frozen(moved)
        self._for_torch = None  # it is for the place where it was made
        self.prepare()
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}"


def products(x: torch.Tensor, layers: Sequence[PackedLinear]) -> list[torch.Tensor]:
    """The outputs of several layers of one format for the same activations, read in one go where that can be.

    Args:
        x: shape (..., inputs).
        layers: queries, keys and values of a layer, or gate and up.
    """
    rows = x.reshape(-1, x.shape[-1])
    is_on_cpu, is_few = x.device.type == "cpu", rows.shape[0] <= FEW
    if is_on_cpu and is_few and (native := kernel()) is not None:
        biases = [None if layer.bias is None else layer.bias.float() for layer in layers]
        found = native.products(
            rows, [layer.matrix(bias) for layer, bias in zip(layers, biases, strict=True)]
        )
        return [y.to(x.dtype).view(*x.shape[:-1], -1) for y in found]
    if is_on_cpu and is_few:
        return [torch_kernels.product(rows, layer).view(*x.shape[:-1], -1) for layer in layers]
    return [F.linear(x, layer.unpacked(x.dtype), layer.bias) for layer in layers]


def _frozen(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
