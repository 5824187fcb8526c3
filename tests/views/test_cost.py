"""What `cost` says, beside the tensors and the cache of models that really run."""

import time

import pytest
import torch
import transformers

import restack
from restack.views.cost import cost
from tests.views.architectures import ARCHITECTURES, BY_NAME, COMMON, GPT

ORDER = [0, 1, 1, 3]
TOKENS = 6
GPT_LIKE = GPT | {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
OTHERS = {
    "falcon, every head": ("FalconConfig", GPT_LIKE | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "bigcode": ("GPTBigCodeConfig", GPT | {"multi_query": True, "n_embd": 32, "n_layer": 4, "n_head": 4}),
    "minimax": (
        "MiniMaxConfig",
        COMMON
        | {"num_local_experts": 4, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"] * 2},
    ),
    "gemma3n": (
        "Gemma3nTextConfig",
        COMMON
        | {
            "head_dim": 8,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 96,
            "activation_sparsity_pattern": [0.0] * 4,
            "laurel_rank": 4,
        },
    ),
    "mamba2": ("Mamba2Config", COMMON | {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8}),
    "rwkv": ("RwkvConfig", GPT | {"hidden_size": 32, "num_hidden_layers": 4}),
}


@torch.no_grad()
def cached_bytes_per_token(model) -> float:
    """Bytes of the keys and values that a model keeps of some tokens, for each of them."""
    output = model(torch.arange(3, 3 + TOKENS)[None], use_cache=True)
    layers = getattr(output.get("past_key_values"), "layers", ())
    kept = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
    return sum(tensor.nbytes for tensor in kept if tensor is not None) / TOKENS


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_equals_what_is_measured(architecture):
    base = architecture.model()
    count = len(base.get_submodule(architecture.layers))
    for order in (list(range(count)), ORDER):
        plan = restack.plan(order, count)
        said, own = cost(base, plan), restack.materialise(base, plan)
        assert said.kv_bytes_per_token == said.materialised_kv_bytes_per_token
        assert said.kv_bytes_per_token == cached_bytes_per_token(restack.view(base, plan))
        assert said.base_bytes == sum(tensor.nbytes for tensor in base.parameters())
        assert said.effective_parameters == sum(tensor.numel() for tensor in own.parameters())
        assert said.effective_bytes == sum(tensor.nbytes for tensor in own.parameters())
        unique = {id(tensor): tensor.numel() for tensor in restack.view(base, plan).parameters()}
        assert said.unique_parameters == sum(unique.values())


@pytest.mark.parametrize(("config", "settings"), OTHERS.values(), ids=OTHERS)
def test_the_cache_of_other_architectures(config, settings):
    config = getattr(transformers, config)(**settings)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    if any("kv_shared_layer_index" in vars(module) for module in model.modules()):
        pytest.skip("layers numbered as views do not know, in older versions of transformers")
    assert cost(model, restack.plan("all", 4)).kv_bytes_per_token == cached_bytes_per_token(model)


@pytest.mark.parametrize("name", ["llama", "jamba", "deepseek_v3"])
def test_of_a_view(name):
    base = BY_NAME[name].model()
    view = restack.view(base, ORDER)
    of_plan, of_view = cost(base, restack.plan(ORDER, 4)), cost(view, restack.plan("all", 4))
    assert of_view.effective_parameters == of_plan.effective_parameters
    assert of_view.effective_bytes == of_plan.effective_bytes
    assert of_view.kv_bytes_per_token == of_plan.kv_bytes_per_token
    assert of_view.base_parameters == of_view.unique_parameters == of_plan.unique_parameters
    once = cost(view, restack.plan([1, 2], 4))  # two visits of one layer
    assert once.unique_parameters == cost(base, restack.plan([1], 4)).unique_parameters


def test_of_a_large_model_that_is_not_loaded():
    config = transformers.LlamaConfig(num_hidden_layers=80, num_key_value_heads=8, dtype="bfloat16")
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    plan = restack.plan("0:60,20:", 80)
    start = time.process_time()
    said = cost(model, plan)
    assert time.process_time() - start < 0.3
    assert said.kv_bytes_per_token == 120 * 2 * 8 * 128 * model.lm_head.weight.element_size()


def test_a_quantised_model_that_is_not_loaded():
    """Its config makes a model whose weights are not quantised, and the sizes are of those."""
    settings = COMMON | {"dtype": torch.bfloat16}
    config = transformers.LlamaConfig(**settings, quantization_config={"quant_method": "awq", "bits": 4})
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    plan = restack.plan("all", 4)
    said = cost(model, plan)
    assert said.quantised == "awq"
    assert said.base_bytes == 2 * said.base_parameters
    assert cost(BY_NAME["llama"].model(), plan).quantised is None
    model.hf_quantizer = object()  # what from_pretrained leaves on a model with quantised weights
    assert cost(model, plan).quantised is None
