"""A linear layer whose weights are packed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from restack.runtime.native import Matrix, kernel
from restack.runtime.packed import torch_kernels
from restack.runtime.packed.formats import Packed, group_of, pack

FEW = 32  # rows that are multiplied with the packed weights; for many more, unpacking them first is quicker


class PackedLinear(nn.Linear):
    """`nn.Linear` with 4 or 8 bits a weight, for inference.

    Few rows of activations, as in decoding, are multiplied with the packed weights; for many, as in prefill,
    the weights are unpacked, some at a time, or all of them for torch's own product.

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
        self._lay_out(None)

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
        rows = x.reshape(-1, self.in_features)
        is_few, native = len(rows) <= FEW, kernel() if x.device.type == "cpu" else None
        if native is not None and (is_few or native.is_quick_with_many):
            bias = None if self.bias is None else self.bias.float()
            matrix = self.matrix(bias)
            y = native.products(rows, [matrix])[0] if is_few else native.products_of_many(rows, matrix)
            y = y.to(x.dtype)
        else:
            y = torch_kernels.product(rows, self, is_few=is_few)
        return y.view(*x.shape[:-1], -1)

    def unpacked(self, dtype: torch.dtype) -> torch.Tensor:
        """The weights as they are multiplied with: shape (outputs, inputs)."""
        native = kernel() if self.weight.device.type == "cpu" else None
        return self.packed.unpacked(dtype) if native is None else native.unpacked(self.matrix(), dtype)

    def matrix(self, bias: torch.Tensor | None = None) -> Matrix:
        """The weights as the kernel takes them, with a bias in float32, which is to be kept meanwhile."""
        return Matrix.of(self.weight, self.scales, self.zeros, bias)

    def prepare(self) -> None:
        """Bring 4-bit weights into the layout of torch's own kernel, if that is what will run."""
        is_ours = self.weight.is_meta or (self.weight.device.type == "cpu" and kernel() is not None)
        self._lay_out(None if is_ours or self.bits == 8 else torch_kernels.prepared(self.packed))

    @property
    def for_torch(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """4-bit weights, and scales with zeros, as torch's own kernel wants them."""
        return None if self._weights is None or self._by is None else (self._weights, self._by)

    def _lay_out(self, for_torch: tuple[torch.Tensor, torch.Tensor] | None) -> None:
        """As buffers, so that views share them, which no checkpoint holds."""
        self._weights: torch.Tensor | None
        self._by: torch.Tensor | None
        for name, value in zip(("_weights", "_by"), for_torch or (None, None), strict=True):
            self.register_buffer(name, value, persistent=False)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Move to a device; scales and zeros keep their type, whatever the model's becomes."""
        self._lay_out(None)  # it is for the place where it was made
        kept = {name: self._parameters.pop(name) for name in ("scales", "zeros")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in kept.items():
            moved = None if value is None else fn(value.view(torch.int16)).view(torch.bfloat16)
            self._parameters[name] = None if moved is None else _frozen(moved)
        self.prepare()
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}"


def _frozen(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
