"""docs/scan.md: its Python is run as it stands, its links and options are there."""

import json
import re
from pathlib import Path

import pytest

import restack
from restack.cli import main
from restack.recipes import open_tokenizer
from restack.scanning import Making, make_probes
from restack.scanning.judging import judge
from restack.scanning.probes.making import KINDS
from restack.scanning.reporting import headline, summary
from restack.scanning.results import Results
from restack.scanning.setting import settle

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "scan.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def test_the_python_blocks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in BLOCKS:
        exec(compile(block, str(PAGE), "exec"), names)
        promised = re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
        assert capsys.readouterr().out.splitlines() == promised
    assert len(BLOCKS) == 2


@pytest.mark.parametrize("page", ["scan.md", "prune-and-draft.md", "eval.md"])
def test_links_are_there(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(((?!https?:)[^)#]+)", text):
        assert (DOCS / target).exists(), target


def test_options_and_probes_are_those_of_the_command(capsys):
    assert main(["scan", "--help"]) == 0
    said = capsys.readouterr().out
    for option in set(re.findall(r"`(--[a-z-]+)", TEXT)):
        name = option.replace("--no-blocks", "--blocks")
        assert name[:14] in said, option
    for kind in KINDS:
        assert f"`{kind}" in TEXT


def assert_same(made, said):
    """Numbers that other threads add up otherwise are the same to nine digits."""
    if isinstance(made, dict):
        assert made.keys() == said.keys()
        for name in made:
            assert_same(made[name], said[name])
    elif isinstance(made, list):
        assert len(made) == len(said)
        for pair in zip(made, said, strict=True):
            assert_same(*pair)
    else:
        assert made == (pytest.approx(said, rel=1e-9, abs=1e-12) if isinstance(said, float) else said)


@pytest.mark.slow
def test_the_scan_of_the_demo_model_says_what_its_answers_say():
    """docs/demo-scan/summary.json and report.md, made again from the committed answers."""
    folder = DOCS / "demo-scan"
    model, tokenizer = restack.open("demo", dtype="float32"), open_tokenizer("demo")
    names = ["demo", "demo:chain", "demo:long_chain"]
    probes = make_probes(names, model, tokenizer, Making(questions=600))
    setting = settle(model, tokenizer, probes, name="demo")
    identity = json.loads((folder / "scan.json").read_text())
    assert identity.pop("format") == 1
    assert identity == json.loads(json.dumps(setting.identity))
    results = Results(12)
    for line in (folder / "results.jsonl").read_text().splitlines():
        record = json.loads(line)
        results.records[record["asked"], record["plan"]] = record
    assert len(results.records) == 390 + 4
    findings = judge(setting, results)
    said = json.loads((folder / "summary.json").read_text())
    made = json.loads(json.dumps(summary(findings)))
    for each in (said, made):
        each.pop("conditions")  # versions
    assert_same(made, said)
    report = (folder / "report.md").read_text()
    assert headline(findings) in report
    page = (folder / "README.md").read_text()
    for name, figures in (("chain", "+0.103"), ("long_chain", "+0.183")):
        verdict = findings.by_probe[f"demo:{name}"]
        assert verdict.outcome == "better"
        assert f"{verdict.held_out[f'demo:{name}'].difference.mean:+.3f}" == figures in page
