"""What a view costs: a Goliath-like self-merge of 140 visits over 80 layers, beside materialising it.

Wall seconds to make the model from one that is loaded, and the memory that it adds to the process.

    python benchmarks/view_cost.py --json view_cost.json     about a minute, 4 GB of memory
"""

import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from report import Claim, conditions, finish, interleaved, options
from transformers import LlamaConfig, LlamaForCausalLM

import restack
from restack.views.cost import own_bytes

LAYERS = 80
SPEC = ",".join(f"{start}:{start + 20}" for start in range(0, LAYERS - 10, 10))
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
    """How long it takes to make a model, which is then dropped."""
    gc.collect()
    start = time.perf_counter()
    make()
    return {"seconds": time.perf_counter() - start}


def added_mb(make: Callable[[], Any], models: int) -> tuple[float, Any]:
    """MB of memory that a model adds: the mean over some that are all kept, so that none reuses another's."""
    gc.collect()
    before = resident_bytes()
    kept = [make() for _ in range(models)]
    gc.collect()
    return (resident_bytes() - before) / models / MB, kept[0]


def main() -> None:
    arguments = options(__doc__).parse_args()
    runs = 3 if arguments.quick else 9
    base = base_model()

    def view() -> Any:
        return restack.view(base, SPEC)

    def materialise() -> Any:
        return restack.materialise(base, SPEC)

    view()  # imports
    view_mb, one_view = added_mb(view, models=10)
    merge_mb, merge = added_mb(materialise, models=1)
    tensors_mb = own_bytes(one_view, base) / MB, own_bytes(merge, base) / MB
    visits = len(one_view.model.layers)
    del merge
    times = interleaved({"view": lambda: seconds(view), "merge": lambda: seconds(materialise)}, runs)
    finish(
        arguments.json,
        conditions(
            model=f"Llama, {LAYERS} layers, {weight_bytes(base) / 1e9:.2f} GB in bfloat16, random weights",
            plan=f"{SPEC} ({visits} visits)",
            seconds=f"medians of {runs} interleaved runs after one to warm up",
            memory="resident memory of the process; of 10 views, all kept, the mean",
        ),
        [
            Claim("time", times["view"]["seconds"], times["merge"]["seconds"], "s", goal=0.5),
            Claim("memory beyond the base", view_mb, merge_mb, "MB", goal=10),
            Claim("tensors beyond the base", *tensors_mb, "MB", goal=1),
        ],
        peer="materialised",
    )


if __name__ == "__main__":
    main()
