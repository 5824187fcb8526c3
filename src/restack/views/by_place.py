"""What a decoder prepares for its layers by their place: embeddings for each, and where KV sharing begins.

Gemma 3n and Gemma 4 embed each token once more for every layer, all in one table: (B, T, layers * width). A
view gives each visit the part of its layer, by hooks on the modules that compute them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from restack.errors import ViewError

PACKED = (
    "embed_tokens_per_layer",
    "per_layer_model_projection",
)  # modules whose output has a part for each layer
PARTS = "_restack_parts"  # of such a module: (how many there are, which of them each visit is given)
FIRST_REUSE = (
    "first_kv_shared_layer_idx"  # of a decoder: from here on, all layers read keys and values of others
)


@dataclass(frozen=True, slots=True)
class ByPlace:
    """What a decoder prepares by place, to be put into effect or back."""

    parts: tuple[int, tuple[int, ...]] | None = None
    first_reuse: int | None = None

    @classmethod
    def of(cls, modules: Iterable[nn.Module]) -> "ByPlace":
        """What the modules of a decoder, those in its layers left out, say now."""
        found = [vars(module) for module in modules]
        parts = next((said[PARTS] for said in found if PARTS in said), None)
        return cls(parts, next((said[FIRST_REUSE] for said in found if FIRST_REUSE in said), None))

    def reordered(self, config: Any, order: Sequence[int], depth: int) -> "ByPlace":
        """What they must say for visits in this order.

        Args:
            config: of the model that visits so.
            order: the layers visited, of the model that says this now.
            depth: how many layers that has.
        """
        first_reuse = None if self.first_reuse is None else len(order) - config.num_kv_shared_layers
        if not getattr(config, "hidden_size_per_layer_input", None):
            return ByPlace(None, first_reuse)
        count, given = self.parts or (depth, tuple(range(depth)))
        return ByPlace((count, tuple(given[layer] for layer in order)), first_reuse)

    def apply(self, modules: Iterable[nn.Module]) -> None:
        """Make them say this."""
        for module in modules:
            if FIRST_REUSE in vars(module):
                setattr(module, FIRST_REUSE, self.first_reuse)
            for name in PACKED:
                if name in module._modules:
                    _give(module.get_submodule(name), self.parts)


def cut(modules: Iterable[nn.Module], parts: tuple[int, tuple[int, ...]] | None) -> None:
    """Leave in the weights of copied modules the parts that the visits are given, in their order."""
    if parts is None:
        return
    count, given = parts
    for module in modules:
        for packed in (cast(Any, module.get_submodule(name)) for name in PACKED if name in module._modules):
            axis = 1 if isinstance(packed, nn.Embedding) else 0
            chunks = packed.weight.data.chunk(count, dim=axis)
            packed.weight.data = torch.cat([chunks[part] for part in given], dim=axis)
            setattr(packed, "embedding_dim" if axis else "out_features", packed.weight.shape[axis])


def refuse_unknown(config: Any, modules: Iterable[nn.Module]) -> None:
    """Refuse a decoder that embeds tokens for each layer in a way that is not known.

    Raises:
        ViewError: its config has such embeddings, and its modules are others than Gemma's.
    """
    names = {name for module in modules for name in module._modules}
    if getattr(config, "hidden_size_per_layer_input", None) and not names.issuperset(PACKED):
        raise ViewError(
            f"{config.model_type} embeds tokens for each layer by its place (hidden_size_per_layer_input); "
            "views do not know where"
        )


def _give(module: nn.Module, parts: tuple[int, tuple[int, ...]] | None) -> None:
    for key, hook in list(module._forward_hooks.items()):
        if hook is _select:
            del module._forward_hooks[key]
    vars(module).pop(PARTS, None)
    if parts is not None:
        vars(module)[PARTS] = parts
        module.register_forward_hook(_select)


def _select(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
    """The parts (B, T, visits * width) of an output (B, T, layers * width)."""
    count, given = vars(module)[PARTS]
    each = output.reshape(*output.shape[:-1], count, -1)
    return each[..., list(given), :].flatten(-2)
