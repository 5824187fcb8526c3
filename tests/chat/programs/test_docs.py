"""docs/programs.md: its program, run as it stands, its commands, and the transcripts beside it."""

import importlib.util
import io
import re
import shlex
import sys
from pathlib import Path

import pytest

from restack.cli import main

PAGE = Path(__file__).parents[3] / "docs" / "programs.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
SHOWN = [block.replace("\n    ", "\n").strip() for block in re.findall(r"(?:\n    .*)+", TEXT)]
SPEC = importlib.util.spec_from_file_location("make", PAGE.parent / "programs" / "make.py")
MAKE = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(MAKE)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    def run(arguments, text=""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert main(list(arguments)) == 0
        return capsys.readouterr().out

    return run


def test_a_fourth_program(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in BLOCKS:
        exec(compile(block, str(PAGE), "exec"), names)
    assert capsys.readouterr().out.strip() == next(block for block in SHOWN if block.startswith("Master >"))
    assert (tmp_path / "quiz.md").read_text().startswith("# Quiz\n\n## Turn 1\n\n**Master**\n\nWhat is 8")


def test_it_takes_thirty_lines():
    code = [line for line in BLOCKS[0].splitlines() if line.strip()]
    assert len(BLOCKS) == 2 and len(code) <= 30


@pytest.mark.parametrize("name", MAKE.RUNS)
def test_the_transcripts_are_those_that_the_script_makes(run, tmp_path, name):
    arguments, text = MAKE.RUNS[name]
    run([*arguments, "--transcript", str(tmp_path / name)], text)
    assert (tmp_path / name).read_text() == (PAGE.parent / "programs" / name).read_text()


def test_the_commands_work_and_print_what_is_shown(run, monkeypatch):
    monkeypatch.chdir(PAGE.parents[1])
    count = 0
    for block in SHOWN:
        command, _, output = block.removeprefix("$ ").partition("\n")
        if command.startswith("restack "):
            arguments = shlex.split(command.partition(" < ")[0])[1:]
            printed = run(arguments, "What is 12 + 30?\n").strip()
            assert not output or printed == output
            count += 1
    assert count == 5


def test_the_pages_links_are_there():
    for target in re.findall(r"\]\(((?!https?:)[^)#]+)", TEXT):
        assert (PAGE.parent / target).exists(), target
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in TEXT.splitlines()
        if line.startswith("#")
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= headings
