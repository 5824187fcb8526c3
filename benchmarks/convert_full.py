"""`restack convert full` beside mergekit's passthrough: one self-merge on disk, seconds and peak memory.

Each tool runs as a command of its own, in turn, from the same checkpoint, in bfloat16, with
shards of 500 MB. Seconds are of the whole command, imports included. Peak memory is what the process has
resident at most, beyond what it has after its imports and before it begins: its own memory, and the mapped
files that it holds. Both read from a file cache that a first, uncounted run has filled. The tensors of both
results must be equal.

    python benchmarks/convert_full.py --json convert_full.json     some minutes, 5 GB on disk
"""

import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
from report import Claim, conditions, finish, interleaved, options
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

import restack
from restack.plans import write_mergekit

LAYERS, SPEC, SHARD = 40, "0:30,10:40", 500_000_000
SETTLED = """
import sys, time
from pathlib import Path
def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key))) * 1024
def measured(work):
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    work()
    print(status("VmHWM") - before)
"""
OURS = f"""{SETTLED}
from restack.conversion import convert_full
measured(lambda: convert_full(sys.argv[1], sys.argv[2], largest={SHARD}))
"""
MERGEKIT = f"""{SETTLED}
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
config = MergeConfiguration.model_validate(yaml.safe_load(Path(sys.argv[1]).read_text()))
options = MergeOptions(quiet=True, write_model_card=False, copy_tokenizer=False, out_shard_size={SHARD},
                       lazy_unpickle=True, clone_tensors=True)
measured(lambda: run_merge(config, sys.argv[2], options))
"""


def base(folder: Path, hidden: int) -> None:
    """Forty layers of Llama's shape in bfloat16, as random as speed and memory need."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = LlamaConfig(
        vocab_size=16_000,
        hidden_size=hidden,
        intermediate_size=11 * hidden // 4,
        num_hidden_layers=LAYERS,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 256,
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="500MB")


def equal_tensors(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same tensors, bit for bit."""
    found = []
    for folder in (one, other):
        files = folder.glob("*.safetensors")
        found.append({name: file for file in files for name in safe_open(file, "pt").keys()})  # noqa: SIM118
    ours, theirs = found
    return ours.keys() == theirs.keys() and all(
        torch.equal(*(safe_open(file, "pt").get_tensor(name) for file in (ours[name], theirs[name])))
        for name in ours
    )


def run(script: str, source: str, out: Path) -> dict[str, float]:
    """Wall seconds of a whole process, and the peak memory of its work in MB."""
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script, source, str(out)], capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return {"seconds": seconds, "memory": int(done.stdout.splitlines()[-1]) / 1e6}


def main() -> None:
    parser = options(__doc__)
    chosen = parser.parse_args()
    hidden, runs = (256, 1) if chosen.quick else (1280, 3)
    with tempfile.TemporaryDirectory(prefix="restack-") as scratch:
        folder = Path(scratch)
        base(folder / "base", hidden)
        plan = restack.plan(SPEC, LAYERS)
        (folder / "merge.yaml").write_text(write_mergekit(plan, [str(folder / "base")]))
        ours, theirs = folder / "ours", folder / "theirs"
        measured = interleaved(
            {
                "restack": lambda: run(OURS, f"{folder / 'base'}@{SPEC}", ours),
                "mergekit": lambda: run(MERGEKIT, str(folder / "merge.yaml"), theirs),
            },
            runs,
        )
        if not equal_tensors(ours, theirs):
            raise SystemExit("the two checkpoints differ")
        written = sum(file.stat().st_size for file in ours.glob("*.safetensors"))
    tables = [
        Claim(name, measured["restack"][figure], measured["mergekit"][figure], unit)
        for name, figure, unit in (
            ("write the self-merge", "seconds", "s"),
            ("peak memory of it", "memory", "MB"),
        )
    ]
    told = conditions(
        model=f"{LAYERS} layers, hidden {hidden}, bfloat16",
        plan=f"{SPEC}: {len(plan)} visits, {written / 1e6:.0f} MB",
        shards="500 MB",
        tensors="equal",
        runs=f"medians of {runs}, in turn",
        mergekit=version("mergekit"),
    )
    finish(chosen.json, told, tables, "mergekit")


if __name__ == "__main__":
    main()
