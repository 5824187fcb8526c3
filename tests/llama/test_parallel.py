"""Several processes, by gloo: sharded (FSDP2) and tensor parallel models beside one process."""

import subprocess
import sys

import pytest
import torch

from tests.llama.tiny import CYCLIC, model, tokens

MAPS = {"repeated": "0:4,2:6", "lckv-w2": f"all;kv={CYCLIC['lckv-w2']}", "cla2": "all;kv=0_0_2_2_4_4"}
SHARDED = """
import sys, torch, torch.distributed
from torch.distributed.fsdp import fully_shard
from torch.distributed.device_mesh import init_device_mesh
from restack.llama import RestackLlamaForCausalLM
folder, plan = sys.argv[1:]
torch.distributed.init_process_group("gloo")
rank, rows = torch.distributed.get_rank(), torch.load(f"{folder}/rows.pt")
house = RestackLlamaForCausalLM.from_pretrained(folder, plan=plan).train()
mesh = init_device_mesh("cpu", (2,))
for layer in house.model.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(house, mesh=mesh)
optimizer = torch.optim.SGD(house.parameters(), lr=0.05)
own, losses = rows.chunk(2)[rank], []
for _ in range(3):
    loss = house(own, labels=own, use_cache=False).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    torch.distributed.all_reduce(loss := loss.detach() / 2)
    losses.append(loss.item())
if rank == 0:
    torch.save(losses, f"{folder}/found.pt")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""
TENSOR_PARALLEL = """
import sys, torch, torch.distributed
from restack.llama import RestackLlamaForCausalLM
folder, plan = sys.argv[1:]
rows = torch.load(f"{folder}/rows.pt")
house = RestackLlamaForCausalLM.from_pretrained(folder, plan=plan, tp_plan="auto").eval()
weight = house.model.layers[0].mlp.up_proj.weight
local = weight.to_local() if hasattr(weight, "to_local") else weight
assert local.shape[0] == house.config.intermediate_size // 2, local.shape
with torch.no_grad():
    logits = house(rows).logits
    text = house.generate(rows, do_sample=False, max_new_tokens=6, pad_token_id=0)
if torch.distributed.get_rank() == 0:
    torch.save([logits, text], f"{folder}/found.pt")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def run(script, folder, plan):
    (folder / "script.py").write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(folder / "script.py"), str(folder), plan], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "found.pt")


@pytest.fixture
def folder(tmp_path):
    model().save_pretrained(tmp_path)
    torch.save(tokens(10, batch=4), tmp_path / "rows.pt")
    return tmp_path


def house_of(folder, plan):
    from restack.llama import RestackLlamaForCausalLM

    return RestackLlamaForCausalLM.from_pretrained(folder, plan=plan)


@pytest.mark.slow
@pytest.mark.parametrize("plan", MAPS.values(), ids=MAPS)
def test_fully_sharded_over_two_processes(folder, plan):
    found = run(SHARDED, folder, plan)
    house, rows = house_of(folder, plan).train(), tokens(10, batch=4)
    optimizer = torch.optim.SGD(house.parameters(), lr=0.05)
    expected = []
    for _ in range(3):
        loss = house(rows, labels=rows, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert found == pytest.approx(expected, abs=1e-5)
    assert expected[-1] < expected[0]


@pytest.mark.slow
@pytest.mark.parametrize("plan", MAPS.values(), ids=MAPS)
def test_tensor_parallel_over_two_processes(folder, plan):
    logits, text = run(TENSOR_PARALLEL, folder, plan)
    house, rows = house_of(folder, plan), tokens(10, batch=4)
    with torch.no_grad():
        assert torch.allclose(logits, house(rows).logits, atol=1e-5)
        assert torch.equal(text, house.generate(rows, do_sample=False, max_new_tokens=6, pad_token_id=0))
