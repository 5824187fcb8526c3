"""Several processes: as one with as many rows, and told for what they are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import restack
from restack.errors import UsageError, ViewError
from restack.training import Training, read_log
from restack.training.adapters import adapted
from restack.training.preparing import check_model, mode_of
from restack.training.processes import Processes
from restack.training.saving import with_weights
from tests.llama.tiny import model as house
from tests.recipes.tiny import saved_llama
from tests.training.tiny import llama

SPEC = "0:3,1:4"
TEXT = "Ann has a red boat. Bob has a blue drum. Cleo likes cats, and Dan likes rain.\n" * 40
COMMON = ["--length", "16", "--lr", "0.01", "--steps", "8", "--eval-every", "4", "--save-every", "3"]


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def torchrun(folder, *arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*TORCHRUN, "-m", "restack", "train", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
        env=environment,
    )


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama").mkdir()
    saved_llama(tmp_path / "llama")
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "view", "lora", "house"])
def test_two_processes_are_one_with_twice_the_rows(here, kind):
    if kind == "house":
        house("0_4x4_5", vocab_size=1147).save_pretrained(here / "llama")
    model = {"view": f"llama@{SPEC}", "lora": f"llama@{SPEC}"}.get(kind, "llama")
    more = [*COMMON, *(["--lora", "2"] if kind == "lora" else [])]
    done = torchrun(here, model, "text.txt", "-o", "two", *more, "--batch", "2", "--accumulate", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    told = "2 processes, data parallel (DDP, gloo): each holds the whole model"
    assert done.stderr.count(told) == 1 and done.stdout.count("restack chat two talks with it") == 1
    assert "Warning" not in done.stderr
    from restack.cli import main

    assert main(["train", model, "text.txt", "-o", "one", *more, "--batch", "4", "--accumulate", "2"]) == 0
    two, one = (read_log(here / name) for name in ("two", "one"))
    assert [entry["step"] for entry in two] == [entry["step"] for entry in one]
    for name in ("loss", "eval_loss"):
        expected = [entry[name] for entry in one if name in entry]
        assert [entry[name] for entry in two if name in entry] == pytest.approx(expected, abs=1e-5)
        assert expected[-1] < expected[0]
    restack.open(str(here / "two"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are looked up in Linux's /proc")
def test_no_thread_of_the_other_processes_is_left(here):
    script = here / "watched.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from restack.cli import main\n"
        "from restack.training.processes import Processes\n"
        "def threads(): return [p.read_text().strip() for p in Path('/proc/self/task').glob('*/comm')]\n"
        "def leave(self, leave=Processes.leave):\n"
        "    assert any('gloo' in name for name in threads())\n"
        "    leave(self)\n"
        "    assert not any('gloo' in name for name in threads()), threads()\n"
        "Processes.leave = leave\n"
        f"sys.exit(main(['train', 'llama', 'text.txt', '-o', 'two', *{COMMON!r}]))\n"
    )
    done = subprocess.run([*TORCHRUN, str(script)], capture_output=True, text=True, timeout=300, cwd=here)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_go_on_after_a_kill(here):
    arguments = ["llama", "text.txt", *COMMON, "--batch", "2"]
    script = here / "killed.py"
    script.write_text(
        "import os, signal, sys\n"
        "from restack.cli import main\n"
        "from restack.cli import train\n"
        "entry = train.Lines.entry\n"
        "def die(self, line):\n"
        "    entry(self, line)\n"
        "    if line['step'] == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "train.Lines.entry = die\n"
        f"sys.exit(main(['train', '-o', 'two', *{arguments!r}]))\n"
    )
    done = subprocess.run([*TORCHRUN, str(script)], capture_output=True, text=True, timeout=300, cwd=here)
    assert done.returncode != 0
    assert [path.name for path in (here / "two" / "checkpoints").iterdir()] == ["checkpoint-3"]
    done = torchrun(here, *arguments, "-o", "two")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "going on after step 3" in done.stderr
    assert torchrun(here, *arguments, "-o", "whole").returncode == 0
    two, whole = (
        [(e["step"], e.get("loss"), e.get("eval_loss")) for e in read_log(here / n)] for n in ("two", "whole")
    )
    assert two == whole


@pytest.mark.slow
def test_an_error_of_all_processes_is_told_once(here):
    done = torchrun(here, "llama", "no.txt", "-o", "two", *COMMON)
    assert done.returncode != 0
    assert done.stderr.count("there is no file no.txt") == 1
    done = torchrun(here, "llama", "text.txt", "-o", "two", "--parallel", "fsdp", *COMMON)
    assert done.stderr.count("on CPUs, Trainer runs DDP and does not say so") == 1
    assert not (here / "two").exists()


def test_how_processes_share_the_work():
    cpu, gpu, two = torch.device("cpu"), torch.device("cuda:0"), Processes(2, 0, 0)
    assert mode_of(cpu, Training(), Processes()) == mode_of(gpu, Training(), Processes()) == "one"
    assert mode_of(cpu, Training(), two) == mode_of(gpu, Training(parallel="ddp"), two) == "ddp"
    assert mode_of(gpu, Training(), two) == mode_of(gpu, Training(parallel="fsdp"), two) == "fsdp"
    with pytest.raises(UsageError, match="on CPUs, Trainer runs DDP and does not say so"):
        mode_of(cpu, Training(parallel="fsdp"), two)
    with pytest.raises(UsageError, match="there is one"):
        mode_of(gpu, Training(parallel="fsdp"), Processes())


def test_views_whose_visits_share_weights_are_not_sharded():
    check_model(restack.view(llama(), "3,0,2"), Training(), "fsdp")
    check_model(llama(tie_word_embeddings=True), Training(), "fsdp")
    check_model(restack.view(house(), "0:4,2:6"), Training(), "fsdp")  # it stores its layers once
    check_model(restack.view(llama(), SPEC), Training(), "ddp")
    settings = Training(lora=2)
    for model in (restack.view(llama(), SPEC), adapted(restack.view(llama(), SPEC), settings)):
        with pytest.raises(ViewError, match=r"visits of this view share weights .*write --parallel ddp"):
            check_model(model, settings, "fsdp")


def test_weights_that_were_gathered_are_saved_in_a_whole_model():
    trained, whole = llama(seed=1, tie_word_embeddings=True), llama(seed=2, tie_word_embeddings=True)
    state = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    del state["lm_head.weight"]  # which is tied
    with_weights(whole, state)
    assert all(map(torch.equal, whole.state_dict().values(), trained.state_dict().values()))
    del state["model.norm.weight"]
    with pytest.raises(restack.ModelError, match=r"hold no model\.norm\.weight"):
        with_weights(whole, state)


def test_one_process_of_torchrun_is_one(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Processes.of_environment() == Processes()
