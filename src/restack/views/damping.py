"""Damped visits: h + damp * (layer(h) - h), the layer's whole delta scaled."""

import ast
import inspect
import textwrap
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from restack.errors import ViewError
from restack.views.altered import Altered, alter, restore

# What layers take beside the hidden states and hand on changed: a second stream.
OTHER_STREAMS = ("block_states", "prev_router_hidden_states", "residual")
KEEPS_ONLY_KEYS = ("full_attention", "sliding_attention")


@dataclass(frozen=True, slots=True)
class Damping:
    """How a visit is damped."""

    damp: float
    slot: int  # of the KV cache: the visit's number
    stream: str  # the parameter of the layer's forward that takes the hidden states
    is_skipped: bool  # the layer need not run at all


class Damped(Altered):
    """A decoder layer whose delta is scaled."""

    restack_damping: Damping

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's own output, its hidden states (B, T, C) damped; further outputs are as they are."""
        damping = self.restack_damping
        hidden = args[0] if args else kwargs[damping.stream]
        if damping.is_skipped:
            _count_tokens((*args, *kwargs.values()), damping.slot, hidden)
            return hidden
        output = super().forward(*args, **kwargs)
        if isinstance(output, torch.Tensor):
            return _damped(hidden, output, damping.damp)
        return type(output)((_damped(hidden, output[0], damping.damp), *output[1:]))


def damp(layer: nn.Module, factor: float, slot: int, *, may_skip: bool, kind: str | None) -> None:
    """Multiply what a visit's layer adds to the hidden states by `factor`, beside what damps it already.

    Args:
        layer: the visit's own layer object.
        factor: 1 changes nothing.
        slot: the visit's number.
        may_skip: nobody else reads the keys and values of the visit, so that a layer damped to nothing need
            not run.
        kind: what the config's `layer_types` says of the layer.

    Raises:
        ViewError: the layer hands on a second stream beside the hidden states.
    """
    before: Damping | None = vars(layer).get("restack_damping")
    factor *= before.damp if before else 1.0
    if factor == 1:
        restore(layer, Damped)
        vars(layer).pop("restack_damping", None)
        return
    original: Any = layer.original if isinstance(layer, Altered) else type(layer)
    signature = inspect.signature(original.forward)
    stream, *others = [name for name in signature.parameters if name != "self"]
    for name in OTHER_STREAMS:
        if name in others:
            raise ViewError(
                f"a {original.__name__} hands on {name} beside the hidden states; damping does not know what "
                "a part of it would be, so leave @ out"
            )
    is_skipped = (
        factor == 0
        and may_skip
        and _only_attends(layer, kind)
        and _returns_its_stream(original.forward, stream)
    )
    alter(layer, Damped)
    vars(layer)["restack_damping"] = Damping(factor, slot, stream, is_skipped)


def _damped(hidden: torch.Tensor, output: torch.Tensor, factor: float) -> torch.Tensor:
    if factor == 0:  # not a product: it would keep what is infinite
        return hidden
    if hidden.dtype == output.dtype and hidden.device == output.device:
        return torch.lerp(hidden, output, factor)  # one kernel, rounded once
    hidden = hidden.to(output.device)
    return hidden + factor * (output - hidden)


def _only_attends(layer: nn.Module, kind: str | None) -> bool:
    """Whether all that a layer leaves in the cache is keys and values: no state of a recurrence."""
    attends = any(type(module).__name__.endswith("Attention") for module in layer.modules())
    return attends and (kind is None or kind in KEEPS_ONLY_KEYS)


def _returns_its_stream(forward: Any, stream: str) -> bool:
    """Whether a forward returns the hidden states alone: `return hidden_states` and nothing else.

    What it returns must be known before it ran, and annotations are often wrong.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(forward))))
    except (OSError, TypeError, SyntaxError):  # no source
        return False
    returned = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return)]
    return bool(returned) and all(isinstance(value, ast.Name) and value.id == stream for value in returned)


def _count_tokens(given: tuple[Any, ...], slot: int, hidden: torch.Tensor) -> None:
    """Have the cache count the tokens that a layer did not see: one zero a token in place of keys and values.

    transformers reads the length of the past, and of masks, off the first slot of a kind.
    """
    cache = next((value for value in given if hasattr(value, "get_seq_length")), None)
    if cache is None:
        return
    batch, tokens = hidden.shape[:2]
    heads, width = 1, 1
    for layer in cache.layers[slot : slot + 1]:
        if getattr(layer, "keys", None) is not None and layer.keys.dim() == 4:  # initialised early, or by us
            heads, width = layer.keys.shape[1], layer.keys.shape[3]
    zeros = hidden.new_zeros(batch, heads, tokens, width)
    cache.update(zeros, zeros, slot)
