"""Adapters of the visits of a view: which are trained, that they alone are, and that they are kept."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import restack
from restack.errors import UsageError
from restack.training import Training, train
from restack.training.adapters import adapted, chosen_visits
from tests.llama.tiny import model as house
from tests.recipes.tiny import saved_llama
from tests.training.tiny import by_hand, llama, rows

peft = pytest.importorskip("peft")
SPEC, ORDER = "0:3,1:4", (0, 1, 2, 1, 2, 3)
SETTINGS = {"steps": 6, "batch": 12, "lr": 0.02, "warmup": 0.0, "eval_share": 0.0, "lora": 2}


def trained(model, folder, data=None, **settings):
    data = rows() if data is None else data
    return train(model, None, data, folder, Training(**SETTINGS | settings))


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def logits(model, data=None):
    with torch.no_grad():
        return model(rows() if data is None else data).logits


def visits_with_adapters(model):
    names = [name for name, _ in model.named_parameters() if "lora_A" in name]
    return sorted({int(name.split(".layers.")[1].split(".")[0]) for name in names})


@pytest.mark.parametrize(
    ("wanted", "order", "visits"),
    [
        ("repeated", ORDER, (1, 2, 3, 4)),
        ("repeated", (0, 1, 2), (0, 1, 2)),
        ("all", ORDER, (0, 1, 2, 3, 4, 5)),
        ("4:", ORDER, (4, 5)),
        ("-1,0", ORDER, (0, 5)),
        ("2x3", ORDER, (2,)),
    ],
)
def test_which_visits(wanted, order, visits):
    assert chosen_visits(wanted, order) == visits


@pytest.mark.parametrize("wanted", ["6", "some", "", "0:9"])
def test_which_visits_there_are_not(wanted):
    with pytest.raises(UsageError, match="--lora-visits takes repeated, all, or a spec over the 6 visits"):
        chosen_visits(wanted, ORDER)


def test_each_visit_has_its_own_on_all_its_linear_layers():
    model = adapted(restack.view(llama(), SPEC), Training(lora=2))
    assert visits_with_adapters(model) == [1, 2, 3, 4]
    found = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    assert len(found) == 4 * 7
    first, second = (model.base_model.model.model.layers[visit].mlp.up_proj for visit in (1, 3))
    assert first.base_layer.weight is second.base_layer.weight
    assert first.lora_A["default"].weight is not second.lora_A["default"].weight
    assert first.scaling == {"default": 2.0}  # alpha is 2 * rank


def test_they_alone_are_trained_as_by_hand(tmp_path):
    """The twin has copies of the layers: adapters of two visits cannot be mixed up in it."""
    base = llama()
    before = state(base)
    result = trained(restack.view(base, SPEC), tmp_path / "run", lora_visits="all")
    twin = restack.materialise(llama(), SPEC)
    torch.manual_seed(0)
    twin = adapted(twin, Training(lora=2, lora_visits="all"))
    losses = by_hand(twin, [rows()], lr=0.02, steps=6, warmup=0.0)
    assert result.losses == pytest.approx(losses, abs=1e-5)
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    ups = [result.model.base_model.model.model.layers[visit].mlp.up_proj for visit in (1, 3)]
    assert not torch.equal(ups[0].lora_B["default"].weight, ups[1].lora_B["default"].weight)


@pytest.mark.parametrize("kind", ["view", "plain", "house", "house that repeats"])
def test_what_is_saved_opens_as_it_was_trained(tmp_path, kind):
    data = rows(vocabulary=50) if "house" in kind else rows()
    model = {
        "view": lambda: restack.view(llama(), SPEC),
        "plain": llama,
        "house": lambda: house("0_4x4_5", forward_passes=3),
        "house that repeats": lambda: restack.view(house(forward_passes=3), "0:4,2:6"),
    }[kind]()
    before = logits(model, data)
    result = trained(model, tmp_path / "run", data=data)
    expected = logits(result.model, data)
    again = restack.open(str(tmp_path / "run"))
    torch.testing.assert_close(logits(again, data), expected, atol=1e-6, rtol=0)
    assert not torch.allclose(before, expected, atol=1e-3)
    if kind == "house that repeats":
        assert visits_with_adapters(again) == [2, 3, 4, 5]


def test_a_model_with_a_name_is_kept_as_a_recipe_of_it(tmp_path):
    saved_llama(tmp_path / "llama")
    data = rows(vocabulary=1000)
    result = trained(restack.open(f"{tmp_path / 'llama'}@{SPEC}"), tmp_path / "run", data=data)
    assert not (tmp_path / "run" / "base").exists()
    assert {file.name for file in (tmp_path / "run" / "adapter").iterdir()} >= {"adapter_model.safetensors"}
    again = restack.open(str(tmp_path / "run"))
    assert torch.equal(logits(again, data), logits(result.model, data))


def test_training_goes_on_from_such_a_folder(tmp_path):
    saved_llama(tmp_path / "llama")
    data = rows(vocabulary=1000)
    first = trained(restack.open(f"{tmp_path / 'llama'}@{SPEC}"), tmp_path / "first", data=data)
    model = restack.open(str(tmp_path / "first"))
    before = state(model)
    second = trained(model, tmp_path / "second", data=data, lora=None)
    assert second.losses[0] < first.losses[0]
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all("lora_" in name for name in changed)
    again = restack.open(str(tmp_path / "second"))
    assert torch.equal(logits(again, data), logits(second.model, data))
    with pytest.raises(UsageError, match="has adapters already"):
        trained(restack.open(str(tmp_path / "first")), tmp_path / "third", data=data)


def test_gpt2s_own_kind_of_linear_layer(tmp_path):
    config = GPT2Config(
        vocab_size=40, n_positions=32, n_embd=16, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    view = restack.view(GPT2LMHeadModel(config).eval(), "0:3,1")
    model = adapted(view, Training(lora=2))
    found = sorted(
        {name.split(".lora_A")[0].split(".h.")[1] for name, _ in model.named_parameters() if "lora_A" in name}
    )
    parts = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert found == sorted(f"{visit}.{part}" for visit in (1, 3) for part in parts)


def test_adapters_of_weights_in_bfloat16_are_in_float32(tmp_path):
    result = trained(llama().bfloat16(), tmp_path / "run")
    dtypes = {p.dtype for name, p in result.model.named_parameters() if "lora_" in name}
    assert dtypes == {torch.float32}
    assert result.losses[-1] < result.losses[0]


def test_visits_that_read_others_keys_and_values(tmp_path):
    base = restack.open(str(saved_llama(tmp_path / "llama")))
    data = rows(vocabulary=base.config.vocab_size)
    result = trained(restack.view(base, restack.plan("all", base, kv="cla2")), tmp_path / "run", data)
    model = restack.open(str(tmp_path / "run"))
    assert torch.equal(logits(model, data), logits(result.model.eval(), data))
