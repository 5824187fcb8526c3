"""Keys and values shared between layers: a model of Llama's family under a KV map, as restack-llama.

The layers that others read keep their own projections to keys and values (LCKV, 2405.10637, appendix C.1) or
get the mean of those of all their readers (MLKV, 2406.09297; `convert_pretrained.py` of whyNLP/LCKV, which
leaves biases out). The rest lose theirs. After it the model is trained on.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from restack import plans, recipes
from restack.conversion.meta import MetaWeights
from restack.conversion.stored import Output, Source, Weights
from restack.conversion.writing import LARGEST_SHARD, Checkpoint, Progress, write
from restack.errors import ModelError, UsageError
from restack.llama.config import RestackLlamaConfig
from restack.llama.families import FAMILIES, settings
from restack.plans import Plan, own_plan
from restack.recipes.telling import told_in_one_line

INITS = ("own", "mean")
SHARED = ("k_proj", "v_proj", "k_norm")


def convert_kv(
    reference: str,
    kv_map: str,
    out: str | Path,
    *,
    init: str = "own",
    window: int | None = None,
    largest: int = LARGEST_SHARD,
    progress: Progress | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Write a restack-llama whose visits read keys and values as a KV map says; a shard at a time.

    Args:
        reference: MODEL or MODEL@SPEC; a llama, mistral, qwen2, qwen3, restack-llama, or Meta's own folder.
        kv_map: "lckv-w2", "0_20x20_21": anything that `restack.plan` reads as a KV map of the visits.
        out: the folder, made anew; an interrupted conversion is gone on with.
        init: "own" keeps the projections of the layers that are read, "mean" gives them the mean of those of
            the layers whose visits read them.
        window: tokens that visits see which slide (`s` in a map); None: what the model's config says.
        largest: bytes of a shard.
        progress: called with the bytes that are written, and of all.
        revision, trust_remote_code: as `restack.open` has them.

    Returns:
        The folder.

    Raises:
        UsageError: there is no such `init`; or the folder cannot be made.
        PlanError: the map is not one for this depth.
        ModelError: the model is of another family, or lacks keys and values that a mean needs.
    """
    from restack.llama.model import RestackLlamaForCausalLM

    if init not in INITS:
        raise UsageError(f"init is {init!r}; write one of {', '.join(INITS)}")
    config, location = _config(reference, kv_map, window, revision, trust_remote_code)
    weights: Source = MetaWeights.of(location) if location.is_metas else Weights.of(location)
    with torch.device("meta"):
        names = RestackLlamaForCausalLM(config).state_dict()
    sources = {name: [name] for name in names if name in weights.tensors or not _is_tied(name, config)}
    if init == "mean":
        for layer, read_by in _readers(config.whole_plan).items():
            for name in [name for name in sources if name.split(".")[-2] in SHARED and f".{layer}." in name]:
                sources[name] = [name.replace(f".{layer}.", f".{reader}.") for reader in read_by]
    for name in sorted({name for each in sources.values() for name in each} - weights.tensors.keys()):
        raise ModelError(
            f"{reference} has no {name} in its files, which the map needs; name an owner that has its own "
            "keys and values, or write --init own"
        )
    outputs = {name: _mean(weights, each) for name, each in sources.items()}
    job = {"convert": "kv", "plan": config.plan, "init": init, "window": config.sliding_window}
    write(Checkpoint(config, outputs, [weights]), Path(out), job, largest=largest, progress=progress)
    return Path(out)


def _config(
    reference: str, kv_map: str, window: int | None, revision: str | None, trust_remote_code: bool
) -> tuple[Any, Any]:
    """The config of the result, and where the weights are."""
    spec = recipes.parse_reference(reference).spec
    found = recipes.find_reference(reference, revision, trust_remote_code)
    found = found if spec is None else found.then(spec)
    if found.adapter is not None:
        raise UsageError(f"{reference} has an adapter; make it a checkpoint first: restack convert full")
    own = own_plan(found.config)
    if own is not None:
        config = found.config
    elif found.config.model_type in FAMILIES:
        with told_in_one_line(found.called, found.location.is_local):
            config = RestackLlamaConfig(**settings(found.config.to_dict()))
        own = config.whole_plan
    else:
        raise ModelError(
            f"{reference} is a {found.config.model_type}; restack-llama can be a model of "
            f"{', '.join(FAMILIES)}; for maps with owners below their readers, use a view of it (--kv)"
        )
    if found.plan is not None:
        config.plan = str(own.then(found.plan))
    if window is not None:
        config.sliding_window = window
    plans.plan("all", len(config.whole_plan), kv=kv_map)  # or it is refused, with the model's own depth
    config.kv_map = kv_map
    config.check()
    config.architectures = ["RestackLlamaForCausalLM"]
    return config, found.location


def _readers(plan: Plan) -> dict[int, list[int]]:
    """By layer: the layers whose visits read its keys and values, itself if it does; one entry a visit."""
    readers = defaultdict(list)
    for visit, owner in zip(plan.visits, plan.owners, strict=True):
        readers[plan.visits[owner].layer].append(visit.layer)
    return dict(readers)


def _is_tied(name: str, config: Any) -> bool:
    return name == "lm_head.weight" and bool(config.tie_word_embeddings)


def _mean(weights: Source, names: list[str]) -> Output:
    outputs = [weights.copy(name) for name in names]
    if len(set(names)) == 1:
        return outputs[0]

    def make() -> torch.Tensor:
        tensors = [output.make() for output in outputs]
        total = torch.zeros_like(tensors[0], dtype=torch.float64)
        for tensor in tensors:
            total += tensor
        return (total / len(tensors)).to(tensors[0].dtype)

    return Output(outputs[0].size, make)
