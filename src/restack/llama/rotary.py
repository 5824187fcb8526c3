"""Rotary embeddings (RoPE, 2104.09864): position p turns the pair (i, i + hs/2) of a head by p * f_i.

hs is the width of a head, B the batch, T the tokens of a forward.
"""

from typing import Any

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from restack.llama.config import RestackLlamaConfig
from restack.llama.registries import ROTARIES, register_rotary

Rope = tuple[torch.Tensor, torch.Tensor]  # cosines and sines, (B, T, hs) each


class RotaryEmbedding(nn.Module):
    """f_i = theta ** (-2i / hs), as RoPE has it."""

    inv_freq: torch.Tensor  # (hs/2,)

    def __init__(self, config: RestackLlamaConfig) -> None:
        super().__init__()
        self.config = config
        frequencies, self.scaling = self.frequencies()
        self.register_buffer("inv_freq", frequencies, persistent=False)

    def frequencies(self) -> tuple[torch.Tensor, float]:
        """The frequencies (hs/2,), and what cosines and sines are multiplied by."""
        return self._with_base(self.config.rope_parameters["rope_theta"]), 1.0

    def at(self, position_ids: torch.Tensor) -> torch.Tensor:
        """The frequencies (hs/2,) for these positions (B, T)."""
        return self.inv_freq

    @torch.no_grad()
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> Rope:
        """Cosines and sines (B, T, hs) of positions (B, T), in the dtype of x."""
        angles = position_ids[..., None].float() * self.at(position_ids).to(x.device, torch.float)
        angles = torch.cat((angles, angles), dim=-1)  # (B, T, hs)
        return (angles.cos() * self.scaling).to(x.dtype), (angles.sin() * self.scaling).to(x.dtype)

    def _with_base(self, base: Any) -> torch.Tensor:
        width = self.config.head_dim
        device = base.device if isinstance(base, torch.Tensor) else None
        pairs = torch.arange(0, width, 2, dtype=torch.float, device=device)
        frequencies: torch.Tensor = 1.0 / (base ** (pairs / width))
        return frequencies


class LinearScalingRotaryEmbedding(RotaryEmbedding):
    """Positions are divided by a factor (position interpolation, 2306.15595)."""

    def frequencies(self) -> tuple[torch.Tensor, float]:
        """The frequencies (hs/2,), divided."""
        frequencies, scaling = super().frequencies()
        return frequencies / self.config.rope_parameters["factor"], scaling


class DynamicNTKRotaryEmbedding(RotaryEmbedding):
    """Past `max_position_embeddings` the base grows with the length (dynamic NTK; bloc97 and emozilla, 2023).

    A longer text has another base. Keys that a cache holds were turned with the base of their own time, so
    that what is decoded past the limit differs from what a forward over the whole text gives; transformers
    has it so too. Types with one base for all lengths ("yarn", "linear", "llama3") do not.
    """

    def at(self, position_ids: torch.Tensor) -> torch.Tensor:
        """The frequencies (hs/2,) for a text of the length that these positions (B, T) show."""
        width, limit = self.config.head_dim, self.config.max_position_embeddings
        factor = self.config.rope_parameters["factor"]
        length = (position_ids.max() + 1).clamp(min=limit)
        growth = ((factor * length / limit) - (factor - 1)) ** (width / (width - 2))
        base = self.config.rope_parameters["rope_theta"] * growth
        return torch.where(length > limit, self._with_base(base).to(self.inv_freq), self.inv_freq)


class ScaledRotaryEmbedding(RotaryEmbedding):
    """The types that transformers computes: "yarn" (2309.00071), "llama3"."""

    def frequencies(self) -> tuple[torch.Tensor, float]:
        """The frequencies (hs/2,), and what cosines and sines are multiplied by."""
        return ROPE_INIT_FUNCTIONS[self.config.rope_parameters["rope_type"].lower()](self.config)  # type: ignore[no-any-return]


class LongRopeEmbedding(ScaledRotaryEmbedding):
    """LongRoPE (2402.13753): one set of frequencies up to the original length, and another past it."""

    def at(self, position_ids: torch.Tensor) -> torch.Tensor:
        """The frequencies (hs/2,) for a text of the length that these positions (B, T) show."""
        limit = self.config.rope_parameters["original_max_position_embeddings"]
        compute = ROPE_INIT_FUNCTIONS["longrope"]
        long, _ = compute(self.config, self.inv_freq.device, seq_len=limit + 1)
        return torch.where(position_ids.max() + 1 > limit, long, self.inv_freq)


for name, rotary in {
    "rotary": RotaryEmbedding,
    "default": RotaryEmbedding,  # as transformers calls it
    "linear": LinearScalingRotaryEmbedding,
    "dynamic": DynamicNTKRotaryEmbedding,
    "yarn": ScaledRotaryEmbedding,
    "llama3": ScaledRotaryEmbedding,
    "longrope": LongRopeEmbedding,
}.items():
    register_rotary(name, rotary)


def rotary_of(config: RestackLlamaConfig) -> RotaryEmbedding:
    """The rotary embedding that a config names.

    Raises:
        ModelError: nobody registered one of this name.
    """
    result: RotaryEmbedding = ROTARIES.require(config.rope_parameters["rope_type"])(config)
    return result


def rotated(x: torch.Tensor, rope: Rope) -> torch.Tensor:
    """Queries or keys (B, nh, T, hs), turned."""
    cos, sin = rope[0].unsqueeze(1), rope[1].unsqueeze(1)  # (B, 1, T, hs)
    first, second = x.chunk(2, dim=-1)
    return (x * cos) + (torch.cat((-second, first), dim=-1) * sin)
