"""Tiny random models of many architectures, and their twins: what a view must equal.

A twin is built by the architecture's own constructor, from a config that this file writes for the new order,
and gets copies of the base's weights by name. Nothing here comes from Restack.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import nn

WINDOW = 8
VOCABULARY = 96
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SLIDING_FULL = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
ConfigOf = Callable[["Architecture", Sequence[int]], Any]


def by_lists(architecture: "Architecture", order: Sequence[int]) -> Any:
    """The config of most architectures: the depth, and the lists that the constructor takes."""
    settings = dict(architecture.settings)
    for name in architecture.lists:
        settings[name] = [settings[name][layer] for layer in order]
    settings[architecture.depth] = len(order)
    return architecture.config_class(**settings)


def by_attention_indices(architecture: "Architecture", order: Sequence[int]) -> Any:
    """Bamba: the layers that attend are listed."""
    attends = architecture.settings["attn_layer_indices"]
    listed = [visit for visit, layer in enumerate(order) if layer in attends]
    settings = architecture.settings | {"attn_layer_indices": listed, "num_hidden_layers": len(order)}
    return architecture.config_class(**settings)


def by_period(architecture: "Architecture", order: Sequence[int]) -> Any:
    """Jamba: which layers attend or have experts follows from their number, so the rule is overridden."""

    class Reordered(architecture.config_class):  # type: ignore[misc,name-defined]
        @property
        def layers_block_type(self) -> list[str]:
            period, offset = self.attn_layer_period, self.attn_layer_offset
            return ["attention" if layer % period == offset else "mamba" for layer in order]

        @property
        def layers_num_experts(self) -> list[int]:
            period, offset = self.expert_layer_period, self.expert_layer_offset
            return [self.num_experts if layer % period == offset else 1 for layer in order]

    return Reordered(**(architecture.settings | {"num_hidden_layers": len(order)}))


def by_dense_layers(architecture: "Architecture", order: Sequence[int]) -> Any:
    """Qwen2-MoE: every n-th layer has experts, in the base; in the twin the layers without are listed."""
    step = architecture.settings["decoder_sparse_step"]
    dense = [visit for visit, layer in enumerate(order) if (layer + 1) % step]
    settings = {"decoder_sparse_step": 1, "mlp_only_layers": dense, "num_hidden_layers": len(order)}
    return architecture.config_class(**(architecture.settings | settings))


@dataclass(frozen=True)
class Architecture:
    """How to build a tiny model of an architecture, and its twin in another order of layers."""

    name: str
    config: str  # the class, in transformers
    own: dict[str, Any] = field(default_factory=dict)  # settings beside the common ones
    lists: tuple[str, ...] = ()  # the settings with one entry a layer
    depth: str = "num_hidden_layers"
    layers: str = "model.layers"
    config_of: ConfigOf = by_lists
    saved: bool = True  # whether a config can say any order of its layers
    common: dict[str, Any] = field(default_factory=lambda: COMMON)

    @property
    def config_class(self) -> Any:
        return getattr(transformers, self.config)

    @property
    def settings(self) -> dict[str, Any]:
        return self.common | self.own

    def model(self, seed: int = 0, **settings: Any) -> nn.Module:
        """A random model whose layers clearly differ; `settings` override the architecture's."""
        model = _constructed(self.config_class(**(self.settings | settings)))
        randomise(model, seed)
        return model

    def twin(self, base: nn.Module, order: Sequence[int]) -> nn.Module:
        """What `base` becomes in this order, by the constructor and copied weights."""
        twin = _constructed(self.config_of(self, order), base.config._attn_implementation)
        copy_weights(base, twin, self.layers, order)
        return twin


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Weights by which layers clearly differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(0.2 * noise)
            else:
                parameter.add_(0.1 * noise)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):  # of an MoE's router: learnt, but no parameter
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))


def copy_weights(
    base: nn.Module,
    twin: nn.Module,
    layers: str,
    order: Sequence[int],
    packed: Mapping[str, int] | None = None,
) -> None:
    """Copy the base's weights by name: those of twin layer i are those of base layer order[i].

    `packed`: of weights outside the layers that have a part for each, {end of the name: axis of the parts}.
    """
    source = base.state_dict()
    numbered = re.compile(rf"({re.escape(layers)}\.)(\d+)(\..*)")

    def name_in_base(name: str) -> str:
        match = numbered.fullmatch(name)
        return name if match is None else f"{match[1]}{order[int(match[2])]}{match[3]}"

    copied = {name: source[name_in_base(name)].clone() for name in twin.state_dict()}
    for name in copied:
        for end, axis in (packed or {}).items():
            if name.endswith(end):
                parts = source[name].chunk(len(base.get_submodule(layers)), dim=axis)
                copied[name] = torch.cat([parts[layer] for layer in order], dim=axis)
    twin.load_state_dict(copied, strict=True)


def _constructed(config: Any, attention: str = "eager") -> nn.Module:
    config._attn_implementation = attention
    for base in type(config).__mro__:  # a config class of this file stands for its parent
        if base in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
            model = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[base](config)
            break
    model.generation_config.eos_token_id = None  # generate all tokens asked for
    return model.eval()


GPT = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}

ARCHITECTURES = [
    Architecture("llama", "LlamaConfig"),
    Architecture("mistral", "MistralConfig", {"sliding_window": WINDOW}),
    Architecture(
        "qwen2",
        "Qwen2Config",
        {"layer_types": SLIDING_FULL, "use_sliding_window": True, "sliding_window": WINDOW},
        lists=("layer_types",),
    ),
    Architecture("qwen3", "Qwen3Config", {"head_dim": 8}),
    Architecture(
        "gemma2",
        "Gemma2Config",
        {"layer_types": SLIDING_FULL, "sliding_window": WINDOW, "head_dim": 8, "query_pre_attn_scalar": 8},
        lists=("layer_types",),
    ),
    Architecture(
        "gemma3",
        "Gemma3TextConfig",
        {"layer_types": SLIDING_FULL, "sliding_window": WINDOW, "head_dim": 8, "query_pre_attn_scalar": 8},
        lists=("layer_types",),
    ),
    Architecture(
        "gpt2",
        "GPT2Config",
        {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128},
        depth="n_layer",
        layers="transformer.h",
        common=GPT,
    ),
    Architecture("gpt_neox", "GPTNeoXConfig", {"num_key_value_heads": 4}, layers="gpt_neox.layers"),
    Architecture("phi", "PhiConfig"),
    Architecture("mixtral", "MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    Architecture(
        "qwen3_moe", "Qwen3MoeConfig", MOE | {"num_experts": 4, "head_dim": 8, "decoder_sparse_step": 1}
    ),
    Architecture(
        "lfm2",
        "Lfm2Config",
        {
            "layer_types": ["conv", "full_attention", "conv", "full_attention"],
            "block_auto_adjust_ff_dim": False,
        },
        lists=("layer_types",),
    ),
    Architecture(
        "jamba",
        "JambaConfig",
        {
            "attn_layer_period": 3,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 4,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
        },
        config_of=by_period,
        saved=False,
    ),
    Architecture(
        "bamba",
        "BambaConfig",
        {
            "attn_layer_indices": [1, 3],
            "mamba_n_heads": 4,
            "mamba_d_state": 8,
            "mamba_chunk_size": 8,
            "mamba_n_groups": 1,
        },
        config_of=by_attention_indices,
    ),
    Architecture(
        "deepseek_v3",
        "DeepseekV3Config",
        MOE
        | {
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 12,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 0,
        },
    ),
    Architecture(
        "falcon",
        "FalconConfig",
        {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "multi_query": True},
        layers="transformer.h",
        common=GPT,
    ),
    Architecture(
        "qwen2_moe",
        "Qwen2MoeConfig",
        MOE | {"num_experts": 4, "shared_expert_intermediate_size": 24, "decoder_sparse_step": 2},
        config_of=by_dense_layers,
        saved=False,
    ),
    Architecture(
        "mamba",
        "MambaConfig",
        {"hidden_size": 32, "num_hidden_layers": 4, "state_size": 8, "time_step_rank": 4},
        layers="backbone.layers",
        common=GPT,
    ),
]
BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
LLAMA = BY_NAME["llama"]
