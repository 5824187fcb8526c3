import io
import os
import sys

import pexpect
import pytest

from restack.chat import OVERFLOWS
from restack.cli import main, options
from restack.cli.chat import COMMANDS
from restack.cli.line_editing import completion, messages


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
    assert "/layers SPEC" in output.out and 'three quotes (""")' in output.out
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
        ("/", sorted(COMMANDS)),
        ("/s", ["/save "]),
        ("", []),
        ("wor", []),
        ("/layers 0", []),
    ],
)
def test_commands_are_completed(line, completed):
    offers = iter(lambda: completion(line, len(found), COMMANDS), None)
    found = []
    for offer in offers:
        found.append(offer)
    assert found == completed


@pytest.mark.parametrize(
    ("said", "note"), [("", "the conversation is as before"), ("Hi", "what was said is kept")]
)
def test_what_an_interrupt_leaves_is_told(monkeypatch, capsys, said, note):
    def interrupted(model, tokenizer, tokens, sampling, on_text, **options):
        on_text(said)
        raise KeyboardInterrupt

    monkeypatch.setattr("restack.chat.speech.generate", interrupted)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("restack.cli.chat.messages", lambda *_: iter(["Hello!"]))
    assert main(["chat", "demo"]) == 0
    assert note in capsys.readouterr().out


def answers(output):
    return [line.removeprefix("A.I. > ") for line in output.out.splitlines() if line.startswith("A.I. > ")]


def test_the_conversation_is_steered(monkeypatch, capsys):
    text = (
        "/prefix The capital\nWhat is the capital of France?\n/prefix\n/continue  The capital of Spain\n"
        "/again\n/undo\nHello!\n"
    )
    status, output = piped(monkeypatch, capsys, text)
    assert status == 0
    said = answers(output)
    assert said[0] == "The capital of France is Paris."
    assert said[1].startswith(" The capital of Spain")  # only what is new is shown
    assert said[2] == "The capital of France is Paris."
    assert "Every answer begins with 'The capital'." in output.out and "No prefix." in output.out
    assert "Taken back: What is the capital of France?" in output.out
    assert len(said) == 4


def test_forks(monkeypatch, capsys):
    text = (
        "What is the capital of France?\n/fork other\n/layers 0:8,4:12\nHello!\n/fork\n/fork main\n/undo\n"
        "/fork other\n/undo\n/undo\n"
    )
    status, output = piped(monkeypatch, capsys, text)
    assert status == 0
    assert "other has 2 messages; /fork main leads back. plan 0:12" in output.out
    assert "main, other (here)" in output.out
    assert "other has 4 messages; /fork main leads back. plan 0:8,4:12" in output.out
    assert output.out.count("Taken back: What is the capital of France?") == 2


@pytest.mark.parametrize("option", ["", "--kv "])
def test_sessions(monkeypatch, capsys, tmp_path, option):
    file = tmp_path / "a talk.json"
    status, output = piped(monkeypatch, capsys, f"What is the capital of France?\n/save {option}{file}\n")
    assert status == 0 and f"Kept in {file}" in output.out
    status, output = piped(monkeypatch, capsys, f"/load {file}\n/undo\n")
    assert status == 0
    assert "Going on with 2 messages" in output.out
    assert "You  > What is the capital of France?\nA.I. > The capital of France is Paris." in output.out
    status, output = piped(monkeypatch, capsys, "/undo\n", "--load", str(file))
    assert status == 0 and "Taken back: What is the capital of France?" in output.out
    status, output = piped(monkeypatch, capsys, "Hello!\n", "--load", str(file), "--layers", "0:8,4:12")
    assert status == 2 and "--layers '0:12'" in output.err and "A.I." not in output.out


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/undo", "nothing to take back"),
        ("/again", "no answer to take back; ask something first"),
        ("/continue", "no message of the model to go on with; ask something first"),
        ("/save", "name the file: /save FILE"),
        ("/load", "name the file: /load FILE"),
        ("/load nothing.json", "the session nothing.json cannot be read: No such file"),
        ("/fork main", "this is main; name another"),
        ("caf\udce9", "byte 0xe9 at column 4 of input line 1 is not UTF-8"),
    ],
)
def test_wrong_lines_are_told_in_one_line(monkeypatch, capsys, line, told):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(line.encode("utf-8", "surrogateescape"))))
    assert main(["chat", "demo"]) == 2
    output = capsys.readouterr()
    assert told in output.err and "A.I." not in output.out


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (["--overflow", "forget"], "--overflow is 'forget'; write one of stop, drop, shift"),
        (["--load", "nothing.json"], "there is no session nothing.json; /save FILE keeps one"),
        (["--thought-tags", "x", "x"], "write two different tags"),
    ],
)
def test_wrong_options_are_told_before_anything_is_loaded(capsys, monkeypatch, option, told):
    monkeypatch.setattr("restack.recipes.open", None)
    assert main(["chat", "demo", *option]) == 2
    assert told in capsys.readouterr().err


def test_the_ways_to_overflow_are_those_of_conversations():
    assert options.OVERFLOWS == OVERFLOWS  # said twice, since the options load no torch


def test_a_megabyte_is_refused(monkeypatch, capsys):
    status, output = piped(monkeypatch, capsys, "word " * 200_000 + "\n")
    assert status == 2 and "the model's context is 1024; shorten it" in output.err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a\\\nb\\\n\nc\n", ["a\nb\n", "c"]),
        ('"""\na\n\n  b\n"""\nc', ["a\n\n  b", "c"]),
        ('"""\na', ["a"]),
        ("a\\", ["a"]),
        ('a """\nb\n', ['a """', "b"]),
        ("a\r\nb\r\n", ["a", "b"]),
    ],
)
def test_messages_of_several_lines(monkeypatch, text, told):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert list(messages("", COMMANDS)) == told


SPEAKS = r"A.I. > \x1b\[0m"  # which ends the bold letters


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
    terminal.expect(f"{SPEAKS}The capital of France is Paris.")
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


STATUS = r"\[\d+ tokens.*, [\d.]+ tokens/s; \d+ read, 0 known; context \d+ of 1,024, KV [\d.]+ kB\]"


def test_what_grew_in_a_terminal(terminal, tmp_path):
    for line in ('"""', "What is the capital", "of France?"):
        terminal.sendline(line)
        terminal.expect(" ... > ")
    terminal.sendline('"""')
    terminal.expect(SPEAKS)
    terminal.expect(STATUS)
    terminal.expect("You  > ")
    terminal.sendline("/continue  The capital of Spain")
    terminal.expect(f"{SPEAKS} The capital of Spain")
    terminal.expect(r"; \d+ read, [1-9]\d* known; ")
    terminal.sendline(f"/save {tmp_path}/talk.json")
    terminal.expect("Kept in ")
    terminal.sendline("/reset")
    terminal.expect("forgotten")
    terminal.sendline("/continue")
    terminal.expect("no message of the model to go on with")
    terminal.sendline(f"/load {tmp_path}/talk.json")
    terminal.expect("Going on with 2 messages")
    terminal.expect(r"You  > \x1b\[0mWhat is the capital")
    terminal.expect("You  > ")
    terminal.sendeof()
    terminal.expect(pexpect.EOF)
    terminal.wait()
    assert terminal.exitstatus == 0


def test_interrupts_in_a_terminal(terminal):
    terminal.sendline("Tell me a story about Ben and a kite.")
    terminal.expect(f"{SPEAKS}\\w+")
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


def test_it_can_play_the_user(monkeypatch, capsys):
    status, output = piped(monkeypatch, capsys, "fox.\n", "--reversed-role", "--max-tokens", "20")
    assert status == 0
    assert len(answers(output)) == 2  # it begins, and goes on after the answer that was typed


def test_an_interrupt_while_modules_are_imported_is_one(monkeypatch, capsys):
    def interrupted(*arguments, **options):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:  # as transformers' lazy imports do
            raise RuntimeError("Could not import module 'AutoConfig'") from error

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", interrupted)
    assert main(["chat", "demo"]) == 130
    assert capsys.readouterr().err.endswith("restack: interrupted\n")
