"""Many views of one base: together, in threads, of each other; how they go, train, and carry hooks."""

import copy
import functools
import gc
import pickle
import types
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers
from torch import nn

import restack
from tests.views.architectures import BY_NAME, LLAMA, VOCABULARY

ORDERS = [[0, 1, 2, 1, 2, 3], [3, 2, 1, 0], [0, 3], [0, 0, 1, 1, 2, 2, 3, 3]]
PROMPT = torch.randint(3, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def base() -> nn.Module:
    return LLAMA.model()


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(PROMPT).logits


def greedy(model: nn.Module) -> torch.Tensor:
    return model.generate(PROMPT, max_new_tokens=12, do_sample=False)


@pytest.mark.parametrize("name", ["llama", "gemma3", "jamba"])
def test_alive_together(name):
    base = BY_NAME[name].model()
    orders = [[0, 1, 2, 1, 2, 3], [3, 2, 1, 0], [0, 1, 3]]
    plain = logits(base)
    views = [restack.view(base, order) for order in orders]
    twins = [BY_NAME[name].twin(base, order) for order in orders]
    for _ in range(2):
        for view, twin in zip(views, twins, strict=True):
            assert torch.equal(logits(view), logits(twin))
        assert torch.equal(logits(base), plain)


def test_four_threads(base):
    views = [restack.view(base, order) for order in ORDERS]
    serial = [greedy(view) for view in views]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(3):
            together = list(threads.map(greedy, views))
            assert all(torch.equal(a, b) for a, b in zip(together, serial, strict=True))


def test_built_in_threads(base):
    expected = [logits(restack.view(base, order)) for order in ORDERS]
    with ThreadPoolExecutor(4) as threads:
        views = list(threads.map(lambda order: restack.view(base, order), ORDERS * 5))
    assert all(torch.equal(logits(view), want) for view, want in zip(views, expected * 5, strict=True))


@pytest.mark.parametrize("name", ["llama", "gemma3", "jamba", "bamba"])
def test_freed_by_reference_counting(name):
    base = BY_NAME[name].model()
    modules = sum(1 for _ in base.modules())
    restack.view(base, [0, 1, 1])  # what is made once for all views
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(50):
            view = restack.view(base, [0, 1, 1, 2, 3, 3])
            gone = [weakref.ref(view), weakref.ref(view.config), weakref.ref(next(iter(view.modules())))]
            layer = weakref.ref(view.get_submodule(BY_NAME[name].layers)[2])
            del view
            assert not any(ref() for ref in [*gone, layer])
        assert len(gc.get_objects()) - before < modules  # 50 leaked views would be 50 times as many
    finally:
        gc.enable()


def test_outlives_the_base():
    base = LLAMA.model()
    view = restack.view(base, [1, 0])
    expected = logits(view)
    gone = weakref.ref(base)
    del base
    assert gone() is None
    assert torch.equal(logits(view), expected)


def test_view_of_a_view(base):
    first = restack.view(base, [0, 1, 2, 1, 2, 3])
    second = restack.view(first, [5, 3, 3, 0])
    assert second.restack_plan == first.restack_plan.then(restack.plan([5, 3, 3, 0], 6))
    assert second.restack_plan.order == (3, 1, 1, 0)
    assert torch.equal(logits(second), logits(LLAMA.twin(base, [3, 1, 1, 0])))
    assert first.restack_plan.order == (0, 1, 2, 1, 2, 3)


def test_view_of_a_jamba_view():
    """Its per-layer lists are frozen in the first view, and are frozen anew in the second."""
    jamba = BY_NAME["jamba"]
    base = jamba.model()
    first = restack.view(base, [0, 1, 2, 1, 2, 3])
    second = restack.view(first, [3, 3, 0, 5])
    twin = jamba.twin(base, [1, 1, 0, 3])
    assert torch.equal(logits(second), logits(twin))
    assert second.config.layer_types == twin.config.layer_types
    assert type(second.config) is type(first.config)


def test_view_of_a_slung_model(base):
    with restack.slung(base, [0, 1, 2, 1, 2, 3]):
        view = restack.view(base, [5, 4, 0])
        assert view.restack_plan.order == (3, 2, 0)
    assert torch.equal(logits(view), logits(LLAMA.twin(base, [3, 2, 0])))
    with pytest.raises(restack.ViewError, match="not slung"):
        restack.unsling(view)


def test_modes_are_the_views_own(base):
    base.model.layers[1].train()
    view = restack.view(base, [0, 1, 1])
    assert not view.model.layers.training
    assert [layer.training for layer in view.model.layers] == [False, True, True]
    view.train()
    assert not base.training and not base.model.layers[0].training
    base.eval()
    assert view.training and view.model.layers[1].mlp.training


def test_requires_grad_is_the_tensors(base):
    base.model.layers[1].requires_grad_(False)
    view = restack.view(base, [0, 1, 1])
    assert not any(p.requires_grad for layer in view.model.layers[1:] for p in layer.parameters())
    assert all(p.requires_grad for p in view.model.layers[0].parameters())


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_gradients_of_a_repeated_layer_add_up(name):
    architecture = BY_NAME[name]
    order = [0, 1, 2, 1, 2, 3, 1]
    base = architecture.model()
    twin = architecture.twin(base, order)
    view = restack.view(base, order)
    for model in (view, twin):
        model(PROMPT, labels=PROMPT).loss.backward()
    layers, copies = base.get_submodule(architecture.layers), twin.get_submodule(architecture.layers)
    for index, layer in enumerate(layers):
        of_this_layer = [copy for copy, source in zip(copies, order, strict=True) if source == index]
        for parameter_name, parameter in layer.named_parameters():
            grads = [copy.get_parameter(parameter_name).grad for copy in of_this_layer]
            if any(grad is not None for grad in grads):
                torch.testing.assert_close(parameter.grad, sum(grads))
    assert len(list(view.parameters())) == len(list(base.parameters()))


def test_gradient_checkpointing_of_a_view(base):
    view = restack.view(base, [0, 1, 1, 2])
    view.train()
    view(PROMPT, labels=PROMPT, use_cache=False).loss.backward()
    plain = [p.grad.clone() for p in view.parameters()]
    view.zero_grad()
    view.gradient_checkpointing_enable()
    view(PROMPT, labels=PROMPT, use_cache=False).loss.backward()
    for parameter, grad in zip(view.parameters(), plain, strict=True):
        torch.testing.assert_close(parameter.grad, grad)
    assert not base.is_gradient_checkpointing


def test_attention_implementation_is_the_views_own(base):
    view = restack.view(base, [0, 1, 1])
    view.set_attn_implementation("sdpa")
    assert base.config._attn_implementation == "eager"
    assert all(layer.self_attn.config._attn_implementation == "eager" for layer in base.model.layers)
    assert all(layer.self_attn.config is view.config for layer in view.model.layers)


def dispatched(module: nn.Module, calls: list[nn.Module]) -> None:
    """What accelerate's hooks do: the instance's forward becomes a partial over the module itself."""
    old_forward = module.forward

    def new_forward(module: nn.Module, *args: object, **kwargs: object) -> object:
        calls.append(module)
        return module._old_forward(*args, **kwargs)

    module._old_forward = old_forward
    module.forward = functools.update_wrapper(functools.partial(new_forward, module), old_forward)


def test_forwards_bound_to_their_module_follow(base):
    calls: list[nn.Module] = []
    order = [0, 1, 2, 1, 2, 3]
    expected = greedy(LLAMA.twin(base, order))
    for module in list(base.modules()):
        dispatched(module, calls)
    view = restack.view(base, order)
    assert torch.equal(greedy(view), expected)
    own = set(view.modules())
    assert calls and all(module in own for module in calls)
    with restack.slung(base, order):
        calls.clear()
        assert torch.equal(greedy(base), expected)
        assert {module for module in calls if module in own} == set()


def test_hooks_are_copied(base):
    seen = []
    base.model.layers[1].register_forward_hook(lambda module, args, output: seen.append(module))
    view = restack.view(base, [0, 1, 1, 2])
    logits(view)
    assert seen == [view.model.layers[1], view.model.layers[2]]


def test_tied_embeddings_stay_tied():
    base = LLAMA.model(tie_word_embeddings=True)
    view = restack.view(base, [0, 1, 1])
    assert view.lm_head.weight is view.model.embed_tokens.weight is base.model.embed_tokens.weight


def test_plain_tensors_are_shared_too(base):
    """A tensor that is no parameter or buffer, alone or in a list; even one that autograd computed."""
    attention = base.model.layers[1].self_attn
    attention.mask = torch.ones(3)
    attention.tables = [torch.ones(2), {"a": attention.q_proj.weight * 2}]
    view = restack.view(base, [1, 1])
    for layer in view.model.layers:
        assert layer.self_attn.mask is attention.mask
        assert layer.self_attn.tables[0] is attention.tables[0]
        assert layer.self_attn.tables[1]["a"] is attention.tables[1]["a"]


def test_a_module_in_the_layers_and_outside_stays_one(base):
    for layer in base.model.layers:
        layer.self_attn.rotary_emb = base.model.rotary_emb
    view = restack.view(base, [0, 1, 1])
    rotaries = {id(layer.self_attn.rotary_emb) for layer in view.model.layers}
    assert rotaries == {id(view.model.rotary_emb)} != {id(base.model.rotary_emb)}
    with restack.slung(base, [0, 1, 1]):
        assert all(layer.self_attn.rotary_emb is base.model.rotary_emb for layer in base.model.layers)


def test_tensors_that_plain_objects_hold_are_shared(base):
    """As accelerate's hooks hold the weights that they load."""
    weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    for module in base.modules():
        module._hf_hook = types.SimpleNamespace(weights_map=types.SimpleNamespace(dataset=weights))
    view = restack.view(base, [0, 1, 1])
    for module in view.modules():
        if hasattr(module, "_hf_hook"):
            held = module._hf_hook.weights_map.dataset
            assert all(held[name] is tensor for name, tensor in weights.items())


def test_a_layer_list_of_another_class(base):
    class Layers(nn.ModuleList):
        pass

    calls = []
    base.model.layers = Layers(base.model.layers)
    base.model.layers.flavour = ["sweet"]
    base.model.layers.register_load_state_dict_post_hook(lambda module, keys: calls.append(module))
    for made in (restack.view(base, [0, 1, 1]), restack.materialise(base, [0, 1, 1])):
        layers = made.model.layers
        assert type(layers) is Layers and len(layers) == 3
        assert layers.flavour == ["sweet"] and layers.flavour is not base.model.layers.flavour
        made.load_state_dict(made.state_dict())
        assert calls.pop() is layers
    assert torch.equal(logits(restack.view(base, [3, 1])), logits(LLAMA.twin(base, [3, 1])))


def test_what_was_compiled_for_the_base_is_not_copied():
    """Generation with a static cache keeps a compiled call of the model: on GPUs without being asked."""
    base = LLAMA.model(num_hidden_layers=2)
    compiling = transformers.CompileConfig(backend="eager", fullgraph=False)
    compiling._compile_all_devices = True
    static = {"cache_implementation": "static", "compile_config": compiling}
    options = {"max_new_tokens": 6, "do_sample": False}
    order = [1, 0, 0]
    expected = greedy(restack.view(base, order))[:, : PROMPT.shape[1] + 6]
    base.generate(PROMPT, **options, **static)
    assert hasattr(base, "_compiled_call")
    view = restack.view(base, order)
    assert not hasattr(view, "_compiled_call") and hasattr(base, "_compiled_call")
    assert torch.equal(view.generate(PROMPT, **options, **static), expected)
    with restack.slung(base, order):
        assert torch.equal(base.generate(PROMPT, **options, **static), expected)


def test_a_compiled_model(base):
    expected = logits(restack.view(base, [3, 1]))
    view = restack.view(torch.compile(base, backend="eager"), [3, 1])
    assert torch.equal(logits(view), expected)


def test_a_half_precision_view(base):
    base.to(torch.bfloat16)
    view = restack.view(base, [0, 1, 1])
    assert view.dtype == torch.bfloat16
    assert torch.equal(logits(view), logits(LLAMA.twin(base, [0, 1, 1]).to(torch.bfloat16)))


@pytest.mark.parametrize("name", ["llama", "jamba"])
def test_views_can_be_copied_and_pickled(name):
    view = restack.view(BY_NAME[name].model(), [0, 1, 2, 1, 3])
    for other in (copy.deepcopy(view), pickle.loads(pickle.dumps(view))):
        assert torch.equal(logits(other), logits(view))
        assert other.restack_plan == view.restack_plan
        assert other.config.to_dict() == view.config.to_dict()


def test_assisted_by_a_view_of_itself(base):
    """Speculative decoding: a shallow view drafts for the base, and a base for a deeper view."""
    deeper, draft = restack.view(base, [0, 1, 2, 1, 2, 3]), restack.view(base, [0, 1, 3])
    for model, assistant in ((base, draft), (deeper, base)):
        one = PROMPT[:1]
        alone = model.generate(one, max_new_tokens=12, do_sample=False)
        assisted = model.generate(one, max_new_tokens=12, do_sample=False, assistant_model=assistant)
        assert torch.equal(alone, assisted)


@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"cache_implementation": "static"}], ids=["beams", "static"]
)
def test_other_ways_to_generate(base, options):
    order = [0, 1, 2, 1, 2, 3]
    view, twin = restack.view(base, order), LLAMA.twin(base, order)
    for model in (view, twin):
        model.generation_config.disable_compile = True
    ours, theirs = (m.generate(PROMPT, max_new_tokens=12, do_sample=False, **options) for m in (view, twin))
    assert torch.equal(ours, theirs)
