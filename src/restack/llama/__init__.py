"""The house model: Llama with a choice of attention, rotary embedding and plan; keys and values shared."""

from restack.llama.config import RestackLlamaConfig
from restack.llama.model import (
    LLAMA_ATTENTIONS_CLASSES,
    LLAMA_ROTARY_EMBEDDINGS_CLASSES,
    RestackLlamaForCausalLM,
    RestackLlamaModel,
)
from restack.llama.registries import register_attention, register_rotary

__all__ = [
    "LLAMA_ATTENTIONS_CLASSES",
    "LLAMA_ROTARY_EMBEDDINGS_CLASSES",
    "RestackLlamaConfig",
    "RestackLlamaForCausalLM",
    "RestackLlamaModel",
    "register_attention",
    "register_rotary",
]
