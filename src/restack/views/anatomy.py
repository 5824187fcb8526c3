"""Where a loaded decoder keeps its layers, its config, and the number each layer believes it has."""

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from restack.errors import ViewError
from restack.views.bound import copied

INDEX_NAME = re.compile(r"(layer|block)_?(idx|id|index|number|num)")


@dataclass(frozen=True, slots=True)
class Anatomy:
    """The parts of a decoder that a view has to know; everything else is copied as it is."""

    config: Any  # the decoder's own config: `text_config` of a composite model
    decoder: nn.Module  # the largest part of the model that has this config
    path: str  # of the layer list, from the model: "model.layers"
    layers: nn.ModuleList
    index_attributes: tuple[tuple[str, str], ...]  # (submodule of a layer, attribute holding the index)

    def renumber(self, layer: nn.Module, number: int) -> None:
        """Tell one of the layers, or a copy of one, which it is."""
        modules = dict(layer.named_modules())
        for path, name in self.index_attributes:
            module = modules.get(path)  # a hybrid's layers are not all alike
            if module is not None and type(vars(module).get(name)) is int:
                setattr(module, name, number)


def anatomy(model: nn.Module) -> Anatomy:
    """Find a decoder's layer list and the attributes that carry a layer's index.

    The layer list is the `ModuleList` of `config.num_hidden_layers` modules that holds most parameters, in
    the part of the model that has the decoder's config. An attribute carries the index when it is an int
    equal to the layer's index in every layer that has it.

    Raises:
        ViewError: the model has no such list or several side by side, numbers its layers in a way that is not
            understood, or is no decoder.
    """
    config = decoder_config(model)
    count = getattr(config, "num_hidden_layers", None)
    root, decoder = _outermost_with(config, model)
    lists = [
        (path, module)
        for path, module in decoder.named_modules(prefix=root)
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not lists:
        raise ViewError(
            f"{type(model).__name__} has no list of {count} layers; its decoder is laid out in a way that "
            "views do not know"
        )
    path, layers = max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))
    _refuse_encoder(model, config, layers)
    _refuse_parallel_lists(model, config, decoder, layers, root)
    return Anatomy(config, decoder, path, layers, _index_attributes(layers))


def decoder_config(model: nn.Module) -> Any:
    """The config of the decoder itself: the model's, or its text part if the model is composite.

    Raises:
        ViewError: it is no model of transformers, or has an encoder too.
    """
    config = getattr(model, "config", None)
    if not isinstance(model, nn.Module) or not hasattr(config, "get_text_config"):
        raise ViewError(f"a view needs a loaded model of transformers, not {_described(model)}")
    config = cast(Any, config)
    if config.is_encoder_decoder:
        raise ViewError(f"{type(model).__name__} is an encoder-decoder; views are of decoder-only models")
    return config.get_text_config(decoder=True)


def copied_layer(layer: nn.Module, memo: dict[Any, Any]) -> nn.Module:
    """A copy of a layer for one visit; what `memo`, of `copy.deepcopy`, holds is shared."""
    # torch keeps the storages that it copied in the memo's memo: one for each visit, too.
    own_memo: dict[Any, Any] = {**memo, "torch": dict(memo.get("torch", {}))}
    return copied(layer, own_memo)


def has_weights(model: nn.Module) -> bool:
    """Whether the tensors of a model have values, if only those that accelerate's hooks bring when needed."""
    hooked = any(hasattr(module, "_hf_hook") for module in model.modules())
    return hooked or not all(tensor.is_meta for tensor in model.parameters())


def input_device(model: nn.Module) -> torch.device:
    """Where the model takes its tokens; weights that hooks bring when they are needed are nowhere."""
    devices = (tensor.device for tensor in model.parameters())
    return next((device for device in devices if device.type != "meta"), torch.device("cpu"))


def _described(value: Any) -> str:
    return repr(value) if isinstance(value, str) else f"{type(value).__name__}"


def _outermost_with(config: Any, model: nn.Module) -> tuple[str, nn.Module]:
    """The largest part of the model that has this config: not, say, a vision encoder of as many layers."""
    parts = ((path, part) for path, part in model.named_modules() if vars(part).get("config") is config)
    return next(parts, ("", model))


def _refuse_encoder(model: nn.Module, config: Any, layers: nn.ModuleList) -> None:
    """Refuse models whose layers read the tokens after them too, such as BERT's.

    `config.is_decoder` alone does not tell: GPT-NeoX's is False. What the layers were built as does.
    """
    said: defaultdict[str, set[bool]] = defaultdict(set)
    for module in layers.modules():
        for name in ("is_decoder", "is_causal"):
            if name in vars(module):
                said[name].add(bool(vars(module)[name]))
    can_generate = getattr(model, "can_generate", None)  # a module around a model may have none
    generates = can_generate is not None and can_generate()
    if said["is_decoder"]:
        is_decoder = True in said["is_decoder"]
    elif said["is_causal"]:  # PaliGemma's layers are not, and yet it generates: it reads the prompt both ways
        is_decoder = True in said["is_causal"] or (generates and model.config is not config)
    else:
        is_decoder = generates or is_causal_lm(config)
    if not is_decoder or getattr(config, "is_causal", None) is False:
        wrong = f"{type(model).__name__} is an encoder; views are of decoder-only language models"
        if hasattr(config, "is_decoder"):
            wrong += "; if it was trained as a decoder, set is_decoder in its config"
        raise ViewError(wrong)


def is_causal_lm(config: Any) -> bool:
    """Whether transformers, or code that comes with the model, makes a causal language model of a config."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING  # takes long, and is seldom needed

    known = any(base in MODEL_FOR_CAUSAL_LM_MAPPING for base in type(config).__mro__)
    return known or "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})


def _refuse_parallel_lists(
    model: nn.Module, config: Any, decoder: nn.Module, layers: nn.ModuleList, root: str
) -> None:
    """Refuse decoders that keep parts of their layers in other lists beside `layers`, as XLM does.

    Parts with a config of their own, vision encoders for example, may have as many layers by chance.
    """
    ours = (config, getattr(decoder, "config", None))
    others = {
        part for part in decoder.modules() if all(vars(part).get("config", config) is not its for its in ours)
    }
    for path, module in decoder.named_modules(memo={layers, *others}, prefix=root):
        if isinstance(module, nn.ModuleList) and len(module) == len(layers):
            raise ViewError(
                f"{type(model).__name__} keeps parts of its layers in another list beside them ({path}); "
                "views cannot reorder both"
            )


def _index_attributes(layers: nn.ModuleList) -> tuple[tuple[str, str], ...]:
    sightings: defaultdict[tuple[str, str], dict[int, int]] = defaultdict(dict)  # {layer index: value}
    for index, layer in enumerate(layers):
        for path, module in layer.named_modules():
            for name, value in vars(module).items():
                if type(value) is int:  # not a bool
                    sightings[path, name][index] = value
    carriers = []
    for (path, name), found in sightings.items():
        looks_like_one = INDEX_NAME.search(name) is not None
        is_constant = len(set(found.values())) == 1 and (len(found) > 1 or len(layers) == 1)
        if all(value == index for index, value in found.items()):
            # A number that is 0 in one layer and 1 in another may mean anything, unless its name says it.
            if looks_like_one or len(found) > 2:
                carriers.append((path, name))
        elif looks_like_one and not is_constant:
            shown = ", ".join(f"{value} in layer {index}" for index, value in list(found.items())[:3])
            raise ViewError(
                f"layers number themselves by {path}.{name}, which is not their index ({shown}); "
                "views do not know this numbering"
            )
    return tuple(carriers)
