"""Tiny random models in folders, and models that their own constructor makes of reordered layers."""

import re

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from restack import demo

LAYERS = 4
SETTINGS = {
    "vocab_size": 1147, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": LAYERS,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
TOKENS = torch.tensor([[5, 9, 2, 7, 11, 3]])


def saved_llama(folder, seed=0, **settings):
    """A random Llama in a folder, with the demo's tokenizer."""
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(**SETTINGS | settings)).save_pretrained(folder)
    for name in TOKENIZER:
        (folder / name).write_bytes((demo.FOLDER / name).read_bytes())
    return str(folder)


def built(base, order):
    """A Llama that its own constructor makes, with copies of the base's weights in this order of layers."""
    config = LlamaConfig(**base.config.to_dict() | {"num_hidden_layers": len(order)})
    state = {}
    for name, tensor in base.state_dict().items():
        found = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", name)
        if not found:
            state[name] = tensor
            continue
        for number, layer in enumerate(order):
            if layer == int(found[1]):
                state[f"model.layers.{number}.{found[2]}"] = tensor
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, strict=True)
    return model


def logits(model):
    """What the model makes of a few tokens."""
    with torch.no_grad():
        return model(TOKENS).logits
