"""Calls made when a module has been imported, by whomever: so that our classes wait for transformers."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

AUTO_MODULES = {  # of transformers, and what in `auto_classes` makes them know recipes
    "configuration_auto": "register_config",
    "modeling_auto": "register_model",
    "tokenization_auto": "register_tokenizer",
}
_waiting: dict[str, Callable[[], None]] = {}


def teach_transformers() -> None:
    """Make transformers' Auto classes know recipes, as soon as they have been imported."""
    for module, register in AUTO_MODULES.items():
        when_imported(f"transformers.models.auto.{module}", partial(_register, register))


def _register(function: str) -> None:
    getattr(import_module("restack.recipes.auto_classes"), function)()


def when_imported(name: str, call: Callable[[], None]) -> None:
    """Call once, as soon as the module `name` has been imported; at once if it has been already."""
    if name in sys.modules:
        call()
        return
    _waiting[name] = call
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Lets the finders behind it find the module, and watches its loader."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _waiting:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            if finder is not self and find is not None:
                spec: ModuleSpec | None = find(fullname, path, target)
                if spec is not None and spec.loader is not None:
                    _watch(spec.loader, fullname)
                    return spec
        return None


def _watch(loader: Loader, name: str) -> None:
    """Make a loader, which is of one module only, call what waits for that module."""
    execute: Callable[[Any], None] = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        if module.__name__ == name and (call := _waiting.pop(name, None)):
            call()

    # An attribute of this one loader: a loader of ours around it would lack what tools ask of loaders.
    loader.exec_module = exec_module  # type: ignore[method-assign]
