"""Fewer heads for keys and values: multi-head attention (MHA) to grouped (GQA) or multi-query (MQA).

Each group of key and value heads becomes one head, which the queries of all of them read. Ainslie et al.
(2305.13245, section 2.1) take the mean of a group's projections, and compare it with its first head and with
new random heads; after it the model is trained on for some per cent of its first training (section 2.2).

The mean is taken of the projections, before the rotary embedding and, where there is one, the norm of keys.
The rotary embedding turns all heads alike, so the mean commutes with it; it does not commute with a norm,
under which converted heads are exact only where the heads of a group were equal.
"""

import copy
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from restack import recipes
from restack.conversion.stored import Output, Weights
from restack.conversion.writing import LARGEST_SHARD, Checkpoint, Progress, write, write_model
from restack.errors import ModelError, UsageError
from restack.recipes.opening import build_empty
from restack.views.anatomy import decoder_config
from restack.views.guards import PLAN

POOLS = ("mean", "first", "random")
BUILT_IN = ("mha", "gqa", "mqa")  # restack-llama's names of what the number of heads says anyway


@dataclass(frozen=True, slots=True)
class Pool:
    """How groups of heads are made one.

    Attributes:
        heads: of keys and values, now.
        groups: of heads, of which each becomes one.
        how: "mean", "first" (head of each group) or "random" (new ones, biases zero).
        seed: of random heads.
        spread: the standard deviation of random heads.
    """

    heads: int
    groups: int
    how: str = "mean"
    seed: int = 0
    spread: float = 0.02

    def __post_init__(self) -> None:
        if self.how not in POOLS:
            raise UsageError(f"pool is {self.how!r}; write one of {', '.join(POOLS)}")
        if self.groups < 1 or self.heads % self.groups:
            fitting = ", ".join(str(n) for n in range(1, self.heads + 1) if self.heads % n == 0)
            raise UsageError(
                f"{self.groups} groups do not divide {self.heads} key and value heads; write one of {fitting}"
            )

    def __call__(self, weight: torch.Tensor, name: str) -> torch.Tensor:
        """A projection's weight (heads * hs, C) or bias (heads * hs) to (groups * hs, ...), in its dtype."""
        if self.groups == self.heads:
            return weight
        size = self.heads // self.groups
        grouped = weight.reshape(self.groups, size, -1, *weight.shape[1:])  # (groups, size, hs, ...)
        pooled: torch.Tensor
        if self.how == "mean":  # in float64, in which a mean of equal numbers is that number
            pooled = grouped.double().mean(1).to(weight.dtype)
        elif self.how == "first":
            pooled = grouped[:, 0]
        else:
            pooled = self._random(grouped[:, 0], name)
        return pooled.flatten(0, 1)

    def _random(self, like: torch.Tensor, name: str) -> torch.Tensor:
        if name.endswith("bias"):
            return torch.zeros_like(like)
        seed = hashlib.sha256(f"{self.seed} {name}".encode()).digest()  # the same in whatever order
        draw = torch.Generator().manual_seed(int.from_bytes(seed[:8], "little", signed=True))
        return (torch.randn(like.shape, generator=draw) * self.spread).to(like)


def pooled(model: Any, kv_heads: int, *, pool: str = "mean", seed: int = 0) -> Any:
    """A model of the same class with `kv_heads` heads for keys and values; `model` is not changed.

    Args:
        model: loaded, of any architecture of transformers whose attention projects to keys and values apart
            (`k_proj`, `v_proj`) and has `num_key_value_heads` in its config; no view.
        kv_heads: a divisor of those it has. 1: multi-query attention.
        pool: "mean", "first" or "random" (2305.13245, figure 4).
        seed: of "random".

    Raises:
        UsageError: `kv_heads` does not divide, or there is no such pool.
        ModelError: the model's heads cannot be pooled; the error says why.
    """
    from transformers.initialization import no_init_weights

    if PLAN in vars(model):
        raise ModelError("the model is a view, whose layers may be repeated; restack.materialise it first")
    pooling, config, projections = _pooling(model, kv_heads, pool, seed)
    tensors = {
        name: pooling(tensor, name) if name in projections else tensor
        for name, tensor in model.state_dict().items()
    }
    with no_init_weights():
        result = type(model)(config).to(dtype=model.dtype, device=model.device)
    result.load_state_dict(tensors)
    result.generation_config = copy.deepcopy(model.generation_config)
    return result.train(model.training)


def convert_heads(
    reference: str,
    kv_heads: int,
    out: str | Path,
    *,
    pool: str = "mean",
    seed: int = 0,
    largest: int = LARGEST_SHARD,
    progress: Progress | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Write a checkpoint with fewer heads for keys and values, which transformers loads by itself.

    A shard at a time is in memory if the checkpoint names its tensors as the loaded model does; else the
    whole model.

    Args:
        reference: of a model; no view of one, and no recipe.
        kv_heads, pool, seed: as `pooled` has them.
        out: the folder, made anew; an interrupted conversion is gone on with.
        largest: bytes of a shard.
        progress: called with the bytes that are written, and of all.
        revision, trust_remote_code: as `restack.open` has them.

    Returns:
        The folder.

    Raises:
        UsageError, ModelError: as `pooled`; or the folder cannot be made.
    """
    hub: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    found = recipes.find_reference(reference, **hub)
    if found.plan is not None or recipes.parse_reference(reference).spec is not None:
        raise UsageError(f"{reference} is a view; make it a checkpoint first: restack convert full")
    empty = build_empty(found.ready(), trust_remote_code=trust_remote_code)
    pooling, config, projections = _pooling(empty, kv_heads, pool, seed)
    weights = Weights.of(found.location)
    if not projections <= weights.tensors.keys():
        write_model(
            pooled(recipes.open(reference, **hub), kv_heads, pool=pool, seed=seed), weights, Path(out)
        )
        return Path(out)
    outputs = {
        name: _pooled(weights, name, pooling) if name in projections else weights.copy(name)
        for name in weights.tensors
    }
    job = {"convert": "heads", "kv_heads": kv_heads, "pool": pool, "seed": seed}
    write(Checkpoint(config, outputs, [weights]), Path(out), job, largest=largest, progress=progress)
    return Path(out)


def _pooled(weights: Weights, name: str, pooling: Pool) -> Output:
    whole = weights.copy(name)
    return Output(whole.size * pooling.groups // pooling.heads, lambda: pooling(whole.make(), name))


def _pooling(model: Any, kv_heads: int, pool: str, seed: int) -> tuple[Pool, Any, set[str]]:
    """How a model's heads are pooled, the config of the result, and the names of what is pooled."""
    decoder = decoder_config(model)
    heads = getattr(decoder, "num_key_value_heads", None)
    if not isinstance(heads, int):
        raise ModelError(
            f"{type(model).__name__} has no num_key_value_heads in its config: its attention has a key and "
            "value head for each query, and cannot have fewer; Llama and its relatives can"
        )
    if getattr(model.config, "quantization_config", None) is not None:
        raise ModelError("the weights are quantised, and have no mean; convert the model they were made from")
    pooling = Pool(heads, kv_heads, pool, seed, getattr(decoder, "initializer_range", None) or 0.02)
    config = copy.deepcopy(model.config)
    fewer = config.get_text_config(decoder=True)
    fewer.num_key_value_heads = kv_heads
    if getattr(fewer, "attention", None) in BUILT_IN:
        fewer.attention = None
    config.architectures = [type(model).__name__]
    return pooling, config, _projections(model, config, pooling)


def _projections(model: Any, config: Any, pooling: Pool) -> set[str]:
    """The names of the tensors that have fewer rows under `config`, which are those of keys and values."""
    if pooling.groups == pooling.heads:
        return set()
    with torch.device("meta"):
        smaller = {name: tensor.shape for name, tensor in type(model)(config).state_dict().items()}
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    changed = {name for name in shapes if smaller.get(name) != shapes[name]}
    for name in sorted(changed):
        rows, *rest = shapes[name]
        wanted = (rows // pooling.heads * pooling.groups, *rest)
        is_projection = name.split(".")[-2] in ("k_proj", "v_proj") and rows % pooling.heads == 0
        if not is_projection or smaller.get(name) != wanted:
            why = (
                "a norm over all heads at once is another one over fewer"
                if "norm" in name
                else "only k_proj and v_proj can be pooled"
            )
            raise ModelError(f"{name} of {type(model).__name__} changes with the number of heads: {why}")
    if not changed:
        raise ModelError(
            f"no weights of {type(model).__name__} follow num_key_value_heads: its keys and values are made "
            "in another way, and cannot be pooled"
        )
    return changed
