"""Training: a decoder, the house model with its shared keys and values, a view, or adapters of its visits."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from restack.training.folder import read_log
    from restack.training.run import Result, train
    from restack.training.settings import Training

_HOME = {"Result": "run", "Training": "settings", "read_log": "folder", "train": "run"}
__all__ = ["Result", "Training", "read_log", "train"]


def __getattr__(name: str) -> Any:
    # On first use: the command line checks settings before the seconds that importing torch takes.
    if name not in _HOME:
        raise AttributeError(f"module 'restack.training' has no attribute {name!r}")
    return getattr(import_module(f"restack.training.{_HOME[name]}"), name)
