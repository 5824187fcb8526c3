"""Views of a model whose weights are spread over two processes (`tp_plan="auto"`), by gloo."""

import subprocess
import sys

import pytest
import torch

from tests.views.architectures import BY_NAME, VOCABULARY

SPEC, ORDER = "0:3,1:", [0, 1, 2, 1, 2, 3]
PROMPT = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(4))
SCRIPT = """
import sys, torch, torch.distributed
from transformers import AutoModelForCausalLM
import restack
folder, spec = sys.argv[1:]
prompt = torch.load(f"{folder}/prompt.pt")
load = AutoModelForCausalLM.from_pretrained
base = load(f"{folder}/base", tp_plan="auto", attn_implementation="eager").eval()
weight = base.model.layers[0].mlp.up_proj.weight
local = weight.to_local() if hasattr(weight, "to_local") else weight
assert local.shape[0] == base.config.intermediate_size // 2, local.shape
view = restack.view(base, spec)
assert view.model.layers[1].mlp.up_proj.weight is view.model.layers[3].mlp.up_proj.weight
with torch.no_grad():
    logits = view(prompt).logits
    text = view.generate(prompt, do_sample=False, max_new_tokens=8)
if torch.distributed.get_rank() == 0:
    torch.save([logits, text], f"{folder}/found.pt")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "qwen3"])
@torch.no_grad()
def test_a_view_over_two_processes_is_that_over_one(name, tmp_path):
    base = BY_NAME[name].model()
    base.save_pretrained(tmp_path / "base")
    torch.save(PROMPT, tmp_path / "prompt.pt")
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(tmp_path / "script.py"), str(tmp_path), SPEC]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    logits, text = torch.load(tmp_path / "found.pt")
    twin = BY_NAME[name].twin(base, ORDER)
    torch.testing.assert_close(logits, twin(PROMPT).logits, atol=1e-5, rtol=1e-5)
    assert torch.equal(text, twin.generate(PROMPT, do_sample=False, max_new_tokens=8))
