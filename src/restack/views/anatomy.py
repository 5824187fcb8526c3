"""Where a loaded decoder keeps its layers, its config, and the number each layer believes it has."""

import re
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from restack.errors import ViewError

INDEX_NAME = re.compile(r"(layer|block)_?(idx|id|index|number|num)")


@dataclass(frozen=True, slots=True)
class Anatomy:
    """The parts of a decoder that a view has to know; everything else is copied as it is."""

    config: Any  # the decoder's own config: `text_config` of a composite model
    path: str  # of the layer list, from the model: "model.layers"
    layers: nn.ModuleList
    index_attributes: tuple[
        tuple[str, str], ...
    ]  # (submodule of a layer, attribute that holds the layer's index)


def anatomy(model: nn.Module) -> Anatomy:
    """Find a decoder's layer list and the attributes that carry a layer's index.

    The layer list is the `ModuleList` of `config.num_hidden_layers` modules that holds most parameters. An
    attribute carries the index when it is an int equal to the layer's index in every layer that has it.

    Raises:
        ViewError: the model has no such list, or numbers its layers in a way that is not understood.
    """
    if not hasattr(model, "config"):
        raise ViewError(f"{type(model).__name__} has no config; a view needs a transformers model")
    if getattr(model.config, "is_encoder_decoder", False):
        raise ViewError(f"{type(model).__name__} is an encoder-decoder; views are of decoder-only models")
    config = decoder_config(model)
    count = getattr(config, "num_hidden_layers", None)
    lists = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not lists:
        raise ViewError(
            f"{type(model).__name__} has no list of {count} layers; its decoder is laid out in a way that "
            "views do not know"
        )
    path, layers = max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))
    return Anatomy(config, path, layers, _index_attributes(layers))


def decoder_config(model: nn.Module) -> Any:
    """The config of the decoder itself: the model's, or its text part if the model is composite."""
    return cast(Any, model.config).get_text_config(decoder=True)


def _index_attributes(layers: nn.ModuleList) -> tuple[tuple[str, str], ...]:
    values: dict[tuple[str, str], dict[int, int]] = {}
    for index, layer in enumerate(layers):
        for path, module in layer.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, int) and not isinstance(value, bool):
                    values.setdefault((path, name), {})[index] = value
    carriers = []
    for (path, name), found in values.items():
        looks_like_one = INDEX_NAME.search(name) is not None
        if all(value == index for index, value in found.items()) and (looks_like_one or len(found) > 1):
            carriers.append((path, name))
        elif looks_like_one and len(set(found.values())) > 1:
            raise ViewError(
                f"layers number themselves by {path}.{name} = {list(found.values())[:4]}..., "
                "which is not their index; views do not know this numbering"
            )
    return tuple(carriers)
