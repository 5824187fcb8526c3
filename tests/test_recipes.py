import json
from pathlib import Path

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


def test_a_spec_longer_than_a_file_name_is_a_spec():
    spec = ",".join(map(str, range(12))) * 20
    assert parse_reference(f"demo@{spec}") == Reference("demo", spec)


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000, "a\0b"])
def test_what_cannot_be_a_path_is_told_in_one_line(name):
    with pytest.raises(ModelError) as caught:
        recipes.open(name)
    assert "\n" not in str(caught.value)


def test_home_and_a_slash_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "me@home").mkdir()
    (tmp_path / "model").mkdir()
    assert parse_reference("~/me@home") == Reference("~/me@home")
    assert parse_reference("~/model/@0:4") == Reference("~/model/", "0:4")
    assert Reference("~/model/").location == f"{tmp_path}/model/"
    assert Reference("~/model/").is_local
    assert not Reference("~/other").is_local


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


SIZES = {"pytorch_model.bin": 7, "consolidated.safetensors": 1000, "adapter_model.safetensors": 50}


@pytest.mark.parametrize(
    ("files", "index", "stored"),
    [
        ({"model.safetensors": 10}, None, 10),
        ({"model-00001-of-00002.safetensors": 10, "model-00002-of-00002.safetensors": 20}, None, 30),
        ({"model-00001-of-00002.safetensors": 10}, '{"metadata": {"total_size": 25}}', 25),
        ({"model-00001-of-00002.safetensors": 10}, "{}", 10),
        ({"model-00001-of-00002.safetensors": 10}, "[not json", 10),
        ({}, None, 7),
    ],
)
def test_only_the_weights_that_are_read_count(tmp_path, files, index, stored):
    for name, size in (SIZES | files).items():
        (tmp_path / name).write_bytes(bytes(size))
    if index is not None:
        (tmp_path / "model.safetensors.index.json").write_text(index)
    assert recipes._stored_bytes(tmp_path) == stored


@pytest.mark.parametrize(
    ("limit", "free"), [("5000000\n", 3_200_000), ("1000000\n", 0), ("max\n", None), (None, None)]
)
def test_free_memory_respects_the_cgroup(tmp_path, monkeypatch, limit, free):
    before = recipes._system_memory()
    monkeypatch.setattr(recipes, "CGROUP", tmp_path)
    (tmp_path / "memory.current").write_text("2000000\n")
    (tmp_path / "memory.stat").write_text("anon 1800000\nactive_file 50000\ninactive_file 150000\n")
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
    ours = Path("/proc/self/cgroup")
    if not ours.exists() or "0::" not in ours.read_text():
        pytest.skip("no cgroup of version 2")
    told = recipes.free_memory()
    assert told == free if free is not None else told > before / 2


CONFIGURATION = """
from transformers import LlamaConfig
class TinyConfig(LlamaConfig):
    model_type = "tiny-remote"
"""
MODELING = """
from transformers import LlamaForCausalLM
from .configuration_tiny import TinyConfig
class TinyForCausalLM(LlamaForCausalLM):
    config_class = TinyConfig
"""


def test_code_that_comes_with_a_model_runs_only_if_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "tiny"
    folder.mkdir()
    config = {
        "model_type": "tiny-remote", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "vocab_size": 50,
        "auto_map": {
            "AutoConfig": "configuration_tiny.TinyConfig",
            "AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM",
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration_tiny.py").write_text(CONFIGURATION)
    (folder / "modeling_tiny.py").write_text(MODELING)
    monkeypatch.setattr("builtins.input", lambda *arguments: pytest.fail("asked on standard input"))
    model = recipes.open_empty(str(folder), trust_remote_code=True)
    assert type(model).__name__ == "TinyForCausalLM"
    with pytest.raises(ModelError, match="run it with --trust-remote-code"):
        recipes.open_empty(str(folder))


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


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"num_hidden_layers": 13}, r"lack \d+ of the tensors .* promises, model\.layers\.12\..* for one"),
        ({"intermediate_size": 128}, "do not have the shapes"),
    ],
)
def test_weights_that_do_not_agree_with_the_config_are_told(tmp_path, setting, told):
    for file in recipes.demo.FOLDER.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | setting))
    with pytest.raises(ModelError, match=told) as caught:
        recipes.open(str(tmp_path))
    assert "\n" not in str(caught.value)
