"""Functions put on a module that are bound to it from inside: copies would call the original."""

import copy
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any, TypeVar

from torch import nn

from restack.errors import ViewError

# What transformers keeps of a compiled model; compiled again when it is next needed.
COMPILED = ("_compiled_call", "_last_compile_config")
# What accelerate puts before a dispatched model's methods, to warn whoever moves it.
MOVING = ("to", "cuda", "mlu", "musa", "npu", "sdaa", "xpu")
# Where the functions are from that transformers puts in the place of a layer's `forward` when the weights are
# spread over processes. They hold that layer, and nothing of it that a copy could not have of its own.
PARALLEL = ("transformers.distributed.tensor_parallel", "transformers.distributed.expert_parallel")

Module = TypeVar("Module", bound=nn.Module)


def copied(module: Module, memo: dict[Any, Any]) -> Module:
    """A deep copy, with the functions of parallel layers bound to the copies.

    Args:
        module: what is copied.
        memo: of `copy.deepcopy`: what is in it is shared; what was copied is entered.
    """
    parts = list(module.modules())
    for part in parts:  # a dozen empty registers of hooks each, which deepcopy takes apart and puts together
        for value in vars(part).values():
            if type(value) in (dict, OrderedDict) and not value:
                memo[id(value)] = type(value)()
    result = copy.deepcopy(module, memo)
    for part in parts:
        forward, own = vars(part).get("forward"), memo.get(id(part), part)
        if own is not part and _is_parallel(forward):
            vars(own)["forward"] = _rebound(forward, memo)
    return result


def _is_parallel(value: Any) -> bool:
    return isinstance(value, FunctionType) and value.__globals__.get("__name__") in PARALLEL


def _rebound(value: Any, memo: Mapping[int, Any]) -> Any:
    """What a function holds, or the function, with copies in the place of modules."""
    if isinstance(value, nn.Module):
        return memo.get(id(value), value)
    if isinstance(value, MethodType):
        return MethodType(value.__func__, _rebound(value.__self__, memo))
    if not _is_parallel(value):
        return value
    cells = tuple(CellType(_rebound(cell.cell_contents, memo)) for cell in value.__closure__ or ())
    result = FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, cells)
    result.__kwdefaults__ = value.__kwdefaults__
    return result


def left_out(module: nn.Module) -> list[str]:
    """The attributes of a module that its copy does without: they are bound to it, and can be made anew."""
    warnings = [name for name in MOVING if _is_of_accelerate(vars(module).get(name))]
    return [name for name in COMPILED if name in vars(module)] + warnings


def _is_of_accelerate(value: Any) -> bool:
    return isinstance(value, FunctionType) and value.__globals__["__name__"] == "accelerate.big_modeling"


def take_scales(model: nn.Module) -> None:
    """Have bitsandbytes' 8-bit layers take the scales off their weights now, not in their first forward.

    A layer leaves none at its weight: others of the same weight would not find them, and compute nonsense.
    """
    for module in model.modules():
        take: Any = getattr(module, "init_8bit_state", None)
        if take is not None and getattr(module.weight, "CB", None) is not None:
            take()


def refuse_bound_functions(modules: Iterable[tuple[str, nn.Module]]) -> None:
    """Refuse modules that cannot be copied because `copy.deepcopy` leaves functions as they are.

    A function whose closure holds one of the modules, as `torch.compile(model.forward)` returns, would run
    the original module in the copy without a word. Methods and partials over a module are copied rightly.

    Raises:
        ViewError: some attribute of a module is such a function.
    """
    named = list(modules)
    originals = {id(module) for _, module in named}
    for path, module in named:
        state: dict[str, Any] = module.__getstate__()  # type: ignore[no-untyped-call]
        without = left_out(module)
        for name, value in state.items():  # what deepcopy copies of it
            if name not in without and not _is_parallel(value) and _is_bound(value, originals):
                place = ".".join(filter(None, (path, name)))
                raise ViewError(
                    f"{place} of the {type(module).__name__} was replaced by a function that is bound to the "
                    "base; make views first, then compile or patch each"
                )


def _is_bound(value: Any, modules: set[int]) -> bool:
    while isinstance(value, MethodType | partial):  # these are copied themselves, but not their function
        value = value.__func__ if isinstance(value, MethodType) else value.func
    if not isinstance(value, FunctionType):
        return False
    left, seen = [value], set()
    while left:
        item: Any = left.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if id(item) in modules:
            return True
        left.extend(_held(item))
    return False


def _held(value: Any) -> list[Any]:
    """What a function, or a container that a function holds, holds in turn."""
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        used = [value.__globals__.get(name) for name in value.__code__.co_names]
        bound = [item for item in used if isinstance(item, nn.Module | MethodType | partial)]
        return [
            *cells,
            *bound,
            value.__defaults__,
            value.__kwdefaults__,
            vars(value),
        ]  # `__wrapped__` is in the last
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple | set) else []


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
