"""Several models by name, and the weights of each in memory only once."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from restack import plans
from restack.plans import Plan
from restack.recipes.following import Found, config_of_view
from restack.recipes.opening import (
    build_empty,
    device_named,
    dtype_named,
    find_reference,
    open,
    open_config,
    open_tokenizer,
)
from restack.recipes.reference import Reference, check_location, parse_reference

_Key = tuple[str, str | None, bool]  # where the weights lie, their revision, and whether as restack-llama


@dataclass(frozen=True, slots=True)
class Opened:
    """A model from the shelf.

    Attributes:
        name: as it was asked for.
        model: the base, or a view of it.
        tokenizer: of the model.
        base: has the weights; others that were opened may be views of it too.
        plan: what the model runs of the base.
    """

    name: str
    model: Any
    tokenizer: Any
    base: Any
    plan: Plan


@dataclass(frozen=True, slots=True)
class Held:
    """What is in memory: how many sets of weights, their parameters, and bytes (buffers too)."""

    bases: int
    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Which base a name comes to, and the plan of its view."""

    base: Reference
    revision: str | None
    plan: Plan
    key: _Key
    found: Found | None = None  # of a recipe, whose base has to be the one that it was saved for


class Shelf:
    """Opens models by name; those of the same base, their recipes included, share its weights.

    A plan with visits that read keys and values of visits above them needs its base as restack-llama: beside
    others of the same base, it is a second set of weights, and `on_note` is told so.
    """

    def __init__(
        self,
        *,
        dtype: str = "auto",
        device: str = "cpu",
        revision: str | None = None,
        trust_remote_code: bool = False,
        quantization_config: Any = None,
        cache_implementation: str | None = None,
        on_note: Callable[[str], None] = lambda text: None,
    ) -> None:
        """An empty shelf; the arguments are those of `restack.open`, for all its models.

        `cache_implementation` is of transformers' generation configs: "static" for compiled steps on a GPU.
        """
        self.dtype = dtype
        self.device = device
        self.revision = revision
        self.trust_remote_code = trust_remote_code
        self.quantization_config = quantization_config
        self.cache_implementation = cache_implementation
        self.on_note = on_note
        self._wanted: dict[str, _Wanted] = {}
        self._bases: dict[_Key, Any] = {}
        self._tokenizers: dict[_Key, Any] = {}

    def check(self, *names: str) -> None:
        """Refuse what could not be opened, for all that their files tell, before weights are read.

        Raises:
            ModelError, PlanError, ViewError: as `restack.open` does.
        """
        dtype_named(self.dtype)
        device_named(self.device)
        for name in names:
            check_location(parse_reference(name))
        for name in names:
            if name not in self._wanted:
                self._wanted[name] = self._find(name)

    def open(self, name: str) -> Opened:
        """The model that MODEL[@SPEC] names, with its weights read unless they are there already.

        Raises:
            ModelError, PlanError, ViewError: as `restack.open` does.
        """
        from restack.views import view

        self.check(name)
        wanted = self._wanted[name]
        base = self._base(name, wanted)
        if wanted.key not in self._tokenizers:
            self._tokenizers[wanted.key] = open_tokenizer(wanted.base, **self._hub(wanted.revision))
        model = base if wanted.plan.is_identity else view(base, wanted.plan)
        return Opened(name, model, self._tokenizers[wanted.key], base, wanted.plan)

    @property
    def held(self) -> Held:
        """What was loaded so far."""
        weights = {id(weight): weight for base in self._bases.values() for weight in base.parameters()}
        tensors = [*weights.values(), *(buffer for base in self._bases.values() for buffer in base.buffers())]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        parameters = sum(weight.numel() for weight in weights.values())
        return Held(len(self._bases), parameters, sum(storages.values()))

    def _base(self, name: str, wanted: _Wanted) -> Any:
        if wanted.key not in self._bases:
            place, revision, is_house = wanted.key
            if (place, revision, not is_house) in self._bases:
                self.on_note(f"{name} needs its base as another class: a second set of weights is loaded")
            if wanted.found is not None:
                wanted.found.refuse_other_weights()
            self._bases[wanted.key] = base = open(
                wanted.base,
                dtype=self.dtype,
                device=self.device,
                plan=wanted.plan,
                quantization_config=self.quantization_config,
                **self._hub(wanted.revision),
            )
            if self.cache_implementation is not None:
                base.generation_config.cache_implementation = self.cache_implementation
        return self._bases[wanted.key]

    def _find(self, name: str) -> _Wanted:
        reference = parse_reference(name)
        named, spec = Reference(reference.model), reference.spec or "all"
        hub = self._hub(self.revision)
        if named.is_merge:
            plan = plans.plan(spec, open_config(named, **hub))
            return _Wanted(named, self.revision, plan, (os.path.realpath(named.location), None, False))
        found = find_reference(named, **hub)
        planned = found.then(spec)
        ready = planned.ready()
        if planned.plan is not None and not planned.plan.is_identity:
            build_empty(ready, trust_remote_code=self.trust_remote_code)  # or refused, in a second
        is_house = ready.config is not planned.config
        if found.adapter is not None or found.location.subfolder:  # nobody else runs these weights so
            plan = plans.plan(spec, config_of_view(found))
            return _Wanted(named, self.revision, plan, (f"{named.location}#", self.revision, is_house))
        base = named if found.recipe is None else Reference(found.location.name)
        place = os.path.realpath(found.location.name) if found.location.is_local else found.location.name
        assert planned.plan is not None
        revision = found.location.revision
        return _Wanted(base, revision, planned.plan, (place, revision, is_house), found)

    def _hub(self, revision: str | None) -> dict[str, Any]:
        return {"revision": revision, "trust_remote_code": self.trust_remote_code}
