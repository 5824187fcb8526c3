"""A plan over a loaded model: views that share its weights, and the same in place (`sling`)."""

from restack.views.build import runnable, view
from restack.views.in_place import sling, slung, unsling

__all__ = ["runnable", "sling", "slung", "unsling", "view"]
