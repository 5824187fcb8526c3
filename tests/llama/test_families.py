"""Llama, Mistral, Qwen2 and Qwen3 beside transformers' own classes, from the folders that those write."""

import pytest
import torch
import transformers

from restack import ModelError
from restack.llama import RestackLlamaConfig, RestackLlamaForCausalLM
from restack.llama.families import relative
from tests.llama.tiny import SIZES, tokens

SCALED = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8,
    },
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "short_factor": [1.0, 1.5, 2.0, 2.5],
        "long_factor": [2.0, 3.0, 4.0, 5.0],
        "original_max_position_embeddings": 8,
    },
}
FAMILIES = {
    "llama": ("Llama", {}),
    "llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    "llama, tied": ("Llama", {"tie_word_embeddings": True, "hidden_act": "gelu"}),
    "mha": ("Llama", {"num_key_value_heads": 4}),
    "mqa": ("Llama", {"num_key_value_heads": 1}),
    "mistral": ("Mistral", {"sliding_window": 5}),
    "mistral without a window": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen2 with windows": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    ),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3 with biases": ("Qwen3", {"attention_bias": True, "head_dim": 8}),
    **{
        name: ("Llama", {"rope_parameters": rope, "max_position_embeddings": 8})
        for name, rope in SCALED.items()
    },
    **{
        f"scalable gqa, {name}": ("Llama", {"rope_parameters": SCALED[name], "num_key_value_heads": 2})
        for name in ("linear", "dynamic")
    },
}


def theirs(name, folder):
    """transformers' model with random weights, norms and biases too, and the folder that it is saved in."""
    family, settings = FAMILIES[name]
    given = {**SIZES, "initializer_range": 0.2, **settings}
    torch.manual_seed(0)
    result = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**given))
    with torch.no_grad():
        for parameter in result.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    result.eval().save_pretrained(folder)
    return result


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_the_familys_own_class(name, attention, tmp_path):
    """Bitwise: the operations are the same. Texts are longer than windows and than unscaled rotaries."""
    their = theirs(name, tmp_path)
    their.set_attn_implementation(attention)
    ours = RestackLlamaForCausalLM.from_pretrained(tmp_path, attn_implementation=attention)
    rows = tokens(17, batch=2)
    mask = torch.ones_like(rows)
    mask[1, :4] = 0
    with torch.no_grad():
        assert torch.equal(ours(rows).logits, their(rows).logits)
        assert torch.equal(
            ours(rows, attention_mask=mask).logits[1, 4:], their(rows, attention_mask=mask).logits[1, 4:]
        )


@pytest.mark.parametrize("name", [name for name in FAMILIES if "windows" not in name and name != "mistral"])
def test_a_config_is_said_as_a_relatives_again(name, tmp_path):
    their = theirs(name, tmp_path)
    said = relative(RestackLlamaConfig.from_pretrained(tmp_path))
    made = getattr(transformers, said.architectures[0])(said).eval()
    made.load_state_dict(their.state_dict())
    with torch.no_grad():
        assert torch.equal(made(tokens(17)).logits, their(tokens(17)).logits)


@pytest.mark.parametrize(
    "settings",
    [
        {"attention_bias": True, "attention_out_bias": False, "mlp_bias": True},
        {"attention_bias": False, "attention_out_bias": True},
        {"qk_norm": True, "attention_bias": True, "attention_out_bias": False},
        {"qk_norm": True, "mlp_bias": True},
    ],
)
def test_a_config_that_no_relative_has(settings):
    with pytest.raises(ModelError, match="no relative of Llama has biases, and norms"):
        relative(RestackLlamaConfig(**SIZES, **settings))


@pytest.mark.parametrize(
    "name", [name for name in FAMILIES if "dynamic" not in name and "longrope" not in name]
)
def test_generation_is_that_of_the_familys_own_class(name, tmp_path):
    their = theirs(name, tmp_path)
    ours = RestackLlamaForCausalLM.from_pretrained(tmp_path)
    options = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0}
    for cache in ("dynamic", "static"):
        found, expected = (
            each.generate(tokens(5, batch=2), cache_implementation=cache, **options) for each in (ours, their)
        )
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2 with windows", "qwen3"])
def test_a_plan_over_a_family_keeps_what_slides(name, tmp_path):
    """Against the same class with more layers, built by its constructor, its weights copied by name."""
    order = [0, 1, 2, 3, 1, 2, 3, 4, 5]
    their = theirs(name, tmp_path)
    config = their.config.to_dict() | {"num_hidden_layers": len(order)}
    if config.get("layer_types"):
        config["layer_types"] = [their.config.layer_types[layer] for layer in order]
    twin = type(their)(type(their.config).from_dict(config)).eval()
    state = their.state_dict()
    for layer, parameter in twin.state_dict().items():
        parts = layer.split(".")
        if parts[1] == "layers":
            parts[2] = str(order[int(parts[2])])
        parameter.copy_(state[".".join(parts)])
    ours = RestackLlamaForCausalLM.from_pretrained(tmp_path, plan="0:4,1:6")
    with torch.no_grad():
        assert torch.equal(ours(tokens(17)).logits, twin(tokens(17)).logits)


def test_a_kv_map_on_top_of_a_family(tmp_path):
    their = theirs("llama", tmp_path)
    ours = RestackLlamaForCausalLM.from_pretrained(tmp_path, kv_map="cla2")
    assert ours.config.kv_map == "0_0_2_2_4_4"
    assert not hasattr(ours.model.layers[1].self_attn, "k_proj")
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, their.state_dict()[name])
    again = RestackLlamaForCausalLM.from_pretrained(tmp_path, plan="0:2,1:6", kv_map="lckv-w2")
    assert again.config.kv_map == "0_5_5_5_5_5_6"


def test_a_named_map_leaves_windows_as_they_are(tmp_path):
    theirs("mistral", tmp_path)
    assert (
        RestackLlamaForCausalLM.from_pretrained(tmp_path, kv_map="cla2").config.kv_map == "0s_0s_2s_2s_4s_4s"
    )
    literal = RestackLlamaForCausalLM.from_pretrained(tmp_path, kv_map="0_0_2_2_4_4")
    assert literal.config.kv_map == "0_0_2_2_4_4"


def test_other_families_are_refused(tmp_path):
    config = transformers.GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=50)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(
        ModelError, match="model_type is 'gpt2'; restack-llama can be a model of llama, mistral"
    ):
        RestackLlamaForCausalLM.from_pretrained(tmp_path)
