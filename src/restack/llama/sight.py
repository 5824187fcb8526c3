"""What each step sees: the masks of transformers, and those of steps that do not see their own token."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from restack.errors import ViewError
from restack.llama.config import RestackLlamaConfig
from restack.llama.schedule import Reading, Schedule


@dataclass(frozen=True, slots=True)
class Sight:
    """What the queries of a step see of the keys that they are given."""

    implementation: str  # eager, sdpa, flash_attention_2, flex_attention...
    mask: Any  # (B, 1, T, S), or what the implementation takes in its place; None: all that is not after
    blind: torch.Tensor | None  # (B, T, 1, 1): the queries that see nothing
    window: int | None
    strictly_past: bool
    is_cut: bool  # there is no column for the last key, which nobody sees: it is left out

    def to(self, device: Any, **options: Any) -> "Sight":
        """The same on another device: accelerate's hooks move what a layer is given by this."""
        mask = self.mask.to(device, **options) if self.mask is not None else None
        blind = self.blind.to(device, **options) if self.blind is not None else None
        return replace(self, mask=mask, blind=blind)

    def fitted(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Keys, values (B, nh_kv, S, hs) and mask of one width; it may be made for more than is there."""
        surplus = self.width(k.shape[2], 0) - k.shape[2]
        if surplus <= 0:
            return k, v, self.mask
        if isinstance(self.mask, torch.Tensor):
            return k, v, self.mask[..., : k.shape[2]]
        return *with_zeros(k, v, surplus), self.mask

    def width(self, past: int, tokens: int) -> int:
        """How many keys the mask is for, S; `past` and `tokens` together if it does not say."""
        is_wide = isinstance(self.mask, BlockMask) or (self.mask is not None and self.mask.ndim == 4)
        return int(self.mask.shape[-1]) if is_wide else past + tokens


def with_zeros(k: torch.Tensor, v: torch.Tensor, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values (B, nh_kv, S, hs), and zeros for so many tokens more."""
    return F.pad(k, (0, 0, 0, tokens)), F.pad(v, (0, 0, 0, tokens))


def sights(
    config: RestackLlamaConfig,
    schedule: Schedule,
    found: Mapping[str, Any],
    tokens: int,
    cache: Cache | None,
) -> dict[str, Sight]:
    """What the steps of a forward over `tokens` tokens see, by the kind of reading, of what `masks` found."""
    implementation = config._attn_implementation
    result = {}
    for kind, reading in schedule.readings.items():
        mask, blind = found[kind], None
        if reading.strictly_past and isinstance(mask, torch.Tensor) and mask.ndim == 4:
            mask, blind = _without_blind(mask)
        result[kind] = Sight(
            implementation=implementation,
            mask=mask,
            blind=blind,
            window=config.sliding_window if reading.sliding else None,
            strictly_past=reading.strictly_past,
            is_cut=_is_cut(config, reading, tokens, cache),
        )
    return result


def masks(
    config: RestackLlamaConfig,
    schedule: Schedule,
    h: torch.Tensor,
    attention_mask: Any,
    cache: Cache | None,
    position_ids: torch.Tensor | None,
) -> dict[str, Any]:
    """The masks of a forward, by the kind of reading.

    Args:
        config: whose attention implementation and window hold.
        schedule: of the plan.
        h: hidden states (B, T, C), of which shape, dtype and device matter.
        attention_mask: (B, S), 1 where there is a token and 0 where there is padding.
        cache: what is known of the past.
        position_ids: (B, T); without cache and attention mask, sequences packed in one row are told by them.

    Raises:
        ViewError: the attention mask has 4 dimensions, or static caches and flash attention are used, and
            some step does not see its own token.
    """
    result = {}
    for kind, reading in schedule.readings.items():
        create = create_sliding_window_causal_mask if reading.sliding else create_causal_mask
        is_cut = _is_cut(config, reading, h.shape[1], cache)
        options: dict[str, Any] = {}
        if reading.strictly_past:
            _refuse_what_hides_no_diagonal(config, attention_mask, cache, position_ids)
            if not is_cut:
                options["and_mask_function"] = _is_past
        mask = create(
            config=config,
            inputs_embeds=h,
            attention_mask=attention_mask,
            past_key_values=cache,
            position_ids=position_ids,
            layer_idx=reading.slot,
            **options,
        )
        result[kind] = mask[..., :-1] if is_cut and mask is not None else mask
    return result


def _is_past(batch: Any, head: Any, query: Any, key: Any) -> Any:
    return key < query


def _is_cut(config: RestackLlamaConfig, reading: Reading, tokens: int, cache: Cache | None) -> bool:
    """Whether the one query's own key can be left out, so that all others may be seen without a mask."""
    is_static = cache is not None and cache.is_compileable
    return (
        reading.strictly_past and tokens == 1 and not is_static and "flex" not in config._attn_implementation
    )


def _without_blind(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A mask (B, 1, T, S) in which queries that see nothing see all, and which they are, (B, T, 1, 1).

    Their attention is set to 0 afterwards; softmax over nothing is not a number in some kernels.
    """
    is_seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    blind = ~is_seen.any(dim=-1, keepdim=True)  # (B, 1, T, 1)
    return (mask | blind if mask.dtype == torch.bool else mask.masked_fill(blind, 0)), blind.transpose(1, 2)


def _refuse_what_hides_no_diagonal(
    config: RestackLlamaConfig, attention_mask: Any, cache: Cache | None, position_ids: torch.Tensor | None
) -> None:
    if attention_mask is not None and attention_mask.ndim == 4:
        raise ViewError(
            "some visits do not see their own token, which a mask of 4 dimensions cannot be told; give one "
            "of 2, with 1 for each token and 0 for padding"
        )
    if "flash" in config._attn_implementation and cache is not None and cache.is_compileable:
        raise ViewError(
            "flash attention cannot leave out a token's own key in a static cache; use another cache, or "
            "attn_implementation='sdpa'"
        )
    if position_ids is None or cache is not None or attention_mask is not None:
        return
    if "flash" in config._attn_implementation and bool((position_ids.diff(dim=-1) != 1).any()):
        raise ViewError(
            "flash attention cannot leave out a token's own key where sequences are packed in one row; use "
            "attn_implementation='sdpa'"
        )
