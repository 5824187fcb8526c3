import json

import pytest
import torch

from restack import recipes
from restack.errors import ModelError, PlanError
from restack.recipes import Reference, parse_reference


@pytest.mark.parametrize(
    ("text", "model", "spec"),
    [
        ("demo", "demo", None),
        ("demo@0:8,4:12", "demo", "0:8,4:12"),
        ("meta-llama/Llama-3-8B@0:8@0.5,8:", "meta-llama/Llama-3-8B", "0:8@0.5,8:"),
    ],
)
def test_a_reference_splits_at_the_first_at(text, model, spec):
    assert parse_reference(text) == Reference(model, spec)
    assert str(Reference(model, spec)) == text


def test_a_path_with_an_at_is_a_path(tmp_path):
    folder = tmp_path / "me@home"
    folder.mkdir()
    assert parse_reference(str(folder)) == Reference(str(folder))


@pytest.mark.parametrize("text", ["", "@0:4", "demo@", "demo@ "])
def test_half_a_reference_is_refused(text):
    with pytest.raises(ModelError):
        parse_reference(text)


def test_open_gives_a_view_of_the_stored_weights():
    base, view = recipes.open("demo"), recipes.open("demo@0:8,4:12")
    assert (len(base.model.layers), len(view.model.layers)) == (12, 16)
    assert torch.equal(base.model.layers[5].mlp.up_proj.weight, view.model.layers[9].mlp.up_proj.weight)
    assert not view.training


def test_dtype_is_as_asked():
    assert recipes.open("demo").dtype == torch.bfloat16
    assert recipes.open("demo", dtype="float32").dtype == torch.float32


def test_open_empty_reads_no_weights(tmp_path):
    config = {"model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80, "vocab_size": 32000}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = recipes.open_empty(str(tmp_path), dtype="bfloat16")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert model.dtype == torch.bfloat16


def test_a_wrong_spec_is_told_before_the_weights_are_read(monkeypatch):
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("read the weights")
    )
    with pytest.raises(PlanError, match="past the model's 12 layers"):
        recipes.open("demo@0:13")


def test_a_model_larger_than_free_memory_is_refused(monkeypatch):
    monkeypatch.setattr(recipes, "free_memory", lambda: 1_000_000)
    with pytest.raises(ModelError, match=r"demo needs .* GB .* free on cpu"):
        recipes.open("demo")


def test_the_dtype_counts_when_memory_is_checked(monkeypatch):
    stored = sum(file.stat().st_size for file in recipes.demo.FOLDER.glob("*.safetensors"))
    monkeypatch.setattr(recipes, "free_memory", lambda: int(1.5 * stored))
    recipes.open("demo")
    with pytest.raises(ModelError, match="needs"):
        recipes.open("demo", dtype="float32")


def test_free_memory_is_plausible():
    assert 10**7 < recipes.free_memory() < 10**14


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "a folder without config.json"),
        ("{not json", "cannot open the model"),
        ('{"model_type": "no-such-architecture"}', "architecture is not known"),
        ('{"hidden_size": 8}', "cannot open the model"),
        ('{"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2}', "cannot open the model"),
    ],
)
def test_a_folder_that_is_no_model_is_told_in_one_line(tmp_path, content, told):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=told) as caught:
        recipes.open(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "a/b/c", "nobody/has-this-model"])
def test_a_model_that_is_nowhere_is_told_in_one_line(name):
    with pytest.raises(ModelError, match=r"no folder|no such folder") as caught:
        recipes.open(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"dtype": "int3"}, {"device": "abacus"}])
def test_a_wrong_option_is_refused(options):
    with pytest.raises(ModelError, match=r"is not known|cannot be used"):
        recipes.open("demo", **options)


def test_truncated_weights_are_told(tmp_path):
    for file in recipes.demo.FOLDER.iterdir():
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(content[:1000] if file.suffix == ".safetensors" else content)
    with pytest.raises(ModelError, match="cannot open the model"):
        recipes.open(str(tmp_path))
