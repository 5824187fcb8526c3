"""Saving a view: as a recipe of a few kilobytes, with its weights once, or as a checkpoint of its own."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restack import demo
from restack.errors import ModelError, PlanError, UsageError, ViewError
from restack.plans import Plan, write_mergekit
from restack.recipes.card import card
from restack.recipes.fingerprint import fingerprint
from restack.recipes.location import CONFIG, Location
from restack.recipes.new_folder import new_folder
from restack.recipes.recipe import ADAPTER, Base, Recipe
from restack.recipes.reference import HUB_ID, Reference

if TYPE_CHECKING:
    from restack.recipes.adapters import Adapted

WEIGHTS = ("none", "shared", "full")
BASE = "base"  # the folder in a recipe that keeps its own weights
CARD = "README.md"
MERGE = "mergekit_config.yml"  # as mergekit itself calls it, in what it makes
LONGEST_MERGE = 3000  # characters; a longer one is left out, for a recipe to stay under 10 kB


def save(
    model: Any, folder: str | Path, *, weights: str = "none", tokenizer: Reference | None = None
) -> Path:
    """Save a view, so that `restack.open(folder)` gives it back.

    With `import restack`, so do transformers' `AutoModelForCausalLM`, `AutoConfig`, `AutoTokenizer` and
    `pipeline`.

    Args:
        model: a view, a slung model, or a model as it was loaded.
        folder: made anew; one that is there must be empty. After an error there is nothing of it.
        weights: "none" stores a recipe: the plan, the name and a fingerprint of the base, and a model card,
            under 10 kB. "shared" stores each layer that is visited once, beside the plan. "full" stores a
            checkpoint with the weights of every visit, which loads without Restack, unless the model is a
            restack-llama itself. A LoRA of peft on the visits is stored beside the plan, in peft's own files;
            with "full", each is merged into the weights of its visit.
        tokenizer: the model whose tokenizer goes with the weights; None: the one that the model was loaded
            from, of a merge the first.

    Returns:
        The folder.

    Raises:
        ModelError: for a recipe, the base has no name or its files are not here, or its weights were changed
            after they were loaded; there are several adapters, or one that is no plain LoRA.
        ViewError: no checkpoint can say what the view is.
        UsageError: the folder cannot be made, or is not empty.
    """
    from restack.views.planned import runs_plans

    if weights not in WEIGHTS:
        raise UsageError(f"weights is {weights!r}; write one of {', '.join(WEIGHTS)}")
    adapted, model = _adapted(model)
    plan = plan_of(model)
    location = _loaded_from(model, plan)
    with new_folder(Path(folder)) as place:
        if weights == "shared":
            _save_shared(model, plan, place, adapted)
        elif weights == "full":
            _save_full(model, plan, place, adapted)
        else:
            _write_recipe(place, plan, _kept(model, plan, location), adapted)
        lent = location if tokenizer is None else Location(tokenizer.location)
        if weights != "none" and lent is not None:
            save_tokenizer(lent, place / BASE if weights == "shared" else place)
        stored = "house" if weights == "full" and runs_plans(model) else weights
        _write_about(place, plan, location, stored, model.dtype, adapted is not None)
    return Path(folder)


def save_recipe(
    reference: str | Reference,
    plan: Plan,
    folder: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Save the recipe of a view without loading its base: only the config and a little of the files are read.

    A recipe with an adapter is loaded: it is stored anew, for the visits of the plan.

    Args:
        reference: of the base, without a spec; or of a recipe, and then the plan's layers are its visits.
        plan: what the view runs.
        folder: as `save` has it.
        revision, trust_remote_code: as `open` has them.

    Returns:
        The folder.

    Raises:
        ModelError: there is no such model, or its files are damaged.
        PlanError, ViewError: no view of it can run the plan.
        UsageError: the folder cannot be made, or is not empty.
    """
    from restack.recipes.opening import build_empty, find_reference
    from restack.recipes.opening import open as load
    from restack.views import view

    found = find_reference(reference, revision, trust_remote_code).ready(plan)
    if found.adapter is not None:
        loaded = load(reference, revision=revision, trust_remote_code=trust_remote_code)
        return save(view(loaded, plan), folder)
    whole = plan if found.plan is None else found.plan.then(plan)
    view(build_empty(replace(found, plan=None), trust_remote_code=trust_remote_code), whole)
    location = _absolute(found.location)
    with new_folder(Path(folder)) as place:
        _write_recipe(place, whole, _base(location))
        _write_about(place, whole, location, "none", found.config.dtype)
    return Path(folder)


def plan_of(model: Any) -> Plan:
    """What a view runs; every visit once of a model that is none, whatever plan it runs by itself."""
    from restack.views.guards import PLAN
    from restack.views.planned import visit_count

    layers = visit_count(model)  # refuses what is no model of layers at all
    plan: Plan | None = vars(model).get(PLAN)
    return Plan.of(range(layers), layers) if plan is None else plan


def _adapted(model: Any) -> "tuple[Adapted | None, Any]":
    """What is adapted of a model, if anything is, and the model without; peft is not looked for otherwise."""
    if not getattr(model, "peft_config", None):
        return None, model
    from restack.recipes.adapters import Adapted, without_any

    adapted = Adapted.of(model)
    return adapted, without_any(model) if adapted is None else adapted.bare()


def _loaded_from(model: Any, plan: Plan) -> Location | None:
    """Where the model was loaded from; None if it was made in memory."""
    from restack.recipes.own_weights import changed_weight

    name = str(getattr(model.config, "_name_or_path", None) or "")
    if not name or Location(name).is_local:
        return _absolute(Location(name)) if name else None
    # transformers forgets the revision; its weights tell which of those that were fetched it is.
    fetched = [_with_weights(Location(name, commit)) for commit in Location(name).commits()]
    same = (place for place in fetched if changed_weight(model, plan, place) is None)
    return next(same, fetched[0] if fetched else Location(name))


def _with_weights(location: Location) -> Location:
    """Of a repository that is a recipe with weights of its own: the folder in it that has them."""
    from restack.recipes.following import read_recipe

    if location.file(CONFIG) is None:
        return location
    recipe, _ = read_recipe(location, location.name)
    return location if recipe is None else location.relative(recipe.base.name)


def _absolute(location: Location) -> Location:
    return Location(str(Path(location.name).resolve())) if location.is_local else location


def _name(location: Location) -> str:
    is_demo = location.is_local and Path(location.name) == demo.FOLDER.resolve()
    return "demo" if is_demo else location.name


def _kept(model: Any, plan: Plan, location: Location | None) -> Base:
    """The base of a view whose weights are in files, and still the same."""
    from restack.recipes.own_weights import changed_weight

    store = "restack.save(..., weights='shared')"
    if len(plan.depths) > 1:
        raise ModelError(
            f"the view is over {len(plan.depths)} models, and a recipe names one; store the weights: {store}"
        )
    if location is None:
        raise ModelError(
            "the base of this view has no name: it was made in memory, and a recipe stores no weights; save "
            f"the base (save_pretrained) and load it from there, or store the weights: {store}"
        )
    base = _base(location)
    if changed := changed_weight(model, plan, location):
        raise ModelError(
            f"the weights in memory are not those of {location} ({changed} differs): they were changed after "
            f"they were loaded, and a recipe keeps none; store them: {store}"
        )
    return base


def _base(location: Location) -> Base:
    return Base(_name(location), location.revision, fingerprint(location), location.subfolder)


def _write_recipe(place: Path, plan: Plan, base: Base, adapted: "Adapted | None" = None) -> None:
    recipe = Recipe(base, plan, ADAPTER if adapted else None)
    text = json.dumps(recipe.to_json(), indent=2, ensure_ascii=False)
    (place / CONFIG).write_text(text + "\n", encoding="utf-8")
    if adapted is not None:  # which is not to tell where on this machine the base is
        is_on_hub = HUB_ID.fullmatch(base.name) and base.name[0] != "." and not Location(base.name).is_local
        adapted.write(place / ADAPTER, base.name if is_on_hub else None)


def _write_about(
    place: Path, plan: Plan, location: Location | None, weights: str, dtype: Any, is_adapted: bool = False
) -> None:
    """The model card, and the plan as mergekit reads it, if mergekit can say it: it knows no adapters."""
    name = None if location is None else _name(location)
    is_on_hub = location is not None and not location.is_local
    shown = name and Path(name).name if not is_on_hub else name
    keeps_adapter = is_adapted and weights in ("none", "shared")
    (place / CARD).write_text(card(plan, shown, is_on_hub, weights, keeps_adapter), encoding="utf-8")
    if is_adapted:
        return
    try:
        merge = write_mergekit(plan, [name], str(dtype or "float32").removeprefix("torch.")) if name else ""
    except PlanError:
        return
    if 0 < len(merge) <= LONGEST_MERGE:
        (place / MERGE).write_text(merge, encoding="utf-8")


def _save_shared(model: Any, plan: Plan, place: Path, adapted: "Adapted | None") -> None:
    from restack.views.layers_once import layers_once
    from restack.views.planned import runs_plans

    if adapted is not None and runs_plans(model):
        from restack.recipes.adapters import layers_shared

        model = layers_shared(model)
    once, plan = layers_once(model, plan)
    type(once).save_pretrained(once, place / BASE)
    base = Base(f"./{BASE}", None, fingerprint(Location(str(place / BASE))))
    _write_recipe(place, plan, base, adapted)


def _save_full(model: Any, plan: Plan, place: Path, adapted: "Adapted | None") -> None:
    from restack.views import materialise

    try:
        whole = materialise(model, Plan.of(range(len(plan)), len(plan)))
        if adapted is not None:
            adapted.merge_into(whole)
        whole.save_pretrained(place)
    except ViewError as error:
        raise ViewError(f"this view cannot be a checkpoint of its own: {error}") from None


def save_tokenizer(location: Location, place: Path) -> None:
    """Put a model's tokenizer beside other weights, if it has one."""
    from restack.recipes.opening import load_tokenizer

    try:
        tokenizer = load_tokenizer(location)
    except ModelError:
        return
    tokenizer.save_pretrained(place)
