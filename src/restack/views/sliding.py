"""Visits that attend through a sliding window, where the model has one: the `s` of a KV map."""

import inspect
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from restack.errors import ViewError
from restack.plans import Plan
from restack.views.configuration import LayerSettings

Kinds = list[str | None]  # what `layer_types` says of each visit; None where the config has none
FULL, SLIDING = "full_attention", "sliding_attention"
# All that an attention may do with its window for one layer's to be as good as another's: hand it on.
HANDED_ON = re.compile(r"sliding_window\s*=\s*self\.sliding_window\b")
WINDOWED = re.compile(r"self\.(sliding_window|is_sliding|layer_type|attention_type)\b")


def kinds_of(plan: Plan, layers: nn.ModuleList, config: Any) -> Kinds:
    """What `layer_types` must say of each visit of a plan over these layers.

    Raises:
        ViewError: a visit asks for a window and none is configured, or its layer attends otherwise too where
            it slides: by other positions, say.
    """
    kinds: Sequence[str | None] = getattr(config, "layer_types", None) or [None] * len(layers)
    wanted = [kinds[layer] for layer in plan.order]
    for number, visit in enumerate(plan.visits):
        if not visit.sliding:
            continue
        if getattr(config, "sliding_window", None) is None:
            raise ViewError(
                f"visit {number} asks for a sliding window (s), and {config.model_type}'s config sets none; "
                "set sliding_window, or leave s out"
            )
        if wanted[number] == FULL:
            _refuse_other_changes(layers[visit.layer], number, config)
            wanted[number] = SLIDING
        elif wanted[number] not in (None, SLIDING):
            raise ViewError(f"visit {number} runs {wanted[number]}, which has no window; leave s out")
    return wanted


def with_kinds(settings: LayerSettings, kinds: Kinds) -> LayerSettings:
    """The settings with these kinds of visits in their `layer_types`, if they list any."""
    listed = settings.values.get("layer_types")
    if not isinstance(listed, list) or listed == kinds:
        return settings
    return replace(settings, values={**settings.values, "layer_types": kinds})


def slide(layer: nn.Module, window: int) -> None:
    """Have a layer of full attention slide."""
    for module in layer.modules():
        state = vars(module)
        for name in [name for name, value in state.items() if isinstance(value, str) and value == FULL]:
            state[name] = SLIDING
        if "sliding_window" in state:
            state["sliding_window"] = window
        if "is_sliding" in state:
            state["is_sliding"] = True


def _refuse_other_changes(layer: nn.Module, number: int, config: Any) -> None:
    from restack.views.shared_kv import attention_of  # which loads transformers' caches

    attention = attention_of(layer, number)
    source = HANDED_ON.sub("", inspect.getsource(inspect.unwrap(type(attention).forward)))
    rope = getattr(config, "rope_parameters", None) or {}
    if WINDOWED.search(source) or SLIDING in rope or not hasattr(attention, "sliding_window"):
        raise ViewError(
            f"visit {number} asks for a sliding window (s), and {config.model_type} attends by other rules "
            "where it slides; visit a layer that slides, or leave s out"
        )
