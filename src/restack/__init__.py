"""Restack: repeat, skip, reorder and share a language model's layers. One set of weights, many models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from restack.errors import ModelError, PlanError, RestackError, UsageError, ViewError
    from restack.plans import Plan, Visit, plan
    from restack.recipes import open, save
    from restack.runtime.packed import quantize
    from restack.views import materialise, sling, slung, unsling, verify, view

__version__ = "0.1.0"

_HOME = {
    "ModelError": "restack.errors",
    "Plan": "restack.plans",
    "PlanError": "restack.errors",
    "RestackError": "restack.errors",
    "UsageError": "restack.errors",
    "ViewError": "restack.errors",
    "Visit": "restack.plans",
    "materialise": "restack.views",
    "open": "restack.recipes",
    "plan": "restack.plans",
    "quantize": "restack.runtime.packed",
    "save": "restack.recipes",
    "sling": "restack.views",
    "slung": "restack.views",
    "unsling": "restack.views",
    "verify": "restack.views",
    "view": "restack.views",
}
__all__ = [name for name in _HOME if name != "open"]  # `from restack import *` leaves Python's own as it is


def __getattr__(name: str) -> Any:
    # On first use: `import restack` must not take the seconds that importing torch takes.
    if name not in _HOME:
        raise AttributeError(f"module 'restack' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])


def _teach_lm_eval() -> None:
    registry = getattr(import_module("lm_eval.api.registry"), "model_registry", None)  # not in old versions
    if registry is not None and "restack" not in registry:
        registry.register("restack", target="restack.scanning.harness.model:RestackLM")


def _teach_quantizers() -> None:
    import_module("restack.runtime.packed.quantizer")  # which registers itself


import_module("restack.recipes").teach_transformers()
import_module("restack.recipes.import_hook").when_imported("transformers.modeling_utils", _teach_quantizers)
import_module("restack.recipes.import_hook").when_imported("lm_eval.models", _teach_lm_eval)
