"""A model whose linear layers are packed, in place."""

from typing import Any, TypeVar

from torch import nn

from restack.errors import ModelError
from restack.runtime.packed.quantizer import PackedConfig, PackedQuantizer
from restack.runtime.packed.replacing import BITS, check_layers, pack_layers, prepare_layers
from restack.views.guards import PLAN

Model = TypeVar("Model", bound=nn.Module)


def quantize(model: Model, format: str) -> Model:
    """Pack the weights of a model's linear layers, in place; views that are made of it share the packed ones.

    Weights alone are quantised, rounded to the nearest: with "int8" with a scale for each output, with "int4"
    with a scale and a zero for each group of 64 inputs (of 32, where 64 does not divide them). Embeddings,
    norms and a mixture's fused experts stay as they are; a head that is tied to the embedding is packed
    beside it. The model can be saved, and loads again with `from_pretrained`.

    Args:
        model: a decoder of transformers, loaded, on a CPU or a GPU; not a view.
        format: "int8" or "int4".

    Returns:
        The model itself.

    Raises:
        UsageError: there is no such format.
        ModelError: the model is quantised already, is a view, is not in memory, or has no linear layers.
    """
    settings = PackedConfig(format)
    config: Any = getattr(model, "config", None)
    if not isinstance(model, nn.Module) or config is None:
        raise ModelError(
            f"only a loaded model of transformers can be quantised, not a {type(model).__name__}"
        )
    if getattr(config, "quantization_config", None) is not None and not _is_unpacked_file(model):
        raise ModelError("the model is quantised already; open it anew to quantise it otherwise")
    if PLAN in vars(model):
        raise ModelError("a view cannot be quantised, others share its weights; quantise its base before")
    if any(hasattr(module, "_hf_hook") for module in model.modules()) or any(
        t.is_meta for t in model.parameters()
    ):
        raise ModelError(
            "weights of the model are not in memory; load it without device_map, and quantise it then"
        )
    check_layers(model, format)
    pack_layers(model, BITS[format])
    prepare_layers(model)
    config.quantization_config = settings
    vars(model)["hf_quantizer"] = PackedQuantizer(settings, pre_quantized=True)
    vars(model)["is_quantized"], vars(model)["quantization_method"] = True, settings.quant_method
    return model


def _is_unpacked_file(model: Any) -> bool:
    """Whether the weights of a GGUF file were unpacked when it was loaded: then they are plain ones."""
    method = getattr(model.config.quantization_config, "quant_method", None)
    return method == "gguf" and all(tensor.is_floating_point() for tensor in model.parameters())
