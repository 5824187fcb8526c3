"""Plans over several models. A twin is built by its own constructor and gets copies of their weights."""

import gc
import weakref

import pytest
import torch
import transformers

import restack
from restack.plans import Plan
from tests.views.architectures import BY_NAME, LLAMA, randomise
from tests.views.pairs import PROMPT, greedy, logits, state, unchanged
from tests.views.survey_models import tiny

SPEC = "0/0:3,1/1:4,0/2:,1/0:2"
VISITS = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (1, 3), (0, 2), (0, 3), (1, 0), (1, 1)]
# What runs after the layers: these are the last visit's donor's.
AFTER = {
    "llama": ("model.norm.weight", "lm_head.weight"),
    "qwen3": ("model.norm.weight", "lm_head.weight"),
    "gpt_neox": ("gpt_neox.final_layer_norm.weight", "gpt_neox.final_layer_norm.bias", "lm_head.weight"),
    "phi": ("model.final_layernorm.weight", "model.final_layernorm.bias", "lm_head.weight", "lm_head.bias"),
    "gpt2": ("transformer.ln_f.weight", "transformer.ln_f.bias"),  # the head is tied to the embedding
    "mixtral": ("model.norm.weight", "lm_head.weight"),
    "lfm2": ("model.embedding_norm.weight",),  # a final norm by another name, and a tied head
}


def donors(architecture, count=2, **settings):
    return [architecture.model(seed, **settings) for seed in range(count)]


def twin_of(architecture, models, visits):
    """The model that these visits, (donor, layer), are; copied by name."""
    names = AFTER[architecture.name]
    twin = architecture.twin(models[0], [layer for _, layer in visits])
    states = [model.state_dict() for model in models]
    with torch.no_grad():
        for name, tensor in twin.state_dict().items():
            if name.startswith(f"{architecture.layers}."):
                number, rest = name.removeprefix(f"{architecture.layers}.").split(".", 1)
                donor, layer = visits[int(number)]
                tensor.copy_(states[donor][f"{architecture.layers}.{layer}.{rest}"])
            elif name in names:
                tensor.copy_(states[visits[-1][0]][name])
            else:
                tensor.copy_(states[visits[0][0]][name])
    return twin


@pytest.mark.parametrize("name", AFTER)
def test_equals_its_twin(name):
    architecture = BY_NAME[name]
    models = donors(architecture)
    before = [state(model) for model in models]
    view = restack.view(models, SPEC)
    twin = twin_of(architecture, models, VISITS)
    assert torch.equal(logits(view), logits(twin))
    assert torch.equal(greedy(view), greedy(twin))
    assert torch.equal(logits(restack.materialise(models, SPEC)), logits(twin))
    assert all(unchanged(model, saved) for model, saved in zip(models, before, strict=True))
    own = {id(tensor) for model in models for tensor in model.parameters()}
    assert all(id(tensor) in own for tensor in view.parameters())


def test_layers_of_three_models_of_unlike_depths():
    models = [LLAMA.model(seed, num_hidden_layers=depth) for seed, depth in enumerate((4, 2, 3))]
    view = restack.view(models, "2/0:2,1/:,0/3,2/2")
    visits = [(2, 0), (2, 1), (1, 0), (1, 1), (0, 3), (2, 2)]
    twin = twin_of(LLAMA, models, visits)
    assert torch.equal(logits(view), logits(twin))
    assert view.restack_plan.depths == (4, 2, 3)


def test_by_name_donors_are_numbered_as_a_mergekit_config_names_them():
    first, second = donors(LLAMA)
    config = {
        "slices": [
            {"sources": [{"model": "b", "layer_range": [0, 3]}]},
            {"sources": [{"model": "a", "layer_range": [1, 4]}]},
        ],
        "merge_method": "passthrough",
    }
    view = restack.view({"a": first, "b": second, "unused": LLAMA.model(5)}, config)
    visits = [(1, 0), (1, 1), (1, 2), (0, 1), (0, 2), (0, 3)]
    assert torch.equal(logits(view), logits(twin_of(LLAMA, [first, second], visits)))
    spec = restack.view({"a": first, "b": second}, "1/0:3,0/1:")
    assert torch.equal(logits(spec), logits(view))


def test_layers_that_slide_in_one_donor_only():
    kinds = {"layer_types": ["sliding_attention"] * 4}, {"layer_types": ["full_attention"] * 4}
    models = [
        BY_NAME["qwen3"].model(seed, use_sliding_window=True, sliding_window=8, **own)
        for seed, own in enumerate(kinds)
    ]
    view = restack.view(models, "1/0:2,0/2:,1/3")
    assert view.config.layer_types == ["full_attention"] * 2 + ["sliding_attention"] * 2 + ["full_attention"]
    config = transformers.Qwen3Config(**{
        **view.config.to_dict(), "num_hidden_layers": 5, "layer_types": view.config.layer_types,
    })  # fmt: skip
    twin = transformers.Qwen3ForCausalLM(config).eval()
    twin.set_attn_implementation(view.config._attn_implementation)
    twin.generation_config.eos_token_id = None
    twin.load_state_dict(view.state_dict())
    assert torch.equal(logits(view), logits(twin))
    assert torch.equal(greedy(view), greedy(twin))


def test_damping_scales_and_shared_keys_go_with_donors():
    models = donors(LLAMA)
    plain = restack.materialise(models, SPEC)
    plan = restack.plan("0/0:3,1/1:4@0.5,0/2{o_proj:0.5},0/3,1/0:2;kv=0_1_2_3_3_5_6_6_8_9", (4, 4))
    same = restack.plan("0:3,3:6@0.5,6{o_proj:0.5},7:;kv=0_1_2_3_3_5_6_6_8_9", len(plain.model.layers))
    view = restack.view(models, plan)
    assert view.restack_plan == plan
    assert torch.equal(logits(view), logits(restack.view(plain, same)))
    assert torch.equal(greedy(view), greedy(restack.view(plain, same)))


def test_a_view_of_a_view_of_donors_and_of_donors_that_are_views():
    models = donors(LLAMA)
    view = restack.view(restack.view(models, SPEC), [9, 3, 3, 0])
    assert view.restack_plan == restack.plan("1/1,1/1,1/1,0/0", (4, 4))
    merged = restack.materialise(models, SPEC)  # a view of it keeps its embedding and head
    assert torch.equal(logits(view), logits(restack.view(merged, [9, 3, 3, 0])))
    lent = restack.view([restack.view(models[0], [3, 2, 1]), models[1]], "0/0:2,1/3")
    assert lent.restack_plan == restack.plan("0/3,0/2,1/3", (4, 4))
    assert torch.equal(logits(lent), logits(twin_of(LLAMA, models, [(0, 3), (0, 2), (1, 3)])))


def test_gradients_reach_the_donors():
    models = donors(LLAMA)
    view = restack.view(models, SPEC)
    twin = twin_of(LLAMA, models, VISITS)
    for model in (view, twin):
        model(PROMPT, labels=PROMPT).loss.backward()
    grads = [layer.mlp.up_proj.weight.grad for layer in twin.model.layers]
    torch.testing.assert_close(models[0].model.layers[2].mlp.up_proj.weight.grad, grads[2] + grads[6])
    torch.testing.assert_close(models[1].model.layers[1].mlp.up_proj.weight.grad, grads[3] + grads[9])
    assert models[1].model.embed_tokens.weight.grad is None and models[0].lm_head.weight.grad is None


def test_donors_are_freed_with_the_view():
    gc.collect()
    models = donors(LLAMA)
    kept = [weakref.ref(model) for model in models]
    view = restack.view(models, SPEC)
    seen = weakref.ref(view)
    gc.disable()
    try:
        del view
        assert seen() is None
        del models
        assert [model() for model in kept] == [None, None]
    finally:
        gc.enable()


def test_saved_as_a_self_merge_is(tmp_path):
    models = donors(LLAMA)
    view = restack.view(models, SPEC)
    view.save_pretrained(tmp_path / "merged")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    loaded.set_attn_implementation(view.config._attn_implementation)
    assert torch.equal(logits(loaded), logits(view))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"hidden_size": 64}, "hidden_size is 32 in model 0 and 64 in model 1"),
        ({"vocab_size": 99}, "vocab_size is 96 in model 0 and 99 in model 1"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope_parameters is .*500000.0"),
        ({"num_key_value_heads": 4}, "num_key_value_heads is 2 in model 0 and 4 in model 1"),
        ({"intermediate_size": 40}, "intermediate_size is 48 in model 0 and 40 in model 1"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is False in model 0 and True in model 1"),
    ],
)
@pytest.mark.parametrize("call", [restack.view, restack.materialise])
def test_unlike_models_are_refused(call, settings, told):
    with pytest.raises(restack.ViewError, match=told):
        call([LLAMA.model(), LLAMA.model(1, **settings)], SPEC)


def test_unlike_architectures_and_dtypes_are_refused():
    with pytest.raises(restack.ViewError, match="a LlamaForCausalLM and model 1 a Qwen3ForCausalLM"):
        restack.view([LLAMA.model(), BY_NAME["qwen3"].model()], SPEC)
    with pytest.raises(restack.ViewError, match=r"dtype is torch.float32 in old and torch.bfloat16 in new"):
        restack.view({"old": LLAMA.model(), "new": LLAMA.model(1).to(torch.bfloat16)}, SPEC)


def test_one_model_may_be_two_donors():
    model = LLAMA.model()
    assert torch.equal(
        logits(restack.view([model, model], "0/0:3,1/1:")), logits(restack.view(model, "0:3,1:"))
    )


def test_a_model_with_embeddings_for_each_layer_is_refused():
    models = [tiny("gemma3n_text") for _ in range(2)]
    with pytest.raises(restack.ViewError, match=r"by their place|number themselves"):
        restack.view(models, "0/0,1/1")


def test_a_plan_that_is_for_other_models_is_refused():
    models = donors(LLAMA)
    for call in (restack.view, restack.materialise, lambda model, plan: restack.sling(model, plan=plan)):
        with pytest.raises(restack.PlanError, match=r"4 \+ 4 layers, the model has 4"):
            call(models[0], Plan.from_json({"plan": SPEC, "depths": [4, 4]}))
    with pytest.raises(restack.PlanError, match="which of the 2 donors"):
        restack.view(models, "0:3")
    with pytest.raises(restack.PlanError, match="donor 2 is past the plan's 2"):
        restack.view(models, "2/0:3")
    with pytest.raises(restack.ViewError, match="there are no models"):
        restack.view([], SPEC)
    with pytest.raises(restack.ViewError, match="loaded model of transformers, not 'mistral'"):
        restack.view([models[0], "mistral"], SPEC)


@pytest.mark.parametrize("model_type", ["bert", "opt", "bloom"])
def test_a_head_that_is_tied_to_the_embedding_stays_so(model_type):
    """In BERT the head has a bias and a transform of its own; these are the last visit's donor's."""
    models = [tiny(model_type) for _ in range(2)]
    randomise(models[1], 1)
    view = restack.view(models, "0/0:2,1/2:")
    embedding = models[0].get_input_embeddings().weight
    assert view.get_output_embeddings().weight is view.get_input_embeddings().weight is embedding
    if model_type == "bert":
        ours, theirs = view.cls.predictions, models[1].cls.predictions
        assert ours.transform.dense.weight is theirs.transform.dense.weight
        assert ours.bias is ours.decoder.bias is theirs.bias


def test_donors_in_unlike_modes_all_run_in_that_of_the_first():
    models = donors(LLAMA, attention_dropout=0.5)
    models[1].train()
    view = restack.view(models, SPEC)
    assert not any(module.training for module in view.modules())
    assert torch.equal(logits(view), logits(view))
    assert all(module.training for module in models[1].modules())


def test_making_a_view_runs_no_hook_and_draws_no_random_number():
    models = donors(LLAMA, attention_dropout=0.5)
    models[0].train()
    called = []
    models[0].model.norm.register_forward_hook(lambda *args: called.append(args))
    before = torch.get_rng_state()
    view = restack.view(models, SPEC)
    assert torch.equal(torch.get_rng_state(), before)
    assert not called
    view(PROMPT)
    assert called  # the hook is the view's, too


def test_adapters_outside_the_layers_are_refused():
    peft = pytest.importorskip("peft")
    models = donors(LLAMA)
    config = peft.LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM")
    adapted = [peft.get_peft_model(model, config) for model in models]
    with pytest.raises(restack.ViewError, match="lm_head of model 0 has an adapter of peft"):
        restack.view(adapted, SPEC)


def test_a_list_of_models_is_in_the_order_of_a_config():
    first, second = donors(LLAMA)
    slices = [{"sources": [{"model": name, "layer_range": [0, 2]}]} for name in "ba"]
    config = {"slices": slices, "merge_method": "passthrough"}
    expected = restack.view({"b": first, "a": second}, config)
    assert torch.equal(logits(restack.view([first, second], config)), logits(expected))
    with pytest.raises(restack.PlanError, match="names 2 models, and there are 3"):
        restack.view([first, second, first], config)
    with pytest.raises(restack.PlanError, match=r"names 2 models; give all of them, as in \{'b': model"):
        restack.view(first, config)
    with pytest.raises(restack.PlanError, match="names 'b', and the models given are a, c"):
        restack.view({"a": first, "c": second}, config)


def test_notes_of_tools_and_the_length_of_plain_rotary_contexts_may_differ():
    models = [LLAMA.model(), LLAMA.model(1, max_position_embeddings=256)]
    models[1].config.unsloth_fixed = True
    assert len(restack.view(models, SPEC).model.layers) == len(VISITS)


def test_a_mixture_of_experts_on_the_meta_device():
    with torch.device("meta"):
        models = [type(BY_NAME["mixtral"].model())(BY_NAME["mixtral"].model().config) for _ in range(2)]
    assert restack.view(models, "0/0:2,1/2:").config.num_hidden_layers == 4


class TestOffloadedDonors:
    @pytest.fixture(autouse=True)
    def accelerate(self):
        return pytest.importorskip("accelerate")

    def test_their_layers(self, accelerate):
        expected = logits(restack.view(donors(LLAMA), SPEC))
        models = donors(LLAMA)
        for model in models:
            accelerate.cpu_offload(model.model.layers, "cpu")
            assert all(tensor.is_meta for tensor in model.model.layers.parameters())
        assert torch.equal(logits(restack.view(models, SPEC)), expected)

    def test_all_of_them_where_one_model_has_both_ends(self, accelerate):
        plan = "0/0:2,1/1:3,0/3"
        expected = logits(restack.view(donors(LLAMA), plan))
        models = [accelerate.cpu_offload(model, "cpu") for model in donors(LLAMA)]
        assert torch.equal(logits(restack.view(models, plan)), expected)

    @pytest.mark.parametrize("offloaded", [0, 1])
    def test_what_runs_after_the_layers_must_be_in_memory(self, accelerate, offloaded):
        models = donors(LLAMA)
        accelerate.cpu_offload(models[offloaded], "cpu")
        with pytest.raises(restack.ViewError, match=r"is offloaded.* keep it in memory"):
            restack.view(models, "0/0:2,1/1:4")
