"""House models in folders, and their settings: there and back, and wrong ones."""

import copy
import json
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from restack.errors import ModelError, PlanError, RestackError
from restack.llama import RestackLlamaConfig, RestackLlamaForCausalLM
from tests.llama.plans_run import PLANS, house_of, logits
from tests.llama.tiny import SIZES


class TestSaving:
    @pytest.mark.parametrize(("name", "tied"), [(name, name == "yoco") for name in PLANS])
    def test_there_and_back(self, name, tied, tmp_path):
        house = house_of(name, tie_word_embeddings=tied, qk_norm=True)
        house.save_pretrained(tmp_path)
        stored = json.loads((tmp_path / "config.json").read_text())
        assert stored["model_type"] == "restack-llama"
        assert stored["plan"] == (None if name == "identity" else str(house.config.whole_plan))
        with safe_open(tmp_path / "model.safetensors", "pt") as file:
            held = set(file.keys())
        assert held == {name for name, _ in house.named_parameters()}  # which names what is shared once
        again, told = RestackLlamaForCausalLM.from_pretrained(
            tmp_path, attn_implementation="eager", output_loading_info=True
        )
        assert not any(told.values())
        assert again.config.whole_plan == house.config.whole_plan
        assert torch.equal(logits(again), logits(house))
        assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied
        half = RestackLlamaForCausalLM.from_pretrained(
            tmp_path, attn_implementation="eager", dtype=torch.bfloat16
        )
        assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
        angles = house.model.rotary_emb.inv_freq
        house = house.to(torch.bfloat16)
        assert torch.equal(half.model.rotary_emb.inv_freq, angles)
        house.model.rotary_emb.inv_freq = angles  # which `to` has rounded, of transformers' Llama too
        assert torch.equal(logits(half), logits(house))

    def test_in_shards(self, tmp_path):
        house = house_of("repeated and cyclic")
        house.save_pretrained(tmp_path, max_shard_size="20KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 2
        again = RestackLlamaForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
        assert torch.equal(logits(again), logits(house))


@st.composite
def any_plan(draw) -> dict:
    visits = draw(st.lists(st.integers(0, 5), min_size=1, max_size=9))
    damps = draw(st.lists(st.sampled_from(["", "@0.5", "@0", "@-1.25"]), min_size=len(visits), max_size=9))
    owners = draw(
        st.lists(
            st.tuples(st.integers(0, len(visits) - 1), st.booleans()),
            min_size=len(visits),
            max_size=len(visits),
        )
    )
    spec = ",".join(f"{layer}{damp}" for layer, damp in zip(visits, damps, strict=False))
    return {
        "plan": spec + ";kv=" + "_".join(f"{owner}{'s' * slides}" for owner, slides in owners),
        "sliding_window": draw(st.integers(2, 300)),
        "forward_passes": draw(st.integers(0, 50)),
        "backward_passes": draw(st.integers(1, 5)),
        "force_nodiag": draw(st.booleans()),
    }


@settings(max_examples=25, deadline=None)
@given(any_plan())
def test_a_config_there_and_back(tmp_path_factory, given_settings):
    made = RestackLlamaConfig(**SIZES | given_settings)
    folder = tmp_path_factory.mktemp("config")
    made.save_pretrained(folder)
    again = RestackLlamaConfig.from_pretrained(folder)
    assert again.whole_plan == made.whole_plan
    assert again.schedule == made.schedule
    assert again.to_dict() == made.to_dict()
    for other in (
        copy.deepcopy(made),
        pickle.loads(pickle.dumps(made)),
        RestackLlamaConfig(**made.to_dict()),
    ):
        assert other.to_dict() == made.to_dict() and other.schedule == made.schedule
    assert json.loads(made.to_json_string()) == json.loads(again.to_json_string())


WHOLE = [0, -4, "8", 2.0, True, [4]]
POSITIVE = (
    "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
    "head_dim", "max_position_embeddings",
)  # fmt: skip
SCALED = ("linear", "dynamic", "yarn", "llama3", "longrope")
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0}
WRONG = [
    ({"kv_map": "0_1_2"}, "ends after 3 of the plan's 6 visits"),
    ({"kv_map": "0_1_2_3_4_5_5"}, "more entries than the plan's 6 visits"),
    ({"kv_map": "0_1_2_3_4_6"}, "owner 6 is past the plan's 6 visits"),
    ({"kv_map": "0s_1_2_3_4_5"}, "visit 0 slides .* sliding_window is None"),
    ({"kv_map": 5}, "kv is 5"),
    ({"kv_map": "lckv-w9"}, "an even number below 6"),
    ({"plan": "all;kv=0_0_2_2_4_4", "kv_map": "cla2"}, "KV map of its own"),
    ({"plan": "0:9"}, "past the model's 6 layers"),
    ({"plan": "0/0:3,1/3:6"}, "donor 1 is past the plan's 1"),
    ({"plan": "0:5,5{o_proj:0.5}"}, "scale"),
    ({"num_key_value_heads": 3}, "num_attention_heads is 4, not a multiple of num_key_value_heads, .* 3"),
    ({"attention": "mqa"}, "num_key_value_heads is 2, and attention 'mqa' has 1"),
    ({"attention": "mha"}, "num_key_value_heads is 2, and attention 'mha' has 4"),
    ({"attention": "mla"}, "'mla' is no attention; the names are gqa, mha, mqa"),
    ({"attention": 3}, "'?3'? is no attention"),
    ({"rope_parameters": LINEAR | {"rope_type": "spiral"}}, "'spiral' is no rotary embedding; the names are"),
    ({"rope_parameters": "linear"}, "rope_parameters is 'linear'"),
    *[({"rope_parameters": LINEAR | {"rope_type": name}}, "factor") for name in SCALED],
    *[({"rope_parameters": LINEAR | {"factor": value}}, "factor is ") for value in (0, -1.0, "2")],
    *[({"rope_parameters": LINEAR | {"rope_theta": value}}, "rope_theta is ") for value in (0, "1e4")],
    ({"head_dim": 7}, "head_dim is 7; .* even"),
    ({"hidden_size": 36, "head_dim": None}, "head_dim is 9; .* even"),
    *[({"backward_passes": value}, "backward_passes is .* from 1") for value in (0, 1.5, "3", None, True)],
    *[({"forward_passes": value}, "forward_passes is .* from 0") for value in (-1, 1.5, "3", None, True)],
    *[({name: value}, f"{name} is .* from 1") for name in POSITIVE for value in WHOLE],
    *[({"num_hidden_layers": value}, "num_hidden_layers is .* from 1") for value in WHOLE],
    *[({"kv_map": "yoco", "sliding_window": value}, "sliding_window is .* from 2") for value in WHOLE],
    ({"layer_types": ["full_attention"] * 5}, "layer_types has 5 entries for 6 visits"),
    ({"layer_types": ["full_attention"] * 5 + ["chunked_attention"]}, "layer_types has 'chunked_attention'"),
    *[({"layer_types": value}, "layer_types (has|is) ") for value in (6, [1] * 6, [[1]] * 6)],
    ({"layer_types": ["sliding_attention"] * 6}, "sliding_window is None"),
    ({"hidden_act": "siluu"}, "hidden_act is 'siluu'"),
    *[({"rms_norm_eps": value}, "rms_norm_eps is ") for value in ("x", -1.0)],
    *[({"attention_dropout": value}, "attention_dropout is ") for value in ("a", 2.0)],
    ({"force_nodiag": "no"}, "force_nodiag is 'no'"),
    ({"pad_token_id": 99}, "pad_token_id is 99"),
]


@pytest.mark.parametrize(("given_settings", "told"), WRONG, ids=lambda value: str(value)[:60])
def test_wrong_settings(given_settings, told):
    with pytest.raises(RestackError, match=told) as caught:
        RestackLlamaForCausalLM(RestackLlamaConfig(**SIZES | given_settings))
    assert isinstance(caught.value, ModelError | PlanError)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 or lines[1].lstrip().startswith("^")  # or a place is pointed at


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("identity", {"plan": "0:9"}),
        ("identity", {"kv_map": "0s_1_2_3_4_5"}),
        ("lckv-w2", {"plan": "1,1"}),
        ("lckv-w2", {"forward_passes": -3}),
        ("lckv-w2", {"backward_passes": 0}),
    ],
    ids=str,
)
def test_settings_that_become_wrong(name, changed):
    """The config is read at every forward, so it is checked there."""
    house = house_of(name)
    with pytest.raises(RestackError):
        for key, value in changed.items():
            setattr(house.config, key, value)
        logits(house)
