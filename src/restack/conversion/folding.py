"""Consecutive layers folded into fewer that run in a cycle, with a LoRA for each visit that makes up for it.

Relaxed Recursive Transformers (Bae et al. 2024, arXiv 2410.20672, sections 2.2 to 2.4).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from restack import plans
from restack.errors import ModelError, PlanError, UsageError, ViewError
from restack.plans import Plan, own_plan
from restack.recipes.adapters import peft_module, visits_apart
from restack.views import view
from restack.views.altered import Altered
from restack.views.anatomy import Anatomy, anatomy, has_weights
from restack.views.guards import PASSING
from restack.views.merge import materialise

INITS = ("average", "stepwise", "lower")
ADAPTER = "default"  # its name, as peft has it
Block = tuple[int, int] | str | None  # (i, j), a slice of the spec language, or all layers


@dataclass(frozen=True, slots=True)
class Folded:
    """What folding made.

    Attributes:
        view: over a new model with fewer layers; its visits have a LoRA each, unless the rank is 0.
        left: how much the LoRA leave of what the shared matrices lack: the mean of |W - W' - BA| / |W - W'|
            (Frobenius), from 0, where nothing is left, to 1.
    """

    view: Any
    left: float


@dataclass(frozen=True, slots=True)
class Cycle:
    """Layers [start, stop) of a model as `loops` runs of as many layers as one loop has."""

    start: int
    stop: int
    loops: int

    @property
    def length(self) -> int:
        """How many layers are shared: those of one loop."""
        return (self.stop - self.start) // self.loops

    @property
    def shared(self) -> range:
        """The shared layers, by their numbers in the folded model."""
        return range(self.start, self.start + self.length)

    def tied(self, shared: int) -> range:
        """The layers that a shared one stands for."""
        return range(shared, self.stop, self.length)

    def plan(self, layers: int) -> Plan:
        """The visits of a folded model that had so many layers before."""
        depth = layers - (self.loops - 1) * self.length
        stop = self.shared.stop
        return Plan.of([*range(stop), *[*self.shared] * (self.loops - 1), *range(stop, depth)], depth)


def fold(model: Any, *, block: Block = None, loops: int = 2, init: str = "average", rank: int = 16) -> Any:
    """Fold consecutive layers into fewer, shared ones that run in a cycle, and adapt each visit of them.

    Of the layers i..j-1 of the block, `loops` times K, the folded model has K; visit i + l K + k (l < loops,
    k < K) runs shared layer k (section 2.2), whose tensors W' are, by `init` (section 2.3):

        average   the mean of the layers i + l K + k over all l, which it stands for
        lower     those of layer i + k: the first K layers
        stepwise  those of layer i + round(k (j-i-1) / (K-1)): at even intervals, the first and the last of
                  the block among them; of K = 1, the first

    Each linear layer of each visit is given a LoRA (scaling 1) that is the truncated singular value
    decomposition of what the shared matrix lacks (section 2.4): W - W' = U S V^T, B = U_r S_r,
    A = V_r^T, the best of its rank. A rank above that of a matrix is cut to it, and then nothing is lacking.

    Norms, biases and the weights of fused experts, which LoRA does not reach, are shared too and made by the
    same rule; so even at full rank the folded model is the original only where those are alike.

    Args:
        model: a loaded decoder or a view, of which the layers of the block are alike. Not changed.
        block: (i, j), or a slice of the spec language such as "4:12"; None: all layers.
        loops: how often the shared layers run.
        init: "average", "stepwise" or "lower".
        rank: of each LoRA; 0: none, a plain Recursive Transformer.

    Returns:
        A view over a new model with fewer layers. `restack.save(..., weights="shared")` stores it. peft has
        frozen the shared weights; the paper trains them too: `requires_grad_(True)`.

    Raises:
        PlanError: the block is none of this model.
        UsageError: `loops` does not divide its length, or another option has no such value.
        ViewError: the layers that would be shared are not alike, or views cannot order them.
        ModelError: the model has adapters already, or peft is not installed.
    """
    return folded(model, block, loops, init, rank).view


def folded(model: Any, block: Block, loops: int, init: str, rank: int) -> Folded:
    """As `fold`, and how well the adapters make up for what is shared."""
    parts = anatomy(model)
    _refuse(model, parts)
    cycle = checked_cycle(len(parts.layers), block, loops, init, rank)
    _refuse_differences(parts, cycle)
    kept = [*range(cycle.shared.stop), *range(cycle.stop, len(parts.layers))]
    fewer = materialise(model, Plan.of(kept, len(parts.layers)))
    fewer.config._name_or_path = ""  # it is not the model that was loaded from there
    for number in cycle.shared:
        _initialise(anatomy(fewer).layers[number], _sources(parts.layers, cycle, number, init))
    result = visits_apart(view(fewer, cycle.plan(len(parts.layers))))
    return Folded(result, _adapt(result, parts.layers, cycle, rank) if rank else 1.0)


def checked_cycle(layers: int, block: Block, loops: int, init: str, rank: int) -> Cycle:
    """What `fold` would do with a model of so many layers, which need not be loaded yet.

    Raises:
        PlanError, UsageError, ModelError: as `fold` does, but for what the model itself says.
    """
    if init not in INITS:
        raise UsageError(f"init is {init!r}; write one of {', '.join(INITS)}")
    if type(rank) is not int or rank < 0:
        raise UsageError(f"the rank is {rank!r}; write a whole number from 0, which means no adapters")
    if type(loops) is not int or loops < 2:
        raise UsageError(f"loops is {loops!r}; write a whole number from 2")
    start, stop = _ends(block, layers)
    length = stop - start
    if length % loops:
        fitting = " or ".join(str(count) for count in range(2, length + 1) if length % count == 0)
        remedy = f"{fitting} loops, or another block" if fitting else "a longer block"
        raise UsageError(
            f"the block {start}:{stop} has {length} layers, which {loops} loops do not divide; write {remedy}"
        )
    if rank:
        peft_module()
    return Cycle(start, stop, loops)


def _refuse(model: Any, parts: Anatomy) -> None:
    """Refuse models whose layers are not all there is to their visits."""
    if any("base_layer" in module._modules for module in model.modules()):
        merge = "restack.materialise(model, 'all').merge_and_unload()"
        raise ModelError(f"the model has adapters already; merge them first: {merge}")
    plan = own_plan(model.config)
    if plan is not None and plan.owners != tuple(range(len(plan))):
        raise ViewError(f"visits of the model share keys and values ({plan}); fold one in which none do")
    if plan is not None and not plan.is_identity:
        raise ViewError(f"the model runs a plan by itself ({plan}); fold one that runs each layer once")
    if any(isinstance(module, Altered) for module in parts.layers.modules()):
        raise ViewError("visits of the view are damped or scaled; fold it without that")
    if getattr(parts.config, "hidden_size_per_layer_input", None):
        raise ViewError("the model embeds tokens anew for each layer, which shared layers cannot have")
    if not has_weights(model):
        raise ModelError("the model has no weights in memory to fold; load it first")
    for name, parameter in parts.layers.named_parameters():
        if not parameter.is_floating_point():
            raise ModelError(f"{parts.path}.{name} is quantised; fold the model it was made from")


def _ends(block: Block, layers: int) -> tuple[int, int]:
    """The first layer of the block, and the one after its last."""
    match block:
        case None:
            return 0, layers
        case str():
            order = plans.plan(block, layers).order
            start, stop = order[0], order[-1] + 1
            if order != tuple(range(start, stop)):
                raise PlanError(f"the block {block} is not of consecutive layers; write one as in 4:12")
            return start, stop
        case (int(start), int(stop)) if 0 <= start < stop <= layers:
            return start, stop
        case _:
            raise PlanError(f"the block is {block!r}; write (i, j) with 0 <= i < j <= {layers}, or '4:12'")


def _refuse_differences(parts: Anatomy, cycle: Cycle) -> None:
    """Refuse layers that cannot share their tensors, or that compute otherwise with the same ones."""
    for shared in cycle.shared:
        first = _facts(parts, shared)
        for other in cycle.tied(shared):
            facts = _facts(parts, other)
            for name in first | facts:
                if first.get(name) != facts.get(name):
                    raise ViewError(
                        f"layers {shared} and {other} would share their weights, and {name} is "
                        f"{first.get(name)} in one and {facts.get(name)} in the other; fold another block, "
                        "or by other loops"
                    )


def _facts(parts: Anatomy, number: int) -> dict[str, Any]:
    """What a layer is, but for the values in its tensors and its number."""
    layer = parts.layers[number]
    kinds = getattr(parts.config, "layer_types", None)
    facts: dict[str, Any] = {"the kind of attention": kinds[number] if kinds else None}
    facts |= {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()}
    for path, module in layer.named_modules():
        facts[path or "the layer"] = type(module).__name__
        for name, value in vars(module).items():
            is_passing = name.startswith("_") or name in PASSING or (path, name) in parts.index_attributes
            if isinstance(value, int | float | str) and not is_passing:
                facts[f"{path}.{name}".lstrip(".")] = value
    return facts


def _sources(layers: nn.ModuleList, cycle: Cycle, shared: int, init: str) -> Sequence[nn.Module]:
    """The layers whose mean a shared one is."""
    k = shared - cycle.start
    if init == "average":
        return [layers[number] for number in cycle.tied(shared)]
    if init == "lower" or cycle.length == 1:
        return [layers[shared]]
    last, intervals = cycle.stop - cycle.start - 1, cycle.length - 1
    return [layers[cycle.start + (2 * k * last + intervals) // (2 * intervals)]]  # rounded, halves up


def _initialise(layer: nn.Module, sources: Sequence[nn.Module]) -> None:
    """Set the tensors of a layer to the mean of those of others."""
    states = [source.state_dict() for source in sources]
    with torch.no_grad():
        for name, tensor in layer.state_dict().items():  # parameters, and the buffers that are stored
            if len(states) == 1 or not tensor.is_floating_point():
                tensor.copy_(states[0][name])
            else:
                exact = torch.promote_types(tensor.dtype, torch.float32)
                tensor.copy_(torch.stack([state[name].to(exact) for state in states]).mean(0))


def _adapt(model: Any, originals: nn.ModuleList, cycle: Cycle, rank: int) -> float:
    """Give the visits of shared layers their LoRA, in place; how much these leave, as `Folded` has it."""
    parts = anatomy(model)
    visits = range(cycle.start, cycle.stop)
    linear = _linear_layers(parts.layers[cycle.start])
    if not linear:
        raise ModelError(f"a {type(model).__name__} has no linear layers that LoRA is for; write rank 0")
    model.add_adapter(_config(parts, visits, linear, rank), ADAPTER)
    left = []
    for visit in visits:
        for path in linear:
            ours = parts.layers[visit].get_submodule(path)
            theirs = originals[visit].get_submodule(path)
            left.append(_set_lora(ours, _matrix(theirs)))
    return sum(left) / len(left)


def _linear_layers(layer: nn.Module) -> Mapping[str, nn.Module]:
    """The linear layers of a layer, by their paths in it."""
    from transformers.pytorch_utils import Conv1D

    return {path: module for path, module in layer.named_modules() if isinstance(module, nn.Linear | Conv1D)}


def _config(parts: Anatomy, visits: Sequence[int], linear: Mapping[str, nn.Module], rank: int) -> Any:
    """peft's config of a LoRA of these linear layers of each visit, with scaling 1."""
    ranks = {path: min(rank, *_matrix(module).shape) for path, module in linear.items()}
    lower = {path: own for path, own in ranks.items() if own < rank}
    return peft_module().LoraConfig(
        r=rank,
        lora_alpha=rank,
        rank_pattern=lower,
        alpha_pattern=lower,
        target_modules=list(linear),
        layers_to_transform=list(visits),
        layers_pattern=parts.path.rpartition(".")[2],
        fan_in_fan_out=not any(isinstance(module, nn.Linear) for module in linear.values()),
        task_type="CAUSAL_LM",
    )


def _set_lora(layer: Any, wanted: torch.Tensor) -> float:
    """Set a LoRA to the best of its rank for what the matrix below it lacks; the part that it leaves.

    Args:
        layer: peft's, around a linear layer.
        wanted: the matrix (out, in) that the two are to make together.
    """
    have = _matrix(layer.get_base_layer())
    exact = torch.promote_types(have.dtype, torch.float32)
    u, s, vt = torch.linalg.svd(wanted.to(exact) - have.to(exact), full_matrices=False)
    rank = layer.r[ADAPTER]
    layer.lora_A[ADAPTER].weight.data = vt[:rank].clone(memory_format=torch.contiguous_format)  # (r, in)
    layer.lora_B[ADAPTER].weight.data = (u[:, :rank] * s[:rank]).contiguous()  # (out, r)
    size = s.norm().item()
    return s[rank:].norm().item() / size if size else 0.0


def _matrix(module: Any) -> torch.Tensor:
    """The weight (out, in) of a linear layer; GPT-2's `Conv1D` keeps it transposed."""
    weight: torch.Tensor = module.weight.detach()
    return weight if isinstance(module, nn.Linear) else weight.T
