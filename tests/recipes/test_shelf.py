"""Models from a shelf: each set of weights is in memory once."""

import json
import os
import subprocess
import sys

import pytest
import torch

import restack
from restack import demo
from restack.errors import ModelError, PlanError, ViewError
from restack.recipes.shelf import Shelf
from restack.views.cost import own_bytes
from tests.recipes.tiny import LAYERS, saved_llama

UPWARD = ";kv=3x4"  # the keys and values of the last layer for all


@pytest.fixture
def notes():
    return []


@pytest.fixture
def shelf(notes):
    return Shelf(on_note=notes.append)


def storages(model):
    return {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}


def test_plans_of_one_model_share_its_weights(shelf, notes):
    base, same, other = (shelf.open(name) for name in ("demo", "demo", "demo@0:12,4:"))
    assert base.model is base.base is same.model is other.base
    assert other.model is not base.model and len(other.plan) == 20
    parameters = {id(parameter) for parameter in base.model.parameters()}
    assert {id(parameter) for parameter in other.model.parameters()} == parameters
    assert storages(other.model) == storages(base.model)
    assert own_bytes(other.model, base.model) == 0
    assert base.tokenizer is other.tokenizer
    held = shelf.held
    assert (held.bases, held.parameters) == (1, sum(weight.numel() for weight in base.model.parameters()))
    assert held.bytes == pytest.approx(2 * held.parameters, rel=0.01)
    assert notes == []


def test_a_model_is_the_same_by_whatever_name(tmp_path, shelf, monkeypatch):
    saved_llama(tmp_path / "tiny")
    (tmp_path / "link").symlink_to(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    names = ["tiny", "./tiny", str(tmp_path / "tiny"), "link", "tiny/../tiny/", "tiny@0:2", "link@::-1"]
    bases = {id(shelf.open(name).base) for name in names}
    assert len(bases) == shelf.held.bases == 1
    (tmp_path / "demo").symlink_to(demo.FOLDER)
    assert shelf.open("demo").base is shelf.open("./demo").base


def test_a_recipe_and_its_base_share_weights(tmp_path, shelf):
    base = saved_llama(tmp_path / "tiny")
    restack.save(restack.view(restack.open(base), "0:3,1:4"), tmp_path / "recipe")
    recipe, deeper, model = (
        shelf.open(name) for name in (f"{tmp_path}/recipe", f"{tmp_path}/recipe@::-1", base)
    )
    assert recipe.base is deeper.base is model.base
    assert (str(recipe.plan), list(deeper.plan.order)) == ("0:3,1:4", [3, 2, 1, 2, 1, 0])
    tokens = torch.tensor([[5, 9, 2, 7]])
    with torch.no_grad():
        assert torch.equal(recipe.model(tokens).logits, restack.open(f"{tmp_path}/recipe")(tokens).logits)


def test_a_recipe_of_other_weights_is_refused(tmp_path, shelf):
    base = saved_llama(tmp_path / "tiny")
    restack.save(restack.view(restack.open(base), "0:3,1:4"), tmp_path / "recipe")
    saved_llama(tmp_path / "tiny", seed=1)
    with pytest.raises(ModelError, match="another"):
        shelf.open(f"{tmp_path}/recipe")


def test_a_plan_that_reads_from_above_needs_a_second_set_and_it_is_said(tmp_path, shelf, notes):
    base = saved_llama(tmp_path / "tiny")
    plain, upward = shelf.open(base), shelf.open(f"{base}@0:{LAYERS}{UPWARD}")
    assert type(plain.base).__name__ == "LlamaForCausalLM"
    assert type(upward.base).__name__ == "RestackLlamaForCausalLM"
    assert shelf.held.bases == 2
    assert notes == [f"{base}@0:4;kv=3x4 needs its base as another class: a second set of weights is loaded"]
    assert shelf.open(f"{base}@0:{LAYERS};kv=2_2_2_3").base is upward.base


def test_a_merge_of_models(tmp_path, shelf):
    first, second = saved_llama(tmp_path / "a"), saved_llama(tmp_path / "b", seed=1)
    sources = [{"sources": [{"model": model, "layer_range": [0, 2]}]} for model in (first, second)]
    file = tmp_path / "merge.yaml"
    file.write_text(json.dumps({"slices": sources, "merge_method": "passthrough", "dtype": "float32"}))
    whole, backwards = shelf.open(str(file)), shelf.open(f"{file}@::-1")
    assert whole.base is backwards.base and len(backwards.plan) == 4


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [
        ("./nowhere", ModelError, "there is no folder ./nowhere"),
        ("demo@0:13", PlanError, "past the model's 12 layers"),
        ("demo@", ModelError, "no spec"),
        ("demo@0:4;kv=0_1_1s_1", ViewError, "sliding window"),
    ],
)
def test_all_names_are_checked_before_anything_is_loaded(shelf, monkeypatch, name, kind, told):
    monkeypatch.setattr("restack.recipes.shelf.open", lambda *args, **options: pytest.fail("it loads"))
    with pytest.raises(kind, match=told.replace("(", "\\(")):
        shelf.check("demo", "demo@0:8,4:12", name)


@pytest.mark.parametrize("place", [{"dtype": "int3"}, {"device": "abacus"}])
def test_where_nothing_can_be_loaded(place):
    with pytest.raises(ModelError):
        Shelf(**place).check("demo")


def test_a_second_plan_adds_less_than_five_megabytes(tmp_path):
    """Of resident memory, of a model of 84 MB."""
    folder = saved_llama(tmp_path / "big", hidden_size=512, intermediate_size=1400, num_hidden_layers=8)
    check = """
import sys, torch
from pathlib import Path
from restack.recipes.shelf import Shelf

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

shelf = Shelf()
tokens = torch.arange(8)[None]
run = lambda name: shelf.open(name).model(tokens, use_cache=False)
with torch.no_grad():
    run(sys.argv[1])
    run(sys.argv[1] + "@0:8,4:8")  # what is imported and made once for all views
    before = resident()
    views = [shelf.open(sys.argv[1] + "@0:8,2:8"), run(sys.argv[1] + "@0:8,2:8")]
    print(resident() - before, shelf.held.bytes)
"""
    if not os.path.exists("/proc/self/statm"):  # noqa: PTH110
        pytest.skip("needs /proc")
    done = subprocess.run(
        [sys.executable, "-c", check, folder], capture_output=True, text=True, timeout=120, check=True
    )
    added, held = map(int, done.stdout.split())
    assert added < 5e6 < 80e6 < held
