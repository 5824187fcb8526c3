"""What transformers is taught of packed checkpoints, so that it opens and writes them."""

from typing import Any

from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from restack.errors import UsageError
from restack.runtime.packed.replacing import BITS, pack_layers, prepare_layers, put_empty_layers

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
    """What transformers calls while it loads or saves a packed model."""

    requires_calibration = False
    quantization_config: PackedConfig

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        if self.pre_quantized:
            put_empty_layers(model, BITS[self.quantization_config.format])

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if not self.pre_quantized:
            pack_layers(model, BITS[self.quantization_config.format])
        prepare_layers(model)
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False
