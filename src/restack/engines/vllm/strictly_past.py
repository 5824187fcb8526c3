"""Attention that does not see the keys and values of a token itself, as LCKV has it (2405.10637).

vLLM's kernels have no such mask. They let a token see all of its sequence up to itself; told of sequences
that are one token shorter, they leave out just that.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from vllm.model_executor.layers.attention.attention import get_attention_context
from vllm.v1.attention.backend import subclass_attention_backend

# Whose kernels take what a token sees from the lengths alone, all of it from the KV cache, and in which keys
# and values are written before attention and apart from it. FlashInfer's prefill and ROCm's own do otherwise.
BACKENDS = ("CPU_ATTN", "FLASH_ATTN", "TRITON_ATTN", "FLEX_ATTENTION")


@dataclass(frozen=True, slots=True)
class Batch:
    """What is known of the tokens that run together.

    Attributes:
        longest: the largest number of tokens that one sequence has among them.
        starts: (R,), the row of the first of each sequence's.
        sees_nothing: (R,), whether that is the first of its sequence, which sees nothing.
    """

    longest: int
    starts: torch.Tensor
    sees_nothing: torch.Tensor


def hide_own_token(attention: Any) -> None:
    """Have an attention of vLLM's see only what is before each token; the first one's output is 0.

    Raises:
        ValueError: its backend cannot.
    """
    if (name := attention.attn_backend.get_name()) not in BACKENDS:
        raise ValueError(
            f"restack: {name} cannot hide a token's own keys and values, as this plan asks; use "
            f"--attention-backend {' or '.join(BACKENDS[1:])}"
        )
    attention.attn_backend = _backend(attention.attn_backend)
    original = type(attention)

    def forward(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        output: torch.Tensor = original.forward(self, *args, **kwargs)
        if (batch := batch_of(self)) is not None:  # kernels give anything for what sees nothing
            first = output[batch.starts]
            output[batch.starts] = first.masked_fill(batch.sees_nothing[:, None], 0)
        return output

    attention.__class__ = type(original.__name__, (original,), {"forward": forward})


def batch_of(attention: Any) -> Batch | None:
    """The tokens that such an attention is about to be given; None where vLLM only measures memory."""
    metadata = get_attention_context(attention.layer_name)[0]
    return None if metadata is None else metadata.restack_batch


@cache
def _backend(original: Any) -> Any:
    """The backend of an attention, told of shorter sequences."""
    builder: Any = original.get_builder_cls()

    class Builder(builder):  # type: ignore[misc]
        def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
            common = common_attn_metadata
            upper_bound = common.seq_lens_cpu_upper_bound
            shorter = common.replace(
                seq_lens=common.seq_lens - 1,
                max_seq_len=common.max_seq_len - 1,
                seq_lens_cpu_upper_bound=None if upper_bound is None else upper_bound - 1,
                _num_computed_tokens_cache=None,
            )
            metadata = super().build(0, shorter, fast_build)
            metadata.restack_batch = Batch(
                common.max_query_len,
                common.query_start_loc[:-1],
                common.seq_lens == common.naive_query_lens(),
            )
            return metadata

    return subclass_attention_backend("StrictlyPast", original, Builder)
