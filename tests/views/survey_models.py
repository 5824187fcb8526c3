"""A tiny random model of every decoder architecture of the installed transformers.

Most architectures name their sizes alike, so one table of small values by name (`SIZES`) makes most of them;
`OWN` has what an architecture needs beside, or otherwise.
"""

import inspect
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any

import transformers
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

from tests.views.architectures import randomise

DEPTH, VOCABULARY, WINDOW = 4, 96, 8


def _each(names: str, value: Any) -> dict[str, Any]:
    return dict.fromkeys(names.split(), value)


LAYERS = "num_hidden_layers n_layer n_layers num_layers num_blocks decoder_layers encoder_layers "
LAYERS += "num_decoder_layers num_encoder_layers"
HEADS = "num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads "
HEADS += "encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads "
HEADS += "swa_num_attention_heads"
SIZES = {
    "vocab_size": VOCABULARY,
    **_each(LAYERS, DEPTH),
    **_each(HEADS, 4),
    **_each("num_key_value_heads num_kv_heads swa_num_key_value_heads", 2),
    **_each("hidden_size n_embd d_model emb_dim embedding_size word_embed_proj_dim embedding_dim", 32),
    **_each("intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim ffn_hidden_size", 48),
    **_each("dff dim_ff d_inner", 48),
    **_each("head_dim swa_head_dim global_head_dim d_head dim_head v_head_dim kv_channels rotary_dim", 8),
    **_each("max_position_embeddings n_positions n_ctx max_seq_len context_length max_target_positions", 128),
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    **_each("sliding_window sliding_window_size local_attention attention_window_size window_size", WINDOW),
    **_each("attention_chunk_size", 32),
    # mixtures of experts
    **_each("num_experts n_routed_experts num_local_experts moe_num_experts", 4),
    **_each("num_experts_per_tok num_experts_per_token top_k_experts moe_topk moe_k", 2),
    **_each("moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size", 24),
    **_each("shared_intermediate_size moe_shared_expert_intermediate_size dense_intermediate_size", 24),
    **_each("intermediate_size_mlp shared_experts_intermediate_size moe_hidden_size", 24),
    **_each("n_group topk_group num_expert_group", 1),
    **_each("first_k_dense_replace num_dense_layers moe_layer_start_index", 0),
    # multi-head latent attention and its indexer
    **_each("q_lora_rank kv_lora_rank o_lora_rank", 16),
    **_each("qk_nope_head_dim qk_rope_head_dim", 8),
    "qk_head_dim": 16,
    "index_n_heads": 4, "index_head_dim": 16, "index_topk": 4,
    # state spaces, linear attention, convolutions
    **_each("mamba_d_state state_size ssm_state_size", 8),
    **_each("mamba_n_heads mamba_num_heads n_mamba_heads linear_num_heads linear_num_value_heads", 4),
    **_each("linear_num_key_heads", 2),
    **_each("mamba_d_head mamba_head_dim linear_head_dim linear_key_head_dim linear_value_head_dim", 16),
    **_each("mamba_chunk_size chunk_size", 8),
    **_each("mamba_n_groups n_groups", 1),
    **_each("mamba_dt_rank time_step_rank", 4),
}  # fmt: skip

# Settings with one entry a layer. Where there are several kinds of layer, tiny models have them in turn.
KINDS = (
    "layer_types", "mlp_layer_types", "layers_block_type", "attention_layers", "indexer_types",
    "no_rope_layers", "layer_rope_theta", "num_attention_heads_per_layer", "activation_sparsity_pattern",
)  # fmt: skip

MULTIMODAL_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
HALF_ROPE = MULTIMODAL_ROPE["rope_parameters"] | {"partial_rotary_factor": 0.5}
MIXED = ["sliding_attention", "full_attention"] * 2
GEMMA4 = {
    "layer_types": MIXED,
    "num_kv_shared_layers": 2,
    "per_layer_config": {1: {"head_dim": 16}, 3: {"head_dim": 16}},
}
ENCODER_FAMILY = (
    "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta "
    "roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl xmod"
)

# What an architecture needs beside, or otherwise; `...` takes a setting away.
OWN: dict[str, dict[str, Any]] = {
    **{name: {"is_decoder": True} for name in ENCODER_FAMILY.split()},
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {
        part: {
            "vocab_size": 260,
            "hidden_size": 32,
            "num_hidden_layers": DEPTH,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "max_position_embeddings": 128,
            "hidden_size_global": 32,
        }
        for part in ("patcher_config", "encoder_config", "decoder_config", "global_config")
    }
    | {"vocab_size": 260, "encoder_hash_byte_group_vocab": 64},
    "big_bird": {"is_decoder": True, "attention_type": "original_full"},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "cohere_compass_text": {
        "layer_types": MIXED,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]} for kind in MIXED
        },
    },
    "cosmos3_edge_text": MULTIMODAL_ROPE,
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": {"sliding_window": WINDOW, "per_layer_config": {}, "head_dim": 16},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16},
    "gemma3n_text": {
        "layer_types": MIXED,
        "vocab_size_per_layer_input": VOCABULARY,
        "laurel_rank": 4,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "activation_sparsity_pattern": [0.0, 0.5, 0.0, 0.5],
    },
    "gemma4_text": GEMMA4 | {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8},
    "gemma4_unified_text": GEMMA4,
    "git": {
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 16,
            "patch_size": 8,
        }
    },
    "glm5_next_text": {"index_kpool": 2, "qk_rope_head_dim": 0, "head_dim": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gpt2": {"scale_attn_by_inverse_layer_idx": True},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "hunyuan_vl_text": MULTIMODAL_ROPE,
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 3,
        "expert_layer_offset": 1,
    },
    "kyutai_speech_to_text": {"codebook_vocab_size": 33, "pad_token_id": 0, "audio_pad_token_id": 3},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "phi4_multimodal": {
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 28,
            "crop_size": 28,
        },
        "audio_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_blocks": 2,
            "num_attention_heads": 4,
            "ext_pw_out_channel": 32,
            "depthwise_separable_out_channel": 32,
            "nemo_conv_channels": 8,
        },
    },
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "mamba2": {"head_dim": 16},
    "mllama": {"cross_attention_layers": [1]},
    "moshi": {"audio_vocab_size": 32},
    "nemotron_h": {"num_hidden_layers": ..., "layers_block_type": ["mamba", "attention", "moe", "attention"]},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 16,
        "indexer_compress_ratio": 2,
        "hc_lowrank": 8,
    },
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "local", "local", "local"],
        "axial_pos_embds": False,
        "attention_head_size": 8,
        "local_attn_chunk_length": 4,
    },
    "roc_bert": {
        "is_decoder": True,
        "pronunciation_vocab_size": 8,
        "shape_vocab_size": 8,
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
    },
    "xlstm": {"hidden_size": 64, "embedding_dim": 64, "num_heads": 1, "qk_dim_factor": 1.0},
    "xmod": {"is_decoder": True, "default_language": "en_XX"},
    "zamba2": {"mamba_headdim": 16},
    "zaya": {"num_experts_per_tok": 1},
    "qwen2_5_vl_text": MULTIMODAL_ROPE,
    "qwen2_vl_text": MULTIMODAL_ROPE,
    **{
        name: {"head_dim": 16, "rope_parameters": HALF_ROPE}
        for name in ("glm4v_text", "glm_image_text", "glm_ocr_text", "glm4v_moe_text")
    },
}

# The decoder's own config, where a composite's is registered instead.
TEXT_CONFIGS = {"emu3": "Emu3TextConfig", "mllama": "MllamaTextConfig"}
# No decoders of tokens by themselves.
NO_DECODERS: dict[str, str] = {
    "embedding_gemma2_text": "an encoder",
    "sam3_lite_text": "an encoder",
    "speech_to_text": "an encoder-decoder of sounds",
    "kyutai_speech_to_text": "reads a frame of sound with each token",
    "voxtral_realtime_text": "conditioned on sound, and not public",
    "musicgen": "decodes streams of sound, by a `generate` of its own",
    "musicgen_melody": "decodes streams of sound, by a `generate` of its own",
    "gemma4_assistant": "a draft head that reads the keys and values of another model",
    "gemma4_unified_assistant": "a draft head that reads the keys and values of another model",
}


def decoders() -> list[str]:
    """The model types of all decoders: causal language models, and text models of composites.

    A composite is not listed beside its text model.
    """
    texts = [name for name in MODEL_MAPPING_NAMES if name.endswith("_text")]
    return sorted({*texts, *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} - {*_composites(), *NO_DECODERS})


def _composites() -> Iterator[str]:
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        parts = getattr(config_class(name), "sub_configs", {}) | getattr(
            config_class(name), "sub_configs_defaults", {}
        )
        if "text_config" in parts and name not in TEXT_CONFIGS:
            yield name


def config_class(model_type: str) -> Any:
    if model_type in TEXT_CONFIGS:
        module = import_module(f"transformers.models.{model_type}.configuration_{model_type}")
        return getattr(module, TEXT_CONFIGS[model_type])
    return transformers.CONFIG_MAPPING[model_type]


def settings(model_type: str) -> dict[str, Any]:
    """What the constructor of the tiny model's config is given."""
    names = inspect.signature(config_class(model_type)).parameters
    sizes = {name: value for name, value in SIZES.items() if name in names}
    if "kv_lora_rank" in names and "num_key_value_heads" in names:
        sizes["num_key_value_heads"] = 4
    sizes |= {name: kinds for name, kinds in _kinds(model_type).items() if name in names}
    own = OWN.get(model_type, {})
    return {name: value for name, value in (sizes | own).items() if value is not ...}


@cache
def _kinds(model_type: str) -> dict[str, list[Any]]:
    try:
        usual = config_class(model_type)()
    except Exception:
        return {}
    kinds = {}
    for name in KINDS:
        value = getattr(usual, name, None)
        if isinstance(value, list | tuple) and len(value) == usual.num_hidden_layers:
            there = list(dict.fromkeys(value))
            kinds[name] = [there[layer % len(there)] for layer in range(DEPTH)]
    return kinds


def tiny(model_type: str) -> nn.Module:
    """The base: a random model of four layers that clearly differ."""
    model = constructed(model_type, config_class(model_type)(**settings(model_type)))
    randomise(model)
    return model


def constructed(model_type: str, config: Any) -> nn.Module:
    """The model that its own constructor builds, in eager attention, with tokens enough to generate."""
    config._attn_implementation = "eager"
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    name = causal or MODEL_MAPPING_NAMES[model_type]
    model = getattr(transformers, name if isinstance(name, str) else name[0])(config)
    return model.eval()
