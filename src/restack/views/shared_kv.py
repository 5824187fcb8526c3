"""Visits that read the keys and values of a visit below them: cross-layer attention (CLA, YOCO) and the like.

A reader attends to what its owner attended to in this very forward: keys that are rotated and normed already,
the past before them. It computes and caches none. Both happen where transformers' attention hands its keys
and values to the cache, `past_key_values.update(k, v, layer_idx)`: the owner's slot remembers what it gave
back, and the reader's slot gives that. Where there is no cache (training, `use_cache=False`), the layers
hand a fleeting one to each other that keeps nothing else.

Sources: CLA 2405.12981, YOCO 2405.05254.
"""

import inspect
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
)

from restack.errors import ViewError
from restack.plans import Plan
from restack.views.altered import Altered, alter, restore
from restack.views.anatomy import Anatomy
from restack.views.empty_slot import EmptySlot
from restack.views.sliding import Kinds

CACHE_PARAMETERS = ("past_key_values", "layer_past")
# How an attention hands its keys and values over; whatever else a layer keeps, views cannot share.
UPDATE = re.compile(r"\.update\(\s*(key\w*|k),\s*(value\w*|v),\s*self\.layer_idx")
# Keys are made for attention of one kind: other heads, windows or rotations cannot read them.
KIND_OF_KEYS = (
    "head_dim", "is_local_attention", "num_key_value_heads", "rope_theta", "use_rope"
)  # fmt: skip
# Attention with one projection for queries, keys and values in this order: {class: (projection, queries)}.
FUSED: dict[str, tuple[str, Callable[[Any], int]]] = {
    "GPT2Attention": ("c_attn", lambda attention: attention.embed_dim),
    "Phi3Attention": (
        "qkv_proj",
        lambda attention: attention.config.num_attention_heads * attention.head_dim,
    ),
}


class Running:
    """What the layers of one view hand to each other in a forward without a cache, of each thread's own."""

    def __init__(self) -> None:
        self._thread = threading.local()
        self._traced: Cache | None = None  # `torch.compile` cannot see threads, and traces in one

    def __reduce__(self) -> Any:
        return Running, ()

    @property
    def now(self) -> Cache | None:
        """The fleeting cache of the forward that runs in this thread."""
        return self._traced if torch.compiler.is_compiling() else getattr(self._thread, "now", None)

    @now.setter
    def now(self, fleeting: Cache | None) -> None:
        if torch.compiler.is_compiling():
            self._traced = fleeting
        else:
            self._thread.now = fleeting


@dataclass(frozen=True, slots=True)
class Sharing:
    """Whose keys and values the visits of a view read; one object for all its layers."""

    owners: tuple[int, ...]  # of each visit; itself where it reads its own
    readers: dict[int, int]  # {visit: the owner it reads}
    lenders: frozenset[int]  # the owners that others read
    last_readers: frozenset[int]  # of each owner: nobody needs its keys and values after them
    running: Running

    @classmethod
    def of(cls, plan: Plan) -> "Sharing | None":
        """What a plan shares; None if nothing."""
        readers = {visit: owner for visit, owner in enumerate(plan.owners) if visit != owner}
        last = {owner: visit for visit, owner in readers.items()}
        lenders, last_readers = frozenset(last), frozenset(last.values())
        return cls(plan.owners, readers, lenders, last_readers, Running()) if readers else None


@dataclass(frozen=True, slots=True)
class Role:
    """A visit's part in the sharing."""

    sharing: Sharing
    visit: int
    parameter: str  # of the layer's forward, that takes the cache
    place: int  # of that parameter

    @property
    def is_first(self) -> bool:
        """Of all visits that take part, this one runs first."""
        return self.visit == min(self.sharing.lenders)

    @property
    def is_last(self) -> bool:
        """Of all visits that take part, this one runs last."""
        return self.visit == max(self.sharing.last_readers)


class SharingLayer(Altered):
    """A decoder layer that reads another's keys and values, or whose own are read."""

    restack_role: Role

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's output. Gradient checkpointing takes caches away; it does not know the fleeting one."""
        role = self.restack_role
        running = role.sharing.running
        if role.is_first:
            running.now = _linked(_fleeting(len(role.sharing.owners)), role.sharing, releases=False)
        fleeting = running.now
        if role.is_last:
            running.now = None
        return super().__call__(*args, restack_handed=(fleeting, torch.is_grad_enabled()), **kwargs)

    def forward(self, *args: Any, restack_handed: tuple[Any, bool] = (None, False), **kwargs: Any) -> Any:
        """The layer's own forward, with a cache whose slots are linked."""
        fleeting, has_gradients = restack_handed
        role = self.restack_role
        if has_gradients and not torch.is_grad_enabled():
            raise ViewError(
                "reentrant checkpointing would lose the gradients of shared keys and values; enable it with "
                'gradient_checkpointing_enable({"use_reentrant": False})'
            )
        if kwargs.get("cache") is not None:
            raise ViewError("shared keys and values do not run in continuous batching; use generate")
        is_by_place = len(args) > role.place
        used = args[role.place] if is_by_place else kwargs.pop(role.parameter, None)
        if used is None:
            used = fleeting
        elif role.is_first:
            _linked(used, role.sharing, releases=True)
        if is_by_place:
            args = (*args[: role.place], used, *args[role.place + 1 :])
        else:
            kwargs[role.parameter] = used
        return super().forward(*args, **kwargs)


class Unread(Altered):
    """A projection to keys or values that nobody reads: nothing is computed."""

    out_features: int

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out): one zero, seen as so many."""
        return x.new_zeros(()).expand(*x.shape[:-1], self.out_features)


class QueriesOnly(Altered):
    """A projection to queries, keys and values of which only queries are read."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    restack_queries: int

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out), zeros after the queries."""
        queries = self.restack_queries
        weight = self.weight if isinstance(self, nn.Linear) else self.weight.T  # GPT-2's is transposed
        bias = None if self.bias is None else self.bias[:queries]
        return F.pad(F.linear(x, weight[:queries], bias), (0, weight.shape[0] - queries))


class Lending(CacheLayerMixin):  # type: ignore[misc]
    """Mixed into the class of a slot of the cache: remembers what it gave back, until all have read it."""

    lent: tuple[torch.Tensor, torch.Tensor] | None = None
    source: Any = None  # the slot that this visit reads in place of its own
    releases = False  # the visit is the last to read that slot

    def update(self, key_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """What this visit attends to: keys and values (B, H, T, D)."""
        self.lent = super().update(key_states, *args, **kwargs)  # type: ignore[misc]
        return self.lent if self.source is None else _read(self.source, key_states.device, self.releases)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _new_slot, (type(self).__mro__[2],), vars(self)


class Borrowed(EmptySlot):  # type: ignore[misc]
    """The slot of a visit that reads another's keys and values: it keeps none."""

    def __init__(self, source: Any, releases: bool) -> None:
        super().__init__()
        self.source = source
        self.releases = releases

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
        """The owner's keys and values, (B, H, T, D), the past included."""
        return _read(self.source, key_states.device, self.releases)


class Fleeting(DynamicLayer):  # type: ignore[misc]
    """A slot that keeps nothing, for a forward without a cache."""

    _layer_type = None

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
        """The keys and values of this forward alone."""
        return key_states, value_states


def share(layer: nn.Module, visit: int, sharing: Sharing | None) -> None:
    """Have a visit's layer read and lend keys and values as `sharing` says, whatever it did before."""
    for module in layer.modules():
        for alteration in (Unread, QueriesOnly):
            restore(module, alteration)
        vars(module).pop("restack_queries", None)
    restore(layer, SharingLayer)
    vars(layer).pop("restack_role", None)
    if sharing is None or not (visit in sharing.readers or visit in sharing.lenders):
        return
    if visit not in sharing.lenders:
        for projection, queries in _projections(attention_of(layer, visit), visit):
            alter(projection, Unread if queries is None else QueriesOnly)
            if queries is not None:
                vars(projection)["restack_queries"] = queries
    original: Any = layer.original if isinstance(layer, Altered) else type(layer)
    names = [name for name in inspect.signature(original.forward).parameters if name != "self"]
    parameter = next((name for name in CACHE_PARAMETERS if name in names), None)
    if parameter is None:
        raise ViewError(f"a {original.__name__} takes no cache by a name that views know; leave kv= out")
    alter(layer, SharingLayer)
    vars(layer)["restack_role"] = Role(sharing, visit, parameter, names.index(parameter))


def check(sharing: Sharing, order: Sequence[int], kinds: Kinds, parts: Anatomy) -> None:
    """Refuse plans whose readers could not use what their owners keep.

    Args:
        sharing: of a plan.
        order: the layer that each visit runs.
        kinds: what `layer_types` says of each visit.
        parts: of the model.

    Raises:
        ViewError: a layer is no ordinary attention, or the two are of different kinds.
    """
    if getattr(parts.config, "num_kv_shared_layers", None) or getattr(parts.config, "kv_source_layers", None):
        raise ViewError(
            f"{parts.config.model_type} shares keys and values between its layers already; leave kv= out"
        )
    for visit, owner in sharing.readers.items():
        facts = []
        for number in (visit, owner):
            kind = kinds[number]
            if kind not in (None, "full_attention", "sliding_attention"):
                raise ViewError(f"visit {number} runs {kind}, whose keys and values views cannot share")
            attention = attention_of(parts.layers[order[number]], number)
            facts.append({"layer_types": kind, **_kind_of_keys(attention)})
        if visit not in sharing.lenders:
            _projections(attention_of(parts.layers[order[visit]], visit), visit)
        for name in facts[0]:
            ours, theirs = (fact.get(name) for fact in facts)
            if ours != theirs:
                raise ViewError(
                    f"visit {visit} cannot read the keys and values of visit {owner}: its {name} is {ours}, "
                    f"and {theirs} there"
                )


def _kind_of_keys(attention: nn.Module) -> dict[str, Any]:
    widths = {
        name: module.out_features
        for name, module in attention.named_children()
        if name in ("k_proj", "v_proj") and isinstance(module, nn.Linear)
    }
    return {name: getattr(attention, name, None) for name in KIND_OF_KEYS} | widths


def attention_of(layer: nn.Module, visit: int) -> nn.Module:
    """The one module of a layer that hands keys and values to the cache."""
    found = [module for module in layer.modules() if _hands_over(cast(Any, type(module)))]
    if any("kv_b_proj" in dict(module.named_children()) for module in layer.modules()):
        reason = "multi-head latent attention, which keeps what keys are made of"
    elif len(found) == 1:
        return found[0]
    else:
        reason = "no attention that keeps plain keys and values" if not found else "several attentions"
    raise ViewError(
        f"visit {visit} runs a {type(layer).__name__} with {reason}; views cannot share its keys and values"
    )


@cache
def _hands_over(module_class: Any) -> bool:
    """Whether modules of this class are attention that hands plain keys and values to the cache."""
    if not module_class.__name__.endswith("Attention"):
        return False
    original = getattr(module_class, "original", module_class)
    try:
        return UPDATE.search(inspect.getsource(inspect.unwrap(original.forward))) is not None
    except (OSError, TypeError):
        return False


def _projections(attention: nn.Module, visit: int) -> list[tuple[nn.Module, int | None]]:
    """What a reader need not compute: (projection, how many of its outputs are queries)."""
    inside = dict(attention.named_children())
    parts = (inside.get(name) for name in ("q_proj", "k_proj", "v_proj"))
    if all(isinstance(getattr(part, "base_layer", part), nn.Linear) for part in parts):  # or adapted ones
        return [(inside["k_proj"], None), (inside["v_proj"], None)]
    original: Any = attention.original if isinstance(attention, Altered) else type(attention)
    if original.__name__ in FUSED:
        name, queries = FUSED[original.__name__]
        return [(inside[name], queries(attention))]
    raise ViewError(
        f"visit {visit} cannot read another's keys and values: a {original.__name__} computes its queries, "
        "keys and values in one projection that views cannot take apart"
    )


def _fleeting(slots: int) -> Cache:
    return Cache(layers=[Fleeting() for _ in range(slots)])  # type: ignore[no-untyped-call]


def _linked(kv_cache: Any, sharing: Sharing, *, releases: bool) -> Any:
    """The cache with its slots linked, where they are not yet."""
    slots = kv_cache.layers
    while len(slots) < len(sharing.owners) and kv_cache.layer_class_to_replicate is not None:
        slots.append(kv_cache.layer_class_to_replicate())
    for owner in sharing.lenders:
        if not isinstance(slots[owner], Lending):
            slots[owner] = _lending(slots[owner])
    for reader, owner in sharing.readers.items():
        is_last = releases and reader in sharing.last_readers
        if isinstance(slots[reader], Lending):
            slots[reader].source, slots[reader].releases = slots[owner], is_last
        elif not isinstance(slots[reader], Borrowed):
            if slots[reader].is_initialized:
                raise ViewError(
                    f"visit {reader} reads visit {owner}, and this cache holds its own keys and values; "
                    "give a cache that this view filled"
                )
            slots[reader] = Borrowed(slots[owner], is_last)
    return kv_cache


def _read(source: Any, device: torch.device, releases: bool) -> tuple[torch.Tensor, torch.Tensor]:
    if source.lent is None:
        raise ViewError("keys and values are read before their owner ran; give a cache that this view filled")
    keys, values = source.lent
    if releases:
        source.lent = None
    return keys.to(device), values.to(device)


def _lending(slot: Any) -> Any:
    """The slot with what it holds, as one that lends."""
    slot_class = type(slot)
    made = _new_slot(slot_class) if slot_class not in _LENDING else object.__new__(_LENDING[slot_class])
    for name, value in vars(slot).items():
        setattr(made, name, value)
    return made


def _new_slot(slot_class: Any) -> Any:
    if slot_class not in _LENDING:
        # Without a `_layer_type` transformers does not take the class for a new kind of slot.
        _LENDING[slot_class] = type(slot_class.__name__, (Lending, slot_class), {"_layer_type": None})
    return object.__new__(_LENDING[slot_class])


_LENDING: dict[Any, Any] = {}
for _slot_class in (DynamicLayer, DynamicSlidingWindowLayer, StaticLayer, Fleeting):
    _new_slot(_slot_class)
