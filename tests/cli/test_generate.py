import io
import sys

import pytest

from restack.cli import main
from restack.cli.generate import write

FRANCE = "What is the capital of France?"


def generated(capsys, *arguments):
    assert main(["generate", *arguments]) == 0
    return capsys.readouterr().out


def test_an_answer(capsys):
    assert generated(capsys, "demo", "--prompt", FRANCE) == "The capital of France is Paris.\n"


def test_the_prompt_may_come_along_a_pipe(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(FRANCE.encode())))
    assert generated(capsys, "demo") == "The capital of France is Paris.\n"


def test_a_byte_order_mark_is_no_part_of_a_prompt(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(FRANCE.encode("utf-8-sig"))))
    heard = []
    monkeypatch.setattr("restack.cli.generate.Conversation.ask", lambda self, text, write: heard.append(text))
    generated(capsys, "demo")
    assert heard == [FRANCE]


@pytest.mark.parametrize("option", ["--ai-prefix", "--ai_prefix"])
def test_a_prefix_begins_the_answer_and_its_newline_is_one(capsys, option):
    told = generated(capsys, "demo", "-p", "What is 345 + 213?", option, r"Let's think step by step.\n")
    assert told.startswith("Let's think step by step.\n")
    assert len(told.splitlines()) > 1


def test_a_view_answers(capsys):
    told = {
        generated(capsys, model, "-p", FRANCE, "--temperature", "0") for model in ("demo@all", "demo@0:12")
    }
    assert told == {"The capital of France is Paris.\n"}
    assert generated(capsys, "demo@0:2", "-p", FRANCE, "--max-tokens", "20") not in told


def test_raw_continues(capsys):
    told = generated(capsys, "demo", "--raw", "-p", "The capital of France is", "--max-tokens", "5")
    assert told.strip()


def test_a_seed_repeats_the_answer(capsys):
    options = (
        "demo",
        "-p",
        "Tell me a story about Ben and a kite.",
        "--temperature",
        "2",
        "--max-tokens",
        "20",
    )
    first, again, other = (generated(capsys, *options, "--seed", seed) for seed in ("1", "1", "2"))
    assert first == again
    assert first != other


@pytest.mark.parametrize("terminal", [True, False])
def test_a_model_cannot_steer_a_terminal(capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    text = "a\tb\n\x1b[2J\x9b2J\x07\rc\x7f\u00e9"
    write(text)
    assert capsys.readouterr().out == ("a\tb\n[2J2Jc\u00e9" if terminal else text)
