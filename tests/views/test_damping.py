"""Damped visits: the formula h + damp * (layer(h) - h), computed here by hooks on a model of its own."""

import collections
import copy
import functools
import pickle

import pytest
import torch
import transformers
from torch import nn
from torch.profiler import ProfilerActivity, profile

import restack
from tests.views.architectures import ARCHITECTURES, BY_NAME, COMMON, LLAMA, VOCABULARY, Architecture
from tests.views.pairs import gradients

PROMPT = torch.randint(3, VOCABULARY, (2, 11), generator=torch.Generator().manual_seed(6))
ORDER = [0, 1, 2, 1, 2, 3]
DAMPS = [1.0, 1.0, 0.25, 0.5, 1.0, -1.5]
SPEC = "0:2,2@0.25,1@0.5,2,3@-1.5"
CLOSE = {"atol": 2e-5, "rtol": 1e-4}  # a lerp rounds once, the formula three times
PARALLEL = {  # where each block adds attention and MLP of the same input: (what projects back, in a layer)
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),
    "phi": ("self_attn.dense", "mlp.fc2"),
    "falcon": ("self_attention.dense", "mlp.dense_4h_to_h"),
}


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=lambda architecture: architecture.name)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return request.param


def damped_by_hand(architecture: Architecture, base: nn.Module, order=ORDER, damps=DAMPS) -> nn.Module:
    """The twin, whose layers' outputs hooks of this test replace."""
    twin = architecture.twin(base, order)
    for layer, damp in zip(twin.get_submodule(architecture.layers), damps, strict=True):
        layer.register_forward_hook(functools.partial(by_formula, damp=damp), with_kwargs=True)
    return twin


def by_formula(layer, args, kwargs, output, damp):
    hidden = args[0] if args else kwargs["hidden_states"]
    new = output[0] if isinstance(output, tuple) else output
    new = hidden + damp * (new - hidden)
    return (new, *output[1:]) if isinstance(output, tuple) else new


@torch.no_grad()
def logits(model: nn.Module, ids: torch.Tensor = PROMPT, **options: object) -> torch.Tensor:
    return model(ids, **options).logits


def greedy(model: nn.Module, ids: torch.Tensor = PROMPT, **options: object) -> tuple:
    """The tokens, and the logits each new one was chosen by."""
    model.generation_config.disable_compile = True
    options = {"max_new_tokens": 10, "do_sample": False} | options
    out = model.generate(ids, return_dict_in_generate=True, output_logits=True, **options)
    return out.sequences, torch.stack(out.logits, dim=1)


def test_equals_the_formula(architecture):
    base = architecture.model()
    view, twin = restack.view(base, SPEC), damped_by_hand(architecture, base)
    torch.testing.assert_close(logits(view), logits(twin), **CLOSE)
    assert not torch.allclose(logits(view), logits(architecture.twin(base, ORDER)), atol=1e-2)
    tokens, chosen_by = greedy(view)
    torch.testing.assert_close(chosen_by, greedy(twin)[1], **CLOSE)
    uncached = logits(view, tokens, use_cache=False)[:, PROMPT.shape[1] - 1 : -1]
    torch.testing.assert_close(chosen_by, uncached, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", PARALLEL)
def test_equals_a_model_of_its_own_where_blocks_are_parallel(name):
    base = BY_NAME[name].model()
    twin = BY_NAME[name].twin(base, ORDER)
    with torch.no_grad():
        for layer, damp in zip(twin.get_submodule(BY_NAME[name].layers), DAMPS, strict=True):
            for path in PARALLEL[name]:
                for parameter in layer.get_submodule(path).parameters():
                    parameter.mul_(damp)
    view = restack.view(base, SPEC)
    torch.testing.assert_close(logits(view), logits(twin), **CLOSE)
    torch.testing.assert_close(greedy(view)[1], greedy(twin)[1], **CLOSE)


def test_is_no_scale_of_the_projections_where_blocks_are_not():
    base = LLAMA.model()
    scaled = restack.view(base, "0:2,1{o_proj:0.5,down_proj:0.5},2:")
    assert not torch.allclose(logits(restack.view(base, "0:2,1@0.5,2:")), logits(scaled), atol=1e-2)


def test_in_place():
    model = LLAMA.model()
    plain, twin = logits(model), damped_by_hand(LLAMA, model)
    expected = logits(restack.view(model, SPEC))
    torch.testing.assert_close(expected, logits(twin), **CLOSE)
    with restack.slung(model, SPEC):
        assert torch.equal(logits(model), expected)
        with pytest.raises(restack.ViewError, match="visit 2 runs otherwise"):
            model.config.save_pretrained("nowhere")
    assert torch.equal(logits(model), plain)
    assert "_restack_unsaved" not in vars(model.config)


def test_hidden_states_of_every_visit():
    base = LLAMA.model()
    base(PROMPT, output_hidden_states=True)  # transformers puts its recording hooks on the base first
    view, twin = restack.view(base, SPEC), damped_by_hand(LLAMA, base)
    seen = view(PROMPT, output_hidden_states=True).hidden_states
    expected = twin(PROMPT, output_hidden_states=True).hidden_states
    for ours, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("reentrant", [None, False, True], ids=["plain", "checkpointing", "reentrant"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_gradients(name, reentrant):
    base = BY_NAME[name].model()
    expected = gradients(damped_by_hand(BY_NAME[name], base), BY_NAME[name].layers, ORDER, PROMPT)
    view = restack.view(base, SPEC)
    if reentrant is not None:
        view.gradient_checkpointing_enable({"use_reentrant": reentrant})
        view.enable_input_require_grads()
    gradients(view, BY_NAME[name].layers, ORDER, PROMPT)
    ours = {name: parameter.grad for name, parameter in base.named_parameters()}
    assert ours.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(ours[key], gradient, atol=1e-5, rtol=1e-3, msg=key)


def calls(model: nn.Module, **options: object) -> collections.Counter:
    """How often each kernel is called in one forward."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        logits(model, **options)
    return collections.Counter(event.name for event in profiler.events() if event.name.startswith("aten::"))


def test_costs_nothing_where_it_is_not_used():
    base = LLAMA.model()
    plain = calls(LLAMA.twin(base, ORDER))
    assert calls(restack.view(base, ORDER)) == plain
    assert calls(restack.view(base, "0:3,1:3@0.5,3")) - plain == {"aten::lerp": 2}
    assert plain - calls(restack.view(base, "0:3,1:3@0.5,3")) == {}
    changed = {type(module) for module in restack.view(base, "0:3,1@0.5,2:").modules()}
    assert changed - {type(module) for module in base.modules()} == {
        type(restack.view(base, "0@0.5").model.layers[0])
    }


def test_damped_to_nothing_computes_nothing():
    base = LLAMA.model()
    skipping, without = calls(restack.view(base, "0@0,0:2,3@0")), calls(restack.view(base, "0:2"))
    assert skipping["aten::mm"] == without["aten::mm"] > 0
    assert skipping["aten::bmm"] == without["aten::bmm"]
    assert calls(restack.view(base, "0@0,0:2,3@0"), use_cache=False) == calls(
        restack.view(base, "0:2"), use_cache=False
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 3}],
    ids=["dynamic", "beams", "static", "prompt lookup"],
)
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "falcon", "lfm2"])
def test_damped_to_nothing_equals_leaving_it_out(name, options):
    """Slot 0 too, off which transformers reads how long the past is."""
    if name == "lfm2" and "num_beams" not in options and options:
        pytest.skip("its convolutions have no such cache")
    base = BY_NAME[name].model()
    prompt = PROMPT[:1] if "prompt_lookup_num_tokens" in options else PROMPT
    nothing, without = restack.view(base, "0:2@0,0:3,3@0,3"), BY_NAME[name].twin(base, [0, 1, 2, 3])
    for model in (nothing, without):
        model.generation_config.disable_compile = True
    options = {"max_new_tokens": 12, "do_sample": False} | options
    assert torch.equal(nothing.generate(prompt, **options), without.generate(prompt, **options))


def test_damped_to_nothing_and_left_padding():
    base = LLAMA.model()
    nothing, without = restack.view(base, "0@0,0:4"), LLAMA.twin(base, [0, 1, 2, 3])
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), PROMPT], dim=1)
    mask = (padded != 0).long()
    ours, theirs = (greedy(model, padded, attention_mask=mask) for model in (nothing, without))
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


def test_a_cache_that_is_continued_counts_right():
    base = LLAMA.model()
    view = restack.view(base, "0@0,1:")
    cache = transformers.DynamicCache(config=view.config)
    with torch.no_grad():
        view(PROMPT[:, :4], past_key_values=cache, use_cache=True)
        assert cache.get_seq_length() == cache.get_seq_length(2) == 4
        last = view(PROMPT[:, 4:], past_key_values=cache, use_cache=True).logits
    assert cache.get_seq_length() == PROMPT.shape[1]
    assert cache.layers[0].keys.nbytes < cache.layers[1].keys.nbytes / 10
    torch.testing.assert_close(last, logits(restack.view(base, "1:"))[:, 4:], **CLOSE)


def test_plans_compose():
    base = LLAMA.model()
    view = restack.view(base, "0:2,1@0.5,2:")
    again = restack.view(view, "0:3,2@0.5,4:")
    assert again.restack_plan == restack.plan("0:2,1@0.5,1@0.25,3", 4)
    assert torch.equal(logits(again), logits(restack.view(base, again.restack_plan)))
    undone = restack.view(view, "0:2,2@2,3:")
    assert undone.restack_plan == restack.plan("0:2,1,2:", 4)
    assert torch.equal(logits(undone), logits(restack.view(base, [0, 1, 1, 2, 3])))
    assert {type(layer) for layer in undone.model.layers} == {type(base.model.layers[0])}
    restack.sling(view, plan="0:2@0.5,3:")
    assert torch.equal(logits(view), logits(restack.view(base, "0:2@0.5,2:")))
    restack.unsling(view)
    assert torch.equal(logits(view), logits(restack.view(base, "0:2,1@0.5,2:")))


def test_can_be_copied_and_pickled():
    view = restack.view(LLAMA.model(), SPEC)
    for other in (copy.deepcopy(view), pickle.loads(pickle.dumps(view))):
        assert torch.equal(logits(other), logits(view))
        assert other.restack_plan == view.restack_plan


def test_compiles_as_one_graph():
    view = restack.view(LLAMA.model(), "0@0,0:2,1@0.5,3")
    compiled = torch.compile(view, backend="eager", fullgraph=True)
    assert torch.equal(logits(compiled), logits(view))


def dispatched(module: nn.Module) -> None:
    """What accelerate's hooks do: the instance's forward becomes a partial over the module itself."""
    module._old_forward = module.forward
    module.forward = functools.partial(
        lambda module, *args, **kwargs: module._old_forward(*args, **kwargs), module
    )


def test_forwards_that_accelerate_replaced():
    base = LLAMA.model()
    expected = logits(restack.view(base, SPEC))
    for module in list(base.modules()):
        dispatched(module)
    assert torch.equal(logits(restack.view(base, SPEC)), expected)


def test_forwards_that_others_replaced_are_refused():
    base = LLAMA.model()
    base.model.layers[1].forward = lambda hidden, **kwargs: hidden
    with pytest.raises(restack.ViewError, match="forward of a LlamaDecoderLayer was replaced"):
        restack.view(base, "0:2,1@0.5")
    restack.view(base, "0:2,1,2@0.5")


def test_half_precision_is_rounded_once():
    base = LLAMA.model().to(torch.bfloat16)
    layer, hidden = restack.view(base, "1@0.3").model.layers[0], torch.randn(1, 5, 32, dtype=torch.bfloat16)
    rope = base.model.rotary_emb(hidden, torch.arange(5)[None])
    with torch.no_grad():
        out = base.model.layers[1](hidden, position_embeddings=rope)
        ours, formula = layer(hidden, position_embeddings=rope), hidden + 0.3 * (out - hidden)
    exact = hidden.double() + 0.3 * (out.double() - hidden.double())
    within = 2**-8 * exact.abs() + 1e-6  # half of the last of the 8 digits
    assert ((ours - exact).abs() <= within).all()
    assert not ((formula - exact).abs() <= within).all()


def test_a_second_stream_is_refused():
    """Zaya's layers hand on their router's states beside the hidden states."""
    config = getattr(transformers, "ZayaConfig", None)
    if config is None:
        pytest.skip("this transformers has no such model")
    model = transformers.AutoModelForCausalLM.from_config(
        config(**COMMON | {"num_experts": 4, "head_dim": 8})
    )
    with pytest.raises(restack.ViewError, match=r"hands on prev_router_hidden_states .* leave @ out"):
        restack.view(model, "0:3,1:3@0.5,3")


def test_nothing_is_saved_that_would_load_undamped(tmp_path):
    view = restack.view(LLAMA.model(), "0:3,3@0.5")
    with pytest.raises(restack.ViewError, match=r"visit 3 runs otherwise .*save the base and the plan"):
        view.save_pretrained(tmp_path)
    assert not any(tmp_path.iterdir())
    restack.materialise(restack.view(view, "0:3"), "all").save_pretrained(tmp_path)


def test_no_weights_say_damping():
    base = LLAMA.model()
    with pytest.raises(restack.ViewError, match="visit 2 is damped"):
        restack.materialise(base, "0:2,1@0.5")
    with pytest.raises(restack.ViewError, match="visit 1 is damped"):
        restack.materialise(restack.view(base, "0:2,1@0.5"), "0,2")
