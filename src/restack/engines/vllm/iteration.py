"""Layers that run again and again over a prompt, since some read keys and values that are computed above.

What it computes is what `RestackLlamaModel.iterate` does (LCKV 2405.10637, section 2.3).
"""

import inspect
from collections.abc import Sequence
from functools import wraps
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.attention.attention import get_attention_context

from restack.engines.vllm.strictly_past import batch_of


def iterate(layers: Sequence[nn.Module], reader: Any, owners: Sequence[Any], most: int | None) -> None:
    """Have consecutive layers run several times, each time from the same hidden states; the last one counts.

    Of n tokens, the first p are exact after p passes (LCKV, Lemma 1): no more than n are made.

    Args:
        layers: that run together; the first one will run them before it runs itself.
        reader: an attention in them that reads what is computed above it.
        owners: the attentions in them whose keys and values are read from below.
        most: passes over a prompt; None: as many as tokens, which is exact.
    """
    first: Any = layers[0]
    original: Any = type(first)
    runs = [(layer, type(layer).forward) for layer in layers]

    @wraps(original.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        batch = batch_of(reader)
        if batch is not None and batch.longest > 1:
            passes = batch.longest if most is None else min(most, batch.longest)
            for owner in owners:
                _forget(owner)
            for _ in range(passes - 1):
                _rehearse(runs, *args, **kwargs)
        return original.forward(self, *args, **kwargs)

    first.__class__ = type(original.__name__, (original,), {"forward": forward})


def _rehearse(runs: Sequence[tuple[nn.Module, Any]], *args: Any, **kwargs: Any) -> None:
    """Run layers one after the other, on what the first is given, for the keys and values that they write."""
    given = inspect.signature(runs[0][1]).bind(runs[0][0], *args, **kwargs)
    state = given.arguments
    for name in ("hidden_states", "residual"):  # vLLM's norms write into both
        if state.get(name) is not None:
            state[name] = state[name].clone()
    for layer, run in runs:
        state["self"] = layer
        output = run(*given.args, **given.kwargs)
        if "residual" in given.signature.parameters:
            state["hidden_states"], state["residual"] = output
        else:
            state["hidden_states"] = output[0] if isinstance(output, tuple) else output


def _forget(owner: Any) -> None:
    """Set the keys and values of the tokens that are to run to 0: what is there is of another sequence."""
    _, _, kv_cache, slots = get_attention_context(owner.layer_name)
    if slots is not None:
        nothing = torch.zeros(
            len(slots), owner.num_kv_heads, owner.head_size, dtype=owner.dtype, device=slots.device
        )
        owner.impl.do_kv_cache_update(owner, nothing, nothing, kv_cache, slots)
