"""The Python of docs/chat.md, run as it stands."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "chat.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def test_the_python_blocks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in BLOCKS:
        exec(compile(block, str(PAGE), "exec"), names)
        promised = re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
        assert [line.strip() for line in capsys.readouterr().out.splitlines()] == [
            p.strip() for p in promised
        ]
    assert len(BLOCKS) == 3


def test_the_pages_links_are_there():
    for target in re.findall(r"\]\(((?!https?:)[^)#]+)", TEXT):
        assert (PAGE.parent / target).exists(), target


def test_the_commands_are_those_of_the_help():
    from restack.cli.chat import COMMANDS

    for command in COMMANDS:
        assert f"`{command.strip()}" in TEXT or f" `{command.strip()}" in TEXT or command == "/quit", command
