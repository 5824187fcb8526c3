import io
import sys

import pexpect
import pytest

from restack.cli import main


def piped(monkeypatch, capsys, text, *options):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    status = main(["chat", "demo", "--temperature", "0", *options])
    return status, capsys.readouterr()


def test_a_pipe_is_read_to_its_end(monkeypatch, capsys):
    status, output = piped(
        monkeypatch, capsys, "What is the capital of France?\n\nWhat is the capital of Spain?"
    )
    assert status == 0
    answers = [line for line in output.out.splitlines() if line.startswith("A.I. > ")]
    assert answers == ["A.I. > The capital of France is Paris.", "A.I. > The capital of Spain is Madrid."]
    assert output.err == ""


def test_it_opens_with_both_counts(monkeypatch, capsys):
    status, output = piped(monkeypatch, capsys, "", "--layers", "0:8,4:12")
    assert status == 0
    assert "16 visits" in output.out
    assert "effective parameters from" in output.out


def test_layers_change_while_it_talks(monkeypatch, capsys):
    text = "Hello!\n/layers 0:8,4:12\nHello!\n/layers\n/layers all\n/reset\n/help\n"
    status, output = piped(monkeypatch, capsys, text)
    assert status == 0
    assert output.out.count("16 visits") == 2
    assert "Going on with plan 0:12" in output.out
    assert "forgotten" in output.out
    assert "/layers SPEC" in output.out


@pytest.mark.parametrize("line", ["/layers 0:99", "/layers (7,3)", "/lairs 0:8"])
def test_a_wrong_command_in_a_pipe_ends_it(monkeypatch, capsys, line):
    status, output = piped(monkeypatch, capsys, f"{line}\nHello!\n")
    assert status == 2
    assert "A.I." not in output.out
    assert output.err


@pytest.mark.parametrize(
    ("said", "note"), [("", "the question is forgotten"), ("Hi", "what was said is kept")]
)
def test_what_an_interrupt_leaves_is_told(monkeypatch, capsys, said, note):
    def interrupted(model, tokenizer, tokens, sampling, on_text, **options):
        on_text(said)
        raise KeyboardInterrupt

    monkeypatch.setattr("restack.chat.conversation.generate", interrupted)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    lines = iter(["Hello!"])
    monkeypatch.setattr("restack.cli.chat.lines", lambda: lines)
    assert main(["chat", "demo"]) == 0
    assert note in capsys.readouterr().out


@pytest.fixture
def terminal():
    child = pexpect.spawn(
        sys.executable, ["-m", "restack", "chat", "demo", "--temperature", "0"], encoding="utf-8", timeout=90
    )
    child.expect("You  > ")
    yield child
    child.close(force=True)


def test_in_a_terminal(terminal):
    terminal.sendline("What is the capital of Frwnce?\x01\x05\x1b[D\x1b[D\x1b[D\x1b[D\x7fa")  # edited
    terminal.expect("A.I. > The capital of France is Paris.")
    terminal.expect("You  > ")
    terminal.sendline("/layers 0:99")
    terminal.expect("stop 99 is past the model's 12 layers")
    terminal.expect("You  > ")
    terminal.sendline("/layers 0:8,4:12")
    terminal.expect("16 visits")
    terminal.expect("You  > ")
    terminal.sendeof()
    terminal.expect(pexpect.EOF)
    terminal.wait()
    assert terminal.exitstatus == 0


def test_interrupts_in_a_terminal(terminal):
    terminal.sendline("Tell me a story about Ben and a kite.")
    terminal.expect("A.I. > \\w+")
    terminal.sendintr()
    terminal.expect("You  > ")
    terminal.sendintr()
    terminal.expect("interrupted")
    terminal.expect(pexpect.EOF)
    terminal.wait()
    assert terminal.exitstatus == 130
