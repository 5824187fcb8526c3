"""What a view costs: a Goliath-like self-merge of 140 visits over 80 layers, beside what other tools make.

Wall seconds to make the model from one that is loaded, and the memory that it adds to the process. The first
peer is what one does by hand with transformers alone: construct the deeper model from its config, on the meta
device, and give it copies of the weights. `restack.materialise` makes the same model. Then come the tools, if
they are there: peft's `layer_replication` (with adapters of rank 1, which it cannot do without), mergekit and
the loading of what it wrote (from a base that is on disk already), and from checkouts of their sources David
and RYS. Each runs in processes of its own, and what it makes must give the view's logits.

    python benchmarks/view_cost.py --json view_cost.json     some minutes, 4 GB of memory
    python benchmarks/view_cost.py --david ../David --rys ../RYS
"""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from report import Claim, conditions, finish, interleaved, options
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import restack
from restack.plans import write_mergekit
from restack.views.cost import own_bytes

LAYERS = 80
SPEC = ",".join(f"{start}:{start + 20}" for start in range(0, LAYERS - 10, 10))
LAYER_PREFIX = "model.layers."
MB = 10**6


def base_model() -> LlamaForCausalLM:
    """80 layers of the shape of a Llama, 1.1 GB in bfloat16."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=LAYERS,
        num_attention_heads=12,
        num_key_value_heads=12,
    )
    return LlamaForCausalLM(config).eval()


def resident_bytes() -> int:
    """The memory of this process that is in RAM."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        raise SystemExit("view_cost.py reads the process's memory from /proc, so it needs Linux") from None
    return pages * os.sysconf("SC_PAGE_SIZE")


def weight_bytes(model: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


def seconds(make: Callable[[], Any]) -> dict[str, float]:
    """How long it takes to make a model; dropping it is not counted."""
    gc.collect()
    start = time.perf_counter()
    model = make()
    taken = time.perf_counter() - start
    del model
    return {"seconds": taken}


def by_hand(base: LlamaForCausalLM, order: Sequence[int]) -> LlamaForCausalLM:
    """The model whose layer i is a copy of the base's layer order[i], made with transformers alone."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**base.config.to_dict() | {"num_hidden_layers": len(order)}))
    weights = base.state_dict()
    outside = {name: tensor for name, tensor in weights.items() if not name.startswith(LAYER_PREFIX)}
    copied = {name: tensor.clone() for name, tensor in outside.items()}
    for visit, layer in enumerate(order):
        prefix = f"{LAYER_PREFIX}{layer}."
        for name, tensor in weights.items():
            if name.startswith(prefix):
                copied[f"{LAYER_PREFIX}{visit}.{name.removeprefix(prefix)}"] = tensor.clone()
    model.load_state_dict(copied, assign=True)
    model.model.rotary_emb = LlamaRotaryEmbedding(model.config)  # its buffers are in no state dict
    return model.eval()


def added_mb(make: Callable[[], Any], models: int) -> tuple[float, Any]:
    """MB of memory that a model adds: the mean over some that are all kept, so that none reuses another's."""
    gc.collect()
    if hasattr(ctypes.CDLL(None), "malloc_trim"):  # or the freed memory of another model is used again
        ctypes.CDLL(None).malloc_trim(0)
    before = resident_bytes()
    kept = [make() for _ in range(models)]
    gc.collect()
    return (resident_bytes() - before) / models / MB, kept[0]


@torch.no_grad()
def check_equal(first: torch.nn.Module, second: torch.nn.Module) -> None:
    """The peer must be the same model as ours."""
    prompt = torch.arange(1, 6)[None]
    if not torch.equal(first(prompt).logits, second(prompt).logits):
        raise SystemExit("the model made by hand is not the view's equal; the benchmark is wrong")


def with_peft(base: LlamaForCausalLM, order: Sequence[int]) -> Callable[[], Any]:
    from peft import LoraConfig, get_peft_model

    starts = [0, *(place for place in range(1, len(order)) if order[place] != order[place - 1] + 1)]
    stops = [*starts[1:], len(order)]
    ranges = [[order[start], order[stop - 1] + 1] for start, stop in zip(starts, stops, strict=True)]
    config = LoraConfig(task_type="CAUSAL_LM", r=1, target_modules=["q_proj"], layer_replication=ranges)
    return lambda: get_peft_model(base, config)


def with_mergekit(base: LlamaForCausalLM, order: Sequence[int]) -> Callable[[], Any]:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions
    from transformers import AutoModelForCausalLM

    folder = Path(tempfile.mkdtemp(dir=os.environ[SCRATCH]))
    base.save_pretrained(folder / "base")
    recipe = write_mergekit(restack.plan(list(order), LAYERS), [str(folder / "base")])
    config = MergeConfiguration.model_validate(yaml.safe_load(recipe))
    options = MergeOptions(quiet=True, write_model_card=False, copy_tokenizer=False)

    def make() -> Any:
        run_merge(config, str(folder / "merged"), options)
        return AutoModelForCausalLM.from_pretrained(folder / "merged")

    return make


def with_david(base: LlamaForCausalLM, order: Sequence[int]) -> Callable[[], Any]:
    from david.sling import David

    def make() -> Any:
        model = David.sling(base, repeat_map_raw=list(order))
        model.config.num_hidden_layers = len(order)  # or transformers 5 runs the first 80 visits only
        return model

    return make


def with_rys(base: LlamaForCausalLM, order: Sequence[int]) -> Callable[[], Any]:
    from src.core.layer_duplicator import build_model_with_layers

    return lambda: build_model_with_layers(base, list(order))


def with_restack(base: LlamaForCausalLM, order: Sequence[int]) -> Callable[[], Any]:
    return lambda: restack.view(base, list(order))


TOOLS = {
    "restack.view": with_restack,
    "peft layer_replication": with_peft,
    "mergekit, then load": with_mergekit,
    "David": with_david,
    "RYS": with_rys,
}
SCRATCH = "VIEW_COST_SCRATCH"  # where mergekit's process puts its files, for this one to delete


@torch.no_grad()
def measure_tool(name: str) -> None:
    """What a child process does: make the model with one tool, once, and print what that took as JSON."""
    base = base_model()
    prompt = torch.arange(1, 6)[None]
    order = restack.plan(SPEC, LAYERS).order
    expected = restack.view(base, SPEC)(prompt).logits
    make = TOOLS[name](base, order)
    gc.collect()
    before = resident_bytes()
    start = time.perf_counter()
    model = make()
    taken = time.perf_counter() - start
    same = torch.equal(model(prompt).logits, expected)
    gc.collect()
    added = (resident_bytes() - before) / MB
    print(json.dumps({"seconds": taken, "mb": added, "same": same}))


def in_a_process(name: str, path: Path | None) -> dict[str, float]:
    """What `measure_tool` finds.

    Args:
        name: in `TOOLS`.
        path: of a checkout of the tool, if it is not installed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        environment = os.environ | {SCRATCH: scratch, "HF_HUB_OFFLINE": "1"}
        if path is not None:
            environment["PYTHONPATH"] = str(path)
        command = [sys.executable, __file__, "--tool", name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed: {done.stderr.strip().splitlines()[-1]}")
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    if not figures.pop("same"):
        raise SystemExit(f"the model that {name} makes is not the view's equal")
    return figures


def tool_claims(arguments: argparse.Namespace, runs: int) -> list[Claim]:
    """Every tool that is there, beside a view made in the same way: once, in a process of its own."""
    paths = {"David": arguments.david, "RYS": arguments.rys}
    installed = {"peft layer_replication": find_spec("peft"), "mergekit, then load": find_spec("mergekit")}
    claims = []
    for name in [name for name in TOOLS if paths.get(name) or installed.get(name)]:
        measures = {
            "ours": partial(in_a_process, "restack.view", None),
            "theirs": partial(in_a_process, name, paths.get(name)),
        }
        ours, theirs = interleaved(measures, runs).values()
        claims.append(Claim(f"beside {name}: time", ours["seconds"], theirs["seconds"], "s"))
        claims.append(Claim(f"beside {name}: memory beyond the base", ours["mb"], theirs["mb"], "MB"))
    return claims


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--david", type=Path, metavar="PATH", help="a checkout of EGjoni/David")
    parser.add_argument("--rys", type=Path, metavar="PATH", help="a checkout of dnhkng/RYS")
    parser.add_argument("--tool", choices=TOOLS, help=argparse.SUPPRESS)  # of a child process
    arguments = parser.parse_args()
    if arguments.tool:
        measure_tool(arguments.tool)
        return
    tools = [] if arguments.quick else tool_claims(arguments, runs=3)
    runs = 3 if arguments.quick else 9
    base = base_model()

    def view() -> Any:
        return restack.view(base, SPEC)

    def materialise() -> Any:
        return restack.materialise(base, SPEC)

    def hand_made() -> Any:
        return by_hand(base, one_view.restack_plan.order)

    one_view = view()
    view_mb, one_view = added_mb(view, models=10)
    merge_mb, merge = added_mb(materialise, models=1)
    merge_tensors_mb = own_bytes(merge, base) / MB
    del merge
    peer_mb, peer = added_mb(hand_made, models=1)
    peer_tensors_mb = own_bytes(peer, base) / MB
    check_equal(one_view, peer)
    del peer
    visits = len(one_view.model.layers)
    makers = {"view": view, "merge": materialise, "peer": hand_made}
    times = interleaved({name: partial(seconds, make) for name, make in makers.items()}, runs)
    taken = {name: row["seconds"] for name, row in times.items()}
    finish(
        arguments.json,
        conditions(
            model=f"Llama, {LAYERS} layers, {weight_bytes(base) / 1e9:.2f} GB in bfloat16, random weights",
            plan=f"{SPEC} ({visits} visits)",
            seconds=f"medians of {runs} interleaved runs after one to warm up",
            memory="resident memory of the process; of 10 views, all kept, the mean",
            peer="transformers by hand; or the tool named: medians of 3 processes, memory after a forward",
        ),
        [
            Claim("view: time", taken["view"], taken["peer"], "s", goal=0.5),
            Claim("view: memory beyond the base", view_mb, peer_mb, "MB", goal=10),
            Claim(
                "view: tensors beyond the base", own_bytes(one_view, base) / MB, peer_tensors_mb, "MB", goal=1
            ),
            Claim("materialise: time", taken["merge"], taken["peer"], "s"),
            Claim("materialise: memory beyond the base", merge_mb, peer_mb, "MB"),
            Claim("materialise: tensors beyond the base", merge_tensors_mb, peer_tensors_mb, "MB"),
            *tools,
        ],
        peer="peer",
    )


if __name__ == "__main__":
    main()
