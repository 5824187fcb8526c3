import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import restack
from restack import demo, recipes
from restack.errors import ModelError, PlanError, RestackError, UsageError, ViewError
from restack.plans import Plan
from tests.recipes.tiny import LAYERS, SETTINGS, built, logits, saved_llama

SPEC = "0:3,1:4"
ORDER = [0, 1, 2, 1, 2, 3]


@pytest.fixture
def base(tmp_path):
    return restack.open(saved_llama(tmp_path / "llama"))


@pytest.fixture
def view(base):
    return restack.view(base, SPEC)


@pytest.fixture
def recipe(view, tmp_path):
    return str(restack.save(view, tmp_path / "recipe"))


def stored_in(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def said_by(recipe):
    return json.loads(Path(recipe, "config.json").read_text())


def change(recipe, **settings):
    """Write other settings into a recipe."""
    Path(recipe, "config.json").write_text(json.dumps(said_by(recipe) | settings))


def told(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_recipe_gives_the_view_back(base, recipe):
    opened = restack.open(recipe)
    assert torch.equal(logits(opened), logits(built(base, ORDER)))
    assert str(opened.restack_plan) == SPEC
    assert opened.get_parameter("model.layers.1.mlp.up_proj.weight") is opened.get_parameter(
        "model.layers.3.mlp.up_proj.weight"
    )


def test_a_recipe_says_base_plan_and_fingerprint_in_ten_kilobytes(recipe, tmp_path):
    files = {file.name: file for file in (tmp_path / "recipe").iterdir()}
    assert set(files) == {"config.json", "README.md", "mergekit_config.yml"}
    assert sum(file.stat().st_size for file in files.values()) < 10_000
    said = json.loads(files["config.json"].read_text())
    assert said["base"]["name"] == str(tmp_path / "llama")
    assert said["plan"] == {"plan": SPEC, "depths": [LAYERS]}
    assert Plan.from_json(said["plan"]).order == tuple(ORDER)
    assert all(len(part) == 16 for part in said["base"]["fingerprint"].values())
    card = files["README.md"].read_text()
    assert "6 visits of the 4 layers of `llama`" in card
    assert card.count("█") == 6
    assert str(tmp_path) not in card  # it may be shown to others


def test_the_recipe_of_a_large_and_scattered_plan_stays_under_ten_kilobytes(tmp_path):
    config = LlamaConfig(**SETTINGS | {"num_hidden_layers": 140, "hidden_size": 4, "vocab_size": 8})
    LlamaForCausalLM(config).save_pretrained(tmp_path / "deep")
    scattered = [(number * 37) % 140 for number in range(280)]
    restack.save(restack.view(restack.open(str(tmp_path / "deep")), scattered), tmp_path / "recipe")
    assert sum(file.stat().st_size for file in (tmp_path / "recipe").iterdir()) < 10_000
    assert restack.open(str(tmp_path / "recipe")).restack_plan.order == tuple(scattered)


def test_the_demo_is_named_not_where_it_lies(tmp_path):
    restack.save(restack.view(restack.open("demo"), "(4,8)"), tmp_path / "recipe")
    assert said_by(tmp_path / "recipe")["base"]["name"] == "demo"
    assert str(restack.open(str(tmp_path / "recipe")).restack_plan) == "0:8,4:12"


def test_slung_and_plain_models_are_saved_too(base, tmp_path):
    restack.save(base, tmp_path / "plain")
    assert restack.open(str(tmp_path / "plain")).restack_plan.is_identity
    restack.sling(base, repeat_map_raw=ORDER)
    restack.save(base, tmp_path / "slung")
    assert torch.equal(logits(restack.open(str(tmp_path / "slung"))), logits(base))


def test_a_spec_on_a_recipe_counts_its_visits(base, recipe):
    assert restack.open(f"{recipe}@3:").restack_plan.order == (1, 2, 3)
    opened = restack.open(f"{recipe}@0:4@0.5,::-1")
    assert opened.restack_plan.order == (0, 1, 2, 1, 3, 2, 1, 2, 1, 0)
    assert [visit.damp for visit in opened.restack_plan.visits] == [0.5] * 4 + [1] * 6
    with pytest.raises(PlanError, match="past the model's 6 layers"):
        restack.open(f"{recipe}@0:7")


def test_a_recipe_may_be_the_base_of_a_recipe(base, recipe, tmp_path):
    whole = restack.save(restack.open(f"{recipe}@3:,0"), tmp_path / "whole")
    assert said_by(whole)["base"]["name"] == str(tmp_path / "llama")
    over = tmp_path / "over"
    over.mkdir()
    said = said_by(whole)
    print_of = recipes.fingerprint.fingerprint_of_config(recipes.fingerprint.Location(recipe))
    said["base"] = {
        "name": "../recipe", "revision": None, "subfolder": "",
        "fingerprint": {"config": print_of.config, "tensors": None, "samples": None},
    }  # fmt: skip
    said["plan"] = {"plan": "3:,0", "depths": [6]}
    (over / "config.json").write_text(json.dumps(said))
    expected = logits(built(base, [1, 2, 3, 0]))
    assert torch.equal(logits(restack.open(str(whole))), expected)
    assert torch.equal(logits(restack.open(str(over))), expected)
    change(recipe, plan={"plan": "0:4", "depths": [4]})  # the recipe below is another now
    with pytest.raises(ModelError, match="another config") as error:
        restack.open(str(over))
    assert str(tmp_path / "recipe") in told(error)


def test_a_recipe_over_itself_is_refused(recipe):
    change(recipe, base=said_by(recipe)["base"] | {"name": "."})
    with pytest.raises(ModelError, match=r"another config|over itself") as error:
        restack.open(recipe)
    told(error)


@pytest.mark.parametrize("spec", ["0:2@0.25,2:", "0:4{o_proj:0.5},3@2{down_proj:0.7,*:1.5}"])
@pytest.mark.parametrize("weights", ["none", "shared"])
def test_damped_and_scaled_visits_are_kept(base, tmp_path, spec, weights):
    view = restack.view(base, spec)
    assert not torch.allclose(logits(view), logits(restack.view(base, list(view.restack_plan.order))))
    opened = restack.open(str(restack.save(view, tmp_path / "saved", weights=weights)))
    assert opened.restack_plan == view.restack_plan
    assert torch.equal(logits(opened), logits(view))


def test_shared_weights_are_stored_once(base, view, tmp_path):
    folder = restack.save(view, tmp_path / "shared", weights="shared")
    assert stored_in(folder / "base") == stored_in(tmp_path / "llama")
    size = (tmp_path / "llama" / "model.safetensors").stat().st_size
    assert abs((folder / "base" / "model.safetensors").stat().st_size - size) < 100
    shutil.rmtree(tmp_path / "llama")
    moved = folder.rename(tmp_path / "elsewhere")
    model, info = AutoModelForCausalLM.from_pretrained(moved, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(logits(model), logits(built(base, ORDER)))
    assert torch.equal(logits(restack.open(str(moved))), logits(model))
    plain = LlamaForCausalLM.from_pretrained(moved / "base")
    assert torch.equal(logits(plain), logits(base))
    assert len(recipes.open_tokenizer(str(moved))) == len(recipes.open_tokenizer("demo"))


def test_shared_weights_leave_out_what_is_not_visited(base, tmp_path):
    view = restack.view(base, [3, 1, 1])
    folder = restack.save(view, tmp_path / "shared", weights="shared")
    assert said_by(folder)["plan"] == {"plan": "1,0x2", "depths": [2]}
    assert {name.split(".")[2] for name in stored_in(folder / "base") if "layers" in name} == {"0", "1"}
    assert torch.equal(logits(restack.open(str(folder))), logits(built(base, [3, 1, 1])))


@pytest.mark.parametrize("tied", [False, True])
def test_full_weights_need_no_restack(tmp_path, tied):
    base = restack.open(saved_llama(tmp_path / "llama", tie_word_embeddings=tied))
    view = restack.view(base, SPEC)
    folder = restack.save(view, tmp_path / "full", weights="full")
    assert said_by(folder)["model_type"] == "llama"
    model, info = LlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(logits(model), logits(built(base, ORDER)))
    assert (folder / "tokenizer.json").is_file()


def test_full_weights_of_a_scaled_view_are_multiplied(base, tmp_path):
    view = restack.view(base, "0:4{o_proj:0.5},3")
    folder = restack.save(view, tmp_path / "full", weights="full")
    expected = built(base, [0, 1, 2, 3, 3])
    for layer in expected.model.layers[:4]:
        layer.self_attn.o_proj.weight.data.mul_(0.5)
    assert torch.equal(logits(LlamaForCausalLM.from_pretrained(folder)), logits(expected))


def test_a_damped_view_is_no_checkpoint(base, tmp_path):
    with pytest.raises(ViewError, match="damped"):
        restack.save(restack.view(base, "0:4@0.5"), tmp_path / "full", weights="full")
    assert [file.name for file in tmp_path.iterdir()] == ["llama"]


def test_mergekit_recipes_go_in_and_out(base, tmp_path):
    config = {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": "any", "layer_range": [0, 3]}]},
            {"sources": [{
                "model": "any", "layer_range": [1, 4],
                "parameters": {"scale": [{"filter": "o_proj", "value": 0.5}, {"value": 1.0}]},
            }]},
        ],
    }  # fmt: skip
    view = restack.view(base, config)
    folder = restack.save(view, tmp_path / "recipe")
    written = folder / "mergekit_config.yml"
    assert f"model: {tmp_path / 'llama'}" in written.read_text()
    assert "dtype: float32" in written.read_text()
    assert restack.plan(written, base) == view.restack_plan == restack.open(str(folder)).restack_plan
    expected = built(base, ORDER)
    for layer in expected.model.layers[3:]:
        layer.self_attn.o_proj.weight.data.mul_(0.5)
    assert torch.equal(logits(restack.open(str(folder))), logits(expected))


def test_a_plan_that_mergekit_cannot_say_has_no_mergekit_config(base, tmp_path):
    folder = restack.save(restack.view(base, "0:4@0.5"), tmp_path / "recipe")
    assert {file.name for file in folder.iterdir()} == {"config.json", "README.md"}


def test_a_base_of_another_training_is_refused_naming_both(recipe, tmp_path):
    saved_llama(tmp_path / "llama", seed=1)
    with pytest.raises(ModelError, match="another set of weights") as error:
        restack.open(recipe)
    first, second = told(error).split(" has ")
    assert recipe in first and str(tmp_path / "llama") in first
    ours = said_by(recipe)["base"]["fingerprint"]
    assert ours["samples"][:8] in first and ours["samples"][:8] not in second


@pytest.mark.parametrize(
    ("settings", "other"),
    [({"rope_theta": 5e5}, "another config"), ({"intermediate_size": 16}, "another config")],
)
def test_another_config_is_refused_before_the_weights(recipe, tmp_path, monkeypatch, settings, other):
    saved_llama(tmp_path / "llama", **settings)
    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("read the weights"))
    with pytest.raises(ModelError, match=other):
        restack.open(recipe)
    with pytest.raises(ModelError, match=other):
        recipes.open_config(recipe)


def test_one_changed_layer_of_another_base_is_seen(recipe, tmp_path):
    base = LlamaForCausalLM.from_pretrained(tmp_path / "llama")
    base.model.layers[2].self_attn.q_proj.weight.data.mul_(1.01)
    base.save_pretrained(tmp_path / "llama")
    with pytest.raises(ModelError, match="another set of weights"):
        restack.open(recipe)


def test_a_missing_base_is_told_and_may_be_elsewhere(base, recipe, tmp_path):
    (tmp_path / "llama").rename(tmp_path / "moved")
    with pytest.raises(ModelError, match=r"a recipe for .*llama, and that is not there; .*base=FOLDER"):
        restack.open(recipe)
    opened = restack.open(recipe, base=str(tmp_path / "moved"))
    assert torch.equal(logits(opened), logits(built(base, ORDER)))
    saved_llama(tmp_path / "other", seed=1)
    with pytest.raises(ModelError, match="another set of weights"):
        restack.open(recipe, base=str(tmp_path / "other"))
    with pytest.raises(ModelError, match="no such folder"):
        restack.open(recipe, base=str(tmp_path / "nowhere"))


def test_a_recipe_of_a_newer_restack_is_told(recipe):
    change(recipe, recipe_format=3, restack_version="9.9")
    with pytest.raises(
        ModelError, match=r"format 3, written by restack 9\.9, .* pip install -U restack"
    ) as error:
        restack.open(recipe)
    told(error)


@pytest.mark.parametrize(
    "settings",
    [
        {"recipe_format": None},
        {"base": "llama"},
        {"base": {"name": "x"}},
        {"plan": "0:4"},
        {"plan": {"plan": "0:9", "depths": [4]}},
        {"plan": {"plan": "0:4", "depths": [0]}},
    ],
)
def test_a_damaged_recipe_is_told_in_one_line(recipe, settings):
    change(recipe, **settings)
    with pytest.raises(ModelError, match=r"no recipe|cannot be read") as error:
        restack.open(recipe)
    assert recipe in str(error.value)


def test_a_plan_for_another_depth_is_refused(recipe):
    change(recipe, plan={"plan": "0:8", "depths": [8]})
    with pytest.raises(RestackError, match="the plan is for 8 layers, the model has 4"):
        restack.open(recipe)


@pytest.mark.parametrize("size", [5, 100, -10])
def test_a_truncated_file_is_told(recipe, tmp_path, size):
    file = tmp_path / "llama" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    for name in (recipe, str(tmp_path / "llama")):
        with pytest.raises(ModelError, match=r"model\.safetensors is (cut short|no safetensors)") as error:
            restack.open(name)
        told(error)


def test_a_base_without_a_name_is_refused(tmp_path):
    view = restack.view(LlamaForCausalLM(LlamaConfig(**SETTINGS)), SPEC)
    with pytest.raises(ModelError, match=r"made in memory.*save_pretrained.*weights='shared'") as error:
        restack.save(view, tmp_path / "recipe")
    told(error)
    assert not [*tmp_path.iterdir()]
    opened = restack.open(str(restack.save(view, tmp_path / "shared", weights="shared")))
    assert torch.equal(logits(opened), logits(view))


def test_trained_weights_are_not_lost_in_a_recipe(base, view, tmp_path):
    with torch.no_grad():
        base.model.layers[2].mlp.up_proj.weight.mul_(1.5)
    with pytest.raises(ModelError, match=r"layers\.2\.mlp\.up_proj\.weight differs") as error:
        restack.save(view, tmp_path / "recipe")
    told(error)
    opened = restack.open(str(restack.save(view, tmp_path / "shared", weights="shared")))
    assert torch.equal(logits(opened), logits(view))


def test_another_dtype_is_no_other_weight(tmp_path):
    base = restack.open(saved_llama(tmp_path / "llama"), dtype="bfloat16")
    restack.save(restack.view(base, SPEC), tmp_path / "recipe")


def test_a_model_made_from_a_config_alone_is_not_its_base(base, tmp_path):
    torch.manual_seed(5)
    with pytest.raises(ModelError, match="differs"):
        restack.save(restack.view(LlamaForCausalLM(base.config), SPEC), tmp_path / "recipe")


class Crash(BaseException):
    pass


@pytest.mark.parametrize("weights", ["none", "shared", "full"])
@pytest.mark.parametrize("is_there", [False, True])
def test_a_crash_leaves_nothing(view, tmp_path, monkeypatch, weights, is_there):
    folder = tmp_path / "deeper" / "saved" if not is_there else tmp_path / "saved"
    if is_there:
        folder.mkdir()
    before = sorted(tmp_path.rglob("*"))

    def crash(*arguments):
        assert not folder.exists() or not any(folder.iterdir())  # nor would being killed leave a part of it
        raise Crash

    monkeypatch.setattr("restack.recipes.saving.card", crash)  # the last thing that is made
    with pytest.raises(Crash):
        restack.save(view, folder, weights=weights)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("weights", ["none", "shared", "full"])
def test_what_is_there_is_not_destroyed(view, tmp_path, weights):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "thesis.txt").write_text("years of work")
    for folder in (kept, kept / "thesis.txt", kept / "thesis.txt" / "deeper"):
        with pytest.raises(UsageError):
            restack.save(view, folder, weights=weights)
    assert (kept / "thesis.txt").read_text() == "years of work"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["kept", "llama"]


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "~nobody-of-this-name/x"])
def test_a_name_that_no_folder_can_have_is_told(view, name):
    with pytest.raises(UsageError, match="cannot be made"):
        restack.save(view, name)


def test_an_empty_folder_is_taken_and_weights_are_checked(view, tmp_path):
    (tmp_path / "empty").mkdir()
    restack.save(view, tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").is_file()
    with pytest.raises(UsageError, match="none, shared, full"):
        restack.save(view, tmp_path / "other", weights="all")


@pytest.mark.parametrize("model", [None, "demo", torch.nn.Linear(2, 2)])
def test_what_is_no_model_is_refused(model, tmp_path):
    with pytest.raises(ViewError):
        restack.save(model, tmp_path / "recipe")
    assert not [*tmp_path.iterdir()]


def test_a_recipe_can_be_saved_without_loading_weights(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("read the weights"))
    folder = recipes.save_recipe(str(tmp_path / "llama"), restack.plan(SPEC, LAYERS), tmp_path / "unread")
    for name in ("config.json", "README.md", "mergekit_config.yml"):
        assert (folder / name).read_text() == (tmp_path / "recipe" / name).read_text()
    assert demo.FOLDER.is_dir()
