"""`restack scan` as a user meets it: whole runs, stopped ones, several workers, and wrong input."""

import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from restack.cli import main

COMMAND = [sys.executable, "-m", "restack", "scan", "demo"]
FEW = ["--probe", "demo:chain", "--questions", "24", "--widest", "1", "--threads", "1"]
ONE = ["--workers", "1"]
CANDIDATES = 12  # of these


def lines(folder):
    return [json.loads(line) for line in (Path(folder) / "results.jsonl").read_text().splitlines()]


def scores(folder):
    return {(line["plan"], line["asked"]): line.get("scores") for line in lines(folder)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A scan in this process, from its beginning to its end."""
    folder = tmp_path_factory.mktemp("whole") / "scan"
    assert main(["scan", "demo", "-o", str(folder), *FEW, *ONE]) == 0
    return folder


def test_a_scan_leaves_results_a_report_and_pictures(whole):
    assert len(lines(whole)) == 1 + CANDIDATES + 2
    names = {str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()}
    assert {"scan.json", "results.jsonl", "report.md", "report.html", "summary.json"} <= names
    assert {"pictures/heat-demo-chain.png", "pictures/pareto.png", "pictures/influence.png"} <= names
    assert not [name for name in names if name.endswith((".part", ".pkl"))]


def test_json_says_what_the_report_says(whole, capsys):
    assert main(["scan", "demo", "-o", str(whole), *FEW, *ONE, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads((whole / "summary.json").read_text())
    assert len(lines(whole)) == 1 + CANDIDATES + 2  # nothing was asked again


@pytest.mark.slow
def test_two_workers_find_the_same(whole, tmp_path):
    assert main(["scan", "demo", "-o", str(tmp_path / "scan"), *FEW, "--workers", "2"]) == 0
    assert scores(tmp_path / "scan") == scores(whole)


@pytest.mark.slow
def test_two_workers_of_ray_find_the_same(whole, tmp_path):
    pytest.importorskip("ray")
    command = [*COMMAND, "-o", str(tmp_path / "scan"), *FEW, "--workers", "2", "--ray"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert scores(tmp_path / "scan") == scores(whole)


@pytest.mark.slow
def test_more_workers_than_the_cluster_holds_are_refused(tmp_path):
    pytest.importorskip("ray")
    command = [*COMMAND, "-o", str(tmp_path / "scan"), *FEW, "--workers", "4000", "--ray"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "4000 workers need 4000 CPU" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def begun(folder, more, count, patience=120):
    """A scan in another process, as soon as it has written so many lines."""
    process = subprocess.Popen(
        [*COMMAND, "-o", str(folder), *FEW, *more], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    file, end = folder / "results.jsonl", time.monotonic() + patience
    while time.monotonic() < end and process.poll() is None:
        if file.exists() and len(file.read_bytes().splitlines()) >= count:
            return process
        time.sleep(0.01)
    process.kill()
    raise AssertionError(process.communicate())


def assert_goes_on(folder, whole):
    """What is left is done, nothing is done twice, and all is as in one run."""
    before = len(lines(folder)) if (folder / "results.jsonl").read_bytes().endswith(b"\n") else None
    assert main(["scan", "demo", "-o", str(folder), *FEW, *ONE]) == 0
    plans = [(line["plan"], line["asked"]) for line in lines(folder)]
    assert len(plans) == len(set(plans)) == 1 + CANDIDATES + 2
    assert before is None or before < len(plans)
    assert scores(folder) == scores(whole)


def children(process):
    """The processes that a process has started, and that are still there."""
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, timeout=20)
    return [int(number) for number in found.stdout.split()]


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_kill_9_loses_nothing_and_does_nothing_twice(whole, tmp_path, workers):
    folder = tmp_path / "scan"
    process = begun(folder, ["--workers", workers], 4)
    started = children(process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(started) >= (0 if workers == "1" else 2)
    end = time.monotonic() + 60
    while any(Path(f"/proc/{number}").exists() for number in started):
        assert time.monotonic() < end, "workers outlive the scan"
        time.sleep(0.05)
    kept = (folder / "results.jsonl").read_bytes()
    assert_goes_on(folder, whole)
    assert (folder / "results.jsonl").read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_ctrl_c_keeps_all(whole, tmp_path, workers):
    folder = tmp_path / "scan"
    process = begun(folder, ["--workers", workers], 3)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    if process.returncode != 0:  # it may have been done just then
        assert process.returncode == 130
        assert "the same command goes on" in said.splitlines()[-1]
        assert "The scan was stopped, " in (folder / "report.md").read_text()
    assert_goes_on(folder, whole)


@pytest.mark.slow
def test_a_full_disk_is_told_and_nothing_is_lost(whole, tmp_path):
    """The limit of a file's size stands for a disk that is full: writing fails in the middle of a line."""
    folder = tmp_path / "scan"

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))

    command = [*COMMAND, "-o", str(folder), *FEW, *ONE]
    done = subprocess.run(command, preexec_fn=limited, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("restack: cannot write")
    assert len(done.stderr.splitlines()) == 1
    assert (folder / "results.jsonl").stat().st_size <= 1500
    assert_goes_on(folder, whole)


@pytest.mark.slow
def test_a_closed_pipe_is_no_traceback(tmp_path, whole):
    command = " ".join([*COMMAND, "-o", str(whole), *FEW, *ONE, "--json"]) + " | head -c 10 >/dev/null"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr


def test_a_view_is_scanned_over_its_visits(tmp_path, capsys):
    folder = tmp_path / "scan"
    assert main(["scan", "demo@0:8,4:12", "-o", str(folder), *FEW, *ONE]) == 0
    assert len(lines(folder)) == 1 + 16 + 2
    assert "demo@0:8,4:12" in (folder / "report.md").read_text()


def test_specs_alone(tmp_path, capsys):
    file = tmp_path / "specs.txt"
    file.write_text("(4,8)\n0:8,4:8,4:12\n")
    folder = tmp_path / "scan"
    more = ["--no-blocks", "--spec", "::-1", "--specs", str(file)]
    assert main(["scan", "demo", "-o", str(folder), *FEW, *ONE, *more]) == 0
    plans = {line["plan"] for line in lines(folder) if line["kind"] == "spec"}
    assert plans == {"11::-1", "0:8,4:12", "0:8,4:8,4:12"}


WRONG = {
    "no such probe": (["--probe", "maths"], "there is no probe 'maths'"),
    "no file": (["--probe", "choice:none.jsonl"], "none.jsonl cannot be read"),
    "no objective": (["--objective", "math"], "the objective 'math' is none of the probes"),
    "no repeats": (["--repeats", "two"], "--repeats is 'two'"),
    "one repeat": (["--repeats", "1"], "not repeated"),
    "damp": (["--damp", "0.5;1"], "--damp is"),
    "held out": (["--held-out", "1"], "--held-out is 1"),
    "workers": (["--workers", "0"], "--workers is 0"),
    "spec": (["--spec", "0:99"], "stop 99 is past"),
    "memory": (["--memory", "much"], "is no size"),
    "beam": (["--beam", "0"], "--beam is 0"),
    "beam's blocks": (["--beam", "2", "--beam-blocks", "0"], "--beam-blocks is 0"),
    "too many repeats": (["--repeats", "1000000000"], "write at most 100"),
    "no damp": (["--damp", "0"], "a damp of 0"),
    "damp that is no number": (["--no-blocks", "--spec", "4:8", "--damp", "nan"], "--damp is 'nan'"),
    "window": (["--window", "1"], "--window is 1"),
    "shots": (["--num-fewshot", "-1"], "--num-fewshot is -1"),
    "shots without a task": (["--num-fewshot", "1"], "is for tasks"),
    "too many questions": (["--probe", "math:99999999999"], "write a number from 1 to 100000"),
    "nothing to try": (["--no-blocks"], "no candidate beside the base"),
    "the base alone": (["--no-blocks", "--spec", "0:12"], "no candidate beside the base"),
    "few questions": (["--questions", "2"], "some hundred to tell"),
    "family": (["--probe", "demo:chains"], "no 'chains' to be scanned"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_line(name, tmp_path, capsys):
    more, message = WRONG[name]
    folder = tmp_path / "scan"
    few = FEW[2:] if "--probe" in more else FEW
    assert main(["scan", "demo", "-o", str(folder), *few, *ONE, *more]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert not (folder / "results.jsonl").exists()


def test_a_folder_of_something_else_is_refused(whole, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["scan", "demo", "-o", str(tmp_path), *FEW, *ONE]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main(["scan", "demo@0:8,4:12", "-o", str(whole), *FEW, *ONE]) == 2
    assert "scan of another model: plan was '0:12' and is '0:8,4:12' now" in capsys.readouterr().err
    assert main(["scan", "demo", "-o", str(whole), *FEW, *ONE, "--seed", "1"]) == 2
    assert "scan of other questions: " in capsys.readouterr().err


def test_help_groups_the_options(capsys):
    assert main(["scan", "--help"]) == 0
    said = capsys.readouterr().out
    for word in ("--damp", "--skips", "--beam", "--held-out", "--ray", "Candidates", "Questions", "Work"):
        assert word in said
