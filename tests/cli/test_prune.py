"""`restack prune` and `restack draft`, as they are typed."""

import json
import re
from pathlib import Path

import pytest

import restack
from restack.cli import main
from tests.recipes.tiny import saved_llama

TEXT = "Ann has a red boat. Bob has a blue drum. Cleo likes cats, and Dan likes rain.\n" * 40
FEW = ["--tokens", "600"]
QUICK = ["--texts", "8", "--max-tokens", "12", "--cost", "visits", "--most", "2"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def told(capsys, *arguments):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_table_a_plan_and_what_to_do_next(capsys):
    assert main(["prune", "demo", "--drop", "25%", *FEW]) == 0
    out = capsys.readouterr().out
    facts = told(capsys, "prune", "demo", "--drop", "25%", *FEW)
    assert facts["layers"] == 12 and len(facts["dropped"]) == 3
    lines = [line.split() for line in out.splitlines()]
    for layer, line in enumerate(lines[1:13]):
        [tried] = [each for each in facts["tried"] if each["layers"] == [layer]]
        assert line[:2] == [str(layer), f"{tried['value']:.4f}"]
        assert (line[2:] == ["dropped"]) == tried["taken"] == (layer in facts["dropped"])
    assert f"restack chat demo@{facts['plan']} talks with it" in out
    assert f"restack train demo@{facts['plan']} TEXT.txt -o healed --lora 8 heals it" in out
    assert "questions with answers of the demo model's world" in out
    assert "layers " + ", ".join(map(str, facts["dropped"])) + " of 0..11 are left out" in out
    order = restack.plan(facts["plan"], 12).order
    assert sorted({*order, *facts["dropped"]}) == list(range(12))


@pytest.mark.parametrize("by", ["angular", "sleb", "contiguous", "deepest"])
def test_each_method(capsys, by):
    assert main(["prune", "demo", "--drop", "2", "--by", by, *FEW]) == 0
    out = capsys.readouterr().out
    assert "dropped" in out and "not chosen on" in out
    facts = told(capsys, "prune", "demo", "--drop", "2", "--by", by, *FEW)
    assert len(facts["dropped"]) == 2
    if by == "deepest":
        assert (facts["dropped"], facts["tried"]) == ([9, 10], [])
    if by == "sleb":  # numbered as they went, and the last look at each
        lines = {line.split()[0]: line.split() for line in out.splitlines()[1:13]}
        for place, layer in enumerate(facts["dropped"], start=1):
            assert lines[str(layer)][2:] == ["dropped", str(place)]


def test_what_it_saves_is_as_show_says(capsys):
    facts = told(capsys, "prune", "demo", "--drop", "3", "--by", "deepest", *FEW)
    assert main(["show", f"demo@{facts['plan']}", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert facts["parameters"]["after"] == plan["effective_parameters"]
    assert facts["kv_bytes_per_token"]["after"] == plan["kv_bytes_per_token"]
    assert facts["parameters"]["before"] == 2_547_840


def test_the_layers_of_a_view_are_its_visits_and_the_recipe_is_over_the_base(capsys, here):
    arguments = ["prune", "demo@0:8,4:12", "--drop", "4", "--by", "contiguous", *FEW, "-o", "pruned"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "of the base" in out and "visits 4, 5, 6, 7 of 0..15 are left out" in out
    assert "restack chat demo@0:12 talks with it" in out and "recipe      pruned" in out
    saved = json.loads((here / "pruned" / "config.json").read_text())
    assert (saved["base"]["name"], saved["plan"]["plan"]) == ("demo", "0:12")


def test_a_recipe_of_a_recipe(capsys, here):
    assert main(["save", "demo@0:8,4:12", "deeper"]) == 0
    capsys.readouterr()
    facts = told(capsys, "prune", "deeper", "--drop", "4", "--by", "contiguous", *FEW, "-o", "pruned")
    assert facts["chosen_on"]["text"] == "questions with answers of the demo model's world"
    saved = json.loads((here / "pruned" / "config.json").read_text())
    assert (saved["base"]["name"], saved["plan"]["plan"]) == ("demo", "0:12")
    assert len(restack.open("pruned").model.layers) == 12


def test_texts(capsys, here):
    halves = told(capsys, "prune", "demo", "--drop", "2", "--text", "text.txt", "--window", "32")
    assert halves["chosen_on"]["text"] == "the first half of text.txt"
    assert halves["held_out"]["text"] == "the second half of text.txt"
    read = halves["chosen_on"]
    assert read["predicted"] == read["read"] - read["texts"] and read["read"] / read["texts"] <= 32
    (here / "other.txt").write_text(TEXT[:800])
    both = told(capsys, "prune", "demo", "--drop", "2", "--text", "text.txt", "--eval", "other.txt", *FEW)
    assert (both["chosen_on"]["text"], both["held_out"]["text"]) == ("text.txt", "other.txt")
    assert 350 < both["chosen_on"]["read"] <= 600
    mixed = told(capsys, "prune", "demo", "--drop", "2", "--eval", "other.txt", *FEW)
    assert mixed["chosen_on"]["text"].startswith("questions") and mixed["held_out"]["text"] == "other.txt"
    saved_llama(here)
    built_in = told(capsys, "prune", ".", "--drop", "2", *FEW)
    assert built_in["chosen_on"]["text"] == "the first half of a built-in text"


def test_questions_held_out_are_others(capsys, monkeypatch):
    seen = []
    from restack.cli import prune

    def look(model, tokenizer, rows, *arguments, held_out, **options):
        seen.append(({row.tokens for row in rows}, {row.tokens for row in held_out}))
        raise KeyboardInterrupt

    monkeypatch.setattr(prune, "prune", look)
    assert main(["prune", "demo", "--drop", "2"]) == 130
    [(chosen_on, held_out)] = seen
    assert len(chosen_on) > 100 and len(held_out) > 100 and not chosen_on & held_out
    assert sum(map(len, chosen_on)) <= 8192


def test_draft_tells_what_pays(capsys, here):
    assert main(["draft", "demo", *QUICK, "-o", "drafter"]) == 0
    out = capsys.readouterr().out
    facts = told(capsys, "draft", "demo", *QUICK)
    assert facts["texts"] == {"chosen_on": 4, "held_out": 4}
    assert facts["prompts"] == "questions of the demo model's world"
    assert [len(each["skipped"]) for each in facts["drafters"]] == [1, 2]
    best = facts["best"]
    assert best["searched_speed_up"] == max(each["searched_speed_up"] for each in facts["drafters"])
    assert json.loads((here / "drafter" / "config.json").read_text())["plan"]["plan"] == best["plan"]
    said = " ".join(out.split())
    assert f"expected to be {best['speed_up']['mean']:.2f} (" in said
    assert "(1 - a^(g+1)) / ((1 - a) (g c + v)), Leviathan et al. 2023" in said
    assert "v = 1, a check takes as long as a step" in said
    assert ("No drafter pays:" in out) == (not facts["pays"])
    assert (f"drafter = restack.view(base, '{best['plan']}')" in out) == facts["pays"]


def test_draft_measures_and_says_when_nothing_pays(capsys, here):
    """A random model with layers of hardly any size: a draft's step takes as long as the model's."""
    saved_llama(here, initializer_range=1.0)
    arguments = ["draft", ".", "--text", "text.txt", "--texts", "6", "--max-tokens", "16", "--longest", "2"]
    assert main([*arguments, "--search", "contiguous"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "No drafter pays:" in out and "measured here, relative to the model's" in out
    assert "text.txt" in out and "drafter = " not in out
    facts = told(capsys, *arguments)
    assert not facts["pays"] and facts["costs"]["how"] == "measured"
    assert len(facts["costs"]["checks"]) == 2 and facts["costs"]["seconds"] > 0


def test_draft_for_a_view(capsys, here):
    facts = told(capsys, "draft", "demo@0:8,4:12", *QUICK, "-o", "drafter")
    assert facts["layers"] == 16
    before = restack.plan("0:8,4:12", 12)
    for each in facts["drafters"]:
        left = [layer for n, layer in enumerate(before.order) if n not in each["skipped"]]
        assert restack.plan(each["plan"], 12).order == tuple(left)
    assert main(["generate", "drafter", "--prompt", "What is 3 + 4?", "--max-tokens", "4"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prune", "demo"], "Missing option '--drop'"),
        (["prune", "demo", "--drop", "0"], "--drop 0 of 12 layers: nothing would go; write 1 to 11"),
        (["prune", "demo", "--drop", "100%"], "--drop 100% of 12 layers is 12 layers: everything would go"),
        (
            ["prune", "demo", "--drop", "some"],
            "--drop is 'some'; write a share, 25%, or a number of layers, 8",
        ),
        (
            ["prune", "demo", "--drop", "2", "--by", "bi"],
            "--by is 'bi'; write one of block-influence, angular",
        ),
        (["prune", "demo@0", "--drop", "1"], "there is nothing to leave out"),
        (["prune", "demo", "--drop", "2", "--text", "no.txt"], "no.txt"),
        (["prune", "demo", "--drop", "2", "--text", "empty.txt"], "empty.txt is empty"),
        (["prune", "demo", "--drop", "2", "--text", "bad.txt"], "is not UTF-8"),
        (["prune", "demo", "--drop", "2", "--text", "short.txt"], "four or more"),
        (["prune", "demo", "--drop", "2", "--eval", "short.txt"], "four or more"),
        (["prune", "demo", "--drop", "2", "--window", "1"], "--window"),
        (["prune", "demo", "--drop", "2", "--tokens", "1"], "--tokens"),
        (["prune", "demo", "--drop", "2", "-o", "full"], "full is there and not empty"),
        (["prune", "demo@0:8", "--drop", "2", "--layers", "0:8"], "given twice"),
        (["prune", "nowhere/at/all", "--drop", "2"], "there is no folder"),
        (["prune", "demo", "--drop", "2", "--dtype", "int8"], "int8"),
        (["draft", "demo", "--search", "beam"], "--search is 'beam'; write one of greedy, contiguous"),
        (["draft", "demo", "--cost", "none"], "--cost is 'none'; write one of measured, visits"),
        (["draft", "demo", "--most", "100%"], "--most 100% of 12 layers is 12 layers"),
        (["draft", "demo", "--texts", "3"], "--texts"),
        (["draft", "demo", "--longest", "0"], "--longest"),
        (["draft", "demo", "--text", "short.txt"], "short.txt has 1 word, too few for 64 texts"),
        (["draft", "demo@0:2"], "the model has 2 layers, none between first and last"),
        (["draft", "demo", "-o", "full"], "full is there and not empty"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(capsys, here, arguments, said):
    (here / "full").mkdir()
    (here / "full" / "file").write_text("kept")
    (here / "empty.txt").touch()
    (here / "bad.txt").write_bytes(b"One.\n\xff\n")
    (here / "short.txt").write_text("Hi")
    before = sorted(here.rglob("*"))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and "Traceback" not in error
    assert sorted(here.rglob("*")) == before


def test_the_python_of_the_page(capsys):
    page = Path(__file__).parents[2] / "docs" / "prune-and-draft.md"
    text = page.read_text(encoding="utf-8")
    [block] = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    exec(compile(block, str(page), "exec"), {"__name__": "__main__"})
    promised = re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
    assert capsys.readouterr().out.splitlines() == promised and len(promised) == 3
    for target in re.findall(r"\]\(((?!https?:)[^)#]+)", text):
        assert (page.parent / target).exists(), target
