"""Every experiment runs, with a few steps of one seed; what it finds then means nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "experiments"
NAMES = sorted(file.stem for file in FOLDER.glob("*.py") if "def main" in file.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name, tmp_path):
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / f"{name}.json").read_text())
    assert all(len(curves) == 1 for curves in found["losses"].values())
    assert (tmp_path / f"{name}.md").stat().st_size > 100
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_committed_is_of_three_seeds():
    assert len(NAMES) == 4
    for name in NAMES:
        found = json.loads((FOLDER / "results" / f"{name}.json").read_text())
        assert found["seeds"] == [0, 1, 2]
        assert all(len(curves) == 3 for curves in found["losses"].values())
        assert f"results/{name}.png" in (FOLDER / "README.md").read_text()
