"""A view that goes on where another has read: the first visits that two models share are not run again.

While one model reads, what enters some of its visits is recorded. Another that does the same up to such a
visit then needs only its own visits from there on, over the recorded hidden states. The slots of those before
are taken out of the first one's KV cache: the very tensors, which both caches share.
"""

import copy
import inspect
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from restack.errors import RestackError, ViewError
from restack.plans import Plan
from restack.views.arranging import arranged_copy
from restack.views.midway import entering, refuse_other_streams
from restack.views.planned import iterated, runs_plans, visit_count
from restack.views.recording import hooks_change, recordings_here
from restack.views.shared_kv import Borrowed, Lending

GROWING = (DynamicLayer, DynamicSlidingWindowLayer)  # slots that make new tensors of the old ones


def resumable(model: nn.Module, visit: int) -> bool:
    """Whether `resume` can begin at this visit of a model.

    Not where a later visit reads the keys and values of one before, or anything else that layers hand on
    beside the hidden states; not among visits that a restack-llama iterates together; not where no view could
    be made of the visits that are left: of a hybrid without attention, say; and not in a model whose cache is
    not transformers' own, under its usual name. Takes as long as a view.
    """
    try:
        _rest(model, visit)
    except RestackError:
        return False
    return True


@torch.no_grad()
def resume(
    model: nn.Module, visit: int, hidden: torch.Tensor | None, tokens: torch.Tensor, cache: Cache
) -> DynamicCache:
    """A cache of `model` as if it had read the tokens, though only its visits from `visit` on are run.

    The slots of the visits before hold the tensors of `cache`, not copies: both caches can be continued, each
    by its model, but not `reset`. Recurrent states, which are updated in place, are copied. The model is not
    changed; other threads may run it meanwhile.

    Where a restack-llama iterates visits, what it keeps of tokens that came one by one is exact, and its own
    prefill of them all may only come near that.

    Args:
        model: that goes on, without gradients.
        visit: no more than `leading_visits(other, model)`, where `other` has filled the cache.
        hidden: (1, T, C), what entered this visit; None does if it is 0, or the number of all visits.
        tokens: (1, T), all that `cache` has read, without padding.
        cache: a `DynamicCache` made with the config of its model, as `generate` makes it.

    Raises:
        ViewError, PlanError: it cannot be begun at this visit, or what is given does not go together.
    """
    rest = _rest(model, visit)
    config = cast(Any, model).config
    result = DynamicCache(config=config)
    taken = min(visit, len(result.layers))
    if runs_plans(model):  # whose visits have a slot if somebody reads their keys and values
        taken = sum(step.slot is not None for step in config.schedule.steps if step.number < visit)
    if visit:
        _check(cache, taken, result, tokens)
        result.layers[:taken] = map(_shared, cache.layers[:taken], result.layers[:taken])
    if rest is None:
        return result
    if visit and (hidden is None or hidden.ndim != 3 or hidden.shape[:2] != tokens.shape):
        shape = "none" if hidden is None else tuple(hidden.shape)
        raise ViewError(
            f"visit {visit} needs the hidden states of {tuple(tokens.shape)} tokens, and is given {shape}; "
            "record what enters it while all of them are read"
        )
    filled = DynamicCache(config=cast(Any, rest).config)
    run: Any = cast(Any, rest).base_model
    with ExitStack() as hooks:
        given: dict[str, Any] = {"input_ids": tokens}
        if visit:
            given = hooks.enter_context(entering(rest, hidden, tokens))
        for watcher in recordings_here():
            if visit and watcher.model is model:
                hooks.enter_context(watcher.watching(rest, visit))
        run(**given, past_key_values=filled, use_cache=True)
    result.layers[taken:] = filled.layers
    return result


def _rest(model: Any, visit: int) -> nn.Module | None:
    """A view of a model's visits from one on: itself from the first, None after the last.

    Raises:
        ViewError, PlanError: these visits need more of those before than hidden states.
    """
    count = visit_count(model)
    if not 0 <= visit <= count:
        raise ViewError(f"the model has {count} visits, and no {visit}; resume at 0 to {count}")
    if "past_key_values" not in inspect.signature(model.base_model.forward).parameters:
        raise ViewError(f"a {type(model).__name__} keeps no cache in past_key_values; read from the start")
    supports = getattr(model, "_supports_default_dynamic_cache", None)
    keeps_state_in_modules = hasattr(model.base_model, "_setup_cache")  # RecurrentGemma
    if keeps_state_in_modules or (supports is not None and not supports()):
        raise ViewError(f"a {type(model).__name__} has a cache of its own kind; read from the start")
    if visit in iterated(model):
        raise ViewError(f"visit {visit} is iterated with others before it; resume at the first of them")
    if visit in (0, count):
        return None if visit else cast(nn.Module, model)
    refuse_other_streams(model)
    with hooks_change:
        return cast(nn.Module, arranged_copy(model, Plan.of(range(visit, count), count), share_tensors=True))


def _check(cache: Any, taken: int, own: DynamicCache, tokens: torch.Tensor) -> None:
    if not isinstance(cache, DynamicCache) or cache.offloading:
        raise ViewError(f"a {type(cache).__name__} cannot be gone on with here; read into a DynamicCache")
    length = cache.get_seq_length()
    if tokens.ndim != 2 or length != tokens.shape[1]:
        raise ViewError(f"the cache holds {length} tokens and is to be of {tuple(tokens.shape)}; give those")
    slots = zip(cache.layers[:taken], own.layers, strict=False)
    kept = ((slot, wanted) for slot, wanted in slots if not isinstance(slot, Borrowed))
    if len(cache.layers) < taken or any(_slides(slot) != _slides(wanted) for slot, wanted in kept):
        raise ViewError("the cache has not the slots of this model; make it with the config of its own model")


def _slides(slot: Any) -> bool:
    return bool(getattr(slot, "is_sliding", False))


def _shared(slot: Any, empty: Any) -> Any:
    """A slot for a second cache that holds the same tensors; copies where they are written to."""
    if isinstance(slot, Borrowed):  # the next forward links it to an owner, which is in the second cache too
        return empty
    kind = type(slot).__mro__[2] if isinstance(slot, Lending) else type(slot)
    return copy.copy(slot) if kind in GROWING else copy.deepcopy(slot)
