"""`sling`, `unsling` and `slung`: David's call in place, and everything back as it was."""

import copy

import pytest
import torch
from torch import nn

import restack
from tests.views.architectures import BY_NAME, LLAMA, VOCABULARY

PROMPT = torch.randint(3, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(2))
NAMES = ["llama", "gemma3", "gpt2", "jamba", "bamba", "lfm2"]


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(PROMPT).logits


def state(model: nn.Module) -> dict:
    """Everything a sling may touch: objects by identity, values by value."""
    return {
        "modules": [(path, id(module), module.training) for path, module in model.named_modules()],
        "tensors": [(name, id(value)) for name, value in model.state_dict(keep_vars=True).items()],
        "indices": [getattr(module, "layer_idx", None) for module in model.modules()],
        "config": copy.deepcopy(vars(model.config)),
        "config object": (id(model.config), type(model.config)),
        "attributes": sorted(vars(model)),
    }


@pytest.mark.parametrize(
    ("depth", "ranges", "order"),
    [
        (
            10,
            [(0, 0.3), (0.2, 0.4), (0.4, 0.5), (0.4, 1)],
            [0, 1, 2, 3, 2, 3, 4, 4, 5, 4, 5, 6, 7, 8, 9],
        ),
        (7, [(0, 0.5), (0.3, 0.8), (0.5, 1)], [0, 1, 2, 3, 2, 3, 4, 5, 3, 4, 5, 6]),
    ],
    ids=["ten layers", "seven layers"],
)
def test_davids_readme(depth, ranges, order):
    model = LLAMA.model(num_hidden_layers=depth)
    twin = LLAMA.twin(model, order)
    assert restack.sling(model, ratio_repeat=ranges) is model
    assert model.restack_plan.order == tuple(order)
    assert torch.equal(logits(model), logits(twin))
    restack.sling(model, repeat_map_raw=order)
    assert torch.equal(logits(model), logits(twin))


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_twin_and_comes_back(name):
    model = BY_NAME[name].model()
    before, plain = state(model), logits(model)
    for order in ([0, 1, 2, 1, 2, 3], [3, 2, 1, 0], [1, 3]):
        twin = BY_NAME[name].twin(model, order)
        restack.sling(model, plan=order)
        assert torch.equal(logits(model), logits(twin))
        options = {"max_new_tokens": 12, "do_sample": False}
        assert torch.equal(model.generate(PROMPT, **options), twin.generate(PROMPT, **options))
        assert restack.unsling(model) is model
        assert state(model) == before
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("name", NAMES)
def test_a_second_sling_counts_the_original_layers(name):
    model = BY_NAME[name].model()
    before = state(model)
    twin = BY_NAME[name].twin(model, [3, 2, 1])
    restack.sling(model, plan=[1])
    restack.sling(model, plan=[0, 1, 2, 1, 2, 3])
    restack.sling(model, plan=[3, 2, 1])
    assert torch.equal(logits(model), logits(twin))
    restack.unsling(model)
    assert state(model) == before


@pytest.mark.parametrize("name", ["llama", "jamba"])
def test_with_slung(name):
    model = BY_NAME[name].model()
    before = state(model)
    with restack.slung(model, [0, 1, 1, 2]) as inside:
        assert inside is model and model.config.num_hidden_layers == 4
        assert model.restack_plan.order == (0, 1, 1, 2)
    assert state(model) == before


def test_with_slung_and_an_exception():
    model = LLAMA.model()
    before = state(model)
    with pytest.raises(ZeroDivisionError), restack.slung(model, [0, 1, 1]):
        raise ZeroDivisionError
    assert state(model) == before


@pytest.mark.parametrize("name", ["llama", "jamba"])
def test_nested_slung(name):
    model = BY_NAME[name].model()
    before = state(model)
    with restack.slung(model, [3, 1]):
        outer, slung_logits = state(model), logits(model)
        with restack.slung(model, [0, 1, 2, 1, 2, 3]):  # counts the original layers
            assert model.restack_plan.order == (0, 1, 2, 1, 2, 3)
        assert state(model) == outer
        assert torch.equal(logits(model), slung_logits)
    assert state(model) == before


def test_unsling_inside_slung():
    model = LLAMA.model()
    before = state(model)
    with restack.slung(model, [3, 1]):
        restack.unsling(model)
    assert state(model) == before
    restack.sling(model, plan=[2])
    outer = state(model)
    with restack.slung(model, [3, 1]):
        restack.unsling(model)
    assert state(model) == outer


@pytest.mark.parametrize("slung_before", [False, True])
@pytest.mark.parametrize("name", ["llama", "jamba"])
@pytest.mark.parametrize(
    "asked",
    [
        {"plan": [0, 99]},
        {"plan": "0:2;kv=1_1"},
        {"repeat_map_raw": []},
        {"repeat_map_raw": 7},
        {"ratio_repeat": [(0.6, 0.2)]},
        {"plan": "all", "repeat_map_raw": [0]},
        {},
    ],
    ids=str,
)
def test_a_sling_that_fails_leaves_the_model_as_it_was(name, asked, slung_before):
    model = BY_NAME[name].model()
    if slung_before:
        restack.sling(model, plan=[1, 1, 2])
    before = state(model)
    with pytest.raises(restack.RestackError):
        restack.sling(model, **asked)
    assert state(model) == before


def test_two_models_at_once():
    first, second = LLAMA.model(seed=1), LLAMA.model(seed=2)
    twins = [LLAMA.twin(first, [1, 0]), LLAMA.twin(second, [2, 2, 3])]
    restack.sling(first, plan=[1, 0])
    restack.sling(second, plan=[2, 2, 3])
    assert torch.equal(logits(first), logits(twins[0]))
    restack.unsling(first)
    assert torch.equal(logits(second), logits(twins[1]))


def test_shares_every_tensor():
    model = LLAMA.model()
    owned = {id(tensor) for tensor in [*model.parameters(), *model.buffers()]}
    restack.sling(model, plan=[0, 1, 1, 2, 3])
    assert {id(tensor) for tensor in [*model.parameters(), *model.buffers()]} == owned


def test_views_made_before_stay():
    model = LLAMA.model()
    view = restack.view(model, [0, 1, 1])
    expected = logits(view)
    restack.sling(model, plan=[3, 2])
    assert torch.equal(logits(view), expected)
    assert view.config.num_hidden_layers == 3


def test_a_view_can_be_slung():
    base = LLAMA.model()
    view = restack.view(base, [0, 1, 2, 1, 2, 3])
    restack.sling(view, plan=[5, 1, 0])
    assert view.restack_plan.order == (3, 1, 0)
    assert torch.equal(logits(view), logits(LLAMA.twin(base, [3, 1, 0])))
    restack.unsling(view)
    assert view.restack_plan.order == (0, 1, 2, 1, 2, 3)
    assert base.config.num_hidden_layers == 4


def test_modes_set_while_slung_hold_after():
    model = LLAMA.model()
    restack.sling(model, plan=[0, 2])
    model.train()
    restack.unsling(model)
    assert all(module.training for module in model.modules())


def test_settings_changed_while_slung_hold_after():
    model = LLAMA.model()
    with restack.slung(model, [0, 2]):
        model.config.use_cache = False
    assert model.config.use_cache is False
    assert model.config.num_hidden_layers == 4


def test_a_slung_model_can_be_copied():
    model = BY_NAME["jamba"].model()
    restack.sling(model, plan=[0, 1, 1])
    other = copy.deepcopy(model)
    assert torch.equal(logits(other), logits(model))
    restack.unsling(other)
    assert model.config.num_hidden_layers == 3
    restack.unsling(model)
    assert torch.equal(logits(other), logits(model))
    assert vars(other.config).keys() == vars(model.config).keys()


def test_unsling_of_a_model_that_is_not_slung():
    with pytest.raises(restack.ViewError, match="not slung"):
        restack.unsling(LLAMA.model())


@pytest.mark.parametrize(
    ("notation", "told"),
    [
        ("0:3,1:", r"write plan='0:3,1:'"),
        (restack.plan("0:3", 4), r"write plan=restack\.plan\('0:3', \(4,\)\)"),
        ([0, 1, 1, 3], r"write repeat_map_raw=\[0, 1, 1, 3\]"),
    ],
    ids=["spec", "plan", "layers"],
)
def test_another_notation_in_the_place_of_depth_ranges(notation, told):
    model = LLAMA.model()
    with pytest.raises(restack.PlanError, match=told):
        restack.sling(model, notation)
    assert len(model.model.layers) == 4
