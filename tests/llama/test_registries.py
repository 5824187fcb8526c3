"""Attentions and rotary embeddings by name: X-Llama's own, transformers', and a user's."""

import pytest
import torch
import transformers

from restack import ModelError
from restack.llama import (
    LLAMA_ATTENTIONS_CLASSES,
    LLAMA_ROTARY_EMBEDDINGS_CLASSES,
    LlamaAttention,
    RestackLlamaConfig,
    RestackLlamaForCausalLM,
    RotaryEmbedding,
    register_attention,
    register_rotary,
)
from tests.llama.tiny import SIZES, tokens


@pytest.mark.parametrize(
    ("name", "kv_heads", "expected"),
    [("mha", None, 4), ("MHA", 4, 4), ("gqa", 2, 2), ("GQA", 4, 4), ("mqa", None, 1), ("Mqa", 1, 1)],
)
def test_attentions_by_name(name, kv_heads, expected):
    assert LLAMA_ATTENTIONS_CLASSES[name] is LlamaAttention and name in LLAMA_ATTENTIONS_CLASSES
    made = RestackLlamaConfig(**{**SIZES, "attention": name, "num_key_value_heads": kv_heads})
    assert made.num_key_value_heads == expected
    house = RestackLlamaForCausalLM(made)
    assert house.model.layers[0].self_attn.k_proj.out_features == 8 * expected


@pytest.mark.parametrize("name", ["rotary", "linear", "dynamic", "yarn", "longrope", "llama3", "Linear"])
def test_rotary_embeddings_by_name(name):
    assert issubclass(LLAMA_ROTARY_EMBEDDINGS_CLASSES[name], RotaryEmbedding)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"attention": "mqa", "num_key_value_heads": 2},
            "num_key_value_heads is 2, and attention 'mqa' has 1",
        ),
        (
            {"attention": "MHA", "num_key_value_heads": 2},
            "num_key_value_heads is 2, and attention 'mha' has 4",
        ),
        ({"num_key_value_heads": 3}, "num_attention_heads is 4, not a multiple of num_key_value_heads"),
    ],
)
def test_heads_that_do_not_go_with_the_attention_are_refused(settings, told):
    with pytest.raises(ModelError, match=told):
        RestackLlamaConfig(**{**SIZES, **settings})


def test_unknown_names_are_refused():
    with pytest.raises(ModelError, match="'linear attention' is no attention; the names are gqa, mha, mqa"):
        RestackLlamaForCausalLM(RestackLlamaConfig(**SIZES, attention="linear attention"))
    with pytest.raises(ModelError, match=r"'alibi' is no rotary embedding; the names are .*dynamic.*yarn"):
        RestackLlamaForCausalLM(RestackLlamaConfig(**SIZES, rope_parameters={"rope_type": "alibi"}))
    with pytest.raises(ModelError, match="is no class"):
        register_attention("mine", lambda config: None)


@pytest.fixture
def registries():
    """As they were, afterwards."""
    before = dict(LLAMA_ATTENTIONS_CLASSES), dict(LLAMA_ROTARY_EMBEDDINGS_CLASSES)
    yield
    for registry, classes in zip(
        (LLAMA_ATTENTIONS_CLASSES, LLAMA_ROTARY_EMBEDDINGS_CLASSES), before, strict=True
    ):
        registry.data.clear()
        registry.data.update(classes)


def test_an_attention_of_ones_own(registries, tmp_path):
    class Halved(LlamaAttention):
        def attend(self, q, k, v, sight, **kwargs):
            heads, weights = super().attend(q, k, v, sight, **kwargs)
            return heads / 2, weights

    register_attention("Halved", Halved)
    torch.manual_seed(0)
    ours = RestackLlamaForCausalLM(RestackLlamaConfig(**SIZES, attention="halved")).eval()
    plain = RestackLlamaForCausalLM(RestackLlamaConfig(**SIZES)).eval()
    plain.load_state_dict(ours.state_dict())
    with torch.no_grad():
        for layer in plain.model.layers:
            layer.self_attn.o_proj.weight.div_(2)
        assert torch.allclose(ours(tokens()).logits, plain(tokens()).logits, atol=1e-6)
    ours.save_pretrained(tmp_path)
    again = RestackLlamaForCausalLM.from_pretrained(tmp_path)
    assert isinstance(again.model.layers[0].self_attn, Halved)


def test_a_rotary_embedding_of_ones_own(registries):
    class Still(RotaryEmbedding):
        def frequencies(self):
            frequencies, scaling = super().frequencies()
            return frequencies * 0, scaling

    register_rotary("still", Still)
    torch.manual_seed(0)
    house = RestackLlamaForCausalLM(
        RestackLlamaConfig(**SIZES, rope_parameters={"rope_type": "STILL"})
    ).eval()
    row = tokens()
    with torch.no_grad():
        positions = torch.randint(9, row.shape)  # without a turn, positions mean nothing
        mask = torch.ones_like(row)
        ours = house(row, position_ids=positions, attention_mask=mask).logits
        assert torch.allclose(ours, house(row).logits, atol=1e-6)


def test_the_trap_of_dynamic_ntk():
    """Past the limit, what is decoded is not what a forward over the whole text gives: keys keep their base.

    transformers' Llama has it too. The types whose base does not move have it not.
    """
    row = tokens(24)
    for kind, is_trapped in (("dynamic", True), ("linear", False), ("rotary", False)):
        rope = {"rope_type": kind, **({"factor": 4.0} if kind != "rotary" else {})}
        settings = {**SIZES, "max_position_embeddings": 8, "initializer_range": 0.3}
        torch.manual_seed(0)
        ours = RestackLlamaForCausalLM(RestackLlamaConfig(**settings, rope_parameters=dict(rope))).eval()
        their_rope = rope | {"rope_type": "default"} if kind == "rotary" else dict(rope)
        theirs = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**settings, rope_parameters=their_rope)
        )
        theirs.eval().load_state_dict(ours.state_dict())
        for each in (ours, theirs):
            with torch.no_grad():
                cache = each(row[:, :8]).past_key_values
                for at in range(8, 24):
                    last = each(row[:, at : at + 1], past_key_values=cache).logits[:, -1]
                whole = each(row).logits[
                    :, -1
                ]  # afterwards: transformers' keeps the base of the longest text
            assert ((whole - last).abs().max() > 1e-2) == is_trapped
