"""What enters the visits of a model while it runs."""

import inspect
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import nn

from restack.errors import ViewError
from restack.views.altered import Altered
from restack.views.anatomy import anatomy
from restack.views.planned import iterated, runs_plans, visit_count


class Recording(Mapping[int, torch.Tensor]):
    """The hidden states (B, T, C) that entered visits while one thread ran a model, by visit."""

    def __init__(self, model: nn.Module, visits: Iterable[int]) -> None:
        self.model = model
        self.count = visit_count(model)
        wanted = frozenset(visits)
        if beyond := [visit for visit in wanted if not 0 <= visit <= self.count]:
            raise ViewError(f"the model has no visit {min(beyond)}; record some of 0 to {self.count}")
        self.visits = wanted - iterated(model)
        self.thread = threading.get_ident()
        self._pieces: dict[int, list[torch.Tensor]] = {}

    def __getitem__(self, visit: int) -> torch.Tensor:
        pieces = self._pieces[visit]
        if len(pieces) > 1:
            pieces[:] = [torch.cat(pieces, dim=1)]
        return pieces[0]

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._pieces))

    def __len__(self) -> int:
        return len(self._pieces)

    def add(self, visit: int, hidden: Any) -> None:
        """Record hidden states of a visit, in the thread it is asked for; several streams are left out."""
        if visit in self.visits and threading.get_ident() == self.thread and hidden.ndim == 3:
            # a copy: what layers and graphs are given may be written over later
            self._pieces.setdefault(visit, []).append(hidden.detach().clone())

    @contextmanager
    def watching(self, model: nn.Module, first: int = 0) -> Iterator[None]:
        """Record what a model runs whose visits are those of the recorded one from `first` on."""
        parts = anatomy(model)
        with ExitStack() as hooks:

            def enter(module: nn.Module, hook: Hook) -> None:
                hooks.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))

            with hooks_change:
                if runs_plans(model):
                    for layer in parts.layers:
                        enter(layer, Steps(self, first))
                    enter(cast(Any, parts.decoder).base_model.norm, Entering(self, self.count))
                else:
                    for number, layer in enumerate(parts.layers, first):
                        if number in self.visits:
                            enter(layer, Entering(self, number))
                    if self.count in self.visits:
                        hooks.enter_context(parts.layers[-1].register_forward_hook(Leaving(self, self.count)))
            try:
                yield
            finally:
                with hooks_change:
                    hooks.close()


class Hook:
    """A hook that records. A view made meanwhile copies the hooks of its layers: these do nothing there."""

    __slots__ = ("number", "recording")

    def __init__(self, recording: Recording, number: int) -> None:
        self.recording = recording
        self.number = number

    def __deepcopy__(self, memo: Any) -> Any:
        return nothing

    def __call__(self, module: nn.Module, args: tuple[Any, ...], further: Any = None) -> None:
        """`further` are keyword arguments, or what comes out."""
        raise NotImplementedError


def nothing(*args: Any) -> None:
    """The copy of a hook that records."""


class Entering(Hook):
    """What a layer is given, before it runs."""

    __slots__ = ()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], further: Any = None) -> None:
        if args or further:
            self.recording.add(self.number, args[0] if args else further[stream_of(module)])


class Leaving(Hook):
    """What comes out of the last layer."""

    __slots__ = ()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], further: Any = None) -> None:
        self.recording.add(self.number, further if isinstance(further, torch.Tensor) else further[0])


class Steps(Hook):
    """What a layer of a restack-llama is given in each of its visits; once, if they are iterated."""

    __slots__ = ("before",)

    def __init__(self, recording: Recording, number: int) -> None:
        super().__init__(recording, number)
        self.before: dict[int, weakref.ref[torch.Tensor]] = {}

    def __call__(self, module: nn.Module, args: tuple[Any, ...], further: Any = None) -> None:
        if not further or threading.get_ident() != self.recording.thread:
            return
        visit, hidden = self.number + further["step"].number, args[0]
        before = self.before.get(visit)
        if before is None or before() is not hidden:  # all passes over a group start from one tensor
            self.before[visit] = weakref.ref(hidden)
            self.recording.add(visit, hidden)


_running = threading.local()  # the recordings of each thread
hooks_change = threading.Lock()  # no view can be made of a layer meanwhile


def recordings_here() -> tuple[Recording, ...]:
    """The recordings of this thread that have begun."""
    found: tuple[Recording, ...] = getattr(_running, "recordings", ())
    return found


@contextmanager
def recording(model: nn.Module, visits: Iterable[int]) -> Iterator[Recording]:
    """Record the hidden states (B, T, C) that enter visits, over all forwards of this thread in the block.

    Those that `resume` runs of the model count too. What is read, in the block or after it, is joined along
    the tokens, detached, and on the device it was on. Other threads may run the model at the same time: they
    record for themselves or not at all. A generation in another thread is recorded there.

    Costs a copy of (B, T, C) for each visit and forward.

    Args:
        model: a loaded model of transformers; a view, too.
        visits: numbers of visits. The number of all visits stands for what leaves the last one. Visits that a
            restack-llama iterates together with ones before them are left out: what enters them is not final.

    Yields:
        A mapping, by visit, of those that were run.

    Raises:
        ViewError: there is no such visit, or no view of such a model.
    """
    result = Recording(model, visits)
    before = recordings_here()
    with result.watching(model):
        _running.recordings = (*before, result)
        try:
            yield result
        finally:
            _running.recordings = before


def stream_of(layer: nn.Module) -> str:
    """The parameter of a layer's forward that takes the hidden states."""
    return next(iter(parameters_of(layer)))


def parameters_of(layer: nn.Module) -> list[str]:
    original: Any = layer.original if isinstance(layer, Altered) else type(layer)
    return [name for name in inspect.signature(original.forward).parameters if name != "self"]
