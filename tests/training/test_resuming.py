"""Runs that are killed, stopped or fail go on as if they had not been; nothing is ever half there."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch

import restack
from restack.errors import RestackError, UsageError
from restack.training import Training, read_log, train
from restack.training.run import Watch
from tests.llama.tiny import model as house
from tests.training.tiny import llama, rows

SETTINGS = Training(steps=9, batch=2, accumulate=2, lr=0.01, save_every=3, eval_every=4, eval_share=0.2)
KINDS = {
    "llama with dropout": lambda: llama(attention_dropout=0.2),
    "view": lambda: restack.view(llama(), "0:3,1:4"),
    "house": lambda: house("0_4x4_5"),
    "lora": lambda: restack.view(llama(), "0:3,1:4"),
}
# How a run is begun that is going to be killed: as a test begins it.
KILLED = """
import os, signal, sys, torch
from tests.training.test_resuming import DoAt, begun
kind, folder, how = sys.argv[1:]
def die():
    os.kill(os.getpid(), signal.SIGKILL)
save = torch.save
def die_while_saving(thing, path, *args, **kwargs):
    save(thing, path, *args, **kwargs)
    if "checkpoint-6" in str(path) and str(path).endswith("optimizer.pt"):
        os.truncate(path, os.path.getsize(path) // 2)
        die()
if how == "in a save":
    torch.save = die_while_saving
begun(kind, folder, DoAt(8, die))
"""


class DoAt(Watch):
    """Does something after a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def entry(self, entry):
        if entry["step"] == self.step and "loss" in entry:
            self.action()


class Crash(Exception):
    pass


def crash():
    raise Crash


def begun(kind, folder, watch=None, settings=SETTINGS, data=None):
    data = rows(vocabulary=40) if data is None else data
    if kind == "lora":
        settings = Training(**settings.to_json() | {"lora": 2})
    return train(KINDS[kind](), None, data, folder, settings, watch=watch)


def log_of(folder):
    """Without the seconds, which are never the same."""
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in read_log(folder)]


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.iterdir())


def killed(kind, folder, how):
    command = [sys.executable, "-c", KILLED, kind, str(folder), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


def same_model(folder, other):
    ours, theirs = (restack.open(str(path)).eval() for path in (folder, other))
    with torch.no_grad():
        return torch.equal(ours(rows()).logits, theirs(rows()).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_crashed_goes_on_with_the_same_losses(tmp_path, kind):
    whole = begun(kind, tmp_path / "whole")
    assert [entry["step"] for entry in whole.log] == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 8, 9, 9]
    with pytest.raises(Crash):
        begun(kind, tmp_path / "run", DoAt(8, crash))
    assert names(tmp_path / "run" / "checkpoints") == ["checkpoint-3", "checkpoint-6"]
    assert (tmp_path / "run" / "loss.png").is_file()
    steps = []
    watch = DoAt(None, None)
    watch.entry = lambda entry: steps.append(entry["step"])
    again = begun(kind, tmp_path / "run", watch)
    assert steps == [7, 8, 8, 9, 9]
    assert again.losses == pytest.approx(whole.losses, abs=1e-6)
    assert log_of(tmp_path / "run") == log_of(tmp_path / "whole")
    assert same_model(tmp_path / "run", tmp_path / "whole")
    seconds = [entry["seconds"] for entry in again.log]
    assert seconds == sorted(seconds)
    assert "checkpoints" not in names(tmp_path / "run")


def killed_and_resumed(kind, how, last, tmp_path):
    killed(kind, tmp_path / "run", how)
    steps = [entry["step"] for entry in read_log(tmp_path / "run")]
    assert steps[-1] == (8 if how == "in a step" else 6)
    assert last in names(tmp_path / "run" / "checkpoints")
    again = begun(kind, tmp_path / "run")
    whole = begun(kind, tmp_path / "whole")
    assert again.losses == pytest.approx(whole.losses, abs=1e-6)
    assert log_of(tmp_path / "run") == log_of(tmp_path / "whole")
    assert same_model(tmp_path / "run", tmp_path / "whole")
    assert not any(name.startswith(".") for name in names(tmp_path / "run"))


def test_killed_in_the_middle_of_a_save(tmp_path):
    killed_and_resumed("llama with dropout", "in a save", "checkpoint-3", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["in a step", "in a save"])
@pytest.mark.parametrize("kind", KINDS)
def test_killed(tmp_path, kind, how):
    killed_and_resumed(kind, how, "checkpoint-6" if how == "in a step" else "checkpoint-3", tmp_path)


def test_killed_before_the_first_checkpoint(tmp_path):
    with pytest.raises(Crash):
        begun("view", tmp_path / "run", DoAt(2, crash))
    begun("view", tmp_path / "run")
    begun("view", tmp_path / "whole")
    assert log_of(tmp_path / "run") == log_of(tmp_path / "whole")


def test_killed_while_the_model_is_written(tmp_path, monkeypatch):
    """The last checkpoint is there still, and what was written is written again."""
    monkeypatch.setattr("restack.training.folder.Folder.finish", lambda *_: crash())
    with pytest.raises(Crash):
        begun("view", tmp_path / "run")
    monkeypatch.undo()
    (tmp_path / "run" / ".model.part").mkdir()
    result = begun("view", tmp_path / "run")
    assert result.finished and len(result.losses) == 9
    assert names(tmp_path / "run") == sorted(
        ["README.md", "base", "config.json", "log.jsonl", "loss.png", "training.json"]
    )
    begun("view", tmp_path / "whole")
    assert same_model(tmp_path / "run", tmp_path / "whole")


def test_a_torn_line_of_the_log_is_left_out(tmp_path):
    with pytest.raises(Crash):
        begun("view", tmp_path / "run", DoAt(8, crash))
    with (tmp_path / "run" / "log.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    begun("view", tmp_path / "run")
    begun("view", tmp_path / "whole")
    assert log_of(tmp_path / "run") == log_of(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_finishes_the_step_and_saves(tmp_path, number):
    before = signal.getsignal(number)
    result = begun("lora", tmp_path / "run", DoAt(5, lambda: os.kill(os.getpid(), number)))
    assert (result.finished, result.steps) == (False, 6)
    assert signal.getsignal(number) is before
    assert names(tmp_path / "run" / "checkpoints") == ["checkpoint-3", "checkpoint-6"]
    assert "config.json" not in names(tmp_path / "run")
    assert begun("lora", tmp_path / "run").finished
    begun("lora", tmp_path / "whole")
    assert log_of(tmp_path / "run") == log_of(tmp_path / "whole")


def test_a_second_ctrl_c_ends_it_at_once(tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        begun("view", tmp_path / "run", DoAt(5, twice))
    assert begun("view", tmp_path / "run").finished


def test_a_full_disk_is_one_line_and_costs_no_checkpoint(tmp_path, monkeypatch):
    save = torch.save

    def full(thing, path, *args, **kwargs):
        if "checkpoint-6" in str(path) and str(path).endswith("optimizer.pt"):
            save(thing, path, *args, **kwargs)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        save(thing, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    told = r"^the checkpoint after step 6 could not be written: No space left on device; the last whole one, "
    with pytest.raises(RestackError, match=told + r"checkpoint-3, is kept: make room and") as error:
        begun("view", tmp_path / "run")
    assert "\n" not in str(error.value)
    assert names(tmp_path / "run" / "checkpoints") == ["checkpoint-3"]
    monkeypatch.undo()
    begun("view", tmp_path / "run")
    begun("view", tmp_path / "whole")
    assert log_of(tmp_path / "run") == log_of(tmp_path / "whole")


@pytest.mark.slow
def test_a_limit_of_the_system_while_torch_writes(tmp_path):
    """No hook of ours: the system refuses to let a file grow, and torch tells it in words of its own."""
    script = (
        "import resource, signal, sys\n"
        "from tests.training.test_resuming import DoAt, begun\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "begun('view', sys.argv[1], DoAt(5, limit))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert "RestackError: the checkpoint after step 6 could not be written" in done.stderr
    assert names(tmp_path / "run" / "checkpoints") == ["checkpoint-3"]
    assert begun("view", tmp_path / "run").finished


def test_a_full_disk_while_the_model_is_written(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("restack.training.run.save_trained", full)
    with pytest.raises(RestackError, match=r"the trained model could not be written into .*: No space left"):
        begun("view", tmp_path / "run")
    assert "checkpoint-9" in names(tmp_path / "run" / "checkpoints")
    monkeypatch.undo()
    assert begun("view", tmp_path / "run").finished


def other(**settings):
    return Training(**SETTINGS.to_json() | settings)


def test_another_command_is_refused_by_its_first_difference(tmp_path):
    with pytest.raises(Crash):
        begun("view", tmp_path / "run", DoAt(5, crash))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    wrong = {
        "lr was 0.01 and is 0.02 now": {"settings": other(lr=0.02, seed=3)},
        "steps was 9 and is 10 now": {"settings": other(steps=10)},
        "digest of the tokens was": {"data": rows(seed=2)},
    }
    for told, changed in wrong.items():
        with pytest.raises(UsageError, match=f"holds a run of another command: {told}"):
            begun("view", tmp_path / "run", **changed)
    with pytest.raises(UsageError, match="digest of the weights was"):
        train(restack.view(llama(seed=1), "0:3,1:4"), None, rows(), tmp_path / "run", SETTINGS)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    begun("view", tmp_path / "run", settings=other(keep_checkpoints=True))  # which changes nothing of the run
    assert names(tmp_path / "run" / "checkpoints") == ["checkpoint-6", "checkpoint-9"]


def test_folders_that_are_refused(tmp_path):
    begun("view", tmp_path / "run")
    with pytest.raises(UsageError, match=r"holds a run that is finished.*restack chat"):
        begun("view", tmp_path / "run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    with pytest.raises(UsageError, match="is there and not empty"):
        begun("view", tmp_path / "full")
    said = json.loads((tmp_path / "run" / "training.json").read_text())
    for text, told in [
        (json.dumps(said | {"format": 99}), "has format 99, and this Restack reads 1"),
        ("{", "is damaged"),
        (json.dumps({"format": 1}), "is damaged"),
    ]:
        (tmp_path / "run" / "training.json").write_text(text)
        with pytest.raises(UsageError, match=told):
            begun("view", tmp_path / "run")
    assert (tmp_path / "full" / "file").read_text() == "kept"


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    """As when somebody copies folders about."""
    for kind in ("view", "house"):
        with pytest.raises(Crash):
            begun(kind, tmp_path / kind, DoAt(5, crash))
    shutil.rmtree(tmp_path / "view" / "checkpoints")
    shutil.copytree(tmp_path / "house" / "checkpoints", tmp_path / "view" / "checkpoints")
    with pytest.raises(RestackError, match="checkpoint-3 is of another model"):
        begun("view", tmp_path / "view")


def test_a_checkpoint_that_was_cut_short_later_is_told(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(Crash):
        train(llama(), None, rows(), run, SETTINGS, watch=DoAt(8, crash))
    optimizer = run / "checkpoints" / "checkpoint-6" / "optimizer.pt"
    os.truncate(optimizer, optimizer.stat().st_size // 2)
    with pytest.raises(UsageError, match=r"optimizer\.pt is damaged; remove checkpoint-6, and the same"):
        train(llama(), None, rows(), run, SETTINGS)
    shutil.rmtree(optimizer.parent)
    assert train(llama(), None, rows(), run, SETTINGS).finished
