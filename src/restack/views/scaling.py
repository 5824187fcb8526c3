"""Scaled visits: mergekit's `scale`, tensors of a layer multiplied for one visit and left alone for others.

A filter means what it means to mergekit: it is part of a tensor's name, the first one that is wins, and `*`
is part of every name. Names are those of the loaded model, with `*` for the layer's number:
`model.layers.*.self_attn.o_proj.weight`.

Where a layer is linear in a tensor, what comes out is multiplied instead, s(Wx) for (sW)x: no copy of the
weight is made. The two differ by rounding, except for powers of two.
"""

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from restack.errors import ViewError
from restack.plans import Plan
from restack.plans.value import Scale
from restack.views.altered import Altered, alter, alterations, restore

Factors = dict[str, float]  # by the name of a tensor in its module


class Scaled(Altered):
    """A module some of whose tensors read as multiplied: a product is made each time one is used."""

    restack_factors: Factors

    def __getattr__(self, name: str) -> Any:
        value: Any = super().__getattr__(name)
        factor = self.restack_factors.get(name)
        return value if factor is None else factor * value


class ScaledLinear(Scaled):
    """`nn.Linear` whose output is multiplied, not its weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        weight, bias = _own(self)
        by_weight, by_bias = _of_weight_and_bias(self)
        if bias is None or by_weight == by_bias:
            return F.linear(x, weight, bias) * by_weight
        return F.linear(x, weight) * by_weight + bias * by_bias


class ScaledConv1D(Scaled):
    """GPT-2's `Conv1D`, a linear layer that keeps its weight transposed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        weight, bias = _own(self)
        assert bias is not None  # Conv1D always has one
        by_weight, by_bias = _of_weight_and_bias(self)
        rows = x.view(-1, x.shape[-1])
        if by_weight == by_bias:
            rows = torch.addmm(bias, rows, weight) * by_weight
        else:
            rows = torch.mm(rows, weight) * by_weight + bias * by_bias
        return rows.view(*x.shape[:-1], -1)


class ScaledOutput(Scaled):
    """A module whose output is linear in some of its tensors: it is multiplied, not they.

    Quantised weights, which cannot be multiplied, and the last weights of fused experts, which are large.
    """

    restack_at_output: tuple[str, ...]

    def __getattr__(self, name: str) -> Any:
        as_it_is = name in self.restack_at_output
        return nn.Module.__getattr__(self, name) if as_it_is else super().__getattr__(name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own output, multiplied."""
        factor = self.restack_factors[self.restack_at_output[0]]
        return super().forward(*args, **kwargs) * factor


def check(plan: Plan, layers: nn.ModuleList, path: str) -> None:
    """Refuse scale filters that are part of no tensor's name in any of the layers.

    Raises:
        ViewError: so, naming the tensors.
    """
    filters = {name for visit in plan.visits for name, _ in visit.scale} - {"*"}
    if not filters:
        return
    names = {_joined(where, name) for layer in layers for where, name, _, _ in _tensors(layer)}
    for wanted in sorted(filters):
        if not any(wanted in _full(path, name) for name in names):
            known = ", ".join(sorted({name.removesuffix(".weight") for name in names}))
            raise ViewError(f"no tensor of a layer has {wanted} in its name; they are named {known}")


def scale(layer: nn.Module, filters: Scale, path: str, common: Collection[int]) -> None:
    """Multiply the tensors of a visit's layer that `filters` choose, for this visit alone.

    Args:
        layer: the visit's own layer object.
        filters: (part of a name, factor) pairs.
        path: of the layer list.
        common: the ids of modules that are not the visit's own.

    Raises:
        ViewError: a chosen tensor cannot be multiplied: an adapter's, integers, or not the visit's own.
    """
    chosen: dict[str, Factors] = {}
    for where, own, tensor, module in _tensors(layer):
        name = _joined(where, own)
        factor = factor_of(_full(path, name), filters)
        if factor == 1:
            continue
        if "lora_" in name:
            raise ViewError(f"a scale of {name}, an adapter's, would count twice; merge the adapter first")
        if id(module) in common:
            raise ViewError(f"{name} is common to several layers, so it cannot be scaled for one visit")
        if not tensor.is_floating_point() and not isinstance(module, nn.Linear):
            raise ViewError(f"{name} holds {tensor.dtype}, which cannot be scaled; write other filters")
        chosen.setdefault(where, {})[own] = factor
    for where, factors in chosen.items():
        _scale(layer.get_submodule(where), factors, where)


def bake(model: nn.Module) -> None:
    """Multiply the tensors themselves, of a model that owns them, and let its modules be what they were.

    Raises:
        ViewError: a tensor is quantised, or is scaled in one place and not in another.
    """
    scaled = [(path, module) for path, module in model.named_modules() if isinstance(module, Scaled)]
    done: dict[int, float] = {}
    for path, module in scaled:
        for where, name, tensor, _ in _tensors(module):
            factor = module.restack_factors.get(name) if not where else None
            if factor is None:
                continue
            if not tensor.is_floating_point():
                raise ViewError(f"{path}.{name} is quantised; materialise a scaled plan from plain weights")
            if id(tensor) not in done:
                with torch.no_grad():
                    tensor.mul_(factor)
            elif done[id(tensor)] != factor:
                raise ViewError(f"{path}.{name} is scaled unlike in another place that it is used in")
            done[id(tensor)] = factor
    for _, module in scaled:
        for alteration in alterations(module):
            if issubclass(alteration, Scaled):
                restore(module, alteration)
        for name in ("restack_factors", "restack_at_output"):
            vars(module).pop(name, None)


def _scale(module: nn.Module, factors: Factors, where: str) -> None:
    before: Factors = vars(module).get("restack_factors", {})
    factors = before | {name: factor * before.get(name, 1.0) for name, factor in factors.items()}
    alteration: type[Scaled] = Scaled
    original: Any = module.original if isinstance(module, Altered) else type(module)
    at_output: tuple[str, ...] = ()
    if original.forward is nn.Linear.forward:
        alteration = ScaledLinear
    elif original.__name__ == "Conv1D" and original.__module__ == "transformers.pytorch_utils":
        alteration = ScaledConv1D
    elif isinstance(module, nn.Linear) and not module.weight.is_floating_point():
        alteration, at_output = ScaledOutput, ("weight", "bias") if module.bias is not None else ("weight",)
        factors = {
            name: factors[name] for name in at_output if name in factors
        }  # not what unpacks the weight
    elif hasattr(original, "_apply_gate"):  # fused experts of transformers
        at_output = tuple(name for name in ("down_proj", "down_proj_bias") if name in module._parameters)
        alteration = ScaledOutput if "down_proj" in factors else Scaled
    if alteration is ScaledOutput and len({factors.get(name, 1.0) for name in at_output}) > 1:
        names = " and ".join(_joined(where, name) for name in at_output)
        raise ViewError(f"{names} can only be scaled alike; write one filter for both")
    vars(module)["restack_factors"] = factors
    if alteration is ScaledOutput:
        vars(module)["restack_at_output"] = at_output
    alter(module, alteration)


def _tensors(layer: nn.Module) -> Iterator[tuple[str, str, torch.Tensor, nn.Module]]:
    """What a checkpoint holds of a layer: (path of the module, name in it, tensor, module)."""
    for where, module in layer.named_modules():
        state = vars(module)
        held = {**state["_parameters"], **state["_buffers"]}
        for name, tensor in held.items():
            if tensor is not None and name not in state["_non_persistent_buffers_set"]:
                yield where, name, tensor, module


def _own(module: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The weight and bias as they are."""
    return module._parameters["weight"], module._parameters["bias"]  # type: ignore[return-value]


def _of_weight_and_bias(module: Scaled) -> tuple[float, float]:
    return module.restack_factors.get("weight", 1.0), module.restack_factors.get("bias", 1.0)


def factor_of(name: str, filters: Scale) -> float:
    """What the tensor of a name, with `*` for the layer's number, is multiplied by."""
    return next((factor for wanted, factor in filters if wanted == "*" or wanted in name), 1.0)


def _joined(*parts: str) -> str:
    return ".".join(filter(None, parts))


def _full(path: str, name: str) -> str:
    return f"{path}.*.{name}"
