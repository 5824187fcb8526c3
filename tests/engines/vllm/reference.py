"""What vLLM is compared with: a model of transformers that has the visits as layers, with copied weights."""

from itertools import chain

import torch
from transformers import AutoModelForCausalLM


def explicit(base, order):
    """The model that its own constructor makes with so many layers, and the weights of these."""
    config = type(base.config)(**{**base.config.to_dict(), **reordered(base.config, order)})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    weights, copied = base.state_dict(), {}
    for name in model.state_dict():
        number = next((part for part in name.split(".") if part.isdecimal()), None)
        source = name
        if number is not None:
            source = name.replace(f".{number}.", f".{order[int(number)]}.", 1)
        copied[name] = weights[source]
    model.load_state_dict(copied)
    return model


def reordered(config, order):
    count = {"gpt2": "n_layer"}.get(config.model_type, "num_hidden_layers")
    lists = {
        name: [value[layer] for layer in order]
        for name, value in config.to_dict().items()
        if name in ("layer_types", "no_rope_layers") and value
    }
    return {count: len(order), **lists}


def read_from(layers, reader, owner):
    """Have a layer of Llama's family attend to the keys and values of one below it; without a cache."""
    for name in ("k_proj", "v_proj"):
        kept = {}
        source, target = (getattr(layers[number].self_attn, name) for number in (owner, reader))
        source.register_forward_hook(lambda module, inputs, output, kept=kept: kept.update(now=output))
        target.register_forward_hook(lambda module, inputs, output, kept=kept: kept["now"])


def damp(layer, factor):
    """Scale what a layer adds to the hidden states."""

    def scaled(module, inputs, output):
        first = output[0] if isinstance(output, tuple) else output
        damped = inputs[0] + factor * (first - inputs[0])
        return (damped, *output[1:]) if isinstance(output, tuple) else damped

    layer.register_forward_hook(scaled)


@torch.no_grad()
def greedy(model, prompt, count):
    """The likeliest tokens one after the other, each by a pass over all before it; the sum of their logs."""
    tokens, total = list(prompt), 0.0
    for _ in range(count):
        logs = model(torch.tensor([tokens]), use_cache=False).logits[0, -1].double().log_softmax(dim=-1)
        tokens.append(int(logs.argmax()))
        total += float(logs.max())
    return tokens[len(prompt) :], total


def layers_of(model):
    return next(
        module
        for module in chain([model], model.modules())
        if isinstance(module, torch.nn.ModuleList) and len(module) == model.config.num_hidden_layers
    )
