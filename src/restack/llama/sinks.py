"""Attention sinks: texts without end in constant memory (StreamingLLM, Xiao et al. 2023, 2309.17453)."""

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from restack.errors import UsageError
from restack.llama.config import RestackLlamaConfig, require_config
from restack.llama.rotary import rotary_of, rotated


class SinkLayer(DynamicLayer):  # type: ignore[misc]
    """A slot that keeps the first keys and values and the last, and lets those between go.

    Keys come turned by their position among those that were kept at the time. Where that has changed they are
    turned on when they are read, from what was stored: rounding does not add up.
    """

    is_croppable = False
    _layer_type = None

    def __init__(self, sinks: int, window: int, frequencies: torch.Tensor) -> None:
        super().__init__()
        self.sinks, self.window, self.frequencies = sinks, window, frequencies
        self.positions = torch.empty(0)  # (S,), that the stored keys were turned by

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What these tokens attend to, (B, nh_kv, S, hs): all that was kept, and themselves."""
        before = self.get_seq_length()
        new = torch.arange(before, before + key_states.shape[-2], device=key_states.device)
        positions = torch.cat([self.positions[:before].to(new), new])
        keys, values = super().update(key_states, value_states)
        keys_now = self._turned(keys, positions)
        count = len(positions)
        if count >= self.sinks + self.window:
            kept = torch.arange(count, device=new.device)
            kept = torch.cat([kept[: self.sinks], kept[count - self.window + 1 :]])
            self.keys, self.values = keys[:, :, kept], values[:, :, kept]
            positions = positions[kept]
        self.positions = positions
        return keys_now, values

    def kept(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values that are kept, (B, nh_kv, S, hs), the keys turned by their position now."""
        return self._turned(self.keys, self.positions), self.values

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: what came before the kept tokens is gone."""
        if tokens_to_remove:
            raise UsageError("a cache with attention sinks cannot take tokens back; start anew")

    def reset(self) -> None:
        """Forget all."""
        super().reset()
        self.positions = torch.empty(0)

    def _turned(self, keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Keys (B, nh_kv, S, hs), turned from `positions` to 0, 1, 2..."""
        shift = torch.arange(len(positions), device=keys.device) - positions
        angles = shift[:, None].float() * self.frequencies.to(keys.device)  # (S, hs/2)
        angles = torch.cat((angles, angles), dim=-1)[None]  # (1, S, hs)
        return rotated(keys.float(), (angles.cos(), angles.sin())).to(keys.dtype)


class SinkCache(Cache):  # type: ignore[misc]
    """A cache for a restack-llama that keeps the first `sinks` positions and the last `window`.

    A token attends to `sinks + window` positions, its own among them; their positions are counted inside the
    cache, so that they never pass what the model was trained for. A prompt is attended to as a whole before
    what lies between is let go: feed a long one in chunks (`prefill_chunk_size` of `generate`).

    Args:
        config: of the model.
        sinks: how many of the first positions are kept; the paper's 4 suit most models.
        window: how many of the last are kept.

    Raises:
        UsageError: there is no sink or no window.
    """

    def __init__(self, config: RestackLlamaConfig, sinks: int = 4, window: int = 1020) -> None:
        require_config(config)
        if type(sinks) is not int or type(window) is not int or sinks < 1 or window < 2:
            raise UsageError(f"{sinks} sinks and a window of {window}: write whole numbers from 1 and 2")
        self.sinks, self.window = sinks, window
        self.seen = 0
        rotary = rotary_of(config)
        slots = len(config.schedule.slots)
        super().__init__(layers=[SinkLayer(sinks, window, rotary.inv_freq) for _ in range(slots)])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens were seen; `generate` feeds those after them."""
        return self.seen

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """How many tokens are kept: the position of the next one."""
        return int(self.layers[layer_idx].get_seq_length())

    def columns(self, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        """The columns (B, S) of an attention mask over all that was seen that are of what is kept.

        Raises:
            UsageError: padding stands where the sinks are.
        """
        kept = self.get_query_offset()
        if attention_mask is None or attention_mask.ndim != 2 or bool(attention_mask.all()):
            return None
        if not bool(attention_mask[:, : self.sinks].all()):
            raise UsageError("padding stands where the attention sinks are; give prompts of one length")
        last = attention_mask[:, self.seen - max(kept - self.sinks, 0) :]
        return torch.cat([attention_mask[:, : min(kept, self.sinks)], last], dim=1)

    def reset(self) -> None:
        """Forget all."""
        super().reset()
        self.seen = 0
