"""Modules that compute otherwise than their class does, on the same weights: each gets a subclass of its own.

A subclass, unlike a hook, is there for whatever calls the module's forward: gradient checkpointing, recorders
of hidden states, `torch.compile`. It is part of the object's state, so it is copied and pickled with it.
"""

from functools import cache
from types import MethodType
from typing import Any

from torch import nn

from restack.errors import ViewError


class Altered(nn.Module):
    """Mixed in before a module's own class, by `alter`; its subclasses say what is computed otherwise."""

    original: type[nn.Module]
    alterations: tuple[type["Altered"], ...]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copy and pickle by the original class; the class made here has no name that pickle could find."""
        state = self.__getstate__()  # type: ignore[no-untyped-call]
        return _new, (self.original, self.alterations), state


def alter(module: nn.Module, alteration: type[Altered]) -> None:
    """Put `alteration` before what the module's class does.

    Raises:
        ViewError: the module's forward was replaced on the module itself, so its class has no say.
    """
    if not isinstance(module, alteration):
        _become(module, (alteration, *alterations(module)))


def restore(module: nn.Module, alteration: type[Altered]) -> None:
    """Take `alteration` out again, if it is there."""
    if isinstance(module, alteration):
        _become(module, tuple(other for other in alterations(module) if other is not alteration))


def alterations(module: nn.Module) -> tuple[type[Altered], ...]:
    """The alterations of a module, outermost first."""
    return module.alterations if isinstance(module, Altered) else ()


def _become(module: nn.Module, wanted: tuple[type[Altered], ...]) -> None:
    before: Any = type(module)
    original: Any = module.original if isinstance(module, Altered) else type(module)
    after = _subclass(original, wanted) if wanted else original
    kept = {name: value for name, value in vars(module).items() if name in ("forward", "_old_forward")}
    bound = [name for name, value in kept.items() if getattr(value, "__func__", None) is before.forward]
    if kept and not bound and before.forward is not after.forward:
        raise ViewError(
            f"the forward of a {original.__name__} was replaced on the module itself, so its visits cannot "
            "be changed one by one; make the view first, then patch it"
        )
    module.__class__ = after
    for name in bound:  # accelerate's hooks keep the forward that they call in the module
        vars(module)[name] = MethodType(after.forward, module)


@cache
def _subclass(original: Any, wanted: tuple[type[Altered], ...]) -> Any:
    names = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(original.__name__, (*wanted, original), names | {"original": original, "alterations": wanted})


def _new(original: Any, wanted: tuple[type[Altered], ...]) -> Any:
    made = _subclass(original, wanted)
    return made.__new__(made)
