"""One entry point for every notation of a plan, recognised by its shape."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from restack.errors import PlanError
from restack.plans import blocks as blocks_of
from restack.plans import depth_ranges, kv_map, mergekit, paths, presets, spec
from restack.plans.pointing import error_at, extent, shown
from restack.plans.value import Plan, checked_depths, layers_of, whole

YAML_FILE = re.compile(r".*\.ya?ml", re.IGNORECASE | re.DOTALL)
KV_MAP = re.compile(r"[0-9]+s?(x[0-9]+)?_")  # how one begins: "5" and "5x3" alone are specs
NAME = re.compile(r"(?!all\b)[a-z]")  # how the name of a KV map begins
LAYER_LIST = re.compile(r"\[([^\[\]()]*)\]")
LIST_OF_PAIRS = re.compile(r"\[ *[(\[]")
SAY_WHICH = "say blocks=[...] or ratio_repeat=[...]"

Depths = tuple[int, ...]
Names = tuple[str, ...] | None


def plan(
    notation: Any = None,
    layers: Any = None,
    *,
    ratio_repeat: Sequence[tuple[float, float]] | None = None,
    blocks: Sequence[tuple[int, int]] | tuple[int, int] | None = None,
    kv: str | None = None,
) -> Plan:
    """The plan that a notation writes, checked against the model it is for.

    One of the first, `ratio_repeat` and `blocks` is given; with `kv` alone, all layers run in order.

    Args:
        notation: one of
            - a layer spec "0:8,4:12" (chatllm.cpp), or a list of layers (David's raw map);
            - a block (45, 52), or several "(31,34);(43,45)" (RYS);
            - a path "0..14,12..39" (llm-circuit-finder);
            - a mergekit YAML file, or the mapping in it;
            - a KV map "0_0_2_2" (LCKV) or the name of one, "cla2", for a model run in order;
            - a `Plan`, or its JSON object.
        layers: how many layers the model has; or the counts of several donors, in order or by name; or a
            loaded model or its config in place of a count. A `Plan` and its JSON object bring their own.
        ratio_repeat: depth ranges, 0 the first layer and 1 the last (David).
        blocks: blocks (i, j) that run twice.
        kv: a KV map or the name of one, for the visits of a plan that has none.

    Raises:
        PlanError: the notation is not valid or not for this model; the message says what to write instead.
    """
    given = [value for value in (notation, ratio_repeat, blocks) if value is not None]
    if len(given) > 1 or not (given or kv is not None):
        raise PlanError("give one of a notation, ratio_repeat and blocks; 'all' runs every layer once")
    if isinstance(notation, Mapping) and "plan" in notation:
        notation = Plan.from_json(notation)
    if layers is None and isinstance(notation, Plan):
        layers = notation.depths
    names, depths = _counts(layers)
    if ratio_repeat is not None:
        result = depth_ranges.read(ratio_repeat, _single(depths))
    elif blocks is not None:
        result = blocks_of.read(_list_of_blocks(blocks), _single(depths))
    else:
        result = _read("all" if notation is None else notation, names, depths)
    if kv is None:
        return result
    if not kv_map.is_plain(result):
        raise PlanError("the plan has a KV map of its own; give it one KV map, in the plan or as kv")
    return _with_kv(result, kv)


def donors(notation: Any) -> tuple[str, ...]:
    """The models that a mergekit config names, by the number of their donor; no other notation names any."""
    if isinstance(notation, Mapping) and "plan" not in notation:
        return mergekit.donors(notation)
    if isinstance(notation, str) and YAML_FILE.fullmatch(notation.strip()):
        notation = Path(notation.strip())
    return mergekit.donors(mergekit.load(notation)) if isinstance(notation, Path) else ()


def own_plan(config: Any) -> Plan | None:
    """The plan that a model of this config runs by itself, as restack-llama does; None for other models."""
    found = getattr(config, "whole_plan", None)
    return found if isinstance(found, Plan) else None


def _read(notation: Any, names: Names, depths: Depths) -> Plan:
    match notation:
        case Plan():
            if notation.depths != depths:
                ours, theirs = layers_of(notation.depths), layers_of(depths)
                raise PlanError(f"the plan is for {ours}, the model has {theirs}; they must agree")
            return notation
        case Path():
            return _mergekit(mergekit.load(notation), names, depths)
        case str():
            return _text(notation.strip(), names, depths)
        case Mapping():
            return _mergekit(notation, names, depths)
        case tuple((_, _)) if not any(isinstance(bound, Sequence) for bound in notation):
            return blocks_of.read([notation], _single(depths))
        case tuple():  # a pair is a block, so a tuple of layers would mean another thing when it has two
            raise PlanError(f"{shown(notation)} is no block (i, j); write layers as a list: list(plan.order)")
        case [*_]:
            return _layer_list(notation, _single(depths))
    raise PlanError(
        f"{shown(notation)} is no notation of a plan; write a spec as in '0:8,4:12', or a list of layers"
    )


def _text(text: str, names: Names, depths: Depths) -> Plan:
    if not text:
        raise PlanError("the plan is empty; write a spec as in 0:8,4:12, or all")
    if YAML_FILE.fullmatch(text):
        return _mergekit(mergekit.load(text), names, depths)
    if KV_MAP.match(text) or NAME.match(text):
        depth = _single(depths)
        return _with_kv(Plan.of(range(depth), depth), text)
    if text.startswith("("):
        return blocks_of.parse(text, _single(depths))
    if ".." in text:
        return paths.parse(text, _single(depths))
    if LIST_OF_PAIRS.match(text):
        raise error_at(text, 0, len(text), "a list of pairs can be blocks or depth ranges", SAY_WHICH)
    listed = LAYER_LIST.fullmatch(text)
    return spec.parse(listed[1] if listed else text, depths)


def _layer_list(entries: Sequence[Any], depth: int) -> Plan:
    if not len(entries):
        raise PlanError("the list of layers is empty; write at least one, or 'all'")
    if all(isinstance(entry, Sequence) and not isinstance(entry, str) for entry in entries):
        raise PlanError(f"a list of pairs can be blocks or depth ranges; {SAY_WHICH}")
    layers = []
    for number, entry in enumerate(entries):
        layer = whole(entry, f"entry {number} of the list of layers")
        if not -depth <= layer < depth:
            remedy = f"the last layer is {depth - 1} or -1"
            raise PlanError(f"entry {number}: layer {layer} is past {extent(depth)}; {remedy}")
        layers.append(layer % depth)
    return Plan.of(layers, depth)


def _list_of_blocks(blocks: Any) -> Sequence[Any]:
    """The blocks of `blocks=`: a list of them, or a single one."""
    if not isinstance(blocks, Sequence) or isinstance(blocks, str | bytes):
        raise PlanError(f"{shown(blocks)} is no list of blocks; write [(31, 34), (43, 45)]")
    single = len(blocks) == 2 and not any(isinstance(bound, Sequence) for bound in blocks)
    return [blocks] if single else blocks


def _with_kv(base: Plan, kv: Any) -> Plan:
    if not isinstance(kv, str):
        raise PlanError(f"kv is {shown(kv)}; write a KV map as in '0_0_2_2', or the name of one as in 'cla2'")
    if not kv.strip():
        raise PlanError("the KV map is empty; write one as in 0_0_2_2 or a name as in cla2, or leave it out")
    if "0" <= kv[:1] <= "9":
        return kv_map.read(kv, base)
    return kv_map.assign(base, presets.owners(kv, len(base)))


def _mergekit(config: Mapping[str, Any], names: Names, depths: Depths) -> Plan:
    return mergekit.read(config, dict(zip(names, depths, strict=True)) if names else _single(depths))


def _single(depths: Depths) -> int:
    if len(depths) != 1:
        wrong = f"this notation is of one model, and there are {len(depths)}"
        raise PlanError(f"{wrong}; write a spec as in 0/0:16,1/8:24")
    return depths[0]


def _counts(layers: Any) -> tuple[Names, Depths]:
    """The donors' names, if they have any, and their layer counts."""
    if not isinstance(layers, Mapping):
        several = isinstance(layers, list | tuple)
        return None, checked_depths([_count(model) for model in (layers if several else [layers])])
    names = tuple(layers)
    for name in names:
        if not isinstance(name, str):
            raise PlanError(f"{shown(name)} is no model's name; write {{'NAME': LAYERS}}")
    return names, checked_depths([_count(model) for model in layers.values()])


def _count(layers: Any) -> Any:
    """How many layers there are, of a count, a loaded model or its config."""
    if layers is None:
        raise PlanError("how many layers has the model? give their number, or the loaded model")
    config = getattr(layers, "config", layers)
    if not hasattr(config, "get_text_config"):
        return layers
    if (own := own_plan(config)) is not None:
        return len(own)
    try:
        return config.get_text_config(decoder=True).num_hidden_layers
    except (AttributeError, ValueError) as error:  # no decoder, or several
        raise PlanError(f"cannot tell how many layers the model has: {error}; give their number") from None
