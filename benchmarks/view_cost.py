"""What a view costs: a Goliath-like self-merge of 140 visits over 80 layers, beside a model of its own.

Wall seconds to make the model from one that is loaded, and the memory that it adds to the process. The peer
is what one does by hand with transformers alone: construct the deeper model from its config, on the meta
device, and give it copies of the weights. `restack.materialise` makes the same model.

    python benchmarks/view_cost.py --json view_cost.json     about a minute, 4 GB of memory
"""

import ctypes
import gc
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from report import Claim, conditions, finish, interleaved, options
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import restack
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


def main() -> None:
    arguments = options(__doc__).parse_args()
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
        ],
        peer="transformers by hand",
    )


if __name__ == "__main__":
    main()
