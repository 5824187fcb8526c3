"""`restack train`, as it is typed."""

import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest
import torch

import restack
from restack.cli import main
from restack.training import read_log
from tests.recipes.tiny import saved_llama

pytest.importorskip("accelerate")
FAST = ["--length", "16", "--batch", "2", "--lr", "0.01"]
TEXT = "Ann has a red boat. Bob has a blue drum. Cleo likes cats, and Dan likes rain.\n" * 40


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama").mkdir()
    saved_llama(tmp_path / "llama")
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def run(*arguments):
    return main(["train", "llama", "text.txt", "-o", "out", *FAST, *arguments])


def test_from_text_to_a_model_that_talks(capsys, here):
    assert run("--steps", "20", "--warmup", "0") == 0
    said = capsys.readouterr()
    assert "1 process on cpu" in said.err
    assert "more for evaluation" in said.err and "20 steps of 2 rows (32 tokens)" in said.err
    assert "step 20 of 20: evaluation loss" in said.err
    assert said.out.startswith("out: 20 steps, loss ") and "restack chat out talks with it" in said.out
    losses = [entry["loss"] for entry in read_log("out") if "loss" in entry]
    assert losses[-1] < losses[0] - 1
    assert main(["generate", "out", "--prompt", "Ann", "--raw", "--temp", "0", "--max-tokens", "4"]) == 0
    assert capsys.readouterr().out.strip()
    assert restack.open("out").dtype == torch.float32
    assert (here / "out" / "loss.png").read_bytes()[1:4] == b"PNG"
    kept = {"training.json", "log.jsonl", "loss.png", "config.json", "model.safetensors", "tokenizer.json"}
    assert kept <= {path.name for path in (here / "out").iterdir()}
    assert not (here / "out" / "checkpoints").exists()
    assert run("--steps", "20", "--warmup", "0") == 2
    assert "holds a run that is finished" in capsys.readouterr().err


def test_a_view_and_its_adapters(capsys, here):
    arguments = ["--steps", "3", "--layers", "0:3,1:4"]
    assert run(*arguments, "--lora", "2", "--lora-visits", "3:5") == 0
    assert "in adapters" in capsys.readouterr().err
    names = [name for name, _ in restack.open("out").named_parameters() if "lora_A" in name]
    assert {name.split(".")[2] for name in names} == {"3", "4"}
    assert json.loads((here / "out" / "training.json").read_text())["asked"]["model"] == "llama@0:3,1:4"
    assert main(["train", "llama@0:3,1:4", "text.txt", "-o", "full", *FAST, "--steps", "3"]) == 0
    assert len(restack.open("full").model.layers) == 6
    assert main(["generate", "full", "--prompt", "Ann", "--raw", "--max-tokens", "2"]) == 0


def test_another_command_for_the_same_folder(capsys, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr("restack.training.run.save_trained", interrupted)
        assert run("--steps", "3") == 130
    capsys.readouterr()
    assert run("--steps", "3", "--lr", "0.02") == 2
    assert capsys.readouterr().err == (
        "restack: out holds a run of another command: lr was 0.01 and is 0.02 now; name another folder, or "
        "give the same command to go on\n"
    )
    assert run("--steps", "3") == 0
    assert "going on after step 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["llama", "text.txt"], "Missing option '--out'"),
        (["llama", "-o", "out"], "Missing argument 'DATA...'"),
        (["llama", "text.txt", "-o", "full"], "full is there and not empty"),
        (["llama", "text.txt", "-o", "full/file"], "full/file is there and no folder"),
        (["llama", "no.txt", "-o", "out"], "there is no file no.txt"),
        (["llama", "bad.jsonl", "-o", "out"], "bad.jsonl line 2 is not JSON"),
        (["llama", "bad.txt", "-o", "out"], "bad.txt line 2: byte 0xff at column 1 is not UTF-8"),
        (["llama", "empty.txt", "-o", "out"], "empty.txt is empty"),
        (["llama", "text.txt", "-o", "out", "--steps", "0"], "--steps is 0"),
        (["llama", "text.txt", "-o", "out", "--steps", "1", "--epochs", "1"], "both say how long"),
        (["llama", "text.txt", "-o", "out", "--length", "65"], "the model's context is 64"),
        (["llama", "text.txt", "-o", "out", "--lora-visits", "all"], "no rank"),
        (["llama", "text.txt", "-o", "out", "--lora", "2", "--lora-visits", "9"], "spec over the 4 visits"),
        (["llama", "text.txt", "-o", "out", "--parallel", "fsdp"], "there is one"),
        (["llama", "text.txt", "-o", "out", "--layers", "0:9"], "past the model's 4 layers"),
        (["llama", "text.txt", "-o", "out", "--eval", "no.txt"], "there is no file no.txt"),
        (["bare", "text.txt", "-o", "out"], "tokenizer"),
        (["nowhere/at/all", "text.txt", "-o", "out"], "there is no folder"),
    ],
)
def test_wrong_input_is_told_and_leaves_nothing(capsys, here, arguments, told):
    (here / "full").mkdir()
    (here / "full" / "file").write_text("kept")
    (here / "bad.jsonl").write_text('{"text": "One."}\n{"text": "Tw\n')
    (here / "bad.txt").write_bytes(b"One.\n\xff\n")
    (here / "empty.txt").touch()
    (here / "bare").mkdir()
    for name in ("config.json", "model.safetensors"):
        (here / "bare" / name).write_bytes((here / "llama" / name).read_bytes())
    before = sorted(here.rglob("*"))
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error
    if not any(words in told for words in ("past the", "spec over")):
        assert error.count("\n") == 1
    assert sorted(here.rglob("*")) == before


def test_bad_lines_are_skipped_and_counted(capsys, here):
    lines = [json.dumps({"text": line}) for line in TEXT.splitlines()]
    (here / "data.jsonl").write_text("\n".join([*lines[:5], "", "{", *lines[5:]]) + "\n")
    command = ["train", "llama", "data.jsonl", "-o", "out", *FAST, "--steps", "2"]
    assert main([*command, "--skip-bad-lines"]) == 0
    assert "2 bad lines skipped" in capsys.readouterr().err


def test_a_full_disk(capsys, here, monkeypatch):
    save = torch.save

    def full(thing, path, *args, **kwargs):
        if "checkpoint-2" in str(path):
            raise OSError(28, "No space left on device", str(path))
        save(thing, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    assert run("--steps", "3", "--save-every", "1") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(
        "restack: the checkpoint after step 2 could not be written: No space left on device"
    )
    assert [path.name for path in (here / "out" / "checkpoints").iterdir()] == ["checkpoint-1"]


@pytest.mark.parametrize("package", ["accelerate", "peft"])
def test_what_is_not_installed_is_named(capsys, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert run("--steps", "1", "--lora", "2") == 2
    assert capsys.readouterr().err == (
        f"restack: training needs {package}, which is not installed; pip install 'restack[train]'\n"
    )


def start(*arguments, **options):
    command = [sys.executable, "-m", "restack", "train", "llama", "text.txt", "-o", "out", *FAST, *arguments]
    return subprocess.Popen(command, **options)


def wait_for_step(step, folder, process):
    for _ in range(600):
        if any(entry["step"] >= step for entry in read_log(folder)):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("the run does not come to the step")


@pytest.mark.slow
def test_ctrl_c_and_on_again(capsys, here):
    arguments = ["--steps", "300", "--save-every", "300"]
    process = start(*arguments, stderr=subprocess.PIPE, text=True)
    wait_for_step(5, here / "out", process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    [checkpoint] = (here / "out" / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    assert f"restack: stopped after step {step} and saved; the same command goes on from there\n" in error
    assert run(*arguments) == 0
    assert f"going on after step {step}\n" in capsys.readouterr().err
    assert main(["train", "llama", "text.txt", "-o", "whole", *FAST, *arguments]) == 0
    losses = [[entry["loss"] for entry in read_log(name) if "loss" in entry] for name in ("out", "whole")]
    assert len(losses[0]) == 300 and losses[0] == pytest.approx(losses[1], abs=1e-6)


@pytest.mark.slow
def test_a_bar_in_a_terminal(here):
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    process = start("--steps", "5", stdout=subprocess.PIPE, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 10_000)
        except OSError:  # the other end is closed
            break
    assert process.wait(60) == 0
    assert "━".encode() in shown and b"5/5" in shown and b"loss" in shown
    assert b"Warning" not in shown
