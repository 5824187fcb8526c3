"""The house model: Llama with a choice of attention, rotary embedding and plan; keys and values shared."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from restack.llama.config import LCKVLlamaConfig, RestackLlamaConfig
    from restack.llama.model import (
        LLAMA_ATTENTIONS_CLASSES,
        LLAMA_ROTARY_EMBEDDINGS_CLASSES,
        LCKVLlamaForCausalLM,
        LCKVLlamaModel,
        LlamaAttention,
        RestackLlamaForCausalLM,
        RestackLlamaModel,
    )
    from restack.llama.registries import register_attention, register_rotary
    from restack.llama.rotary import RotaryEmbedding
    from restack.llama.sinks import SinkCache

_HOME = {
    "LCKVLlamaConfig": "config",
    "LCKVLlamaForCausalLM": "model",
    "LCKVLlamaModel": "model",
    "LLAMA_ATTENTIONS_CLASSES": "model",
    "LLAMA_ROTARY_EMBEDDINGS_CLASSES": "model",
    "LlamaAttention": "model",
    "RestackLlamaConfig": "config",
    "RestackLlamaForCausalLM": "model",
    "RestackLlamaModel": "model",
    "RotaryEmbedding": "rotary",
    "SinkCache": "sinks",
    "register_attention": "registries",
    "register_rotary": "registries",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    # On first use: transformers may be in the middle of its own import when it asks for the configs.
    if name not in _HOME:
        raise AttributeError(f"module 'restack.llama' has no attribute {name!r}")
    return getattr(import_module(f"restack.llama.{_HOME[name]}"), name)
