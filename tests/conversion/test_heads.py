"""Pooled heads: the projections worked out by hand, and transformers alone loading what was written."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import restack
from restack.conversion import convert_heads, pooled
from restack.errors import ModelError, UsageError
from tests.views.architectures import randomise

HEADS, SIZE, WIDTH = 8, 4, 32
COMMON = {
    "vocab_size": 64,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PROMPT = torch.arange(3, 17)[None]
FAMILIES = {
    "Llama": {"attention_bias": True},
    "Mistral": {"sliding_window": 6},
    "Qwen2": {},
    "Qwen3": {"head_dim": SIZE},
    "Gemma2": {"head_dim": SIZE},
    "Mixtral": {},
    "Phi": {},
    "StableLm": {"use_qkv_bias": True},
    "Starcoder2": {},
    "Cohere": {},
}


def model(kind="Llama", **changes):
    made = getattr(transformers, f"{kind}Config")(**(COMMON | changes))
    result = getattr(transformers, f"{kind}ForCausalLM")(made).eval()
    randomise(result)
    return result


@pytest.fixture
def folder(tmp_path):
    model(attention_bias=True).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def by_hand(tensor, kv_heads, how):
    """What a projection (heads * hs, ...) becomes, a head at a time."""
    heads = np.split(tensor.double().numpy(), tensor.shape[0] // SIZE)
    size = len(heads) // kv_heads
    groups = [heads[start : start + size] for start in range(0, len(heads), size)]
    kept = [sum(group) / size if how == "mean" else group[0] for group in groups]
    return torch.from_numpy(np.concatenate(kept)).to(tensor.dtype)


def logits(made):
    with torch.no_grad():
        return made(PROMPT).logits


@pytest.mark.parametrize("how", ["mean", "first"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_weights_and_biases(folder, tmp_path, kv_heads, how):
    convert_heads(str(folder), kv_heads, tmp_path / "out", pool=how)
    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "out"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        is_pooled = "k_proj" in name or "v_proj" in name
        expected = by_hand(tensor, kv_heads, how) if is_pooled else tensor
        assert torch.equal(after[name], expected), name
    assert any(name.endswith("k_proj.bias") for name in after)


@pytest.mark.parametrize("kind", FAMILIES)
def test_transformers_own_model_with_these_weights(kind, tmp_path):
    """Built by its constructor with fewer heads, and given tensors by hand."""
    base = model(kind, **FAMILIES[kind])
    base.save_pretrained(tmp_path / "base")
    convert_heads(str(tmp_path / "base"), 2, tmp_path / "out")
    twin = model(kind, **(FAMILIES[kind] | {"num_key_value_heads": 2}))
    assert any(tensor.shape != base.state_dict()[name].shape for name, tensor in twin.state_dict().items())
    twin.load_state_dict(
        {
            name: tensor if tensor.shape == twin.state_dict()[name].shape else by_hand(tensor, 2, "mean")
            for name, tensor in base.state_dict().items()
        }
    )
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(loaded) is type(base)
    assert torch.equal(logits(loaded), logits(twin))
    assert torch.equal(logits(pooled(base, 2)), logits(twin))


def test_as_many_heads_change_nothing(folder, tmp_path):
    convert_heads(str(folder), HEADS, tmp_path / "out")
    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "out"))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("how", ["mean", "first"])
@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3", "Gemma2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_heads_convert_exactly(kind, how, dtype):
    """Of a group of three, whose sum is rounded in the weights' own dtype."""
    sizes = {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 6}
    made = model(kind, **(FAMILIES[kind] | sizes))
    for name, tensor in made.state_dict().items():
        if "k_proj" in name or "v_proj" in name:
            heads = tensor.unflatten(0, (2, 3, SIZE))  # (groups, size, hs, ...), of one memory
            heads[:, 1:] = heads[:, :1].clone()
    made.to(dtype)
    fewer = pooled(made, 2, pool=how)
    for name, tensor in fewer.state_dict().items():
        if "k_proj" in name or "v_proj" in name:
            first = made.state_dict()[name].unflatten(0, (2, 3, SIZE))[:, 0].flatten(0, 1)
            assert torch.equal(tensor, first)
    torch.testing.assert_close(logits(fewer), logits(made))


def test_pooling_commutes_with_rotation():
    """The mean of rotated keys is the rotated mean: pooling projections pools what attention sees."""
    made = model()
    fewer = pooled(made, 2)
    h = torch.randn(1, 9, WIDTH)
    turn = made.model.rotary_emb(h, torch.arange(9)[None])

    def keys(of):
        k = of.model.layers[0].self_attn.k_proj(h).view(1, 9, -1, SIZE).transpose(1, 2)
        return apply_rotary_pos_emb(k, k, *turn)[1]  # (1, heads, 9, SIZE)

    torch.testing.assert_close(keys(fewer), keys(made).unflatten(1, (2, -1)).mean(2))


def test_grouped_models_are_regrouped():
    made = model(num_key_value_heads=4)
    fewer = pooled(made, 2)
    name = "model.layers.1.self_attn.v_proj.weight"
    assert torch.equal(fewer.state_dict()[name], by_hand(made.state_dict()[name], 2, "mean"))
    fewer.generate(PROMPT, max_new_tokens=3, do_sample=False)


def test_random_heads_are_new_seeded_and_the_same_in_any_order(folder, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        convert_heads(str(folder), 2, tmp_path / name, pool="random", seed=seed)
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    weights = [name for name in a if name.endswith(("k_proj.weight", "v_proj.weight"))]
    assert all(torch.equal(a[name], b[name]) and not torch.equal(a[name], c[name]) for name in weights)
    assert len({a[name].sum().item() for name in weights}) == len(weights) == 4
    spread = torch.cat([a[name].flatten() for name in weights]).std().item()
    assert spread == pytest.approx(0.02, rel=0.15)  # the config's initializer_range
    assert not a["model.layers.0.self_attn.k_proj.bias"].any()
    in_memory = pooled(restack.open(str(folder)), 2, pool="random").state_dict()
    assert all(torch.equal(in_memory[name], a[name]) for name in weights)


def test_transformers_alone_loads_it(folder, tmp_path):
    convert_heads(str(folder), 2, tmp_path / "out")
    check = (
        "import sys; from transformers import AutoModelForCausalLM as A; "
        f"m = A.from_pretrained({str(tmp_path / 'out')!r}); "
        "assert 'restack' not in sys.modules; print(type(m).__name__, m.config.num_key_value_heads)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=120)
    assert done.stdout == "LlamaForCausalLM 2\n", done.stderr


def test_the_base_is_left_alone():
    made = model()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    fewer = pooled(made, 1)
    with torch.no_grad():
        for parameter in fewer.parameters():
            parameter.zero_()
    assert made.config.num_key_value_heads == HEADS
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())


def test_shards_say_the_same(folder, tmp_path):
    convert_heads(str(folder), 2, tmp_path / "one")
    convert_heads(str(folder), 2, tmp_path / "many", largest=5000)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    one, many = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("one", "many")
    )
    assert all(torch.equal(many[name], tensor) for name, tensor in one.items())


def test_files_that_name_tensors_otherwise(tmp_path):
    """Of the decoder without its head: then the whole model is loaded."""
    base = model()
    base.model.save_pretrained(tmp_path / "base")
    settings = transformers.LlamaConfig.from_pretrained(tmp_path / "base")
    settings.tie_word_embeddings = True
    settings.save_pretrained(tmp_path / "base")
    convert_heads(str(tmp_path / "base"), 2, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    name = "model.layers.1.self_attn.k_proj.weight"
    assert torch.equal(loaded.state_dict()[name], by_hand(base.state_dict()[name], 2, "mean"))


@pytest.mark.parametrize(
    ("made", "kv_heads", "options", "error", "told"),
    [
        (model, 3, {}, UsageError, "3 groups do not divide 8 key and value heads; write one of 1, 2, 4, 8"),
        (model, 16, {}, UsageError, "16 groups do not divide"),
        (model, 2, {"pool": "median"}, UsageError, "pool is 'median'; write one of mean, first, random"),
        (lambda: model("Phi3"), 2, {}, ModelError, "qkv_proj.weight of Phi3ForCausalLM changes"),
        (
            lambda: model("Olmo2"),
            2,
            {},
            ModelError,
            "a norm over all heads at once is another one over fewer",
        ),
        (
            lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4)),
            2,
            {},
            ModelError,
            "GPT2LMHeadModel has no num_key_value_heads",
        ),
        (lambda: restack.view(model(), "0,1,1"), 2, {}, ModelError, "is a view"),
    ],
)
def test_refusals(made, kv_heads, options, error, told):
    with pytest.raises(error, match=told):
        pooled(made(), kv_heads, **options)


def test_views_are_refused(folder, tmp_path):
    with pytest.raises(UsageError, match="is a view; make it a checkpoint first: restack convert full"):
        convert_heads(f"{folder}@0,1,1", 2, tmp_path / "out")
    assert not (tmp_path / "out").exists()
