"""Which layers of a model are packed, and the packed ones in their place."""

import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

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


def put_empty_layers(model: nn.Module, bits: int) -> None:
    """Put packed layers without weights in the place of linear ones, for a checkpoint to fill."""

    def empty(weight: torch.Tensor, bias: torch.Tensor | None) -> PackedLinear:
        outputs, inputs = weight.shape
        return PackedLinear(outputs, inputs, bits, bias is not None, weight.dtype)

    _replace_layers(model, empty)


def prepare_layers(model: nn.Module) -> None:
    """Ready all packed layers, once their weights are there."""
    for module in model.modules():
        if isinstance(module, PackedLinear):
            module.prepare()


def undivided(model: nn.Module) -> list[str]:
    """Where layers are whose rows no group of 4-bit weights divides."""
    return [path for path, module in linear_layers(model) if group_of(_weight(module).shape[1]) is None]


def _weight(module: nn.Module) -> torch.Tensor:
    """(outputs, inputs); GPT-2's `Conv1D` keeps it transposed."""
    weight: Any = module.weight
    return (weight.T if isinstance(module, Conv1D) else weight).detach()  # type: ignore[no-any-return]


def _replace_layers(
    model: nn.Module, make: Callable[[torch.Tensor, torch.Tensor | None], PackedLinear]
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
