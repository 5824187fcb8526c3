"""What would reach the base through a view that shares its tensors, done to the view alone."""

import copy
import functools
import inspect
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from restack.errors import ViewError
from restack.plans import own_plan
from restack.views.anatomy import Anatomy, anatomy
from restack.views.frozen_config import FROZEN, UNSAVED

Model = TypeVar("Model", bound=nn.Module)
PLAN = "restack_plan"  # of a view or slung model: the plan that it runs
# Attributes that say how a module is used now, not what it is.
PASSING = ("training", "gradient_checkpointing")


class Guard:
    """Stands, in one view, before a method of its class that other methods call.

    It holds the view weakly: a method bound to the view, kept in the view, would keep it alive. Copies and
    pickles of the view get a guard of their own.
    """

    __slots__ = ("_name", "_view")

    def __init__(self, view: nn.Module, name: str) -> None:
        self._view = weakref.ref(view)
        self._name = name
        _teach_saving()  # here, since an unpickled view has never been `guarded`

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return GUARDS[self._name](self._view(), *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Guard":
        view: Any = self._view()
        return Guard(memo.get(id(view), view), self._name)

    def __reduce__(self) -> Any:
        return Guard, (self._view(), self._name)


def guarded(view: Model) -> Model:
    """Put the guards before the view's methods, except those that were replaced in this model already."""
    for name in GUARDS:
        if name not in vars(view) and hasattr(type(view), name):
            vars(view)[name] = Guard(view, name)
    return view


def unguarded(model: Model) -> Model:
    """Take the guards away, from what is no view any more."""
    for name in GUARDS:
        if isinstance(vars(model).get(name), Guard):
            del vars(model)[name]
    return model


def _apply(view: nn.Module, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
    """`to`, `half`, `cuda`...: the view gets weights of its own, and the base keeps what it has.

    torch changes parameters in place, and they are the base's. Layers that the plan leaves out would not be
    reached, and neither would the base's buffers: the base would be left in parts of two kinds.
    """

    def made(old: nn.Parameter) -> nn.Parameter:
        new = fn(old)
        if _places(new) == _places(old):
            return old
        return new if isinstance(new, nn.Parameter) else nn.Parameter(new, old.requires_grad)

    replaced = _replace(view.modules() if recurse else [view], made)
    size = sum(new.nbytes for old, new in replaced.items() if new is not old)
    if size:
        warnings.warn(
            f"the view was moved or converted, so it has {size / 1e6:,.1f} MB of weights of its own now; to "
            "share them, move or convert the base before its views are made",
            stacklevel=5,
        )
    return type(view)._apply(view, fn, recurse)  # type: ignore[no-untyped-call,no-any-return]


def _replace(
    modules: Iterable[nn.Module], made: Callable[[nn.Parameter], nn.Parameter]
) -> dict[nn.Parameter, nn.Parameter]:
    """Set each parameter of the modules to what is made of it, once, however often it is used: {old: new}."""
    replaced: dict[nn.Parameter, nn.Parameter] = {}
    with torch.no_grad():
        for module in modules:
            for name, old in module._parameters.items():
                if old is not None:
                    if old not in replaced:
                        replaced[old] = made(old)
                    module._parameters[name] = replaced[old]
    return replaced


def _places(tensor: torch.Tensor) -> list[Any]:
    """Where the numbers of a tensor lie, and as what; of all its parts, if it wraps others."""
    if hasattr(tensor, "__tensor_flatten__"):
        parts, _ = tensor.__tensor_flatten__()
        return [place for part in parts for place in _places(getattr(tensor, part))]
    return [(tensor.device, tensor.dtype, tensor.data_ptr(), tensor.shape, tensor.stride())]


def _resize_token_embeddings(view: Any, *args: Any, **kwargs: Any) -> nn.Module:
    """The view gets an embedding and a head of its own; the base keeps its vocabulary."""
    parts = [part for part in (view.get_input_embeddings(), view.get_output_embeddings()) if part is not None]
    own = _replace(parts, lambda old: nn.Parameter(old.detach(), old.requires_grad))
    shared = {new: old for old, new in own.items()}
    try:
        result: nn.Module = type(view)._resize_token_embeddings(view, *args, **kwargs)
    finally:  # what has kept its size is the base's again
        _replace(parts, lambda now: shared[now] if _is_same(now, shared.get(now)) else now)
    return result


def _is_same(tensor: torch.Tensor, other: torch.Tensor | None) -> bool:
    return other is not None and _places(tensor) == _places(other)


def _teach_saving() -> None:
    """Have `save_pretrained` of transformers' models save views, as checkpoints of all their visits.

    They load without Restack, as a self-merge does. Not by a guard: it is called by users, in
    `view(model, plan).save_pretrained(folder)` too, where nothing else would keep the view alive.
    """
    from transformers import PreTrainedModel  # takes long, and is loaded already

    save: Any = PreTrainedModel.save_pretrained
    if getattr(save, "_saves_views", False):
        return
    signature = inspect.signature(save)

    @functools.wraps(save)
    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = signature.bind(self, *args, **kwargs)
        with_adapters = getattr(self, "_hf_peft_config_loaded", False)  # which alone are saved
        says_it_all = own_plan(self.config) is not None and not vars(self.config).get(UNSAVED)
        if PLAN in vars(self) and not with_adapters and not says_it_all:
            parts = anatomy(self)
            _refuse_what_no_checkpoint_says(self, parts)
            given = call.arguments.get("state_dict")
            state = self.state_dict() if given is None else given
            call.arguments["state_dict"] = _one_tensor_a_visit(state, parts.path)
        return save(*call.args, **call.kwargs)

    vars(save_pretrained)["_saves_views"] = True
    PreTrainedModel.save_pretrained = save_pretrained


def _refuse_what_no_checkpoint_says(view: Any, parts: Anatomy) -> None:
    wrong = vars(view.config).get(UNSAVED)
    if not wrong and getattr(view, "hf_quantizer", None) is not None:
        wrong = "transformers cannot save quantised weights that visits share"
    if not wrong and (frozen := vars(parts.config).get(FROZEN)):
        wrong = f"no saved config can say {', '.join(frozen)} in this order of layers"
    if not wrong and (difference := difference_when_loaded(view)):
        wrong = f"a {type(view).__name__} loaded by its config would not be this view: {difference}"
    if wrong:
        raise ViewError(f"{wrong}; save the base and the plan instead")


def _one_tensor_a_visit(state: Mapping[str, torch.Tensor], path: str) -> dict[str, torch.Tensor]:
    """The state with copies where visits below `path` share a tensor; files do not store one twice."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in state.items():
        if name.startswith(f"{path}.") and tensor.device.type != "meta":
            place = tensor.data_ptr()
            separate[name] = tensor.clone() if place in seen else tensor
            seen.add(place)
        else:
            separate[name] = tensor
    return separate


def difference_when_loaded(model: nn.Module) -> str | None:
    """How the model that the config of this one makes differs from it; None if in nothing."""
    path = anatomy(model).path
    try:
        with torch.device("meta"):
            loaded = type(model)(copy.deepcopy(model.config))
        theirs = _facts(loaded, path)
    except Exception as error:
        return f"it cannot be built ({type(error).__name__})"
    ours = _facts(model, path)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            told = [f"{facts[name]}" if name in facts else "none" for facts in (ours, theirs)]
            return f"{name} is {told[0]} here and would be {told[1]}"
    return None


def _facts(model: nn.Module, path: str) -> dict[str, Any]:
    """The shape of each tensor, and the numbers that the modules of its layers, at `path`, hold."""
    layers = model.get_submodule(path)
    tensors = [
        *model.named_parameters(remove_duplicate=False),  # the visits of a view share theirs
        *layers.named_buffers(prefix=path, remove_duplicate=False),
    ]
    facts: dict[str, Any] = {name: tuple(tensor.shape) for name, tensor in tensors}
    for where, module in layers.named_modules(prefix=path):
        for name, value in vars(module).items():
            if isinstance(value, int | float) and not name.startswith("_") and name not in PASSING:
                facts[f"{where}.{name}"] = value
    return facts


GUARDS: dict[str, Callable[..., Any]] = {
    "_apply": _apply,
    "_resize_token_embeddings": _resize_token_embeddings,
}
