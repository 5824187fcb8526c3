import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3nForCausalLM, Gemma3nTextConfig

import restack
from restack.plans import Plan
from restack.views.layers_once import layers_once
from tests.recipes.tiny import logits, saved_llama
from tests.views.architectures import copy_weights


@pytest.fixture
def base(tmp_path):
    return restack.open(saved_llama(tmp_path / "llama"))


def tensors(model):
    return {parameter.data_ptr() for parameter in model.parameters()}


def test_a_layer_that_is_visited_often_is_there_once(base):
    view = restack.view(base, [3, 0, 3, 0, 1])
    once, plan = layers_once(view, view.restack_plan)
    assert plan == Plan.of([2, 0, 2, 0, 1], 3)
    assert once.config.num_hidden_layers == len(once.model.layers) == 3
    assert [layer.self_attn.layer_idx for layer in once.model.layers] == [0, 1, 2]
    assert tensors(once) == tensors(view)  # nothing is copied
    for number, layer in enumerate((0, 1, 3)):
        ours, theirs = once.model.layers[number], base.model.layers[layer]
        assert ours.mlp.up_proj.weight is theirs.mlp.up_proj.weight
    assert torch.equal(logits(restack.view(once, plan)), logits(view))


def test_what_the_plan_alone_says_is_left_to_it(base):
    view = restack.view(base, "0:2@0.5,1{o_proj:0.25},2:;kv=0_1_1_3_3")
    once, plan = layers_once(view, view.restack_plan)
    assert plan == view.restack_plan
    state = base.state_dict()
    assert once.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in once.state_dict().items())


def test_a_reader_that_comes_first_does_not_lose_its_keys(base, tmp_path):
    view = restack.view(base, "0,1,2,1,3;kv=0_0_2_3_4")
    assert "restack_role" in vars(view.model.layers[1])  # it reads; the later visit makes its own
    opened = restack.open(str(restack.save(view, tmp_path / "saved", weights="shared")))
    assert torch.equal(logits(opened), logits(view))


def test_embeddings_for_each_layer_are_cut_to_those_that_are_kept(tmp_path):
    settings = {
        "vocab_size": 96, "vocab_size_per_layer_input": 96, "hidden_size": 16, "intermediate_size": 24,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "hidden_size_per_layer_input": 4,
        "laurel_rank": 4, "num_kv_shared_layers": 0, "sliding_window": 8, "altup_num_inputs": 2,
    }  # fmt: skip
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]

    def made(order):
        return Gemma3nForCausalLM(
            Gemma3nTextConfig(
                **settings,
                num_hidden_layers=len(order),
                layer_types=[kinds[layer] for layer in order],
                activation_sparsity_pattern=[0.0] * len(order),
            )
        ).eval()

    order = [3, 1, 1]
    torch.manual_seed(0)
    made(range(4)).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    twin = made(order)
    packed = {"embed_tokens_per_layer.weight": 1, "per_layer_model_projection.weight": 0}
    copy_weights(base, twin, "model.layers", order, packed)
    before = base.model.embed_tokens_per_layer.weight.shape
    folder = restack.save(restack.view(base, order), tmp_path / "saved", weights="shared")
    assert base.model.embed_tokens_per_layer.weight.shape == before
    assert torch.equal(logits(restack.open(str(folder))), logits(twin))
