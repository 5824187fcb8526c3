"""What views refuse, each in one clear line and with nothing changed."""

import pytest
import torch
import transformers
from torch import nn

import restack
from tests.views.architectures import BY_NAME, COMMON, LLAMA

CALLS = [restack.view, lambda model, plan: restack.sling(model, plan=plan), restack.materialise]
every_call = pytest.mark.parametrize("call", CALLS, ids=["view", "sling", "materialise"])


@every_call
@pytest.mark.parametrize("thing", ["gpt2", 7, None, nn.Linear(2, 2), transformers.LlamaConfig()], ids=type)
def test_no_model(call, thing):
    with pytest.raises(restack.ViewError, match="needs a loaded model"):
        call(thing, [0])


@every_call
def test_encoder_decoder(call):
    config = transformers.T5Config(
        vocab_size=32, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    with pytest.raises(restack.ViewError, match="encoder-decoder"):
        call(transformers.T5ForConditionalGeneration(config), [0, 1])


@every_call
def test_no_layer_list(call):
    model = LLAMA.model()
    model.model.layers = nn.ModuleList(list(model.model.layers)[:3])
    with pytest.raises(restack.ViewError, match="no list of 4 layers"):
        call(model, [0])


@every_call
@pytest.mark.parametrize("numbers", [[1, 2, 3, 4], [0, 1, 2, 2], [0, 2, 4, 6]], ids=str)
def test_unknown_numbering(call, numbers):
    model = LLAMA.model()
    for layer, number in zip(model.model.layers, numbers, strict=True):
        layer.self_attn.layer_idx = number
    with pytest.raises(restack.ViewError, match=r"self_attn\.layer_idx.*not their index"):
        call(model, [0])


@every_call
def test_unknown_numbering_of_one_layer_in_a_hybrid(call):
    model = LLAMA.model()
    model.model.layers[2].attention_layer_index = 0
    with pytest.raises(restack.ViewError, match="0 in layer 2"):
        call(model, [0])


@every_call
@pytest.mark.parametrize(
    ("plan", "what"),
    [
        ("0:2,1@0.5", "visit 2 asks for damping"),
        ("0:2,1{o_proj:0.7}", "visit 2 asks for a scale"),
        ("0_0_2_2", "visit 1 asks for shared keys and values"),
        (
            restack.Plan((restack.Visit(0), restack.Visit(1, sliding=True)), (4,)),
            "visit 1 asks for a sliding",
        ),
    ],
    ids=["damp", "scale", "kv", "sliding"],
)
def test_plans_that_ask_for_more(call, plan, what):
    with pytest.raises(restack.ViewError, match=what):
        call(LLAMA.model(), plan)


@every_call
def test_several_donors(call):
    plan = restack.Plan((restack.Visit(0), restack.Visit(0, donor=1)), (4, 4))
    with pytest.raises(restack.RestackError):
        call(LLAMA.model(), plan)


@every_call
@pytest.mark.parametrize("plan", ["0:5", [4], [], "x", [True], 3.5], ids=repr)
def test_plans_that_are_none(call, plan):
    with pytest.raises(restack.PlanError):
        call(LLAMA.model(), plan)


@every_call
def test_place_bound_layers(call):
    settings = COMMON | {
        "head_dim": 8,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 96,
        "activation_sparsity_pattern": [0.0] * 4,
        "laurel_rank": 4,
    }
    model = transformers.Gemma3nForCausalLM(transformers.Gemma3nTextConfig(**settings))
    with pytest.raises(
        restack.ViewError, match=r"gemma3n_text ties its layers together by place|kv_shared_layer_index"
    ):
        call(model, [0, 1])


@every_call
@pytest.mark.parametrize("name", ["lfm2", "jamba", "bamba"])
def test_a_hybrid_without_its_attention(call, name):
    with pytest.raises(restack.ViewError, match=r"visits no attention layer.*at least one of \[1"):
        call(BY_NAME[name].model(), [0, 2])


@every_call
def test_a_layer_that_is_known_outside_the_list(call):
    model = LLAMA.model()
    model.first = [model.model.layers[0].self_attn]
    if call is CALLS[1]:  # in place, the layers outside the list are still the original ones
        call(model, [1, 0])
    else:
        with pytest.raises(restack.ViewError, match=r"refers to model\.layers\.0\.self_attn from outside"):
            call(model, [1, 0])


def test_refusals_change_nothing():
    model = LLAMA.model()
    before = {key: id(value) for key, value in vars(model).items()}, dict(vars(model.config))
    for call in CALLS:
        with pytest.raises(restack.RestackError):
            call(model, "0:2@0.5")
    assert before == ({key: id(value) for key, value in vars(model).items()}, dict(vars(model.config)))
    assert torch.equal(
        model.model.layers[0].mlp.up_proj.weight, LLAMA.model().model.layers[0].mlp.up_proj.weight
    )
