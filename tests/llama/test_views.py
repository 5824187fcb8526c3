"""Views of the house model: another plan in another config, over the same layers."""

import gc
import weakref

import pytest
import torch

import restack
from restack import ModelError, PlanError, ViewError
from restack.llama import RestackLlamaConfig, RestackLlamaForCausalLM
from restack.views.cost import cost
from tests.llama.reference import token_by_token
from tests.llama.tiny import CYCLIC, settings_of, tokens, weights_of
from tests.llama.tiny import model as tiny_model

PLANS = [
    "0:4,2:6",
    "::-1",
    "0:3,2@0.5,3:",
    "cla2",
    "0:4,2:6;kv=0_0_2_2_4_4_6_6",
    "0_4x4_5",
    "0:4,2:6;kv=0_6x6_7",
]


def model(kv_map=None, **settings):
    return tiny_model(kv_map, attention="sdpa", **settings)  # as models are opened


def logits(house, rows=None):
    with torch.no_grad():
        return house.eval()(tokens(12) if rows is None else rows, use_cache=False).logits


def twin(house, plan):
    """The model that its constructor makes of the plan, with the weights that it has a place for."""
    config = RestackLlamaConfig(**{**house.config.to_dict(), "plan": plan, "forward_passes": 12})
    made = RestackLlamaForCausalLM(config).eval()
    state = house.state_dict()
    made.load_state_dict({name: state[name] for name in made.state_dict()})
    return made


@pytest.mark.parametrize("plan", PLANS)
def test_a_view_runs_the_plan_on_the_very_same_tensors(plan):
    base = model(forward_passes=12)
    before = logits(base)
    view = restack.view(base, plan)
    assert type(view) is type(base) and view.restack_plan == restack.plan(plan, 6)
    assert len(view.model.layers) == 6
    ours, theirs = dict(view.named_parameters()), dict(base.named_parameters())
    assert all(ours[name] is theirs[name] for name in theirs)
    assert torch.equal(logits(view), logits(twin(base, plan)))
    expected = token_by_token(weights_of(view), settings_of(view.config), tokens(12)[0])
    assert (logits(view)[0] - expected).abs().max() < 1e-5
    assert base.config.plan is None and torch.equal(logits(base), before)


def test_views_of_views_and_of_models_with_a_plan_of_their_own():
    base = model(plan="0:4,2:6")
    view = restack.view(restack.view(base, "1:"), "0:5")
    assert view.config.whole_plan.order == (1, 2, 3, 2, 3)
    assert view.restack_plan == restack.plan("1:6", 8)  # over the visits of what was loaded
    assert torch.equal(logits(view), logits(twin(base, "1:4,2:4")))


def test_generation_and_training_of_a_view():
    base = model(CYCLIC["lckv-w2"], forward_passes=20)
    view = restack.view(base, "0:3,1:6")
    found = view.generate(tokens(5), max_new_tokens=8, do_sample=False, pad_token_id=0)
    again = view.generate(tokens(5), max_new_tokens=8, do_sample=False, pad_token_id=0, use_cache=False)
    assert torch.equal(found, again)
    view.train()
    view(tokens(7), labels=tokens(7)).loss.backward()
    assert base.model.layers[2].mlp.up_proj.weight.grad is not None


@pytest.mark.parametrize("plan", ["0:4,2:6", "0_4x4_5", "0:3,2@0.5,3:", "0:3,2{o_proj:0.5},3:"])
def test_materialised(plan, tmp_path):
    base = model(forward_passes=12)
    made = restack.materialise(base, plan)
    assert len(made.model.layers) == len(restack.plan(plan, 6))
    assert torch.allclose(logits(made), logits(restack.view(base, plan)), atol=1e-6)
    owned = {tensor.data_ptr() for tensor in base.parameters()}
    assert not any(tensor.data_ptr() in owned for tensor in made.parameters())
    made.save_pretrained(tmp_path)
    again = RestackLlamaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(made))


def test_scaled_visits_share_their_tensors():
    base = model()
    view = restack.view(base, "0:3,2{o_proj:0.5,down_proj:0.25},3:")
    assert {id(tensor) for tensor in view.parameters()} == {id(tensor) for tensor in base.parameters()}
    made = model(plan="0:3,2:6", num_hidden_layers=6)
    made.load_state_dict(base.state_dict())
    by_hand = restack.materialise(made, "all")
    with torch.no_grad():
        by_hand.model.layers[3].self_attn.o_proj.weight.mul_(0.5)
        by_hand.model.layers[3].mlp.down_proj.weight.mul_(0.25)
    assert torch.allclose(logits(view), logits(by_hand), atol=1e-6)


def test_sling_and_unsling():
    base = model()
    before = logits(base)
    assert restack.sling(base, ratio_repeat=[(0, 0.5), (0.3, 1)]) is base
    assert base.config.whole_plan.order == (0, 1, 2, 3, 1, 2, 3, 4, 5)
    restack.sling(base, repeat_map_raw=[5, 0])
    assert base.config.whole_plan.order == (5, 0)
    with restack.slung(base, "cla2"):
        assert base.config.kv_map == "0_0_2_2_4_4"
    assert base.config.whole_plan.order == (5, 0)
    restack.unsling(base)
    assert torch.equal(logits(base), before) and "restack_plan" not in vars(base)


@pytest.mark.parametrize("plan", ["all", "0:5", "0:4,2:6"])
@pytest.mark.parametrize("kv_map", [None, CYCLIC["lckv-w2"]])
def test_cost(kv_map, plan):
    """Told beforehand, and measured on the cache, of a view and of a model of its own."""
    base = model(kv_map)
    said = cost(base, restack.plan(plan, base))
    for made, told in (
        (restack.view(base, plan), said.kv_bytes_per_token),
        (restack.materialise(base, plan), said.materialised_kv_bytes_per_token),
    ):
        slots = made(tokens(3)).past_key_values.layers
        assert sum(slot.keys.nbytes + slot.values.nbytes for slot in slots) == 3 * told


def test_verify():
    assert restack.verify(model(plan="0:4,2:6")).layers == 8
    assert restack.verify(model(CYCLIC["lckv-w2"])).layers == 6


@pytest.mark.parametrize("weights", ["none", "shared", "full"])
def test_saved_and_opened_again(weights, tmp_path):
    model(CYCLIC["lckv-w2"]).save_pretrained(tmp_path / "base")
    base = restack.open(str(tmp_path / "base"))
    view = restack.view(base, "0:3,1:6")
    restack.save(view, tmp_path / "view", weights=weights)
    again = restack.open(str(tmp_path / "view"))
    assert torch.equal(logits(again), logits(view))


def test_save_pretrained_of_a_view_needs_no_restack_plan(tmp_path):
    base = model()
    view = restack.view(base, "0:4,2:6;kv=0_6x6_7")
    view.save_pretrained(tmp_path)
    again = RestackLlamaForCausalLM.from_pretrained(tmp_path)
    assert again.config.plan == "0:4,2:6;kv=0_6x6_7"
    assert torch.equal(logits(again), logits(view))


def test_donors():
    models = [model(seed=0), model(seed=1)]
    view = restack.view(models, "0/0:3,1/2:6")
    expected = model(num_hidden_layers=7)
    state = models[0].state_dict()
    for name in list(expected.state_dict()):
        parts = name.split(".")
        if parts[1] == "layers":
            number = int(parts[2])
            donor, layer = (0, number) if number < 3 else (1, number - 1)
            parts[2] = str(layer)
        else:
            donor = int(name in ("model.norm.weight", "lm_head.weight"))
        state[name] = models[donor].state_dict()[".".join(parts)]
    expected.load_state_dict({name: state[name] for name in expected.state_dict()})
    assert torch.equal(logits(view), logits(expected))


def test_converting_a_view_leaves_the_base_as_it_is():
    base = model()
    with pytest.warns(UserWarning, match="weights of its own"):
        view = restack.view(base, "0:4,2:6").to(torch.bfloat16)
    assert view.dtype == torch.bfloat16 and base.dtype == torch.float32
    view.train()
    assert not base.model.layers[0].training


def test_views_are_freed():
    base = model()
    view = restack.view(base, "0:4,2:6")
    gone = weakref.ref(view)
    del view
    gc.collect()
    assert gone() is None


def test_plans_that_need_what_is_not_there_are_refused():
    base = model(CYCLIC["lckv-w2"])
    with pytest.raises(ViewError, match="visit 1 needs keys and values of layer 1, which has no weights"):
        restack.view(base, "all;kv=0_1_1_4_4_5")
    with pytest.raises(PlanError, match="layer 6"):
        restack.view(base, [0, 6])
    with pytest.raises(ModelError, match="sliding_window is None"):
        restack.view(model(), "yoco")
    with pytest.raises(ViewError, match="make a view that scales"):
        restack.sling(model(), plan="0:3{o_proj:0.5},3:")
