import io
import os
import sys

import pexpect
import pytest

from restack.cli import main
from restack.cli.chat import completion


def piped(monkeypatch, capsys, text, *options, encoding="utf-8"):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode(encoding))))
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
    assert "Along a pipe, the first mistake ends the chat with exit status 2." in output.out


@pytest.mark.parametrize("line", ["/layers 0:99", "/layers (7,3)", "/lairs 0:8"])
def test_a_wrong_command_in_a_pipe_ends_it(monkeypatch, capsys, line):
    status, output = piped(monkeypatch, capsys, f"{line}\nHello!\n")
    assert status == 2
    assert "A.I." not in output.out
    assert output.err


def test_what_was_asked_before_a_mistake_in_a_pipe_was_answered(monkeypatch, capsys):
    status, output = piped(monkeypatch, capsys, "Hello!\n/layers 0:99\nHello!\n")
    assert status == 2
    assert output.out.count("A.I. > ") == 1


@pytest.mark.parametrize("line", ["/exit", "/quit", " /quit "])
def test_commands_that_end_it(monkeypatch, capsys, line):
    status, output = piped(monkeypatch, capsys, f"{line}\nHello!\n")
    assert (status, output.err) == (0, "")
    assert "A.I." not in output.out


def test_a_byte_order_mark_is_no_part_of_the_text(monkeypatch, capsys):
    status, output = piped(monkeypatch, capsys, "/layers\n", encoding="utf-8-sig")
    assert status == 0
    assert "A.I." not in output.out


def test_a_full_context_names_the_way_out_and_begins_no_answer(monkeypatch, capsys):
    text = "Hello!\n" + "word " * 2000 + "\n"
    status, output = piped(monkeypatch, capsys, text, "--ai-prefix", "Well,")
    assert status == 2
    assert output.out.count("A.I. > ") == 1
    assert output.err.endswith("context is 1024; shorten it, or forget the conversation with /reset\n")


def test_a_first_message_past_the_context_leaves_nothing_to_forget(monkeypatch, capsys):
    status, output = piped(monkeypatch, capsys, "word " * 2000, "--system", "You are Demo.")
    assert status == 2
    assert "A.I." not in output.out
    assert output.err.endswith("context is 1024; shorten it\n")


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("/la", ["/layers "]),
        ("/", ["/exit", "/help", "/layers ", "/quit", "/reset"]),
        ("", []),
        ("wor", []),
        ("/layers 0", []),
    ],
)
def test_commands_are_completed(line, completed):
    offers = iter(lambda: completion(line, len(found)), None)
    found = []
    for offer in offers:
        found.append(offer)
    assert found == completed


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
    terminal.send("/la\t0:8,4:12\r")
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
    terminal.expect("\r\nrestack: interrupted")
    terminal.expect(pexpect.EOF)
    terminal.wait()
    assert terminal.exitstatus == 130


def test_what_is_typed_and_is_not_utf8_is_asked_for_again():
    # In the C locale, Python would let the byte through as half a surrogate pair.
    child = pexpect.spawn(
        sys.executable, ["-m", "restack", "chat", "demo"], timeout=90, env=os.environ | {"LC_ALL": "C"}
    )
    child.expect(b"You  > ")
    child.send(b"caf\xe9\r")
    child.expect(b"That was not UTF-8; please type it again.")
    child.expect(b"You  > ")
    child.send(b"/exit\r")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0
