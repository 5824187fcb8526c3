"""What the native step needs to know of a model: the modules and the settings of each visit.

It computes what the layers of Llama, Mistral, Qwen2, Qwen3 and restack-llama do. A model with a module that
may do anything else (of another class, with a hook, an adapter, or a forward of its own) has no structure.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_modules
from transformers.generation import GenerationMixin

from restack.runtime.packed.linear import PackedLinear
from restack.runtime.stretching import stretches
from restack.views.altered import Altered, alterations
from restack.views.damping import Damped
from restack.views.planned import runs_plans
from restack.views.recording import Hook, nothing
from restack.views.shared_kv import SharingLayer, Unread

FAMILIES = (
    *({f"transformers.models.{name}.modeling_{name}"} for name in ("llama", "mistral", "qwen2", "qwen3")),
    {"restack.llama.model", "restack.llama.rotary"},
)
COMMON = ("Embedding", "Linear", "ModuleList", "PackedLinear", "SiLU", "SiLUActivation")
ALTERATIONS = (Damped, SharingLayer, Unread)
ATTENTIONS = ("eager", "sdpa")
DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class VisitStructure:
    """A visit of a layer.

    Attributes:
        layer: its modules, as Llama names them.
        owner: the visit whose keys and values it reads.
        slot: of transformers' KV cache, for its own keys and values; None: it makes none.
        idle_slot: of that cache, where it only counts tokens, since the visit is not run at all.
        window: how many tokens it sees; 0 for all.
        is_strictly_past: it does not see its own token.
        damp: h + damp * (layer(h) - h).
    """

    layer: Any
    owner: int
    slot: int | None
    idle_slot: int | None
    window: int
    is_strictly_past: bool
    damp: float


@dataclass(frozen=True, slots=True)
class Structure:
    """A model that the native step can run."""

    embedding: Any
    rotary: Any
    norm: Any
    head: Any
    visits: tuple[VisitStructure, ...]
    config: Any
    dtype: torch.dtype

    def turns_alike(self, tokens: int) -> bool:
        """Whether RoPE turns all positions of a text of so many tokens as it does in shorter ones."""
        return not stretches(self.config, tokens)

    @property
    def takes_several(self) -> bool:
        """Whether several tokens of one text can be run at once: no visit reads what one above it makes."""
        return not any(visit.is_strictly_past for visit in self.visits)


def structure(model: Any) -> Structure | None:
    """What the native step needs to know of a model; None where it cannot run it."""
    if not (isinstance(model, GenerationMixin) and _is_known(model) and _is_plain(model)):
        return None
    decoder, config = model.model, model.config
    visits = _planned(model, decoder.layers) if runs_plans(model) else _listed(decoder.layers, config)
    result = Structure(
        embedding=model.get_input_embeddings(),
        rotary=decoder.rotary_emb,
        norm=decoder.norm,
        head=model.get_output_embeddings(),
        visits=tuple(visits),
        config=config,
        dtype=model.dtype,
    )
    return result if _fits(model, result) else None


def _planned(model: Any, layers: nn.ModuleList) -> Iterator[VisitStructure]:
    """The visits of a restack-llama."""
    for step in model.config.schedule.steps:
        yield VisitStructure(
            layer=layers[step.layer],
            owner=step.owner,
            slot=step.slot,
            idle_slot=None,
            window=(model.config.sliding_window or 0) if step.reading.sliding else 0,
            is_strictly_past=step.reading.strictly_past,
            damp=step.damp,
        )


def _listed(layers: nn.ModuleList, config: Any) -> Iterator[VisitStructure]:
    """The visits of a model that has a layer object for each."""
    kinds = None if config.model_type == "mistral" else getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None) or 0
    for number, layer in enumerate(layers):
        role, damping = vars(layer).get("restack_role"), vars(layer).get("restack_damping")
        owner, lends = number, False
        if role is not None:
            owner, lends = role.sharing.owners[number], number in role.sharing.lenders
        is_idle = damping is not None and damping.is_skipped
        makes_own = (owner == number or lends) and not is_idle
        yield VisitStructure(
            layer=layer,
            owner=owner,
            slot=number if makes_own else None,
            idle_slot=number if is_idle else None,
            window=0 if kinds and kinds[number] == "full_attention" else window,
            is_strictly_past=False,
            damp=1.0 if damping is None else damping.damp,
        )


def _is_known(model: Any) -> bool:
    """Whether all modules are of one family, or common ones, and do what their classes say."""
    homes = set()
    for module in model.modules():
        kind: Any = module.original if isinstance(module, Altered) else type(module)
        if any(each not in ALTERATIONS for each in alterations(module)):
            return False
        is_common = kind is PackedLinear or (
            kind.__name__ in COMMON
            and kind.__module__.startswith(("torch.nn.modules.", "transformers.activations"))
        )
        if not is_common:
            homes.add(kind.__module__)
            if kind.forward.__module__ not in (kind.__module__, "torch.nn.modules.module"):
                return False
    return any(homes <= family for family in FAMILIES)


def _is_plain(model: Any) -> bool:
    """Whether no hook sees or changes what goes on, but for those that record hidden states."""
    if torch_modules._global_forward_hooks or torch_modules._global_forward_pre_hooks:
        return False
    for module in model.modules():
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if "forward" in vars(module) or any(
            not (isinstance(hook, Hook) or hook is nothing) for hook in hooks
        ):
            return False
    return True


def _fits(model: Any, found: Structure) -> bool:
    """Whether numbers, shapes and places are such as the step takes."""
    tensors = [*model.parameters(), *model.buffers()]
    if model.training or found.dtype not in DTYPES or found.head is None:
        return False
    if any(tensor.device.type != "cpu" for tensor in tensors):
        return False
    if model.config._attn_implementation not in ATTENTIONS or found.config.hidden_act not in (
        "silu",
        "swish",
    ):
        return False
    if not runs_plans(model) and [layer.self_attn.layer_idx for layer in model.model.layers] != list(
        range(found.config.num_hidden_layers)
    ):
        return False
    roles: dict[str, set[Any]] = {"eps": {eps_of(found.norm)}}
    for visit in found.visits:
        attention, mlp = visit.layer.self_attn, visit.layer.mlp
        has_own = visit.slot is not None
        inputs = (attention.q_proj, *((attention.k_proj, attention.v_proj) if has_own else ()))
        for role, layers in (
            ("attention", inputs),
            ("o", (attention.o_proj,)),
            ("mlp", (mlp.gate_proj, mlp.up_proj)),
            ("down", (mlp.down_proj,)),
        ):
            roles.setdefault(role, set()).update(map(_format, layers))
        roles.setdefault("heads", set()).add(
            (attention.head_dim, attention.q_proj.out_features, attention.scaling)
        )
        norms = (visit.layer.input_layernorm, visit.layer.post_attention_layernorm)
        roles["eps"].update(map(eps_of, norms))
        if has_own:
            roles.setdefault("kv_heads", set()).add(attention.k_proj.out_features)
            roles["kv_heads"].add(attention.v_proj.out_features)
    formats = [*roles.values(), {_format(found.head)}]
    return all(len(each) == 1 for each in formats) and all(None not in each for each in formats)


def eps_of(norm: Any) -> float:
    """What a root mean square norm adds to the mean."""
    return float(norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps)


def _format(layer: Any) -> Any:
    """How the weights of a linear layer are stored; None where the step cannot read them."""
    if isinstance(layer, PackedLinear):
        return layer.bits, layer.in_features, layer.scales.shape[1:]
    weight = layer.weight
    fits = weight.dtype in DTYPES and weight.is_contiguous() and type(weight) in (nn.Parameter, torch.Tensor)
    return (weight.dtype, weight.shape[1]) if fits else None
