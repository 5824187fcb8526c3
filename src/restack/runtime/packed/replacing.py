"""Which layers of a model are packed, and the packed ones in their place."""

import inspect
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from restack.errors import ModelError
from restack.plans.pointing import counted
from restack.runtime.packed.formats import group_of
from restack.runtime.packed.linear import PackedLinear

BITS = {"int8": 8, "int4": 4}
READS = re.compile(r"self\.(\w+)\.weight\b(?!\.(?:device|shape|size))")


def linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers that are packed, and where they are.

    Not those whose weight is used otherwise than by calling them: by a subclass, or by the module that they
    are in (Mamba multiplies with `dt_proj.weight` itself).
    """
    for path, module in model.named_modules():
        parent, _, name = path.rpartition(".")
        holder: Any = type(model.get_submodule(parent))
        if type(module) in (nn.Linear, Conv1D) and name not in _read_weights(holder):
            yield path, module


@cache
def _read_weights(module_class: Any) -> set[str]:
    """The children whose weights a module's own code reads."""
    original = getattr(module_class, "original", module_class)
    try:
        return set(READS.findall(inspect.getsource(original)))
    except (OSError, TypeError):
        return set()


def pack_layers(model: nn.Module, bits: int) -> None:
    """Put packed layers in the place of linear ones, a layer at a time."""
    _replace_layers(model, lambda weight, bias: PackedLinear.of(weight, bias, bits))


def layers_of_one_place(model: Any) -> set[str]:
    """The layers that are packed and whose weights no other module has."""
    times = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    tied = {**model.all_tied_weights_keys}
    shared = {name.removesuffix(".weight") for pair in tied.items() for name in pair}
    return {path for path, module in linear_layers(model) if times[id(module)] == 1} - shared


def pack_layer(model: nn.Module, path: str, weight: torch.Tensor, bits: int) -> PackedLinear:
    """Put a packed layer in the place of a linear one that has no weights yet, nor perhaps its bias.

    Args:
        weight: as the linear layer would hold it.

    Returns:
        The packed layer.
    """
    old: Any = model.get_submodule(path)
    new = PackedLinear.of(_turned(old, weight), old.bias, bits).train(old.training)
    model.set_submodule(path, new)
    return new


def put_empty_layers(model: nn.Module, bits: int) -> None:
    """Put packed layers without weights in the place of linear ones, for a checkpoint to fill."""

    def empty(weight: torch.Tensor, bias: nn.Parameter | None) -> PackedLinear:
        outputs, inputs = weight.shape
        return PackedLinear(outputs, inputs, bits, bias is not None, weight.dtype)

    _replace_layers(model, empty)


def prepare_layers(model: nn.Module) -> None:
    """Ready all packed layers, once their weights are there."""
    for module in model.modules():
        if isinstance(module, PackedLinear):
            module.prepare()


def check_layers(model: nn.Module, format: str) -> None:
    """Refuse a model that has nothing to pack, and tell of layers that cannot be packed as asked.

    Raises:
        ModelError: so it is.
    """
    inputs = {path: _weight(module).shape[1] for path, module in linear_layers(model)}
    if not inputs:
        raise ModelError(f"a {type(model).__name__} has no linear layers of its own; it cannot be quantised")
    wide = [path for path, width in inputs.items() if format == "int4" and group_of(width) is None]
    if wide:
        warnings.warn(
            f"{counted(len(wide), 'layer')} of a width that 32 does not divide, {wide[0]} the first, packed "
            "with 8 bits",
            stacklevel=3,
        )


def _weight(module: Any) -> torch.Tensor:
    """(outputs, inputs)."""
    return _turned(module, module.weight.detach())


def _turned(module: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """(outputs, inputs) of what a module keeps: GPT-2's `Conv1D` has it transposed."""
    return weight.T if isinstance(module, Conv1D) else weight


def _replace_layers(
    model: nn.Module, make: Callable[[torch.Tensor, nn.Parameter | None], PackedLinear]
) -> None:
    """Put others in the place of linear layers, made of weight and bias, wherever the model has each.

    A layer is let go before the next one is made: the plain and the packed weights are never all in memory.
    """
    places = defaultdict(list)
    for path, module in model.named_modules(remove_duplicate=False):
        places[id(module)].append(path)
    for path in [path for path, _ in linear_layers(model)]:
        old: Any = model.get_submodule(path)
        new = make(_weight(old), old.bias).train(old.training)
        for place in places[id(old)]:
            model.set_submodule(place, new)
    _untie(model)


def _untie(model: Any) -> None:
    """A head that was tied to the embedding is packed beside it: nothing is to tie it again."""
    for config in {id(c): c for c in (model.config, model.config.get_text_config(decoder=True))}.values():
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False
    tied = getattr(model, "all_tied_weights_keys", None)
    if tied:
        vars(model)["all_tied_weights_keys"] = {
            target: source
            for target, source in tied.items()
            if not isinstance(model.get_submodule(target.rpartition(".")[0]), PackedLinear)
        }
