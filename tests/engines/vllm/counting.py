"""What is run in vLLM's own processes: they must find it by its name."""

from torch import nn
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase


def modules_with_weights(model, depth):
    """How many modules with weights each of the layers has, and how many all have together.

    What has been packed for a processor is no parameter any more; such modules have a `quant_method`.
    """
    layers = next(each for each in model.modules() if isinstance(each, nn.ModuleList) and len(each) == depth)
    found = [
        {
            id(module)
            for module in layer.modules()
            if (module._parameters or hasattr(module, "quant_method"))
            and not isinstance(module, AttentionLayerBase)
        }
        for layer in layers
    ]
    return {"in_each": [len(each) for each in found], "in_all": len(set().union(*found))}
