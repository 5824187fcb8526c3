"""What a view adds to the memory of a process, and what `show` needs at all. Linux tells."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

import restack
from tests.views.architectures import BY_NAME, LLAMA
from tests.views.pairs import ORDER

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")

DEEP = "0:20,10:30,20:40,30:50,40:60,50:70,60:80"  # the published Goliath-like self-merge of 80 layers
DEEP_VISITS = 140

MEASURE = """
import json, sys, torch, transformers, restack
from pathlib import Path

config = transformers.LlamaConfig(
    vocab_size=1024, hidden_size=512, intermediate_size=1536, num_hidden_layers=80, num_attention_heads=8,
    num_key_value_heads=2, tie_word_embeddings=True,
)
with torch.device("meta"):
    base = transformers.LlamaForCausalLM(config)
base = base.to_empty(device="cpu").eval()
with torch.no_grad():
    for tensor in [*base.parameters(), *base.buffers()]:
        tensor.fill_(0.01)

@torch.no_grad()
def peak(make):
    # What the process holds at most while a model is made and run, in bytes.
    Path("/proc/self/clear_refs").write_text("5")
    make()(torch.arange(4)[None])
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

peak(lambda: restack.view(base, "0,1"))  # what is imported and allocated once
print(json.dumps({
    "weights": sum(tensor.nbytes for tensor in base.parameters()),
    "base": peak(lambda: base),
    "view": peak(lambda: restack.view(base, sys.argv[1])),
    "copy": peak(lambda: restack.materialise(base, sys.argv[1])),
}))
"""


@pytest.mark.slow
def test_a_view_adds_less_than_a_hundredth():
    """140 visits of 80 layers, beside the base; a self-merge, by the same measure, takes 7/4 more."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, DEEP],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    weights = figures["weights"]
    assert weights > 800e6
    assert figures["view"] - figures["base"] < 0.01 * weights
    assert figures["copy"] - figures["base"] > 1.7 * weights


OPEN = """
import sys
from pathlib import Path

def anonymous():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024

from restack import recipes
import torch, transformers.models.llama.modeling_llama
before = anonymous()
model = recipes.open(sys.argv[1])
print(anonymous() - before, model.config.num_hidden_layers)
print("model.safetensors" in Path("/proc/self/maps").read_text())
"""


def test_loading_is_memory_mapped(tmp_path):
    """The weights stay pages of the file: what the process itself holds hardly grows."""
    model = LLAMA.model(vocab_size=64_000, hidden_size=256, intermediate_size=512)
    model.save_pretrained(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size > 100e6
    done = subprocess.run(
        [sys.executable, "-c", OPEN, f"{tmp_path}@0:4,1:4"], capture_output=True, text=True, check=True
    )
    grown, layers, mapped = done.stdout.split()
    assert layers == "7" and mapped == "True"
    assert int(grown) < 0.25 * size


# VmHWM and not ru_maxrss, which a process inherits from the one that starts it: here from a whole test run
SHOW = """
import sys
from pathlib import Path

opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
sys.argv = ["restack", *sys.argv[1:]]
from restack.cli import main

try:
    main()
except SystemExit as end:
    assert not end.code, end.code
weights = [path for path in opened if path.endswith((".safetensors", ".bin"))]
status = Path("/proc/self/status").read_text()
print(len(weights), int(status.split("VmHWM:")[1].split()[0]) * 1024, file=sys.stderr)
"""


def test_show_never_loads_weights(tmp_path):
    """140 visits of a 70B: 138 GB, were they loaded. The weights' file here could not even be read."""
    config = transformers.LlamaConfig(
        vocab_size=32_000,
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        dtype=torch.bfloat16,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no safetensors")
    done = subprocess.run(
        [sys.executable, "-c", SHOW, "show", str(tmp_path), "--layers", DEEP, "--json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    weights_opened, peak = map(int, done.stderr.split()[-2:])
    assert weights_opened == 0
    assert peak < 1.5e9
    assert len(json.loads(done.stdout)["plan"]["visits"]) == DEEP_VISITS


@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2"])
def test_a_view_of_a_model_without_weights(name):
    """On the meta device, where plans are costed."""
    base = BY_NAME[name].model().to("meta")
    view = restack.view(base, ORDER)
    assert {id(tensor) for tensor in view.parameters()} == {id(tensor) for tensor in base.parameters()}
    assert view(torch.ones(1, 3, dtype=torch.long, device="meta")).logits.shape == (1, 3, 96)
