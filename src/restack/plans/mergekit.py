"""mergekit's passthrough merges: `slices` of `sources`, read as plans and written back.

Layer ranges are half-open. A `scale` multiplies the tensors whose name contains its filter; settings of a
source come before those of its slice, and those before the whole config's; a list of numbers is a gradient
over the slice's layers. In mergekit, the settings of the first slice hold for the embeddings too, and those
of the last for the final norm and the head: a plan only scales layers, so a scale that would reach those is
refused.

Source: `config.py`, `plan.py` and `merge_methods/passthrough.py` of arcee-ai/mergekit, which behave so.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from restack.errors import PlanError
from restack.plans.pointing import counted, extent, shown
from restack.plans.value import MAX_FILTERS, MAX_VISITS, Plan, Scale, Visit, is_filter

UNUSED_KEYS = {"base_model", "dtype", "out_dtype", "chat_template", "tokenizer", "tokenizer_source"}
CONFIG_KEYS = {"slices", "merge_method", "parameters", *UNUSED_KEYS}
SLICE_KEYS = {"sources", "parameters"}
SOURCE_KEYS = {"model", "layer_range", "parameters"}
BEFORE_LAYERS = ("model.embed_tokens.weight",)  # what a first slice's settings also reach
AFTER_LAYERS = ("model.norm.weight", "lm_head.weight")  # and a last one's

Gradient = tuple[float, ...]
Settings = list[tuple[str, Gradient]]


def load(path: str | Path) -> Mapping[str, Any]:
    """The mergekit config in a YAML file.

    Raises:
        PlanError: the file cannot be read, or is no YAML mapping.
    """
    import yaml  # a sixth of the time that `import restack` would take

    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise PlanError(f"cannot read {shown(str(path))}: {error.strerror or error}") from None
    except ValueError:  # no UTF-8; or no file name: NUL, lone surrogates
        raise PlanError(f"cannot read {shown(str(path))}: not the name of a text file in UTF-8") from None
    try:
        value = yaml.safe_load(text)
    except (
        Exception
    ) as error:  # on odd files PyYAML raises far more than YAMLError: `!!int ""` is an IndexError
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PlanError(f"{shown(str(path))} is not YAML: {reason}") from None
    return _mapping(value, Path(path).name, CONFIG_KEYS)


def read(config: Any, depths: int | Mapping[str, int]) -> Plan:
    """The plan of a passthrough config. Donors are numbered by first appearance.

    Args:
        config: the mapping that the YAML file holds.
        depths: layers of each model by its name in the config; a single number if it has one model.

    Raises:
        PlanError: an unknown key, another merge method, several sources in a slice, a model whose depth is
            not given, a layer range past its model, or a scale that would reach more than layers.
    """
    config = _mapping(config, "a mergekit config", CONFIG_KEYS)
    method = config.get("merge_method")
    if method != "passthrough":
        raise PlanError(f"merge_method is {shown(method)}; a plan can only be a passthrough merge")
    everywhere = _settings(config.get("parameters"), "parameters")
    donors: dict[str, int] = {}
    visits: list[Visit] = []
    pieces = _list(config.get("slices"), "slices")
    for number, (where, piece, sources) in enumerate(_slices(pieces)):
        if len(sources) != 1:
            raise PlanError(f"{where} has {len(sources)} sources; passthrough takes exactly one")
        source = _mapping(sources[0], f"{where}: source", SOURCE_KEYS)
        model = _model(source.get("model"), where)
        depth = _depth(model, depths, where)
        donor = donors.setdefault(model, len(donors))
        start, stop = _layer_range(source.get("layer_range"), depth, where)
        settings = [
            *_settings(source.get("parameters"), f"{where}: parameters of the source"),
            *_settings(piece.get("parameters"), f"{where}: parameters"),
            *everywhere,
        ]
        if len(settings) > MAX_FILTERS:
            raise PlanError(f"{where} has {len(settings)} scale filters; write at most {MAX_FILTERS}")
        if number == 0:
            _refuse_outside(_at(settings, 0.0), BEFORE_LAYERS, "the first slice")
        if number == len(pieces) - 1:
            _refuse_outside(_at(settings, 1.0), AFTER_LAYERS, "the last slice")
        if len(visits) + stop - start > MAX_VISITS:
            raise PlanError(f"{where}: the plan passes {MAX_VISITS} visits here, the limit; repeat less")
        for layer in range(start, stop):
            t = (layer - start) / (stop - start - 1) if stop - start > 1 else 1.0
            visits.append(Visit(layer, scale=_at(settings, t), donor=donor))
    if isinstance(depths, int):
        if len(donors) > 1:
            names = ", ".join(map(shown, donors))
            raise PlanError(f"the config has {len(donors)} models; give the layers of each by name: {names}")
        return Plan(tuple(visits), (depths,))
    return Plan(tuple(visits), tuple(depths[model] for model in donors))


def donors(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The models of a config in the order in which they first appear.

    Raises:
        PlanError: it has no slices with a source each that names a model.
    """
    names = (
        _model(_mapping(sources[0], f"{where}: source", SOURCE_KEYS).get("model"), where)
        for where, _, sources in _slices(_list(config.get("slices"), "slices"))
    )
    return tuple(dict.fromkeys(names))


def write(plan: Plan, models: Sequence[str], dtype: str = "bfloat16") -> str:
    """The YAML of a passthrough merge that makes this plan's model.

    `read` gives the plan back, but for donors: they are numbered by first appearance, and unused ones are not
    in it.

    Args:
        models: the name of each donor.
        dtype: of the merged weights.

    Raises:
        PlanError: mergekit cannot say it: the plan damps a visit, shares keys and values, or has a scale in
            its first or last run that mergekit would apply to more than layers; or the names do not fit the
            donors.
    """
    named = isinstance(models, list | tuple) and all(isinstance(name, str) and name for name in models)
    if not named or len(models) != len(plan.depths) or len(set(models)) != len(models):
        donors = counted(len(plan.depths), "donor")
        raise PlanError(f"{shown(models)} does not name {donors}; give a list with one name for each")
    if any(visit.damp != 1 or visit.sliding or visit.kv is not None for visit in plan.visits):
        raise PlanError("mergekit has no damping and no shared keys and values; it cannot say this plan")
    _refuse_outside(plan.visits[0].scale, BEFORE_LAYERS, "the first run")
    _refuse_outside(plan.visits[-1].scale, AFTER_LAYERS, "the last run")
    slices: list[dict[str, Any]] = []
    previous: Visit | None = None
    for visit in plan.visits:
        if previous and visit == Visit(previous.layer + 1, scale=previous.scale, donor=previous.donor):
            slices[-1]["sources"][0]["layer_range"][1] += 1
        else:
            layer_range = [visit.layer, visit.layer + 1]
            source: dict[str, Any] = {"model": models[visit.donor], "layer_range": layer_range}
            if visit.scale:
                filters = [{"filter": name, "value": factor} for name, factor in visit.scale]
                source["parameters"] = {"scale": filters}
            slices.append({"sources": [source]})
        previous = visit
    import yaml

    config = {"slices": slices, "merge_method": "passthrough", "dtype": dtype}
    return str(yaml.safe_dump(config, sort_keys=False, default_flow_style=None))


def _settings(value: Any, where: str) -> Settings:
    """The (filter, gradient) pairs of a `parameters` mapping, whose only key is `scale`."""
    if value is None:
        return []
    scale = _mapping(value, where, {"scale"}).get("scale")
    if not isinstance(scale, list) or not any(isinstance(entry, Mapping) for entry in scale):
        return [("*", _gradient(scale, where))]
    pairs = []
    for entry in scale:
        condition = _mapping(entry, f"{where}: scale", {"filter", "value"})
        name = condition.get("filter")
        if name is None:
            name = "*"
        elif not isinstance(name, str) or not is_filter(name):
            raise PlanError(f"{where}: {shown(name)} is no filter; write part of a tensor's name, or *")
        pairs.append((name, _gradient(condition.get("value"), where)))
    return pairs


def _gradient(value: Any, where: str) -> Gradient:
    numbers = value if isinstance(value, list) else [value]
    if numbers and all(
        isinstance(number, int | float) and not isinstance(number, bool) for number in numbers
    ):
        try:
            return tuple(map(float, numbers))
        except OverflowError:
            pass
    remedy = "write one as in scale: 0.7, or a list of filters as in scale: [{filter: o_proj, value: 0.7}]"
    raise PlanError(f"{where}: scale {shown(value)} is neither a number nor a list of numbers; {remedy}")


def _at(settings: Settings, t: float) -> Scale:
    """The filters in force at depth t of a slice: 0 is its first layer, 1 its last."""
    return tuple((name, _interpolated(gradient, t)) for name, gradient in settings)


def _interpolated(gradient: Gradient, t: float) -> float:
    place = t * (len(gradient) - 1)
    below = int(place)
    above = min(below + 1, len(gradient) - 1)
    share = place - below
    return (1 - share) * gradient[below] + share * gradient[above]


def _refuse_outside(scale: Scale, tensors: Sequence[str], where: str) -> None:
    """Refuse a scale that mergekit would apply to a tensor outside the layers."""
    for tensor in tensors:
        name, factor = next(((n, f) for n, f in scale if n == "*" or n in tensor), ("", 1.0))
        if factor != 1:
            raise PlanError(
                f"{where}: the scale of {name} would multiply {tensor} too, which no layer holds; "
                "write filters that only name tensors of layers, such as o_proj"
            )


def _slices(pieces: list[Any]) -> Iterator[tuple[str, Mapping[str, Any], list[Any]]]:
    """What errors call each slice, the slice, and its sources, at least one."""
    for number, entry in enumerate(pieces):
        where = f"slice {number}"
        piece = _mapping(entry, where, SLICE_KEYS)
        yield where, piece, _list(piece.get("sources"), f"{where}: sources")


def _model(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise PlanError(f"{where}: model is {shown(value)}; write a model's name")
    return value


def _depth(model: str, depths: int | Mapping[str, int], where: str) -> int:
    """How many layers a model has."""
    if isinstance(depths, int):
        return depths
    if model not in depths:
        given = ", ".join(map(shown, depths))
        raise PlanError(
            f"{where}: how many layers has {shown(model)}? give its count by name (given: {given})"
        )
    return depths[model]


def _layer_range(value: Any, depth: int, where: str) -> tuple[int, int]:
    match value:
        case [int(start), int(stop)] if not isinstance(start, bool) and not isinstance(stop, bool):
            pass
        case _:
            raise PlanError(f"{where}: layer_range is {shown(value)}; write [start, stop], as in [0, 16]")
    written = f"{where}: layer_range {shown([start, stop])}"
    if not 0 <= start < stop:
        raise PlanError(f"{written} holds no layer; the stop is not included, as in [0, 16]")
    if stop > depth:
        raise PlanError(f"{written} is past {extent(depth)}; write a stop of at most {depth}")
    return start, stop


def _mapping(value: Any, where: str, keys: set[str]) -> Mapping[str, Any]:
    known = ", ".join(sorted(keys))
    if not isinstance(value, Mapping):
        raise PlanError(f"{where} must be a mapping with {known}, not {shown(value)}")
    for key in value:
        if key not in keys:
            raise PlanError(f"{where}: {shown(key)} is not understood; the keys are {known}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise PlanError(f"{where} must be a list with at least one entry, not {shown(value)}")
    return value
