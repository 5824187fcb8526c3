"""From what was typed to a plan, a loaded model and its view."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import huggingface_hub
import torch
import transformers

from restack import plans, recipes, views
from restack.errors import PlanError, UsageError
from restack.plans import depth_ranges
from restack.recipes.shelf import Shelf

huggingface_hub.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def set_seed(seed: int | None) -> None:
    """Seed torch's random numbers, if a seed is given.

    Raises:
        UsageError: it is not one that torch takes.
    """
    if seed is None:
        return
    try:
        torch.manual_seed(seed)
    except (RuntimeError, ValueError, OverflowError):
        raise UsageError(f"seed {seed} is out of range; write a number from 0 to {2**64 - 1}") from None


def quantization(format: str | None) -> Any:
    """How weights are quantised as they are read; None if no format is given."""
    if format is None:
        return None
    from restack.runtime.packed import PackedConfig

    return PackedConfig(format)


@contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Tell what is warned of while a model is opened as the command line tells things."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in told:
        if issubclass(warning.category, UserWarning):
            print(f"restack: {warning.message}", file=sys.stderr)


def shelf(quantize: str | None, is_compiled: bool, **place: Any) -> Shelf:
    """A shelf that tells what it notes as the command line does; `place` are its arguments."""
    return Shelf(
        **place,
        cache_implementation=cache_implementation(is_compiled, place["device"]),
        quantization_config=quantization(quantize),
        on_note=lambda text: print(f"restack: {text}", file=sys.stderr),
    )


def cache_implementation(is_compiled: bool, device: str) -> str | None:
    """The kind of KV cache that --compile asks for; None for that of the model.

    Raises:
        UsageError: the device is none for which steps are compiled.
    """
    if is_compiled and device.partition(":")[0] in ("cpu", "mps"):
        raise UsageError(
            f"--compile is for GPUs and the device is {device}; add --device cuda, or leave it out"
        )
    return "static" if is_compiled else None


@dataclass(kw_only=True)
class Source:
    """MODEL[@SPEC] and the options that say which view of it is meant, and how to load it."""

    model: str
    layers: str | None = None
    ratio: str | None = None
    kv: str | None = None
    dtype: str = "auto"
    device: str = "cpu"
    revision: str | None = None
    trust_remote_code: bool = False
    quantize: str | None = None
    draft: str | None = None
    is_compiled: bool = False

    def check_place(self) -> None:
        """Refuse a dtype or a device that cannot be, before work that needs it only at its end.

        Raises:
            ModelError: so it is.
        """
        recipes.dtype_named(self.dtype)
        recipes.device_named(self.device)

    @cached_property
    def reference(self) -> recipes.Reference:
        """The model without its spec."""
        return recipes.Reference(recipes.parse_reference(self.model).model)

    @cached_property
    def config(self) -> Any:
        if sys.stderr.isatty() and not self.reference.is_local:  # the hub may keep us waiting
            print(f"looking for {self.reference.model} on the hub", file=sys.stderr, flush=True)
        return recipes.open_config(self.reference, **self.hub)

    @cached_property
    def plan(self) -> plans.Plan:
        """The plan that is asked for; without any, every layer once.

        Raises:
            UsageError: a plan is asked for in two ways.
            PlanError: it is not one for this model.
        """
        spec = recipes.parse_reference(self.model).spec
        asked = [text for text in (spec, self.layers, self.ratio) if text is not None]
        if len(asked) > 1:
            raise UsageError("the layers are given twice; use one of MODEL@SPEC, --layers and --ratio")
        if self.ratio is not None:
            ranges = depth_ranges.parse(self.ratio)
            plan = plans.plan(None, self.config, ratio_repeat=ranges, kv=self.kv)
        else:
            plan = plans.plan(asked[0] if asked else "all", self.config, kv=self.kv)
        self._check_window(plan)
        return plan

    def _check_window(self, plan: plans.Plan) -> None:
        """Refuse a plan with a sliding window for a model that has none configured."""
        sliding = next((number for number, visit in enumerate(plan.visits) if visit.sliding), None)
        window = getattr(self.config.get_text_config(decoder=True), "sliding_window", None)
        if sliding is not None and not (isinstance(window, int | float) and window > 0):
            raise PlanError(
                f"visit {sliding} reads keys and values through a sliding window (s), and "
                f"{self.reference.model} has none; write the KV map without s, or set sliding_window in its "
                "config.json"
            )

    @property
    def is_demo(self) -> bool:
        """Whether the model is the demo model, or a recipe of it: it knows nothing but its own world."""
        if self.reference.is_merge:
            return False
        found = recipes.find_reference(self.reference, self.revision, self.trust_remote_code)
        return found.model.model == "demo"

    def load(self) -> tuple[Any, Any, Any]:
        """The base model, the view of it that is asked for (or the base itself), and the tokenizer."""
        plan = self.plan
        tokenizer = recipes.open_tokenizer(self.reference, **self.hub)
        base = self.load_base()
        return base, base if plan.is_identity else views.view(base, plan), tokenizer

    def drafter(self, base: Any, tokenizer: Any) -> Any:
        """What drafts for views of the base, if anything is to: @SPEC, a view of it; or another model.

        Raises:
            UsageError: the other model has another tokenizer.
        """
        if self.draft is None:
            return None
        from restack.runtime import Drafter

        is_bare = len(self.draft) > 1 and self.draft.startswith("@")
        named = recipes.parse_reference(self.reference.model + self.draft if is_bare else self.draft)
        if named.model == self.reference.model:  # on the weights that are there
            return Drafter(base if named.spec is None else views.view(base, named.spec))
        other = replace(self, model=self.draft, layers=None, ratio=None, kv=None, revision=None, draft=None)
        _, model, others = other.load()
        if others.get_vocab() != tokenizer.get_vocab():
            raise UsageError(
                f"{self.draft} has another tokenizer than {self.model}, so it cannot draft for it; "
                "draft with a view of the same model, as in --draft @0:8,12:"
            )
        return Drafter(model)

    def load_base(self) -> Any:
        """The base model, as one of which a view can run the plan."""
        kind_of_cache = cache_implementation(self.is_compiled, self.device)
        if self.is_compiled and self.draft is not None:
            raise UsageError("compiled steps run a token at a time; leave out --draft or --compile")
        with warnings_in_one_line():
            base = recipes.open(
                self.reference,
                dtype=self.dtype,
                device=self.device,
                plan=self.plan,
                quantization_config=quantization(self.quantize),
                **self.hub,
            )
        if kind_of_cache is not None:
            base.generation_config.cache_implementation = kind_of_cache
        return base

    def load_empty(self) -> Any:
        """The base model without weights."""
        return recipes.open_empty(self.reference, dtype=self.dtype, plan=self.plan, **self.hub)

    @property
    def hub(self) -> dict[str, Any]:
        """How a model of the hub is to be fetched."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
