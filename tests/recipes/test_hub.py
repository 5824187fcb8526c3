"""Recipes and bases of the hub, as huggingface_hub keeps what it has fetched: no test reaches the network."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import restack
from restack import recipes
from restack.errors import ModelError
from tests.recipes.tiny import built, logits, saved_llama

COMMITS = {"main": "0" * 39 + "1", "later": "0" * 39 + "2"}
ORDER = [0, 1, 2, 1, 2, 3]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Puts a folder into the cache as a repository at a revision."""
    for module in ("huggingface_hub.constants", "transformers.utils.hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", True)

    def put(repository, folder, revision="main"):
        place = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        shutil.copytree(folder, place / "snapshots" / COMMITS[revision])
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / revision).write_text(COMMITS[revision])

    return put


@pytest.fixture
def base(hub, tmp_path):
    hub("somebody/tiny", saved_llama(tmp_path / "llama"))
    return restack.open("somebody/tiny")


@pytest.fixture
def recipe(base, tmp_path):
    return restack.save(restack.view(base, ORDER), tmp_path / "recipe")


def test_a_recipe_pins_the_commit_of_its_base(base, recipe, hub, tmp_path):
    said = json.loads((recipe / "config.json").read_text())["base"]
    assert (said["name"], said["revision"]) == ("somebody/tiny", COMMITS["main"])
    assert "base_model: somebody/tiny" in (recipe / "README.md").read_text()
    saved_llama(tmp_path / "llama", seed=1)
    hub("somebody/tiny", tmp_path / "llama", "later")
    (tmp_path / "hub" / "models--somebody--tiny" / "refs" / "main").write_text(COMMITS["later"])
    later = restack.open("somebody/tiny")
    assert not torch.equal(logits(later), logits(base))
    for model, commit in ((base, "main"), (later, "later")):  # transformers has forgotten which it was
        folder = restack.save(restack.view(model, ORDER), tmp_path / f"of-{commit}")
        assert json.loads((folder / "config.json").read_text())["base"]["revision"] == COMMITS[commit]
    assert torch.equal(logits(restack.open(str(recipe))), logits(built(base, ORDER)))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(recipe)), logits(built(base, ORDER)))


def test_a_recipe_is_saved_by_its_name_alone(base, recipe, tmp_path):
    unread = recipes.save_recipe("somebody/tiny", restack.plan(ORDER, 4), tmp_path / "unread")
    assert (unread / "config.json").read_text() == (recipe / "config.json").read_text()


def test_a_recipe_on_the_hub(base, recipe, hub):
    hub("somebody/recipe", recipe)
    expected = logits(built(base, ORDER))
    for name in ("somebody/recipe", "somebody/recipe@all"):
        assert torch.equal(logits(restack.open(name)), expected)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained("somebody/recipe")), expected)
    assert AutoTokenizer.from_pretrained("somebody/recipe").eos_token == "<|im_end|>"
    assert recipes.open_config("somebody/recipe").num_hidden_layers == 6


def test_a_recipe_with_weights_on_the_hub_is_its_own_base(base, hub, tmp_path):
    expected = logits(built(base, ORDER))
    hub("somebody/stack", restack.save(restack.view(base, ORDER), tmp_path / "s", weights="shared"))
    shutil.rmtree(tmp_path / "hub" / "models--somebody--tiny")
    opened = restack.open("somebody/stack")
    assert torch.equal(logits(opened), expected)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained("somebody/stack")), expected)
    assert recipes.open_tokenizer("somebody/stack").eos_token == "<|im_end|>"
    again = restack.save(restack.view(opened, [5, 0]), tmp_path / "again")  # a recipe over the weights in it
    said = json.loads((again / "config.json").read_text())
    assert said["base"]["name"] == "somebody/stack"
    assert said["base"]["subfolder"] == "base"
    assert torch.equal(logits(restack.open(str(again))), logits(built(base, [3, 0])))


def test_a_changed_base_in_the_cache_is_refused(base, recipe, tmp_path):
    snapshot = tmp_path / "hub" / "models--somebody--tiny" / "snapshots" / COMMITS["main"]
    other = LlamaForCausalLM.from_pretrained(saved_llama(tmp_path / "other", seed=1))
    other.save_pretrained(snapshot)
    with pytest.raises(ModelError, match="another set of weights"):
        restack.open(str(recipe))


def test_a_base_that_the_hub_does_not_have_is_told(base, recipe, tmp_path):
    shutil.rmtree(tmp_path / "hub")
    with pytest.raises(ModelError, match=r"somebody/tiny.* no such folder, and the hub") as error:
        restack.open(str(recipe))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "base_of_it",
    [{"name": "../outside"}, {"name": "./../outside"}, {"name": "somebody/tiny", "subfolder": "../outside"}],
)
def test_a_recipe_on_the_hub_does_not_leave_its_repository(base, recipe, hub, tmp_path, base_of_it):
    said = json.loads((recipe / "config.json").read_text())
    said["base"] |= base_of_it
    (recipe / "config.json").write_text(json.dumps(said))
    hub("somebody/escape", recipe)
    for repository in ("tiny", "escape"):
        place = tmp_path / "hub" / f"models--somebody--{repository}" / "snapshots" / "outside"
        shutil.copytree(tmp_path / "llama", place)
    with pytest.raises(ModelError, match=r"not there|no such folder"):
        restack.open("somebody/escape")
