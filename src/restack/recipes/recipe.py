"""A recipe: a plan with the name of its base, and no weights. It is kept as a model's `config.json`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from restack.errors import ModelError, PlanError
from restack.plans import Plan
from restack.recipes.fingerprint import Fingerprint

MODEL_TYPE = "restack"  # of the config.json; transformers finds our classes by it
FORMAT, ADAPTED_FORMAT = 1, 2  # an older Restack is to refuse a recipe with an adapter, not to leave it out
ADAPTER = "./adapter"  # beside the recipe's config.json: peft's files


@dataclass(frozen=True, slots=True)
class Base:
    """The model that a recipe's plan is for."""

    name: str  # a hub id, a folder, or "./base", which is beside the recipe's config.json
    revision: str | None
    fingerprint: Fingerprint
    subfolder: str = ""  # of the repository on the hub


@dataclass(frozen=True, slots=True)
class Recipe:
    """A plan and its base, and perhaps an adapter."""

    base: Base
    plan: Plan
    adapter: str | None = None  # ADAPTER, if the visits have a LoRA

    def to_json(self) -> dict[str, Any]:
        """What `config.json` says; `from_json` reads it back."""
        from restack import __version__

        base, found = self.base, self.base.fingerprint
        adapter = {} if self.adapter is None else {"adapter": self.adapter}
        return {
            "model_type": MODEL_TYPE,
            "recipe_format": ADAPTED_FORMAT if adapter else FORMAT,
            "restack_version": __version__,
            "base": {
                "name": base.name,
                "revision": base.revision,
                "subfolder": base.subfolder,
                "fingerprint": {
                    "config": found.config,
                    "tensors": found.tensors,
                    "samples": found.samples,
                },
            },
            "plan": self.plan.to_json(),
            **adapter,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: object) -> "Recipe":
        """Read what `to_json` wrote; other keys, as transformers adds them, are left aside.

        Args:
            value: the JSON object in config.json.
            where: what errors call the recipe.

        Raises:
            ModelError: it was written by a newer Restack, or is no recipe.
        """
        written = value.get("recipe_format")
        if isinstance(written, int) and written > ADAPTED_FORMAT:
            by = value.get("restack_version")
            raise ModelError(
                f"{where} is a recipe of format {written}, written by restack {by}, and this restack reads "
                f"{ADAPTED_FORMAT}; install a newer one: pip install -U restack"
            )
        match value:
            case {
                "recipe_format": 1 | 2,
                "base": {
                    "name": str(name),
                    "revision": str() | None as revision,
                    "subfolder": str(subfolder),
                    "fingerprint": {
                        "config": str(config),
                        "tensors": str() | None as tensors,
                        "samples": str() | None as samples,
                    },
                },
                "plan": plan,
            } if name.strip() and value.get("adapter") == (ADAPTER if written == ADAPTED_FORMAT else None):
                base = Base(name, revision, Fingerprint(config, tensors, samples), subfolder)
            case _:
                raise ModelError(
                    f"the config.json of {where} is no recipe: it needs recipe_format, base and plan, as "
                    "restack.save writes them; save the view again"
                )
        try:
            return cls(base, Plan.from_json(plan), value.get("adapter"))
        except PlanError as error:
            raise ModelError(f"the plan of the recipe {where} cannot be read: {error}") from None
