"""A mergekit config where a model is named: nothing is merged on disk, and the view is that of its models."""

import json

import pytest
import torch
import transformers
import yaml

import restack
from restack import recipes
from restack.cli import main
from tests.recipes.tiny import logits, saved_llama

RANGES = [("b", 0, 3), ("a", 1, 4), ("b", 2, 4)]


@pytest.fixture
def folders(tmp_path):
    return {name: saved_llama(tmp_path / name, seed) for seed, name in enumerate("ab")}


@pytest.fixture
def merge(folders, tmp_path):
    return written(tmp_path / "merge.yaml", [(folders[name], start, stop) for name, start, stop in RANGES])


def written(file, ranges, **more):
    slices = [{"sources": [{"model": name, "layer_range": [start, stop]}]} for name, start, stop in ranges]
    file.write_text(yaml.safe_dump({"slices": slices, "merge_method": "passthrough", **more}))
    return str(file)


def test_opens_as_the_view_of_its_models(merge, folders):
    first, second = (restack.open(folders[name]) for name in "ba")
    view = restack.open(merge)
    expected = restack.view([first, second], "0/0:3,1/1:4,0/2:4")
    assert view.restack_plan == expected.restack_plan
    assert torch.equal(logits(view), logits(expected))
    assert torch.equal(logits(restack.open(f"{merge}@0:4,2:")), logits(restack.view(expected, "0:4,2:")))


def test_config_and_shell_read_no_weights(merge, monkeypatch):
    monkeypatch.setattr(transformers.LlamaForCausalLM, "from_pretrained", None)
    assert recipes.open_config(merge).num_hidden_layers == 8
    assert recipes.open_empty(merge).device.type == "meta"
    assert recipes.open_tokenizer(merge).chat_template


def test_its_dtype_is_that_of_the_merge(folders, tmp_path):
    file = written(tmp_path / "half.yml", [(folders["a"], 0, 2), (folders["b"], 2, 4)], dtype="bfloat16")
    assert restack.open(file).dtype == torch.bfloat16
    assert restack.open(file, dtype="float32").dtype == torch.float32


def test_show_generate_and_save(merge, folders, tmp_path, capsys):
    assert main(["show", merge, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["layers"] == 8
    base = f"{folders['b']} and {folders['a']}"
    assert facts["recipe"] == {"kind": "merge", "base": base, "plan": "0/0:3,1/1:4,0/2:4"}
    model = restack.open(folders["a"])
    layer = sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    outside = sum(parameter.numel() for parameter in model.parameters()) - 4 * layer
    assert facts["plan"]["unique_parameters"] == outside + 7 * layer  # layer 2 of b runs twice
    assert facts["plan"]["effective_parameters"] == outside + 8 * layer

    assert main(["generate", merge, "--prompt", "Hello", "--max-tokens", "3", "--temperature", "0"]) == 0
    capsys.readouterr()
    view = restack.open(merge)
    for weights in ("shared", "full"):
        out = tmp_path / weights
        assert main(["save", merge, str(out), "--weights", weights]) == 0
        assert torch.equal(logits(restack.open(str(out))), logits(view))
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "full")
    assert torch.equal(logits(plain), logits(view))


def test_what_cannot_be_is_one_line(merge, folders, tmp_path, capsys):
    def told(*arguments):
        assert main(list(arguments)) == 2
        output = capsys.readouterr()
        assert not output.out
        return output.err

    assert "a recipe names one" in told("save", merge, str(tmp_path / "recipe"))
    assert not (tmp_path / "recipe").exists()
    wide = saved_llama(tmp_path / "wide", hidden_size=32)
    unlike = written(tmp_path / "unlike.yaml", [(folders["a"], 0, 2), (wide, 2, 4)])
    assert f"hidden_size is 16 in {folders['a']} and 32 in {wide}" in told(
        "generate", unlike, "--prompt", "x"
    )
    past = written(tmp_path / "past.yaml", [(folders["a"], 0, 2), (folders["b"], 2, 9)])
    assert "layer_range [2, 9] is past the model's 4 layers" in told("show", past)
    gone = written(tmp_path / "gone.yaml", [("./nowhere", 0, 2)])
    assert "there is no folder ./nowhere" in told("show", gone)
    (tmp_path / "junk.yaml").write_text("- 1\n")
    assert "must be a mapping" in told("show", str(tmp_path / "junk.yaml"))
    (tmp_path / "other.yaml").write_text("merge_method: slerp\nslices: [{sources: [{model: [1]}]}]\n")
    assert "write a model's name" in told("show", str(tmp_path / "other.yaml"))


def test_unlike_models_are_refused_before_their_weights_are_read(folders, tmp_path, monkeypatch):
    wide = saved_llama(tmp_path / "wide", hidden_size=32)
    unlike = written(tmp_path / "unlike.yaml", [(folders["a"], 0, 2), (wide, 2, 4)])
    monkeypatch.setattr(transformers.LlamaForCausalLM, "from_pretrained", None)
    with pytest.raises(restack.ViewError, match="hidden_size"):
        restack.open(unlike)


def test_settings_of_a_merge_are_honoured_or_refused(folders, tmp_path, capsys):
    ranges = [(folders["a"], 0, 2), (folders["b"], 2, 4)]
    out = written(tmp_path / "out.yaml", ranges, dtype="float32", out_dtype="bfloat16")
    assert restack.open(out).dtype == torch.bfloat16
    own = tmp_path / "b" / "chat_template.jinja"
    own.write_text("of b" + own.read_text())
    based = written(tmp_path / "based.yaml", ranges, base_model=folders["b"])
    assert recipes.open_tokenizer(based).chat_template.startswith("of b")
    assert main(["convert", "full", based, "-o", str(tmp_path / "made")]) == 0
    assert recipes.open_tokenizer(str(tmp_path / "made")).chat_template.startswith("of b")
    assert main(["save", based, str(tmp_path / "saved"), "--weights", "full"]) == 0
    assert recipes.open_tokenizer(str(tmp_path / "saved")).chat_template.startswith("of b")
    other = written(tmp_path / "other.yaml", ranges, tokenizer_source="union")
    assert restack.open(other).config.num_hidden_layers == 4  # the model itself needs none
    nested = written(tmp_path / "nested.yaml", [(out, 0, 2)])
    capsys.readouterr()
    for name, told in (
        (other, "asks for another tokenizer than its models have (tokenizer_source)"),
        (nested, "a merge itself; write its slices out instead"),
        (written(tmp_path / "odd.yaml", ranges, dtype="bf16"), "odd.yaml: dtype 'bf16' is not known"),
        (str(tmp_path / "gone.yml"), "there is no file"),
        (written(tmp_path / "line.yaml", [("a\nb", 0, 2)]), "write a model's name"),
    ):
        assert main(["generate", name, "--prompt", "x"]) == 2
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1
    assert main(["show", out, "--revision", "main"]) == 2
    assert "names its models itself" in capsys.readouterr().err
