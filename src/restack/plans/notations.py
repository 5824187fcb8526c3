"""One entry point for every notation of a plan, recognised by its shape."""

import re
from collections.abc import Mapping, Sequence
from operator import index as as_int
from pathlib import Path
from typing import Any

from restack.errors import PlanError
from restack.plans import blocks as blocks_of
from restack.plans import depth_ranges, kv_map, mergekit, presets, spec
from restack.plans.value import Plan

YAML_FILE = re.compile(r".*\.ya?ml", re.IGNORECASE | re.DOTALL)
KV_MAP = re.compile(r"[0-9sx]+(_[0-9sx]*)+")  # "5" and "5x3" alone are specs
LAYER_LIST = re.compile(r" *\[([^\[\]]*)\] *")


def plan(
    notation: Any = None,
    layers: Any = None,
    *,
    ratio_repeat: Sequence[tuple[float, float]] | None = None,
    blocks: Sequence[tuple[int, int]] | None = None,
    kv: str | None = None,
) -> Plan:
    """The plan that a notation writes, checked against the model it is for.

    Exactly one of the first, `ratio_repeat` and `blocks` is given; all layers in order if none is and `kv` is.

    Args:
        notation: a layer spec ("0:8,4:12", chatllm.cpp); a list of layers (David's raw map); a block (45, 52) or
            "(31,34);(43,45)" (RYS); a path "0..14,12..39" (llm-circuit-finder); a mergekit YAML file or its mapping;
            a KV map "0_0_2_2" (LCKV) or the name of one ("cla2") for a model run in order; or a `Plan`.
        layers: how many layers the model has; or the counts of several donors, in order or by name; or a loaded
            model, or {name: model}, in place of a count.
        ratio_repeat: depth ranges, 0 the first layer and 1 the last (David).
        blocks: blocks (i, j) that run twice.
        kv: a KV map or the name of one, for the visits of the plan.

    Raises:
        PlanError: the notation is not valid or not for this model; the message says what to write instead.
    """
    given = [value for value in (notation, ratio_repeat, blocks) if value is not None]
    if len(given) > 1 or not (given or kv is not None):
        raise PlanError("give one of a notation, ratio_repeat and blocks; 'all' runs every layer once")
    names, depths = _counts(layers, notation)
    if ratio_repeat is not None:
        result = depth_ranges.read(ratio_repeat, _single(depths))
    elif blocks is not None:
        pair = len(blocks) == 2 and all(isinstance(bound, int) for bound in blocks)
        result = blocks_of.read([blocks] if pair else blocks, _single(depths))
    else:
        result = _read("all" if notation is None else notation, names, depths)
    return result if kv is None else _with_kv(result, kv)


def _read(notation: Any, names: tuple[str, ...] | None, depths: tuple[int, ...]) -> Plan:
    match notation:
        case Plan():
            if notation.depths != depths:
                raise PlanError(
                    f"the plan is for {notation.depths} layers and the model has {depths}; they must agree"
                )
            return notation
        case Path():
            return _mergekit(mergekit.load(notation), names, depths)
        case str():
            return _text(notation, names, depths)
        case Mapping() if "slices" in notation or "merge_method" in notation:
            return _mergekit(notation, names, depths)
        case Mapping():
            return _read(Plan.from_json(notation), names, depths)
        case (_, _) if isinstance(notation, tuple) and all(isinstance(bound, int) for bound in notation):
            return blocks_of.read([notation], _single(depths))
        case tuple() | range() | [] | [*_] if not isinstance(notation, str | bytes):
            return _layer_list(notation, _single(depths))
    raise PlanError(
        f"{notation!r:.80} is no notation of a plan; write a spec as in '0:8,4:12', or a list of layers"
    )


def _text(text: str, names: tuple[str, ...] | None, depths: tuple[int, ...]) -> Plan:
    stripped = text.strip()
    if YAML_FILE.fullmatch(stripped):
        return _mergekit(mergekit.load(stripped), names, depths)
    if not stripped:
        raise PlanError("the plan is empty; write a spec as in 0:8,4:12, or all")
    if KV_MAP.fullmatch(stripped) or presets.LOOKS_LIKE_ONE.fullmatch(stripped) and stripped != "all":
        return _with_kv(Plan.of(range(_single(depths)), _single(depths)), stripped)
    if stripped.startswith("("):
        return blocks_of.parse(stripped, _single(depths))
    if ".." in stripped:
        return blocks_of.parse_path(stripped, _single(depths))
    if listed := LAYER_LIST.fullmatch(stripped):
        text = listed[1]
    return spec.parse(text, depths)


def _layer_list(value: Sequence[Any], depth: int) -> Plan:
    if not len(value):
        raise PlanError("the list of layers is empty; write at least one, or 'all'")
    if all(isinstance(entry, Sequence) and not isinstance(entry, str) and len(entry) == 2 for entry in value):
        raise PlanError(
            "a list of pairs can be blocks or depth ranges; say blocks=[...] or ratio_repeat=[...]"
        )
    layers = []
    for number, entry in enumerate(value):
        try:
            layer = as_int(entry)
        except TypeError:
            raise PlanError(
                f"entry {number} is {entry!r:.40}, no layer; write whole numbers from 0 to {depth - 1}"
            ) from None
        if isinstance(entry, bool) or not -depth <= layer < depth:
            extent = f"the model's {depth} layers (0..{depth - 1})"
            raise PlanError(f"entry {number}: layer {entry} is past {extent}; the last is {depth - 1} or -1")
        layers.append(layer % depth)
    return Plan.of(layers, depth)


def _with_kv(base: Plan, kv: str) -> Plan:
    if kv_map.LOOKS_LIKE_ONE.fullmatch(kv):
        return kv_map.read(kv, base)
    return kv_map.assign(base, presets.owners(kv, len(base)))


def _mergekit(config: Mapping[str, Any], names: tuple[str, ...] | None, depths: tuple[int, ...]) -> Plan:
    if names is None:
        return mergekit.read(config, _single(depths))
    return mergekit.read(config, dict(zip(names, depths, strict=True)))


def _single(depths: tuple[int, ...]) -> int:
    if len(depths) != 1:
        raise PlanError(
            f"this notation is of one model, and there are {len(depths)}; write a spec as in 0/0:16,1/8:24"
        )
    return depths[0]


def _counts(layers: Any, notation: Any) -> tuple[tuple[str, ...] | None, tuple[int, ...]]:
    """The donors' names, if they have any, and their layer counts."""
    if layers is None and isinstance(notation, Plan):
        return None, notation.depths
    if isinstance(layers, Mapping):
        return tuple(layers), tuple(map(_count, layers.values()))
    if isinstance(layers, list | tuple):
        return None, tuple(map(_count, layers))
    return None, (_count(layers),)


def _count(layers: Any) -> int:
    """A layer count, or that of a loaded model or a config."""
    if layers is None:
        raise PlanError("how many layers has the model? give their number, or the loaded model")
    config = getattr(layers, "config", layers)
    if hasattr(config, "get_text_config"):
        layers = config.get_text_config(decoder=True).num_hidden_layers
    try:
        count = as_int(layers)
    except TypeError:
        count = 0
    if isinstance(layers, bool) or count < 1:
        raise PlanError(f"{layers!r:.60} is no layer count; give a whole number from 1, or a loaded model")
    return count
