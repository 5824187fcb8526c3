"""A plan over a loaded model: views that share its weights, and the same in place (`sling`)."""

from restack.views.arranging import runnable
from restack.views.build import view
from restack.views.in_place import sling, slung, unsling
from restack.views.merge import materialise
from restack.views.verification import Verification, verify

__all__ = ["Verification", "materialise", "runnable", "sling", "slung", "unsling", "verify", "view"]
