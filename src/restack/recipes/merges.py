"""A mergekit config in place of a model: its models are opened, and lend each other their layers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restack import plans
from restack.recipes.reference import Reference


@dataclass(frozen=True, slots=True)
class Merge:
    """A passthrough merge that is not made: a view of its models runs it."""

    file: Path
    models: tuple[Reference, ...]  # in the order in which they first appear
    dtype: str  # that all of them are loaded in; "auto" where the config says none
    spec: str | None  # of a view of the merge

    @classmethod
    def of(cls, reference: Reference) -> "Merge":
        """Read the config that a reference names.

        Raises:
            PlanError: it is none.
        """
        file = Path(reference.location)
        config = plans.load_mergekit(file)
        names = plans.donors(config, ())
        return cls(file, tuple(map(Reference, names)), str(config.get("dtype") or "auto"), reference.spec)

    def view(self, open_one: Callable[[Reference, str], Any]) -> Any:
        """The view that runs the merge.

        Args:
            open_one: gives a model, in a dtype.

        Raises:
            PlanError: the config, or the spec after it, is none for these models.
            ViewError: the models are not alike.
        """
        from restack.views import view

        models = {model.model: open_one(model, self.dtype) for model in self.models}
        merged = view(models, self.file)
        return merged if self.spec is None else view(merged, self.spec)
