"""`--quantize` where a model is named, and checkpoints of packed weights."""

import json

import pytest

from restack.cli import main

ASK = ["--prompt", "What is 3 + 4?", "--temperature", "0", "--max-tokens", "12"]


def said(capsys, *arguments):
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def test_a_packed_model_answers(capsys):
    packed = said(capsys, "generate", "demo", *ASK, "--quantize", "int8")
    assert packed == said(capsys, "generate", "demo", *ASK)


def test_views_and_recipes_are_of_the_packed_base(capsys, tmp_path):
    recipe = str(tmp_path / "recipe")
    said(capsys, "save", "demo@0:8,4:12", recipe)
    asked = [*ASK, "--quantize", "int8"]
    answers = {said(capsys, "generate", name, *asked) for name in (recipe, "demo@0:8,4:12")}
    assert len(answers) == 1


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_a_checkpoint_of_packed_weights(capsys, tmp_path, format):
    folder = tmp_path / "packed"
    said(capsys, "save", "demo", str(folder), "--weights", "full", "--quantize", format)
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert (settings["quant_method"], settings["format"]) == ("restack", format)
    answer = said(capsys, "generate", str(folder), *ASK)
    assert answer == said(capsys, "generate", "demo", *ASK, "--quantize", format)
    assert main(["generate", str(folder), *ASK, "--quantize", format]) == 2
    assert "quantised already" in capsys.readouterr().err


def test_two_agents_on_one_set_of_packed_weights(capsys):
    talk = [
        "duet",
        "demo",
        "demo@0:8,4:12",
        "--start",
        "What is 3 + 4?",
        "--turns",
        "1",
        "--temperature",
        "0",
    ]
    assert "one set of weights" in said(capsys, *talk, "--quantize", "int8")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["generate", "demo", *ASK, "--quantize", "int3"], "--quantize is 'int3'; write one of int8, int4"),
        (["save", "demo", "there", "--quantize", "int4"], "add --weights full"),
    ],
)
def test_wrong_input_is_one_line(capsys, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_machine_without_a_compiler_is_told_of(capsys, monkeypatch):
    from restack.runtime.native import compiling, functions

    functions.kernel.cache_clear()
    functions.quiet_kernel.cache_clear()
    compiling.library.cache_clear()
    monkeypatch.setattr(compiling, "COMPILERS", ("no-such-compiler",))
    monkeypatch.delenv("CXX", raising=False)
    assert main(["generate", "demo", *ASK, "--quantize", "int4"]) == 0
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if line.startswith("restack: packed weights are slower here")] == told[:1]
    functions.kernel.cache_clear()
    functions.quiet_kernel.cache_clear()
    compiling.library.cache_clear()
