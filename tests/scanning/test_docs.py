"""docs/scan.md: its Python is run as it stands, its links and options are there."""

import re
from pathlib import Path

import pytest

from restack.cli import main
from restack.scanning.probes.making import KINDS

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
