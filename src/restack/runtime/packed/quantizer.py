"""What transformers is taught of packed checkpoints, so that it opens and writes them."""

from typing import Any

import torch
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from restack.errors import UsageError
from restack.runtime.packed.mapped import forget_pages
from restack.runtime.packed.replacing import (
    BITS,
    check_layers,
    layers_of_one_place,
    pack_layer,
    pack_layers,
    prepare_layers,
    put_empty_layers,
)

METHOD = "restack"


@register_quantization_config(METHOD)
class PackedConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """In a model's config: that its linear layers are packed, and how.

    With `from_pretrained(..., quantization_config=PackedConfig("int4"))`, a model is packed while it loads.
    """

    def __init__(self, format: str = "int4", **kwargs: Any) -> None:
        """A config.

        Args:
            format: "int8" or "int4".
            kwargs: what transformers adds to every such config in a file.

        Raises:
            UsageError: there is no such format.
        """
        if format not in BITS:
            raise UsageError(f"there is no format {format!r:.40}; write {' or '.join(BITS)}")
        self.quant_method = METHOD
        self.format = format


@register_quantizer(METHOD)
class PackedQuantizer(HfQuantizer):  # type: ignore[misc]
    """What transformers calls while it loads or saves a packed model.

    A plain checkpoint is packed tensor by tensor as it is read, so that the plain weights are never all in
    memory; heads that are tied to the embedding, and whatever else shares its weights, when it is all there.
    """

    requires_calibration = False
    quantization_config: PackedConfig

    def __init__(self, quantization_config: PackedConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._awaited: set[str] = set()  # layers that are packed when their weights are read

    @property
    def _bits(self) -> int:
        return BITS[self.quantization_config.format]

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        if self.pre_quantized:
            put_empty_layers(model, self._bits)
        else:
            check_layers(model, self.quantization_config.format)
            self._awaited = layers_of_one_place(model)

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        path, _, name = param_name.rpartition(".")
        return name == "weight" and path in self._awaited

    def get_quantize_ops(self) -> ConversionOps:
        return _Packing(self)

    def packed(self, model: Any, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """What is to be put into the model for a weight that has been read, by name."""
        if not self.param_needs_quantization(model, name):
            return {name: weight}
        path = name.rpartition(".")[0]
        self._awaited.remove(path)
        if weight.shape != model.get_parameter(name).shape:  # transformers tells of it
            return {name: weight}
        layer = pack_layer(model, path, weight, self._bits)
        forget_pages(weight)
        return {f"{path}.{part}": value for part, value in layer.named_parameters() if part != "bias"}

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if not self.pre_quantized:
            pack_layers(model, self._bits)
        prepare_layers(model)
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


class _Packing(ConversionOps):  # type: ignore[misc]
    """What becomes of weights between a checkpoint and the model."""

    def __init__(self, quantizer: PackedQuantizer) -> None:
        self._quantizer = quantizer

    def convert(self, input_dict: dict[str, Any], *, model: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for name, read in input_dict.items():
            [weight] = read if isinstance(read, list) else [read]
            found |= self._quantizer.packed(model, name, weight)
        return found
