"""Restack: repeat, skip, reorder and share a language model's layers. One set of weights, many models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from restack.conversion import materialise
    from restack.errors import ModelError, PlanError, RestackError, UsageError, ViewError
    from restack.plans import Plan, Visit, plan
    from restack.views import sling, slung, unsling, view

__version__ = "0.1.0"

_HOME = {
    "ModelError": "restack.errors",
    "Plan": "restack.plans",
    "PlanError": "restack.errors",
    "RestackError": "restack.errors",
    "UsageError": "restack.errors",
    "ViewError": "restack.errors",
    "Visit": "restack.plans",
    "materialise": "restack.conversion",
    "plan": "restack.plans",
    "sling": "restack.views",
    "slung": "restack.views",
    "unsling": "restack.views",
    "view": "restack.views",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    # On first use: `import restack` must not take the seconds that importing torch takes.
    if name not in _HOME:
        raise AttributeError(f"module 'restack' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
