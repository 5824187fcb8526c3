"""What a plan costs: parameters, weight bytes and KV cache, as a view and as a model of its own."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from restack.plans import Plan
from restack.views.anatomy import anatomy


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
    materialised_kv_bytes_per_token: int  # were every visit to keep its own


def cost(model: nn.Module, plan: Plan) -> Cost:
    """The cost of running `plan`, a plan for the layers of `model`; the model may be on the meta device.

    KV bytes are those of the keys and values that attention layers add with each token, in the model's
    dtype. What does not grow with the sequence (convolution and state-space layers) is not counted; sliding
    layers are counted as if their window were not full yet.
    """
    parts = anatomy(model)
    layers = [_Size.of(layer) for layer in parts.layers]
    whole = _Size.of(model)
    outside = whole - sum(layers, _Size())
    unique = sum((layers[layer] for layer in set(plan.order)), outside)
    effective = sum((layers[layer] for layer in plan.order), outside)
    itemsize = next(model.parameters()).element_size()
    kv = [_kv_width(layer, parts.config) * itemsize for layer in parts.layers]
    return Cost(
        base_parameters=whole.parameters,
        unique_parameters=unique.parameters,
        effective_parameters=effective.parameters,
        base_bytes=whole.bytes,
        unique_bytes=unique.bytes,
        effective_bytes=effective.bytes,
        kv_bytes_per_token=sum(kv[plan.order[owner]] for owner in set(plan.owners)),
        materialised_kv_bytes_per_token=sum(kv[layer] for layer in plan.order),
    )


def own_bytes(model: nn.Module, base: nn.Module) -> int:
    """Bytes of the tensors of `model` that are not storage of `base`: what it adds to memory beside it."""
    shared = _storages(base)
    return sum(size for place, size in _storages(model).items() if place not in shared)


def _storages(model: nn.Module) -> dict[int, int]:
    tensors = [*model.parameters(), *model.buffers()]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


@dataclass(frozen=True, slots=True)
class _Size:
    parameters: int = 0
    bytes: int = 0

    @classmethod
    def of(cls, module: nn.Module) -> "_Size":
        tensors = list(module.parameters())  # each once, tied ones too
        return cls(sum(t.numel() for t in tensors), sum(t.numel() * t.element_size() for t in tensors))

    def __add__(self, other: "_Size") -> "_Size":
        return _Size(self.parameters + other.parameters, self.bytes + other.bytes)

    def __sub__(self, other: "_Size") -> "_Size":
        return _Size(self.parameters - other.parameters, self.bytes - other.bytes)


def _kv_width(layer: nn.Module, config: Any) -> int:
    """How many numbers a layer adds to the KV cache with each token."""
    inside = {path.rpartition(".")[2]: module for path, module in layer.named_modules()}
    heads = config.num_attention_heads
    if "k_proj" in inside and "v_proj" in inside:
        return int(inside["k_proj"].out_features) + int(inside["v_proj"].out_features)
    if "kv_b_proj" in inside:  # multi-head latent attention: transformers caches the expanded heads
        return int(heads * (config.qk_head_dim + config.v_head_dim))
    if any(type(module).__name__.endswith("Attention") for module in inside.values()):
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        return int(2 * kv_heads * head_dim)
    return 0
