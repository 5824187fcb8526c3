"""What views refuse, each in one clear line and with nothing changed."""

import functools
import types

import pytest
import torch
import transformers
from torch import nn

import restack
from restack.views import runnable
from tests.views.architectures import BY_NAME, COMMON, LLAMA, VOCABULARY

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
        ("0:4;kv=0_1_3_3", "visit 2 reads the keys and values of visit 3, .* restack-llama"),
        (
            restack.Plan((restack.Visit(0), restack.Visit(1, sliding=True)), (4,)),
            "visit 1 (asks for a sliding window .* config sets none|reads keys and values)",
        ),
    ],
    ids=["owner above", "sliding"],
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


GEMMA3N = COMMON | {
    "head_dim": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "num_kv_shared_layers": 2,
    "activation_sparsity_pattern": [0.0] * 4,
    "laurel_rank": 4,
}


@every_call
@pytest.mark.parametrize(
    ("plan", "why"),
    [
        (
            [2, 0, 1, 3],
            "visit 0 is of layer 2, which reads what another layer keeps for it .* visit 0 before",
        ),
        ([0, 2, 3, 1], "visit 2 is of layer 3, .* visit 1 before"),
    ],
)
def test_keys_and_values_that_no_layer_before_has_kept(call, plan, why):
    model = transformers.Gemma3nForCausalLM(transformers.Gemma3nTextConfig(**GEMMA3N))
    with pytest.raises(restack.ViewError, match=why):
        call(model, plan)


@every_call
def test_sources_of_keys_and_values_by_place(call):
    model = LLAMA.model()
    model.config.kv_source_layers = [0, 1, 0, 1]  # Mistral Large 4's
    with pytest.raises(restack.ViewError, match=r"ties its layers together by place \(kv_source_layers\)"):
        call(model, [0, 1])


@every_call
def test_embeddings_for_each_layer_that_are_not_gemmas(call):
    model = LLAMA.model()
    model.config.hidden_size_per_layer_input = 8
    with pytest.raises(restack.ViewError, match="views do not know where"):
        call(model, [0, 1])


@every_call
def test_a_table_of_the_layers_outside_of_them(call):
    """Mllama's text model asks its own list which layers attend to the picture."""
    config = transformers.models.mllama.configuration_mllama.MllamaTextConfig(
        **COMMON, cross_attention_layers=[1], rope_parameters={"rope_type": "default", "rope_theta": 1e4}
    )
    with pytest.raises(restack.ViewError, match=r"keeps a table of the layers \(cross_attention_layers\)"):
        call(transformers.MllamaForCausalLM(config), [0, 2, 3])
    model = LLAMA.model()
    model.model.rope_types = ["scaled", "unscaled", "scaled", "scaled"]  # Molmo2's
    with pytest.raises(restack.ViewError, match=r"LlamaModel keeps a table of the layers \(rope_types\)"):
        call(model, [0, 2, 3])


def logged_by_closure(module):
    forward = module.forward

    def logged(*args, **kwargs):
        return forward(*args, **kwargs)

    return logged


def logged_by_partial(module):
    return functools.partial(logged_by_closure(module))


def logged_by_wrapping(module):
    @functools.wraps(module.forward)
    def logged(*args, **kwargs):
        return type(module).forward(module, *args, **kwargs)

    return types.MethodType(logged, module)


def logged_by_global(module):
    source = "forward = module.forward\ndef logged(*args, **kwargs): return forward(*args, **kwargs)"
    names = {"module": module}
    exec(source, names)
    return names["logged"]


def compiled(module):
    return torch.compile(module.forward, backend="eager")


PATCHES = [compiled, logged_by_closure, logged_by_partial, logged_by_wrapping, logged_by_global]


@every_call
@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.__name__)
def test_a_forward_that_is_bound_to_the_base(call, patch):
    model = LLAMA.model()
    attention = model.model.layers[1].self_attn
    attention.forward = patch(attention)
    with pytest.raises(restack.ViewError, match=r"model\.layers\.1\.self_attn\.forward .* bound to the base"):
        call(model, [0, 1, 1, 2])


@pytest.mark.parametrize("call", [restack.view, restack.materialise], ids=["view", "materialise"])
def test_a_compiled_forward_of_the_model(call):
    model = LLAMA.model()
    model.forward = torch.compile(model.forward, backend="eager")
    with pytest.raises(restack.ViewError, match=r"^forward of the LlamaForCausalLM .* bound to the base"):
        call(model, [3, 2])


def test_a_compiled_model_in_place():
    """Its forward is bound to the model that is slung itself."""
    model = LLAMA.model(num_hidden_layers=2)
    prompt = torch.arange(3, 12)[None]
    with torch.no_grad():
        expected = restack.view(model, [1, 0, 0])(prompt).logits
        model.forward = torch.compile(model.forward, backend="eager")
        plain = model(prompt).logits
        with restack.slung(model, [1, 0, 0]):
            assert torch.equal(model(prompt).logits, expected)
        assert torch.equal(model(prompt).logits, plain)


@every_call
def test_functions_bound_to_nothing_are_left_alone(call):
    model = LLAMA.model()
    other, scale = nn.Linear(2, 2), 2.0
    model.model.layers[1].mlp.forward = lambda x: x * scale * other.in_features
    call(model, [0, 1, 1, 2])


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
            call(model, "0:4;kv=0_3_2_3")
    assert before == ({key: id(value) for key, value in vars(model).items()}, dict(vars(model.config)))
    assert torch.equal(
        model.model.layers[0].mlp.up_proj.weight, LLAMA.model().model.layers[0].mlp.up_proj.weight
    )


XLM = {"vocab_size": 96, "emb_dim": 32, "n_layers": 3, "n_heads": 2, "causal": True}


@every_call
@pytest.mark.parametrize("name", ["XLM", "Flaubert"])
def test_layers_in_parallel_lists(call, name):
    """Attention in one list, MLP in another, and a norm for each: reordering one would be silently wrong."""
    model = getattr(transformers, f"{name}WithLMHeadModel")(getattr(transformers, f"{name}Config")(**XLM))
    with pytest.raises(restack.ViewError, match=r"another list beside them \(transformer\.attentions\)"):
        call(model, [2, 1, 0])


@every_call
@pytest.mark.parametrize("every", [0, 2])
def test_weights_that_the_model_changes_by_place(call, every):
    model = transformers.RwkvForCausalLM(
        transformers.RwkvConfig(vocab_size=96, hidden_size=32, num_hidden_layers=4, rescale_every=every)
    ).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(restack.ViewError, match=r"rescales its weights in place.*\(rescale_every\)"):
        call(model, [0, 3, 3, 3])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
PICTURE = {"image_size": 16, "patch_size": 8}
ENCODERS = {
    "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**TINY)),
    "bert with a causal head": lambda: transformers.BertLMHeadModel(transformers.BertConfig(**TINY)),
    "roberta": lambda: transformers.RobertaForCausalLM(transformers.RobertaConfig(**TINY)),
    "roformer": lambda: transformers.RoFormerModel(transformers.RoFormerConfig(**TINY)),
    "deberta": lambda: transformers.DebertaV2Model(transformers.DebertaV2Config(**TINY)),
    "modernbert": lambda: transformers.ModernBertModel(transformers.ModernBertConfig(**TINY)),
    "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**TINY, **PICTURE)),
    "clip": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**TINY, **PICTURE)),
    "gemma for embedding": lambda: transformers.Gemma3TextModel(
        transformers.Gemma3TextConfig(**COMMON, head_dim=8, use_bidirectional_attention=True)
    ),
    "llama both ways": lambda: LLAMA.model(is_causal=False),
}


@every_call
@pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS)
def test_encoders(call, make):
    with pytest.raises(restack.ViewError, match="is an encoder"):
        call(make(), [0, 1, 1])


@pytest.mark.parametrize("spec", ["0:4,1:", "::-1", "0:2,1@0.5", "0:2,1{o_proj:0.7}", "cla2", "yoco"])
def test_plans_that_views_run_are_told_without_a_model(spec):
    plan = restack.plan(spec, 4)
    assert runnable(plan) is plan


@pytest.mark.parametrize(
    ("spec", "depths", "told"),
    [
        ("lckv-w2", 4, "visit 1 reads the keys and values of visit 2, which runs after it"),
        ("0/0:2,1/2:", (4, 4), "over 2 models and there is one"),
        ("0/0:4", (4, 4), "over 2 models"),
    ],
)
def test_plans_that_views_do_not_run_are_told_without_a_model(spec, depths, told):
    with pytest.raises(restack.ViewError, match=told):
        runnable(restack.plan(spec, depths))
