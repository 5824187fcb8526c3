"""The Python of docs/convert-and-train.md, run as it stands."""

import re
from pathlib import Path

import pytest

pytest.importorskip("peft")
PAGE = Path(__file__).parents[2] / "docs" / "convert-and-train.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def test_the_python_blocks(tmp_path, monkeypatch, capsys):
    (tmp_path / "text.txt").write_text("Ben has a kite and Ann has a boat. " * 200)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for block in BLOCKS:
        exec(compile(block, str(PAGE), "exec"), names)
        promised = re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
        assert capsys.readouterr().out.splitlines() == promised
    assert len(BLOCKS) == 3


def test_the_pages_links_are_there():
    for target in re.findall(r"\]\(((?!https?:)[^)#]+)", TEXT):
        assert (PAGE.parent / target).exists(), target
