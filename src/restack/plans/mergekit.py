"""mergekit's passthrough merges: `slices` of `sources`, read as plans and written back.

Layer ranges are half-open. A `scale` holds for the tensors whose name contains its filter; settings of a source come
before those of its slice, and those before the whole config's; a list of numbers is a gradient over the slice's
layers. Source: mergekit's `config.py` and `merge_methods/passthrough.py`, whose behaviour this is.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from restack.errors import PlanError
from restack.plans.value import Plan, Visit

CONFIG_KEYS = {"slices", "merge_method", "base_model", "dtype", "out_dtype", "parameters", "chat_template"}
CONFIG_KEYS |= {"tokenizer", "tokenizer_source"}
SLICE_KEYS = {"sources", "parameters"}
SOURCE_KEYS = {"model", "layer_range", "parameters"}

Scale = tuple[tuple[str, float], ...]


def load(path: str | Path) -> Mapping[str, Any]:
    """The mergekit config in a YAML file.

    Raises:
        PlanError: the file cannot be read, or is no YAML mapping.
    """
    try:
        value = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"cannot read {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise PlanError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    return _mapping(value, str(path), CONFIG_KEYS)


def read(config: Mapping[str, Any], depths: int | Mapping[str, int]) -> Plan:
    """The plan of a passthrough config. Donors are numbered by first appearance.

    Args:
        config: the mapping that the YAML file holds.
        depths: layers of each model by its name in the config; a single number if it has one model.

    Raises:
        PlanError: an unknown key, another merge method, several sources in a slice, a model whose depth is not
            given, or a layer range past its model.
    """
    config = _mapping(config, "a mergekit config", CONFIG_KEYS)
    if config.get("merge_method") != "passthrough":
        raise PlanError(
            f"merge_method is {config.get('merge_method')!r}; a plan can only be a passthrough merge"
        )
    everywhere = _parameters(config.get("parameters"), "parameters")
    if any(name == "*" for name, _ in _at(everywhere, 0)):
        raise PlanError(
            "parameters: a scale without a filter would scale the embeddings too; put it in the slices"
        )
    donors: dict[str, int] = {}
    visits: list[Visit] = []
    for number, entry in enumerate(_list(config.get("slices"), "slices")):
        where = f"slice {number}"
        piece = _mapping(entry, where, SLICE_KEYS)
        sources = _list(piece.get("sources"), f"{where}: sources")
        if len(sources) != 1:
            raise PlanError(f"{where} has {len(sources)} sources; passthrough takes exactly one")
        source = _mapping(sources[0], f"{where}: source", SOURCE_KEYS)
        model = source.get("model")
        if not isinstance(model, str) or not model:
            raise PlanError(f"{where}: model is {model!r}; write a model's name")
        depth = _depth(model, depths, where)
        donor = donors.setdefault(model, len(donors))
        start, stop = _layer_range(source.get("layer_range"), model, depth, where)
        settings = [
            *_parameters(source.get("parameters"), f"{where}: parameters of {model}"),
            *_parameters(piece.get("parameters"), f"{where}: parameters"),
            *everywhere,
        ]
        for layer in range(start, stop):
            t = (layer - start) / (stop - start - 1) if stop - start > 1 else 1.0
            visits.append(Visit(layer, scale=_at(settings, t), donor=donor))
    if isinstance(depths, int) and len(donors) > 1:
        raise PlanError(
            f"the config has {len(donors)} models; give the layers of each: {{{', '.join(map(repr, donors))}}}"
        )
    return Plan(tuple(visits), tuple(_depth(model, depths, "slices") for model in donors))


def write(plan: Plan, models: Sequence[str], dtype: str = "bfloat16") -> str:
    """The YAML of a passthrough merge that makes this plan's model.

    Args:
        models: the name of each donor.
        dtype: of the merged weights.

    Raises:
        PlanError: mergekit cannot say it: the plan damps a visit, shares keys and values, or is not numbered by
            first appearance; or the names do not fit the donors.
    """
    if len(models) != len(plan.depths):
        raise PlanError(f"{len(models)} names for {len(plan.depths)} donors; give each donor its name")
    if any(visit.damp != 1 or visit.sliding or visit.kv is not None for visit in plan.visits):
        raise PlanError("mergekit has no damping and no shared keys and values; it cannot say this plan")
    slices: list[dict[str, Any]] = []
    previous: Visit | None = None
    for visit in plan.visits:
        if previous and visit == Visit(previous.layer + 1, scale=previous.scale, donor=previous.donor):
            slices[-1]["sources"][0]["layer_range"][1] += 1
        else:
            source: dict[str, Any] = {
                "model": models[visit.donor],
                "layer_range": [visit.layer, visit.layer + 1],
            }
            if visit.scale:
                filters = [{"filter": name, "value": factor} for name, factor in visit.scale]
                source["parameters"] = {"scale": filters}
            slices.append({"sources": [source]})
        previous = visit
    config = {"slices": slices, "merge_method": "passthrough", "dtype": dtype}
    return yaml.safe_dump(config, sort_keys=False, default_flow_style=None)


def _parameters(value: Any, where: str) -> list[tuple[str, tuple[float, ...]]]:
    """The (filter, gradient) pairs of a `parameters` mapping, whose only key is `scale`."""
    if value is None:
        return []
    scale = _mapping(value, where, {"scale"}).get("scale")
    if isinstance(scale, Mapping):
        scale = [scale]
    if not isinstance(scale, list) or not scale or not isinstance(scale[0], Mapping):
        return [("*", _gradient(scale, where))]
    pairs = []
    for entry in scale:
        condition = _mapping(entry, f"{where}: scale", {"filter", "value"})
        name = condition.get("filter")
        pairs.append(("*" if name is None else str(name), _gradient(condition.get("value"), where)))
    return pairs


def _gradient(value: Any, where: str) -> tuple[float, ...]:
    numbers = value if isinstance(value, list) else [value]
    if not numbers or any(
        isinstance(number, bool) or not isinstance(number, int | float) for number in numbers
    ):
        raise PlanError(f"{where}: scale {value!r} is neither a number nor a list of numbers")
    return tuple(float(number) for number in numbers)


def _at(settings: Sequence[tuple[str, tuple[float, ...]]], t: float) -> Scale:
    """The filters in force at depth t of a slice (0 its first layer, 1 its last), without those that do nothing."""
    scale: list[tuple[str, float]] = []
    for name, gradient in settings:
        place = t * (len(gradient) - 1)
        below = int(place)
        above = min(below + 1, len(gradient) - 1)
        factor = gradient[below] + (place - below) * (gradient[above] - gradient[below])
        scale.append((name, factor))
        if name == "*":  # nothing after it is ever looked at
            break
    while scale and scale[-1][1] == 1:
        scale.pop()
    return tuple(scale)


def _depth(model: str, depths: int | Mapping[str, int], where: str) -> int:
    if isinstance(depths, int):
        return depths
    if model not in depths:
        known = ", ".join(depths) or "none"
        raise PlanError(
            f"{where}: how many layers has {model}? give its count under that name (given: {known})"
        )
    return depths[model]


def _layer_range(value: Any, model: str, depth: int, where: str) -> tuple[int, int]:
    match value:
        case [int(start), int(stop)] if not isinstance(start, bool) and not isinstance(stop, bool):
            pass
        case _:
            raise PlanError(f"{where}: layer_range is {value!r}; write [start, stop), as in [0, 16]")
    if not 0 <= start < stop:
        raise PlanError(
            f"{where}: layer_range [{start}, {stop}] is empty; the stop is not included, as in [0, 16]"
        )
    if stop > depth:
        raise PlanError(
            f"{where}: layer_range [{start}, {stop}] is past {model}'s {depth} layers (0..{depth - 1})"
        )
    return start, stop


def _mapping(value: Any, where: str, keys: set[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise PlanError(f"{where} must be a mapping with {', '.join(sorted(keys))}")
    unknown = [str(key) for key in value if key not in keys]
    if unknown:
        raise PlanError(
            f"{where}: {', '.join(unknown)} not understood; the keys are {', '.join(sorted(keys))}"
        )
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise PlanError(f"{where} must be a list with at least one entry")
    return value
