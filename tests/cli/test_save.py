import json

import pytest

from restack import recipes
from restack.cli import main


def said_by(folder):
    return json.loads((folder / "config.json").read_text())


def test_a_recipe_is_saved_without_loading_the_model(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("restack.recipes.open", lambda *a, **k: pytest.fail("loaded the model"))
    assert main(["save", "demo@(4,8)", str(tmp_path / "recipe")]) == 0
    out = capsys.readouterr().out
    assert f"{tmp_path / 'recipe'}: a recipe of demo, 16 visits, 1." in out
    assert said_by(tmp_path / "recipe")["plan"] == {"plan": "0:8,4:12", "depths": [12]}


def test_what_is_saved_is_a_model_for_every_command(capsys, tmp_path):
    folder = str(tmp_path / "recipe")
    assert main(["save", "demo", folder, "--layers", "0:8,4:12"]) == 0
    prompt = ["--prompt", "What is 3 + 4?", "--temp", "0", "--max-tokens", "8"]
    capsys.readouterr()
    answers = []
    for model in ("demo@0:8,4:12", folder, f"{folder}@all"):
        assert main(["generate", model, *prompt]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] == answers[2]
    assert main(["show", f"{folder}@0:3", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["recipe"] == {"kind": "recipe", "base": "demo", "plan": "0:8,4:12"}
    assert (facts["layers"], facts["plan"]["visits"]) == (16, [0, 1, 2])
    assert main(["show", folder]) == 0
    assert "a recipe of demo: 0:8,4:12" in capsys.readouterr().out


@pytest.mark.parametrize("weights", ["shared", "full"])
def test_weights_are_stored_when_asked_for(capsys, tmp_path, weights):
    assert main(["save", "demo@0:3,2", str(tmp_path / "saved"), "--weights", weights]) == 0
    model = recipes.open(str(tmp_path / "saved"))
    assert len(model.model.layers) == 4
    stored = sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
    base = recipes.open("demo")
    layer = sum(parameter.nbytes for parameter in base.model.layers[0].parameters())
    outside = sum(parameter.nbytes for parameter in base.parameters()) - 12 * layer
    assert stored == pytest.approx(outside + layer * (3 if weights == "shared" else 4), abs=10_000)


def test_recipes_compose(tmp_path):
    assert main(["save", "demo@(4,8)", str(tmp_path / "first")]) == 0
    assert main(["save", f"{tmp_path / 'first'}@14:", str(tmp_path / "second")]) == 0
    said = said_by(tmp_path / "second")
    assert (said["base"]["name"], said["plan"]["plan"]) == ("demo", "10:12")


def test_a_mergekit_file_is_a_plan(tmp_path):
    assert main(["save", "demo@(4,8)", str(tmp_path / "first")]) == 0
    merge = str(tmp_path / "first" / "mergekit_config.yml")
    assert main(["save", "demo", str(tmp_path / "second"), "--layers", merge]) == 0
    assert said_by(tmp_path / "first") == said_by(tmp_path / "second")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["demo@0:13", "new"], "past the model's 12 layers"),
        (["demo@0:8", "full"], "full is there and not empty"),
        (["demo@0:8", "full/file"], "no folder"),
        (["demo@0:8", "new", "--weights", "half"], "write one of none, shared, full"),
        (["demo@0:8", "new", "--layers", "0:8"], "given twice"),
        (["demo@0:8@0.5", "new", "--weights", "full"], "damped"),
        (["demo@0:8"], "FOLDER"),
        (["nowhere/at/all", "new"], "there is no folder"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(capsys, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    assert main(["save", *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["full", "full/file"]
    if told not in ("past the model's 12 layers",):
        assert error.count("\n") == 1
