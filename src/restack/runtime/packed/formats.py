"""How weights are packed: whole numbers of 4 or 8 bits, and what they are to be multiplied by."""

from dataclasses import dataclass

import torch

RUN = 32  # weights of 4 bits whose halves of a byte lie together
GROUPS = (64, 32)  # weights of a row that share a scale, the first that divides the row
SCALE = torch.bfloat16
SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)  # of a group's range that 4 bits may cover
PART = 1 << 17  # weights that are packed at a time; more of them leave holes in memory


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

    @classmethod
    def empty(cls, outputs: int, inputs: int, group: int | None, device: "torch.device | str") -> "Packed":
        """Not filled: with 4 bits, of which a group shares a scale; with 8, if the group is None."""
        if group is None:
            q = torch.empty(outputs, inputs, dtype=torch.int8, device=device)
            return cls(q, torch.empty(outputs, dtype=SCALE, device=device))
        q = torch.empty(outputs, inputs // 2, dtype=torch.uint8, device=device)
        scales = torch.empty(outputs, inputs // group, dtype=SCALE, device=device)
        return cls(q, scales, torch.empty_like(scales))

    @property
    def group(self) -> int:
        """How many weights of 4 bits share a scale."""
        return 2 * self.weight.shape[1] // self.scales.shape[1]

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


def pack(weight: torch.Tensor, group: int | None) -> Packed:
    """Pack with 4 bits, of which a group shares a scale and a zero; with 8 bits, if the group is None.

    Room for all is made first and filled some rows at a time: what that takes beside it is small, and leaves
    no holes between what stays.
    """
    outputs, inputs = weight.shape
    packed = Packed.empty(outputs, inputs, group, weight.device)
    rows = max(1, PART // inputs)
    for first in range(0, outputs, rows):
        some = slice(first, first + rows)
        part = weight[some].float().contiguous()
        if packed.zeros is None or group is None:
            packed.weight[some], packed.scales[some] = _int8_of(part)
        else:
            packed.weight[some], packed.scales[some], packed.zeros[some] = _int4_of(part, group)
    return packed


def _int8_of(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetrically, with a scale for each row: w = q * scale, q from -128 to 127; q and scales."""
    scales = (weight.abs().amax(dim=1) / 127).clamp(min=torch.finfo(SCALE).tiny).to(SCALE)
    q = (weight / scales.float()[:, None]).round_().clamp_(-128, 127)
    return q.to(torch.int8), scales


def _int4_of(weight: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """w = (q - 8) * scale + zero, q from 0 to 15; q, scales and zeros.

    Of ranges that cover a group or leave up to a quarter of it out at the ends, it takes the one with the
    least squared error: a weight far out costs the others their precision.
    """
    groups = weight.view(len(weight), -1, group)
    low, high = groups.amin(dim=2), groups.amax(dim=2)
    middle, half = (low + high) / 2, (high - low) / 2
    best = torch.full_like(low, torch.inf)
    scales, zeros = torch.empty_like(low, dtype=SCALE), torch.empty_like(low, dtype=SCALE)
    for share in SHARES:
        scale = (2 * share * half / 15).clamp(min=torch.finfo(SCALE).tiny).to(SCALE)
        zero = (middle - share * half + 8 * scale.float()).to(SCALE)
        error = (_restored(groups, scale, zero) - groups).square_().sum(dim=2)
        is_better = error < best
        best = torch.where(is_better, error, best)
        scales, zeros = torch.where(is_better, scale, scales), torch.where(is_better, zero, zeros)
    q = _nearest(groups, scales, zeros)
    runs = q.to(torch.uint8).view(len(weight), -1, 2, RUN // 2)
    return (runs[:, :, 0] | (runs[:, :, 1] << 4)).flatten(1), scales, zeros


def _nearest(groups: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """The q of weights, shape (outputs, groups, group)."""
    return ((groups - zeros.float()[..., None]) / scales.float()[..., None]).round_().add_(8).clamp_(0, 15)


def _restored(groups: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """What the nearest q of weights stand for."""
    q = _nearest(groups, scales, zeros)
    return q.sub_(8).mul_(scales.float()[..., None]).add_(zeros.float()[..., None])


def numbers(weight: torch.Tensor) -> torch.Tensor:
    """The q of weights of 4 bits, uint8, shape (outputs, inputs)."""
    runs = weight.view(len(weight), -1, RUN // 2)
    return torch.stack([runs & 15, runs >> 4], dim=2).flatten(1)
