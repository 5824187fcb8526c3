"""From a name to the model that it comes to: recipes are followed to their base, and it is checked."""

import copy
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from restack import plans
from restack.errors import ModelError
from restack.plans import Plan, own_plan
from restack.recipes.fingerprint import Fingerprint, fingerprint, fingerprint_of_config
from restack.recipes.kinds import refuse_other_kinds
from restack.recipes.location import CONFIG, Location
from restack.recipes.recipe import MODEL_TYPE, Recipe
from restack.recipes.reference import HUB_ID, Reference
from restack.recipes.telling import told_in_one_line

MOST_RECIPES = 8  # one over the other: a recipe may name itself as its base


@dataclass(frozen=True, slots=True)
class StoredAdapter:
    """The adapter of a recipe, whose visits have a LoRA each."""

    recipe: str  # as errors name it
    location: Location
    plan: Plan  # of these visits, over the model
    above: Plan | None = None  # a plan over them, where there is one on top of the recipe

    def below(self, recipe: Recipe) -> "StoredAdapter":
        """The same over the visits of a recipe that is its recipe's base."""
        return replace(self, plan=recipe.plan.then(self.plan))

    def then(self, plan: Plan) -> "StoredAdapter":
        """The same with another plan on top of all there is."""
        return replace(self, above=plan if self.above is None else self.above.then(plan))


@dataclass(frozen=True, slots=True)
class Found:
    """The model that a name comes to, and the plan that recipes on the way to it give."""

    model: Reference  # as errors name it
    location: Location
    config: Any
    plan: Plan | None = None  # None: the model as it is
    recipe: str | None = None  # the recipe that names this model, if one does
    fingerprint: Fingerprint | None = None  # of the model that this recipe was saved for
    adapter: StoredAdapter | None = None  # of a recipe on the way

    @property
    def called(self) -> str:
        """What errors call the model."""
        return _called(self.model.model, self.recipe)

    def then(self, spec: str) -> "Found":
        """With the plan of a spec on top, whose layers are the visits of the recipe if there is one.

        Raises:
            PlanError: it is no spec for as many layers, or cannot follow the recipe's plan.
        """
        if self.plan is None:
            return replace(self, plan=plans.plan(spec, self.config))
        more = plans.plan(spec, len(self.plan))
        return replace(self, plan=self.plan.then(more), adapter=self.adapter and self.adapter.then(more))

    def ready(self, more: Plan | None = None) -> "Found":
        """The same, as a model that can run the plan, and `more` on top of it.

        Views of any model share keys and values with owners below their readers. For owners above them, a
        model of Llama's family is opened as restack-llama, which is the same model.

        Raises:
            PlanError: `more` cannot follow the recipe's plan.
            ViewError: no view of it can run the plan.
        """
        from restack.views import runnable

        plan = self.plan.then(more) if self.plan is not None and more is not None else self.plan or more
        if plan is None or own_plan(self.config) is not None:
            return self  # the model as it is; or one that runs any plan, or refuses it, by itself
        if any(owner > number for number, owner in enumerate(plan.owners)):
            from restack.llama.config import RestackLlamaConfig
            from restack.llama.families import FAMILIES, settings

            if self.config.model_type in FAMILIES:
                with told_in_one_line(self.called, self.location.is_local):
                    config = RestackLlamaConfig(**settings(self.config.to_dict()))
                return replace(self, config=config)
        runnable(plan)
        return self

    def refuse_other_weights(self) -> None:
        """Refuse weights that are not those of the model that the recipe was saved for.

        Raises:
            ModelError: so they are, or a file of them is cut short.
        """
        is_here = self.location.is_metas or self.location.file(CONFIG)
        if self.recipe is not None and self.fingerprint is not None and is_here:
            actual = fingerprint(self.location)
            _refuse_another(self.recipe, self.model.model, self.fingerprint, self.location, actual)


def find(
    location: Location,
    *,
    name: str | None = None,
    base: str | None = None,
    trust_remote_code: bool = False,
    hub: Mapping[str, Any] | None = None,
) -> Found:
    """Follow recipes from one to the next to the model that they are of, and read its config.

    Args:
        location: of a model or a recipe.
        name: what errors call it.
        base: where the base of a recipe is, if not where the recipe says.
        trust_remote_code: run code that comes with the model.
        hub: how `from_pretrained` is to reach the hub: cache_dir, token...

    Raises:
        ModelError: a recipe cannot be read, or its base is not there or has another config than the one it
            was saved for; or the model is no decoder-only language model; or two recipes have an adapter.
        PlanError: a recipe's plan is not one for the recipe that is its base.
    """
    hub = hub or {}
    name = name or location.name
    plan: Plan | None = None
    adapter: StoredAdapter | None = None
    above: tuple[str, Recipe] | None = None
    for _ in range(MOST_RECIPES):
        recipe, location = read_recipe(location, name, hub)
        if above is not None:
            _refuse_another_config(*above, name, location)
        if recipe is None:
            break
        adapter = _adapter_of(recipe, location, name, plan, adapter)
        plan = recipe.plan if plan is None else recipe.plan.then(plan)
        above = (name, recipe)
        location = base_of(recipe, location, name, base)
        name = location.name if base or recipe.base.name.startswith(".") else recipe.base.name
    else:
        raise ModelError(f"{name} is a recipe over {MOST_RECIPES} others, or over itself; name the model")
    of = None if above is None else above[0]
    called = _called(name, of)
    with told_in_one_line(called, location.is_local):
        config = _config_at(location, trust_remote_code, hub)
    refuse_other_kinds(config, called)
    expected = None if above is None else above[1].base.fingerprint
    return Found(Reference(name), location, config, plan, of, expected, adapter)


def _config_at(location: Location, trust_remote_code: bool, hub: Mapping[str, Any]) -> Any:
    """The config of the model that is there."""
    if location.is_metas:
        from restack.llama.config import RestackLlamaConfig

        return RestackLlamaConfig.from_pretrained(str(location.folder))
    from transformers import AutoConfig

    options = {**hub, **location.options}
    return AutoConfig.from_pretrained(location.name, trust_remote_code=trust_remote_code, **options)


def _adapter_of(
    recipe: Recipe, location: Location, name: str, above: Plan | None, found: StoredAdapter | None
) -> StoredAdapter | None:
    """The adapter that there is with this recipe too, below those that were followed."""
    if recipe.adapter is None:
        return None if found is None else found.below(recipe)
    if found is not None:
        raise ModelError(
            f"{found.recipe} has an adapter, and so has {name} below it; one can be put on: save the latter "
            "with weights='full', which merges its own, and use that"
        )
    return StoredAdapter(name, location.relative(recipe.adapter), recipe.plan, above)


def read_recipe(
    location: Location, name: str, hub: Mapping[str, Any] | None = None
) -> tuple[Recipe | None, Location]:
    """The recipe that is at a location, None if it is a model; and the location, at a commit if on the hub.

    Raises:
        ModelError: the recipe is of a newer version or cannot be read, or the hub has no such repository.
    """
    settings: Any = None
    if location.is_local:
        file = location.file(CONFIG)
        with suppress(ValueError):  # transformers will tell
            settings = json.loads(file.read_text(encoding="utf-8")) if file else None
    else:
        from transformers import PreTrainedConfig

        with told_in_one_line(name, location.is_local):
            settings, _ = PreTrainedConfig.get_config_dict(
                location.name, **{**(hub or {}), **location.options}
            )
        location = location.at_commit()
    if isinstance(settings, dict) and settings.get("model_type") == MODEL_TYPE:
        return Recipe.from_json(settings, name), location
    return None, location


def base_of(recipe: Recipe, location: Location, name: str, base: str | None = None) -> Location:
    """Where the base of a recipe is, or `base` if that is given.

    Raises:
        ModelError: there is nothing.
    """
    found = location.relative(recipe.base.name) if base is None else Location(Reference(base).location)
    if found.is_local:
        return found
    if not HUB_ID.fullmatch(found.name) or os.pardir in Path(recipe.base.subfolder).parts:
        place = f"{base}: there is no such folder" if base else "that is not there"
        raise ModelError(
            f"{name} is a recipe for {recipe.base.name}, and {place}; put its base there, or say where it "
            f"is: restack.open({name!r}, base=FOLDER)"
        )
    if base or recipe.base.name.startswith("."):
        return found
    return replace(found, revision=recipe.base.revision, subfolder=recipe.base.subfolder)


def config_of_view(found: Found) -> Any:
    """The config of a view of the model by its plan; the model's own without a plan."""
    from restack.views.configuration import reordered

    found = found.ready()
    if found.plan is None:
        return found.config
    config = copy.deepcopy(found.config)
    if (own := own_plan(config)) is not None:  # its layers are stored once
        config.plan = str(own.then(found.plan))
        if found.adapter is not None:  # and there, one for each visit that has an adapter
            unrolled = _unrolled(own.then(found.adapter.plan))
            config.num_hidden_layers = len(unrolled)
            config.plan = str(unrolled.then(found.adapter.above) if found.adapter.above else unrolled)
        return config
    decoder = config.get_text_config(decoder=True)
    reordered(decoder, found.plan.order).apply(decoder)
    return config


def _unrolled(plan: Plan) -> Plan:
    """The plan over layers of which each visit has its own."""
    visits = (replace(visit, layer=number, scale=()) for number, visit in enumerate(plan.visits))
    return Plan(tuple(visits), (len(plan),))


def _refuse_another_config(recipe_name: str, recipe: Recipe, name: str, location: Location) -> None:
    if location.is_local or location.file(CONFIG):  # in a cache of its own otherwise, at the recipe's commit
        actual = fingerprint_of_config(location)
        _refuse_another(recipe_name, name, recipe.base.fingerprint, location, actual)


def _refuse_another(
    recipe: str, name: str, expected: Fingerprint, location: Location, actual: Fingerprint
) -> None:
    differences = expected.differences(actual)
    if differences:
        raise ModelError(
            f"{recipe} is a recipe for {name} with the fingerprint {expected}, and {location} has {actual}: "
            f"another {', another '.join(differences)}; get the model it was saved for, or save the view anew"
        )


def _called(name: str, recipe: str | None) -> str:
    return name if recipe is None else f"{name}, the base of the recipe {recipe},"
