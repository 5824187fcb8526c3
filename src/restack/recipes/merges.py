"""A mergekit config in place of a model: its models are opened, and lend each other their layers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from restack import plans
from restack.errors import ModelError
from restack.recipes.reference import Reference

# What the model does not need, and its tokenizer would: mergekit makes a new one.
MAKING_TOKENIZERS = ("tokenizer", "tokenizer_source", "chat_template")


def lender_of_tokenizer(reference: Reference) -> Reference | None:
    """The model whose tokenizer a reference to a merge has; None where it names no merge.

    Raises:
        PlanError, ModelError: as `Merge.of` and `Merge.tokenizer_of`.
    """
    return Merge.of(reference).tokenizer_of if reference.is_merge else None


@dataclass(frozen=True, slots=True)
class Merge:
    """A passthrough merge that is not made: a view of its models runs it."""

    name: str  # of the file
    config: Mapping[str, Any]
    models: tuple[Reference, ...]  # in the order in which they first appear
    spec: str | None  # of a view of the merge

    @classmethod
    def of(cls, reference: Reference) -> "Merge":
        """Read the config that a reference names.

        Raises:
            PlanError: it is none.
            ModelError: it names another config as one of its models, or a dtype that is not known.
        """
        config = plans.load_mergekit(reference.location)
        merge = cls(reference.model, config, tuple(map(Reference, plans.donors(config))), reference.spec)
        nested = next((model for model in merge.models if model.is_merge), None)
        if nested is not None:
            raise ModelError(f"{merge.name} names {nested}, a merge itself; write its slices out instead")
        merge.dtype_for("auto")
        return merge

    def dtype_for(self, asked: str) -> str:
        """The dtype to load the models in: what is asked for, unless that is "auto"."""
        from restack.recipes.opening import DTYPES

        if asked != "auto":
            return asked
        said = self.config.get("out_dtype") or self.config.get("dtype") or "auto"
        if said not in DTYPES:
            raise ModelError(f"{self.name}: dtype {said!r} is not known; write {', '.join(DTYPES[1:])}")
        return str(said)

    @property
    def tokenizer_of(self) -> Reference:
        """The model whose tokenizer the merge has: its base_model, or else the first.

        Raises:
            ModelError: the config asks for a tokenizer that is none of the models'.
        """
        for key in MAKING_TOKENIZERS:
            if (said := self.config.get(key)) and (key, said) != ("tokenizer_source", "base"):
                raise ModelError(
                    f"{self.name} asks for another tokenizer than its models have ({key}); leave {key} "
                    "out, or merge with mergekit"
                )
        base = self.config.get("base_model")
        return Reference(str(base)) if base else self.models[0]

    def view(self, open_one: Callable[[Reference], Any]) -> Any:
        """The view that runs the merge.

        Args:
            open_one: gives one of the models.

        Raises:
            PlanError: the config, or the spec after it, is none for these models.
            ViewError: the models are not alike.
        """
        from restack.views import view

        merged = view({model.model: open_one(model) for model in self.models}, self.config)
        return merged if self.spec is None else view(merged, self.spec)
