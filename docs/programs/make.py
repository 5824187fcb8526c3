"""Make the transcripts in this folder, or in another: `python docs/programs/make.py [FOLDER]`.

All are of the demo model, without sampling; they take half a minute.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
QUESTIONS = """\
What is 12 + 30?
What is the capital of France?
Ben has 3 apples and finds 4 more. How many apples does Ben have now?
"""
GREEDY = ("--temperature", "0", "--seed", "0", "--dtype", "float32")  # rounding must not choose a word
DUET = ("duet", "demo", "demo@0:12,4:", "--start", "Hello!", *GREEDY)
RUNS: dict[str, tuple[tuple[str, ...], str]] = {
    "duet.md": (DUET, ""),
    "duet-reversed.jsonl": ((*DUET, "--reversed-role", "--turns", "5"), ""),
    "cobblers.md": (
        ("cobblers", "--experts", str(HERE / "experts.yaml"), "--per-question", *GREEDY),
        QUESTIONS,
    ),
    "think.md": (
        ("think", "demo", "--summariser", "demo@0:8,4:12", "--summary", r"{thoughts}\n{prompt}", *GREEDY),
        "What is 45 + 21?\n",
    ),
}


def main(folder: Path) -> None:
    """Run the commands, and put their transcripts in place of those that are there."""
    with tempfile.TemporaryDirectory(dir=folder) as new:
        for name, (arguments, text) in RUNS.items():
            command = [sys.executable, "-m", "restack", *arguments, "--transcript", f"{new}/{name}"]
            subprocess.run(command, input=text, text=True, check=True)
        for name in RUNS:
            os.replace(f"{new}/{name}", folder / name)  # noqa: PTH105


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
