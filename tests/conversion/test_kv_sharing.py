"""Models under a KV map, beside a reference by another hand that is given the projections by hand."""

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import restack  # noqa: F401  (tells transformers of restack-llama)
from restack.conversion import convert_kv
from restack.errors import ModelError, PlanError, UsageError
from tests.llama import meta_folders
from tests.llama.reference import token_by_token
from tests.llama.tiny import settings_of, weights_of
from tests.views.architectures import randomise

COMMON = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
MAPS = {
    "lckv-w2": "0_4_4_4_4_5",
    "cla2": "0_0_2_2_4_4",
    "sandwich-middle:3": "0_2_2_2_2_5",
    "0_1_5x4": "0_1_5_5_5_5",
}
PROMPT = torch.arange(3, 12)


def base(folder, kind="Llama", **changes):
    made = getattr(transformers, f"{kind}ForCausalLM")(
        getattr(transformers, f"{kind}Config")(**(COMMON | changes))
    ).eval()
    randomise(made)
    made.save_pretrained(folder)
    return made


def by_hand(weights, owners, init):
    """What the files hold: owners' keys and values, their own or the mean of their readers'."""
    found = {}
    for name, tensor in weights.items():
        parts = name.split(".")
        if len(parts) > 4 and parts[4] in ("k_proj", "v_proj", "k_norm"):
            layer = int(parts[2])
            readers = [reader for reader, owner in enumerate(owners) if owner == layer]
            if not readers:
                continue
            if init == "mean":
                read = [
                    weights[name.replace(f".{layer}.", f".{reader}.")].double().numpy() for reader in readers
                ]
                tensor = torch.from_numpy(np.mean(read, axis=0)).to(tensor.dtype)
        found[name] = tensor
    return found


@pytest.mark.parametrize("init", ["own", "mean"])
@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("kv_map", MAPS)
def test_tensors(kv_map, kind, init, tmp_path):
    made = base(tmp_path / "base", kind)
    convert_kv(str(tmp_path / "base"), kv_map, tmp_path / "out", init=init)
    expected = by_hand(made.state_dict(), [int(owner) for owner in MAPS[kv_map].split("_")], init)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=0, rtol=1e-7, msg=name)
    if kind == "Qwen2":
        assert any(name.endswith("k_proj.bias") for name in found)


@pytest.mark.parametrize("init", ["own", "mean"])
@pytest.mark.parametrize("kv_map", MAPS)
def test_what_it_computes(kv_map, init, tmp_path):
    made = base(tmp_path / "base")
    convert_kv(str(tmp_path / "base"), kv_map, tmp_path / "out", init=init)
    shared = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert shared.config.model_type == "restack-llama"
    assert shared.config.kv_map == MAPS[kv_map]
    owners = [int(owner) for owner in MAPS[kv_map].split("_")]
    weights = {name: tensor.double() for name, tensor in by_hand(made.state_dict(), owners, init).items()}
    expected = token_by_token(weights, settings_of(shared.config), PROMPT)
    shared.config.forward_passes = 20  # enough to be exact
    with torch.no_grad():
        found = shared.double()(PROMPT[None]).logits[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)  # norms are in float32
    assert len(weights_of(shared)) == len(weights)


def test_a_view_keeps_its_plan(tmp_path):
    """Layers are stored once, and the map is one of visits: the mean is over the layers that they run."""
    made = base(tmp_path / "base")
    convert_kv(f"{tmp_path / 'base'}@0:4,2:6", "0_1_2_2_2_2_6_7", tmp_path / "out", init="mean")
    shared = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert shared.config.num_hidden_layers == 6
    assert shared.config.whole_plan.order == (0, 1, 2, 3, 2, 3, 4, 5)
    name = "model.layers.{}.self_attn.v_proj.weight"
    read = [made.state_dict()[name.format(layer)].double() for layer in (2, 3, 2, 3)]
    torch.testing.assert_close(
        shared.state_dict()[name.format(2)].double(), sum(read) / 4, atol=1e-7, rtol=1e-6
    )
    assert name.format(3) not in shared.state_dict()
    with torch.no_grad():
        assert torch.isfinite(shared(PROMPT[None]).logits).all()


def test_a_folder_of_metas(tmp_path):
    values = meta_folders.params(n_layers=4)
    weights = meta_folders.random_weights(values)
    meta_folders.write(tmp_path / "meta", values, meta_folders.split(weights, 2))
    convert_kv(str(tmp_path / "meta"), "0_1_2_3", tmp_path / "out")
    same = AutoModelForCausalLM.from_pretrained(tmp_path / "out").double().eval()
    with torch.no_grad():
        found = same(PROMPT[None]).logits[0]
    torch.testing.assert_close(found, meta_folders.logits(values, weights, PROMPT), atol=1e-5, rtol=1e-5)


def test_tied_heads_stay_tied(tmp_path):
    base(tmp_path / "base", tie_word_embeddings=True)
    convert_kv(str(tmp_path / "base"), "cla2", tmp_path / "out")
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    shared = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert shared.lm_head.weight is shared.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("kind", "kv_map", "options", "error", "told"),
    [
        ("Llama", "0_1_2", {}, PlanError, "the map ends after 3 of the plan's 6 visits"),
        ("Llama", "0_1_2_3_4_5_6", {}, PlanError, "has 7 entries|more than|6 visits"),
        ("Llama", "lckv-w8", {}, PlanError, "write an even number below 6"),
        ("Llama", "cla2", {"init": "median"}, UsageError, "init is 'median'; write one of own, mean"),
        ("Llama", "yoco", {}, ModelError, "sliding"),
        ("Gemma2", "cla2", {}, ModelError, "restack-llama can be a model of llama, mistral, qwen2, qwen3"),
    ],
)
def test_refusals(kind, kv_map, options, error, told, tmp_path):
    base(tmp_path / "base", kind)
    with pytest.raises(error, match=told):
        convert_kv(str(tmp_path / "base"), kv_map, tmp_path / "out", **options)
    assert [place.name for place in tmp_path.iterdir()] == ["base"]


def test_a_mean_of_keys_that_are_gone(tmp_path):
    base(tmp_path / "base")
    convert_kv(str(tmp_path / "base"), "cla2", tmp_path / "shared")
    with pytest.raises(ModelError, match=r"has no model.layers.1.self_attn.k_proj.weight"):
        convert_kv(str(tmp_path / "shared"), "0_2x4_4", tmp_path / "out", init="mean")
    convert_kv(str(tmp_path / "shared"), "0_2x4_4", tmp_path / "out")
