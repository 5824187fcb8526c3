"""What a plan costs: parameters, weight bytes and KV cache, as a view and as a model of its own."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from restack.plans import Plan, own_plan
from restack.views.anatomy import Anatomy, anatomy
from restack.views.arranging import plan_after
from restack.views.configuration import attends
from restack.views.planned import runs_plans

KEYS_VALUES = ("k_proj", "v_proj", "k_norm")  # that models which run plans have for owners alone


@dataclass(frozen=True, slots=True)
class Cost:
    """Counts are of parameters, sizes are in bytes. A view of any plan needs the base's weights once."""

    base_parameters: int  # of the loaded model
    unique_parameters: int  # that the plan runs, each counted once
    effective_parameters: int  # that the plan runs, counted at each visit: the size of the materialised model
    base_bytes: int
    unique_bytes: int
    effective_bytes: int
    kv_bytes_per_token: (
        int  # of the cache, one sequence; visits that read another's keys and values keep none
    )
    materialised_kv_bytes_per_token: int  # of a model of its own: each visit keeps some, unless a config says
    quantised: str | None = None  # how the stored weights are, where sizes are of weights that are not


def cost(model: nn.Module, plan: Plan) -> Cost:
    """The cost of running `plan`, a plan for the layers of `model`; the model may be on the meta device.

    KV bytes are those of the keys and values that attention layers add with each token, in the model's
    dtype. What does not grow with the sequence (convolution and state-space layers) is not counted; sliding
    layers are counted as if their window were not full yet. A model that was built from the config of a
    quantised one has weights that are not, and sizes to match: `quantised` then names the method.

    The layers of a plan for a model that runs plans by itself (restack-llama) are the visits of its own plan.
    Of a visit there whose keys and values nobody reads, the weights that would make them are not run.
    """
    parts = anatomy(model)
    whole, is_lean = running(model, plan), runs_plans(model)
    visited = list(zip(whole.order if is_lean else plan.order, _keepers(whole, is_lean), strict=True))
    layers = [list(layer.parameters()) for layer in parts.layers]
    own = {id(tensor) for layer in layers for tensor in layer}  # the layers of a view share theirs
    outside = [tensor for tensor in model.parameters() if id(tensor) not in own]
    run = {
        (layer, keeps): layers[layer] if keeps or not is_lean else _without_keys_values(parts.layers[layer])
        for layer, keeps in visited
    }
    unique = {id(tensor): tensor for visit in visited for tensor in run[visit]}
    sizes = {visit: _Size.of(tensors) for visit, tensors in run.items()}
    once = _Size.of([*outside, *unique.values()])
    effective = sum((sizes[visit] for visit in visited), _Size.of(outside))
    base = _Size.of(model.parameters())
    itemsize = next(model.parameters()).element_size()
    kv = [width * itemsize for width in _kv_widths(parts)]
    return Cost(
        base_parameters=base.parameters,
        unique_parameters=once.parameters,
        effective_parameters=effective.parameters,
        base_bytes=base.bytes,
        unique_bytes=once.bytes,
        effective_bytes=effective.bytes,
        kv_bytes_per_token=sum(kv[layer] for layer, keeps in visited if keeps),
        materialised_kv_bytes_per_token=sum(kv[layer] for layer, keeps in visited if keeps or not is_lean),
        quantised=_quantised(model),
    )


def running(model: Any, plan: Plan) -> Plan:
    """The whole plan that a model runs when it is made to run `plan`: it may be a view, or have its own."""
    return model.config.whole_plan.then(plan) if runs_plans(model) else plan_after(model, plan)


def own_bytes(model: nn.Module, base: nn.Module) -> int:
    """Bytes of the tensors of `model` that are not storage of `base`: what it adds to memory beside it."""
    shared = _storages(base)
    return sum(size for place, size in _storages(model).items() if place not in shared)


def _keepers(whole: Plan, is_lean: bool) -> list[bool]:
    """Whether each visit keeps keys and values of its own.

    Args:
        whole: the plan.
        is_lean: what a visit that is damped to nothing would read is not made.
    """
    pairs = zip(whole.owners, whole.visits, strict=True)
    read = {owner for owner, visit in pairs if visit.damp != 0 or not is_lean}
    return [number in read for number in range(len(whole))]


def _without_keys_values(layer: nn.Module) -> list[torch.Tensor]:
    named = layer.named_parameters()
    return [tensor for name, tensor in named if not set(KEYS_VALUES).intersection(name.split("."))]


def _quantised(model: Any) -> str | None:
    """How the model's files are quantised, if the model in hand is not: one built from its config alone."""
    settings = getattr(model.config, "quantization_config", None)
    if settings is None or getattr(model, "hf_quantizer", None) is not None:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else settings.quant_method
    return str(getattr(method, "value", method) or "an unnamed method")


def _storages(model: nn.Module) -> dict[int, int]:
    tensors = [*model.parameters(), *model.buffers()]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


@dataclass(frozen=True, slots=True)
class _Size:
    parameters: int = 0
    bytes: int = 0

    @classmethod
    def of(cls, parameters: Iterable[torch.Tensor]) -> "_Size":
        tensors = list(parameters)
        return cls(sum(t.numel() for t in tensors), sum(t.numel() * t.element_size() for t in tensors))

    def __add__(self, other: "_Size") -> "_Size":
        return _Size(self.parameters + other.parameters, self.bytes + other.bytes)


def _kv_widths(parts: Anatomy) -> list[int]:
    """How many numbers each layer adds to the KV cache with each token."""
    config, count = parts.config, len(parts.layers)
    kinds = getattr(config, "layer_types", None) or [None] * count
    if own_plan(config) is not None:  # whose kinds are those of cache slots
        kinds = [None] * count
    reused = getattr(config, "num_kv_shared_layers", None) or 0  # the last layers read those of others
    return [
        0 if number >= count - reused or (kind and not attends([kind])) else _kv_width(layer, config)
        for number, (layer, kind) in enumerate(zip(parts.layers, kinds, strict=False))
    ]


def _kv_width(layer: nn.Module, config: Any) -> int:
    inside = {path.rpartition(".")[2]: module for path, module in layer.named_modules()}
    if "k_proj" in inside:  # where there is no v_proj, the values are the keys, cached again
        keys, values = inside["k_proj"], inside.get("v_proj", inside["k_proj"])
        return int(keys.out_features) + int(values.out_features)  # type: ignore[arg-type]
    if "kv_b_proj" in inside:  # multi-head latent attention: transformers caches what heads are expanded from
        return int(config.kv_lora_rank + config.qk_rope_head_dim)
    if any(type(module).__name__.endswith("Attention") for module in inside.values()):
        heads = getattr(config, "num_attention_heads", None)
        if not heads:  # RWKV: its attention keeps a state, no keys
            return 0
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
            kv_heads = 1
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        return int(2 * kv_heads * head_dim)
    return 0
