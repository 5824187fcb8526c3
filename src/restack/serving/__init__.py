"""Many plans of one model behind one OpenAI-compatible endpoint."""

from restack.serving.app import make_app
from restack.serving.catalogue import Catalogue
from restack.serving.kept_prompts import KeptPrompts
from restack.serving.writing import Writers

__all__ = ["Catalogue", "KeptPrompts", "Writers", "make_app"]
