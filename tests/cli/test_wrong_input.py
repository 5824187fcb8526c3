"""Wrong input: one clear line, exit status 2, no traceback."""

import io
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest

from restack.cli import main


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["show", "demo", "--layers", "0:8,4:120"],
            "stop 120 is past the model's 12 layers (0..11); write 4:",
        ),
        (["show", "demo@0:13"], "past the model's 12 layers"),
        (["show", "demo", "--layers", ""], "the plan is empty"),
        (["show", "demo", "--layers", "5:5"], "holds no layer"),
        (["show", "demo", "--layers", "abc"], "neither a spec"),
        (["show", "demo@0:8", "--layers", "0:8"], "given twice"),
        (["show", "demo", "--ratio", "0-1"], "a : should stand here; write 0:0.5,0.3:1"),
        (["show", "demo", "--ratio", "(0:0.5"], "a depth should stand here"),
        (["show", "demo", "--kv", "yoco"], "visit 0 reads keys and values through a sliding window (s)"),
        (["show", "demo@0:4;kv=0_1_1s_1"], "visit 2 reads keys and values through a sliding window (s)"),
        (["show", "demo@" + ",".join(map(str, range(300)))], "past the model's 12 layers"),
        (
            ["generate", "demo", "--prompt", "hi", "--seed", "9" * 30],
            "is out of range; write a number from 0",
        ),
        (["generate", "demo", "--prompt", "hi", "--seed", "-" + "9" * 19], "is out of range"),
        (["show", "demo", "--ratio", "0.5:0.2"], "starts past its end"),
        (["show", "demo", "--kv", "0_1"], "the map ends after 2 of the plan's 12 visits"),
        (["show", "/no/such/model"], "there is no folder /no/such/model"),
        (["show"], "Missing argument"),
        (["shwo", "demo"], "No such command"),
        (["generate", "demo", "--prompt", ""], "the prompt is empty"),
        (["generate", "demo", "--prompt", "hi", "--top-p", "2"], "top-p 2.0"),
        (["generate", "demo", "--prompt", "hi", "--temperature", "inf"], "temperature inf: write 0, or"),
        (["chat", "demo", "--temperature", "nan"], "temperature nan: write 0, or"),
        (["show", "./no-such-folder"], "there is no folder ./no-such-folder"),
        (["show", "~no-such-user/model"], "there is no folder ~no-such-user/model"),
        (["generate", "demo", "--prompt", "a\udcff"], "byte 0xff at character 2 of --prompt is not UTF-8"),
        (["generate", "demo", "--raw", "-p", "\udce9"], "byte 0xe9 at character 1 of --prompt is not UTF-8"),
        (
            ["generate", "demo", "-p", "hi", "-s", "\udc80"],
            "byte 0x80 at character 1 of --system is not UTF-8",
        ),
        (["chat", "demo", "--ai_prefix", "\udc80"], "character 1 of --ai-prefix is not UTF-8"),
        (["demo", "--out", "/dev/null"], "--out /dev/null: /dev/null is not a folder"),
        (["demo", "--out", "/dev/null/deep/er"], "--out /dev/null/deep/er: /dev/null is not a folder"),
        (
            ["generate", "demo", "--prompt", "hi", "--temperature", "warm"],
            "Invalid value for '--temperature'",
        ),
        (["generate", "demo", "--prompt", "hi", "--raw", "--system", "x"], "--raw"),
        (["generate", "demo", "--prompt", "hi", "--device", "abacus"], "device 'abacus' cannot be used"),
        (["generate", "demo", "--prompt", "hi", "--compile"], "--compile is for GPUs and the device is cpu"),
        (
            ["think", "demo", "--prompt", "hi", "--device", "mps", "--compile"],
            "--compile is for GPUs and the device is mps",
        ),
        (
            ["generate", "demo", "-p", "hi", "--device", "cuda", "--compile", "--draft", "@0:4"],
            "leave out --draft or --compile",
        ),
        (["generate", "demo", "--prompt", "hi", "--dtype", "int3"], "dtype 'int3' is not known"),
        (["generate", "demo", "--prompt", "word " * 3000], "the model's context is 1024"),
        (["generate", "demo", "--prompt", "hi", "--prompt", ""], "a prompt is empty"),
    ],
)
def test_told_in_one_line(capsys, arguments, told):
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert told in output.err
    assert "Traceback" not in output.err
    assert output.out == ""
    assert len(output.err.splitlines()) <= 2  # an error in a spec shows the spec above it


def test_an_empty_folder_is_no_model(capsys, tmp_path):
    assert main(["chat", str(tmp_path)]) == 2
    assert "a folder without config.json" in capsys.readouterr().err


def test_the_hub_is_named_while_it_is_asked_and_its_warnings_are_not_shown(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["show", "nobody/nothing"]) == 2
    first, *others = capsys.readouterr().err.splitlines()
    assert first == "looking for nobody/nothing on the hub"
    assert len(others) == 1
    assert huggingface_hub.utils.logging.get_verbosity() == logging.ERROR
    main(["show", "demo@0:99"])
    assert "on the hub" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_input_that_is_not_utf8(capsys, monkeypatch, command):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"What is\xff 3 + 4?\n")))
    assert main([command, "demo"]) == 2
    assert "byte 0xff at column 8 of input line 1 is not UTF-8" in capsys.readouterr().err


def started(*arguments, **options):
    command = [sys.executable, "-u", "-m", "restack", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, **options)


def test_a_closed_pipe_ends_it():
    process = started("generate", "demo", "--prompt", "Tell me a story about Ben and a kite.")
    assert process.stdout.read(1)
    process.stdout.close()
    error = process.stderr.read().decode()
    assert process.wait(60) == 2
    assert error == "restack: the output was closed before the end\n"


def test_an_interrupt_in_the_middle_of_an_answer():
    # Any of a thousand tokens may come next, so the end token hardly ever does, and the answer is long.
    sampling = ("--temperature", "50", "--top-k", "0", "--top-p", "1", "--max-tokens", "900")
    process = started("generate", "demo", "--prompt", "Tell me a story.", *sampling)
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.decode() == "restack: interrupted\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "demo"],
        ["show", "demo", "--json"],
        ["chat", "demo"],
        ["generate", "demo", "--prompt", "hi"],
        ["demo"],
        ["--help"],
        ["--version"],
    ],
)
def test_every_command_ends_alike_on_a_closed_pipe(tmp_path, arguments):
    process = started(*arguments, stdin=subprocess.DEVNULL, cwd=tmp_path)
    process.stdout.close()
    error = process.stderr.read().decode()
    assert process.wait(60) == 2
    assert error == "restack: the output was closed before the end\n"


@pytest.mark.parametrize("place", ["missing/folder", ".", "config.json"])
@pytest.mark.parametrize("command", [["show"], ["generate", "--prompt", "hi"], ["chat"]])
def test_a_wrong_folder_is_told_at_once(tmp_path, command, place):
    (tmp_path / "config.json").touch()
    (tmp_path / "empty").mkdir()
    check = (
        "import sys; from restack.cli import main; status = main(sys.argv[1:]); "
        "sys.exit(status + 10 * ('torch' in sys.modules or 'transformers' in sys.modules))"
    )
    model = (
        str(tmp_path / "empty" / ".." / place) if place == "config.json" else str(tmp_path / "empty" / place)
    )
    done = subprocess.run(
        [sys.executable, "-c", check, *command, model], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert model in done.stderr


@pytest.mark.parametrize("name", ["a-file", "a-file/deeper", "closed", "closed/new", "taken"])
def test_where_the_demo_cannot_draw_is_told_before_it_begins(capsys, monkeypatch, tmp_path, name):
    monkeypatch.setattr("restack.cli.demo.run", lambda out, probes: pytest.fail("it began"))
    (tmp_path / "a-file").touch()
    (tmp_path / "closed").mkdir(mode=0o500)
    (tmp_path / "taken" / "plans.png").mkdir(parents=True)
    if os.access(tmp_path / "closed", os.W_OK):  # to root, nothing is closed
        monkeypatch.setattr(
            os, "access", lambda place, mode: not mode & os.W_OK or "closed" not in str(place)
        )
    assert main(["demo", "--out", str(tmp_path / name)]) == 2
    assert capsys.readouterr().err.startswith(f"restack: --out {tmp_path / name}: ")
    assert sorted(place.name for place in tmp_path.iterdir()) == ["a-file", "closed", "taken"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "restack", "show", "demo"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr.startswith("restack: cannot write or read: No space left")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("redirection", ["<&-", ">&-"])
def test_closed_streams(redirection):
    command = f"{sys.executable} -m restack generate demo {redirection}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("restack: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_terminal_without_our_characters():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "restack", "show", "demo"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_command_prints_the_help(capsys):
    assert main([]) == 2
    output = capsys.readouterr()
    assert "Usage" in output.out + output.err
    assert "restack: ;" not in output.err
