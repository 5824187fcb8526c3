"""How weights are packed: whole numbers of 4 or 8 bits, and what they are to be multiplied by."""

from dataclasses import dataclass

import torch

RUN = 32  # weights of 4 bits whose halves of a byte lie together
GROUPS = (64, 32)  # weights of a row that share a scale, the first that divides the row
SCALE = torch.bfloat16


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix of weights, shape (outputs, inputs).

    Attributes:
        weight: with 8 bits, int8, shape (outputs, inputs); with 4, uint8, shape (outputs, inputs / 2): of
            each run of 32 weights, byte i holds weight i in its lower half and weight i + 16 in its upper.
        scales: bfloat16, shape (outputs,) with 8 bits, (outputs, inputs / group) with 4.
        zeros: with 4 bits, what q = 8 stands for, shaped like the scales; None with 8.
    """

    weight: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None = None

    def unpacked(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weights that the packed ones stand for: q * scale, or (q - 8) * scale + zero with 4 bits."""
        if self.zeros is None:
            return (self.weight.float() * self.scales.float()[:, None]).to(dtype)
        groups = numbers(self.weight).view(*self.scales.shape, -1).float() - 8
        weights: torch.Tensor = groups * self.scales.float()[..., None] + self.zeros.float()[..., None]
        return weights.flatten(1).to(dtype)


def group_of(inputs: int) -> int | None:
    """How many weights of 4 bits share a scale in rows of this length; None if no group divides them."""
    return next((group for group in GROUPS if inputs % group == 0), None)


def pack_int8(weight: torch.Tensor) -> Packed:
    """Pack with 8 bits, symmetrically, a scale for each row: w = q * scale, q from -128 to 127."""
    weight = weight.float().contiguous()
    scales = (weight.abs().amax(dim=1) / 127).clamp(min=torch.finfo(SCALE).tiny).to(SCALE)
    q = (weight / scales.float()[:, None]).round().clamp(-128, 127)
    return Packed(q.to(torch.int8), scales)


def pack_int4(weight: torch.Tensor, group: int) -> Packed:
    """Pack with 4 bits, a scale and a zero for each group: w = (q - 8) * scale + zero, q from 0 to 15."""
    groups = weight.float().contiguous().view(len(weight), -1, group)
    low, high = groups.amin(dim=2), groups.amax(dim=2)
    scales = ((high - low) / 15).clamp(min=torch.finfo(SCALE).tiny).to(SCALE)
    zeros = (low + 8 * scales.float()).to(SCALE)
    q = ((groups - zeros.float()[..., None]) / scales.float()[..., None]).round().add(8).clamp(0, 15)
    runs = q.to(torch.uint8).view(len(weight), -1, 2, RUN // 2)
    return Packed((runs[:, :, 0] | (runs[:, :, 1] << 4)).flatten(1), scales, zeros)


def numbers(weight: torch.Tensor) -> torch.Tensor:
    """The q of weights of 4 bits, uint8, shape (outputs, inputs)."""
    runs = weight.view(len(weight), -1, RUN // 2)
    return torch.stack([runs & 15, runs >> 4], dim=2).flatten(1)
