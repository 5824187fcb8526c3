"""Laws that hold for every plan, and a fuzz: whatever comes in, a `Plan` or a `PlanError` comes out."""

import datetime
import json
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import restack
from restack import Plan, PlanError, Visit
from restack.plans import (
    mergekit,
    parse,
    write_blocks,
    write_depth_ranges,
    write_kv_map,
    write_mergekit,
    write_path,
)

FILTERS = ["o_proj", "down_proj", "self_attn.q_proj", "*", "a-b", "."]
numbers = st.floats(allow_nan=False, allow_infinity=False)
scales = st.lists(st.tuples(st.sampled_from(FILTERS), numbers | st.just(1.0)), max_size=3).map(tuple)
depth_tuples = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)


@st.composite
def layer_lists(draw: st.DrawFn, depth: int) -> list[int]:
    """Layers as people order them, so that runs, steps and repeats are common."""
    layers: list[int] = []
    for _ in range(draw(st.integers(1, 5))):
        start, stop = draw(st.integers(0, depth - 1)), draw(st.integers(0, depth - 1))
        run = list(range(start, stop + 1)) or list(range(start, stop - 1, -1))
        layers += run[:: draw(st.sampled_from([1, 1, 2, 3]))] * draw(st.sampled_from([1, 1, 2, 3]))
    return layers


@st.composite
def plans(
    draw: st.DrawFn,
    depths: tuple[int, ...] | None = None,
    damps: st.SearchStrategy[float] = numbers,
    scaled: bool = True,
    shared: bool = True,
) -> Plan:
    """Plans of every kind; damped and scaled run by run, as people write them, or visit by visit."""
    depths = draw(depth_tuples) if depths is None else depths
    visits: list[Visit] = []
    for _ in range(draw(st.integers(1, 4))):
        donor = draw(st.integers(0, len(depths) - 1))
        damp = draw(st.just(1.0) | damps)
        scale = draw(st.just(()) | scales) if scaled else ()
        layers = draw(layer_lists(depths[donor]))
        visits += [Visit(layer, damp=damp, scale=scale, donor=donor) for layer in layers]
    if shared and draw(st.booleans()):
        owners = draw(st.lists(st.integers(0, len(visits) - 1), min_size=len(visits), max_size=len(visits)))
        sliding = draw(st.lists(st.booleans(), min_size=len(visits), max_size=len(visits)))
        visits = [
            Visit(visit.layer, owner, slides, visit.damp, visit.scale, visit.donor)
            for visit, owner, slides in zip(visits, owners, sliding, strict=True)
        ]
    return Plan(tuple(visits), depths)


@st.composite
def plain_plans(draw: st.DrawFn, depth: int | None = None) -> Plan:
    depth = draw(st.integers(1, 12)) if depth is None else depth
    return Plan.of(draw(layer_lists(depth)), depth)


powers_of_two = st.sampled_from([0.0, 0.25, 0.5, -2.0, 4.0])  # their products are exact


# --- texts


@given(plans())
@settings(max_examples=400)
def test_text_round_trip(plan: Plan) -> None:
    text = str(plan)
    assert parse(text, plan.depths) == plan
    assert restack.plan(text, plan.depths) == plan
    assert str(parse(text, plan.depths)) == text
    assert hash(parse(text, plan.depths)) == hash(plan)


@given(plans())
def test_json_round_trip(plan: Plan) -> None:
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_canonical_text_begins_with_the_longest_slice(layers: list[int]) -> None:
    plan = Plan.of(layers, 6)
    first, *more = str(plan).split(",")
    assert parse(",".join(map(str, layers)), (6,)) == plan
    slices = {tuple(range(6)[a:b:c]) for a in range(6) for b in (None, *range(7)) for c in range(-5, 6) if c}
    longest = max(len(run) for run in slices if run and run == tuple(layers[: len(run)]))
    covered = len(restack.plan(first, 6))
    assert covered >= longest or (longest == 2 and covered == 1)  # 4,2 stays two items
    assert len(more) < len(layers)


@st.composite
def written_items(draw: st.DrawFn) -> tuple[str, int, list[tuple[int, float]]]:
    """A spec in one of its many ways, the depth of its model, and the (layer, damp) of each visit."""
    depth = draw(st.integers(1, 10))
    texts, expected = [], []
    for _ in range(draw(st.integers(1, 4))):
        bound = st.none() | st.integers(-depth, depth - 1)
        if draw(st.booleans()):
            index = draw(st.integers(-depth, depth - 1))
            text, layers = str(index), [list(range(depth))[index]]
        else:
            start, stop, step = draw(bound), draw(bound), draw(st.sampled_from([None, 1, 2, -1, -2]))
            layers = list(range(depth))[start:stop:step]
            assume(layers)
            text = ":".join("" if part is None else str(part) for part in (start, stop))
            text += draw(st.sampled_from(["", ":"])) if step is None else f":{step}"
        times = draw(st.sampled_from([None, 1, 2, 3]))
        damp = draw(st.sampled_from([None, 0.5, -1.25, 0.0, 3.0]))
        text += "" if times is None else f"x{times}"
        text += "" if damp is None else f"@{damp}"
        pad = st.sampled_from(["", "", " "])
        texts.append(draw(pad) + text + draw(pad))
        expected += [(layer, 1.0 if damp is None else damp) for layer in layers * (times or 1)]
    return ",".join(texts), depth, expected


@given(written_items())
@settings(max_examples=300)
def test_specs_mean_what_python_slices_mean(spec: tuple[str, int, list[tuple[int, float]]]) -> None:
    text, depth, expected = spec
    plan = restack.plan(text, depth)
    assert [(visit.layer, visit.damp) for visit in plan.visits] == expected


# --- the notations say the same


@given(plain_plans())
def test_notations_of_plain_plans_agree(plan: Plan) -> None:
    depth = plan.depths[0]
    path = write_path(plan)
    assert restack.plan(path, depth) == plan
    assert restack.plan(list(plan.order), depth) == plan
    assert restack.plan(str(list(plan.order)), depth) == plan
    assert restack.plan(yaml.safe_load(write_mergekit(plan, ["m"])), depth) == plan
    assert restack.plan(yaml.safe_load(write_mergekit(plan, ["m"])), {"m": depth}) == plan
    try:
        assert restack.plan(ratio_repeat=write_depth_ranges(plan), layers=depth) == plan
    except PlanError:  # only because it skips layers
        reached = -1
        for start, before in zip(plan.order, (-1, *plan.order), strict=False):
            if start > before + 1 and start > reached + 1:
                break
            reached = start
        else:
            assert plan.order[-1] != depth - 1


@given(st.integers(1, 20), st.data())
def test_blocks_agree_with_specs_and_ranges(depth: int, data: st.DataObject) -> None:
    edges = sorted(data.draw(st.sets(st.integers(0, depth), min_size=2)))
    blocks = list(zip(edges[::2], edges[1::2], strict=False))
    spec, start = [], 0
    for i, j in blocks:
        spec.append(f"{start}:{j}")
        start = i
    plan = restack.plan(",".join([*spec, f"{start}:"]), depth)
    text = ";".join(f"({i},{j})" for i, j in blocks)
    assert restack.plan(blocks=blocks, layers=depth) == plan
    assert restack.plan(text, depth) == plan
    assert write_blocks(plan) == text
    assert restack.plan(ratio_repeat=write_depth_ranges(plan), layers=depth) == plan


@given(st.integers(2, 9), st.data())
def test_kv_maps_agree(visits: int, data: st.DataObject) -> None:
    owners = data.draw(st.lists(st.integers(0, visits - 1), min_size=visits, max_size=visits))
    sliding = data.draw(st.lists(st.booleans(), min_size=visits, max_size=visits))
    text = "_".join(f"{owner}{'s' if slides else ''}" for owner, slides in zip(owners, sliding, strict=True))
    plan = restack.plan(text, visits)
    assert list(plan.owners) == owners
    assert [visit.sliding for visit in plan.visits] == sliding
    assert write_kv_map(plan, abbreviate=False) == text
    assert restack.plan("all", visits, kv=write_kv_map(plan)) == plan
    assert restack.plan(f"all;kv={text}", visits) == restack.plan(":", visits, kv=text) == plan


@given(plans(shared=False, damps=st.just(1.0), depths=(5, 4)))
def test_mergekit_round_trip(plan: Plan) -> None:
    try:
        text = write_mergekit(plan, ["a", "b"])
    except PlanError:
        outside = {name for name, _ in plan.visits[0].scale + plan.visits[-1].scale}
        assert outside & {"*", "."}  # what reaches the embeddings, the norm or the head
        return
    again = restack.plan(yaml.safe_load(text), {"a": 5, "b": 4})
    by_appearance = list(dict.fromkeys(visit.donor for visit in plan.visits))
    assert again.depths == tuple((5, 4)[donor] for donor in by_appearance)
    assert [(by_appearance[visit.donor], visit.layer, visit.scale) for visit in again.visits] == [
        (visit.donor, visit.layer, visit.scale) for visit in plan.visits
    ]


# --- + and then


@given(depth_tuples, st.data())
def test_joining(depths: tuple[int, ...], data: st.DataObject) -> None:
    one, two, three = (data.draw(plans(depths=depths)) for _ in range(3))
    joined = one + two
    assert (one + two) + three == one + (two + three)
    assert joined.order == one.order + two.order
    assert len(joined) == len(one) + len(two)
    assert joined.visits[: len(one)] == one.visits
    assert joined.owners == one.owners + tuple(owner + len(one) for owner in two.owners)
    if all(plan.owners == tuple(range(len(plan))) for plan in (one, two)):
        texts = [str(plan).partition(";")[0] for plan in (one, two)]
        assert parse(",".join(texts), depths).order == joined.order


@given(plans())
def test_then_has_an_identity_on_either_side(plan: Plan) -> None:
    assert plan.then(Plan.of(range(len(plan)), len(plan))) == plan
    if len(plan.depths) == 1:
        assert Plan.of(range(plan.depths[0]), plan.depths[0]).then(plan) == plan


@given(plans(damps=powers_of_two, scaled=False, shared=False), st.data())
def test_then_is_associative(one: Plan, data: st.DataObject) -> None:
    # not where the first shares keys and values: the nearest of the nearest may not be the nearest
    two = data.draw(plans(depths=(len(one),), damps=powers_of_two, scaled=False, shared=False))
    three = data.draw(plans(depths=(len(two),), damps=powers_of_two))
    assert one.then(two).then(three) == one.then(two.then(three))


@given(plans(damps=powers_of_two, shared=False), st.data())
def test_then_distributes_over_joining(one: Plan, data: st.DataObject) -> None:
    two, three = (data.draw(plans(depths=(len(one),), damps=powers_of_two, scaled=False)) for _ in range(2))
    assert one.then(two + three) == one.then(two) + one.then(three)


@given(plans(scaled=False), st.data())
def test_then_by_looking_up(one: Plan, data: st.DataObject) -> None:
    """Against the definition, visit by visit; the nearest owner is found by looking at all of them."""
    two = data.draw(plans(depths=(len(one),), scaled=False))
    try:
        composed = one.then(two)
    except PlanError as error:
        composed, refused = None, str(error)
    for number, above in enumerate(two.visits):
        below = one.visits[above.layer]
        owner = number if above.kv is None else above.kv
        if above.kv is None and below.kv is not None:
            side = range(number) if below.kv < above.layer else range(number + 1, len(two))
            fitting = [other for other in side if two.visits[other].layer == below.kv]
            if not fitting:
                assert composed is None
                return
            owner = min(fitting, key=lambda other: abs(other - number))
        if composed is None:
            continue
        visit = composed.visits[number]
        assert (visit.layer, visit.donor) == (below.layer, below.donor)
        assert visit.damp == above.damp * below.damp
        assert visit.sliding == (above.sliding or below.sliding)
        assert composed.owners[number] == owner
    assert composed is not None or "finite" in refused  # 1e200 * 1e200


# --- whatever comes in

VALID = ["0:8,4:12,8:16", "0:10,10:20:2,20:", "all", "::-1", "-1", "0:4x3@0.7{o_proj:0.5,*:2}", "(45,52)"]
VALID += ["(31,34);(43,45)", "0..14,12,13,14,15..39", "0_20_20_21", "0s_1s_11x20", "lckv-w2", "cla2", "yoco"]
VALID += ["sandwich-middle:11", "0/0:16,1/8:24", "[0,1,2,1,2,3]", "0:4;kv=0_0_2_2s", "x.yaml", "[(0,0.5)]"]
SPECIAL = "0123456789-+:,;.@x/{}[]()_*skv= \t\n\0\\'\"eE٣²½\ud800"
SPECIAL += "\N{FULLWIDTH DIGIT THREE}\N{COMBINING ACUTE ACCENT}"


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A valid text with a few characters put in, taken out, doubled or swapped."""
    text = draw(st.sampled_from(VALID))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(text)))
        to = min(len(text), at + draw(st.integers(0, 3)))
        put = draw(st.sampled_from(["", text[at:to] * 2, *VALID]) | st.text(SPECIAL, max_size=3))
        text = text[:at] + put + text[to:]
    return text


texts = mutated() | st.text(SPECIAL, max_size=30) | st.text(max_size=20) | st.sampled_from(VALID)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 60)
    | st.floats()
    | st.complex_numbers()
    | st.decimals()
    | st.fractions()
    | st.binary(max_size=4)
    | texts
    | st.sampled_from([10**400, -(10**400), np.int64(3), np.float32(0.5), np.bool_(True), object(), int, ...])
    | st.dates()
)
arrays = st.sampled_from(
    [np.arange(4), np.array(5), np.array([[0, 1]]), np.zeros(0), memoryview(b"ab"), range(4)]
)
values = st.recursive(
    scalars | arrays | st.builds(SimpleNamespace, config=scalars),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.none(), inner, max_size=3)
        | st.frozensets(st.integers(0, 5), max_size=3)
        | st.lists(inner, max_size=3).map(iter)
    ),
    max_leaves=8,
)
depths_like = st.integers(1, 80) | st.just((80, 80)) | st.just({"a": 80, "b": 40}) | values


def plan_or_refusal(call: Any, *args: Any, **options: Any) -> Plan | None:
    """The plan, which must be a whole one; or None if it is refused with a message that can be printed."""
    try:
        plan = call(*args, **options)
    except PlanError as error:
        message = str(error)
        message.encode()  # a lone surrogate would break the terminal
        assert message and len(message) < 5000
        assert message.count("\n") <= 1
        return None
    assert type(plan) is Plan
    assert parse(str(plan), plan.depths) == plan
    return plan


@given(texts, depths_like)
@settings(max_examples=600)
def test_any_text_is_a_plan_or_refused(text: str, depths: Any) -> None:
    plan_or_refusal(restack.plan, text, depths)
    plan_or_refusal(restack.plan, text, 40)
    plan_or_refusal(parse, text, (22, 40))


@given(texts)
def test_any_text_is_a_kv_map_or_refused(text: str) -> None:
    plan_or_refusal(restack.plan, "all", 22, kv=text)
    plan_or_refusal(restack.plan, f"0:4;kv={text}", 22)


@given(values, depths_like)
@settings(max_examples=400)
def test_any_value_is_a_plan_or_refused(value: Any, depths: Any) -> None:
    plan_or_refusal(restack.plan, value, depths)
    plan_or_refusal(restack.plan, value)
    plan_or_refusal(restack.plan, layers=depths, kv=value)


@given(values, values)
@settings(max_examples=200)
def test_any_value_of_any_argument_is_a_plan_or_refused(value: Any, other: Any) -> None:
    plan_or_refusal(restack.plan, layers=8, blocks=value)
    plan_or_refusal(restack.plan, layers=8, ratio_repeat=value)
    plan_or_refusal(restack.plan, value, 8, kv=other)
    plan_or_refusal(restack.plan, value, other, blocks=other)
    plan_or_refusal(parse, value, other)
    plan_or_refusal(parse, "0:3", value)
    plan_or_refusal(Plan.from_json, value)
    plan_or_refusal(Plan.from_json, {"plan": value, "depths": other})
    plan_or_refusal(Plan.from_json, {"plan": "0:3", "depths": value})


@given(values, values, values)
@settings(max_examples=200)
def test_any_visit_is_a_plan_or_refused(one: Any, two: Any, three: Any) -> None:
    plan_or_refusal(Plan, one, two)
    plan_or_refusal(Plan, (one,), (8,))
    plan_or_refusal(Plan, (Visit(one, kv=two, damp=three),), (8,))
    plan_or_refusal(Plan, (Visit(0, sliding=one, scale=two, donor=three),), (8,))
    plan_or_refusal(Plan, (Visit(0, scale=((one, two),)),), (8,))


yaml_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-2, 10)
    | st.floats()
    | st.sampled_from(["m", "a", "passthrough", "o_proj", "", "\ud800", 10**400, datetime.date(2024, 1, 1)])
    | st.binary(max_size=2)
)


def mostly(good: st.SearchStrategy[Any], odd: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 19).flatmap(lambda die: odd if die == 19 else good)


yaml_values = st.recursive(
    yaml_scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(yaml_scalars.filter(lambda key: key == key), inner, max_size=3)
    ),
    max_leaves=6,
)
yaml_factor = st.sampled_from([0.5, 1, [0, 2], [1.0, 0.25, -3]])
yaml_filters = st.lists(
    st.fixed_dictionaries(
        {
            "filter": mostly(st.sampled_from(["o_proj", "up_proj"]), yaml_values | st.just("*")),
            "value": mostly(yaml_factor, yaml_values),
        }
    ),
    min_size=1,
    max_size=3,
)
yaml_scale = mostly(yaml_filters, yaml_factor)
yaml_parameters = mostly(st.fixed_dictionaries({"scale": mostly(yaml_scale, yaml_values)}), yaml_values)
yaml_range = st.tuples(st.integers(0, 3), st.integers(4, 8)).map(list)
yaml_source = st.fixed_dictionaries(
    {
        "model": mostly(st.sampled_from(["m", "a"]), yaml_values),
        "layer_range": mostly(yaml_range, yaml_values),
    },
    optional={"parameters": yaml_parameters},
)
yaml_slice = st.fixed_dictionaries(
    {"sources": mostly(st.lists(mostly(yaml_source, yaml_values), min_size=1, max_size=1), yaml_values)},
    optional={"parameters": yaml_parameters},
)
yaml_config = st.fixed_dictionaries(
    {
        "slices": mostly(st.lists(mostly(yaml_slice, yaml_values), min_size=1, max_size=3), yaml_values),
        "merge_method": mostly(st.just("passthrough"), yaml_values),
    },
    optional={"parameters": yaml_parameters, "dtype": yaml_values},
)


@given(mostly(yaml_config, yaml_values))
@settings(max_examples=300)
def test_any_yaml_is_a_plan_or_refused(config: Any) -> None:
    named = plan_or_refusal(mergekit.read, config, {"m": 8, "a": 8})
    unnamed = plan_or_refusal(mergekit.read, config, 8)
    assert named is None or unnamed is None or named.visits == unnamed.visits
    plan_or_refusal(restack.plan, config, {"m": 8, "a": 8})


def test_yaml_fuzz_reaches_plans() -> None:
    """The fuzz above is worth little if nothing it makes is ever accepted."""
    accepted: list[Plan] = []

    @given(yaml_config)
    @settings(max_examples=200, database=None, derandomize=True)
    def count(config: Any) -> None:
        plan = plan_or_refusal(mergekit.read, config, {"m": 8, "a": 8})
        accepted.extend([plan] if plan else [])

    count()
    assert sum(any(visit.scale for visit in plan.visits) for plan in accepted) > 5


@pytest.fixture(scope="module")
def yaml_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("yaml") / "fuzz.yaml"


@given(content=st.binary(max_size=40) | st.text("abc:-[]{}&*!|>'\"%#,? \n\t019", max_size=40).map(str.encode))
@settings(max_examples=300)
def test_any_file_is_a_plan_or_refused(yaml_file: Path, content: bytes) -> None:
    yaml_file.write_bytes(content)
    plan_or_refusal(restack.plan, yaml_file, 8)


MEGABYTE = 2**20
LONG: Sequence[str] = [
    "0," * (MEGABYTE // 2),
    "0:16384x2," * (MEGABYTE // 10),
    "0" * MEGABYTE,
    "9" * MEGABYTE,
    "a" * MEGABYTE,
    "a-" * (MEGABYTE // 2),
    "a1" * (MEGABYTE // 2) + "!",
    "(" * MEGABYTE,
    "[" * MEGABYTE,
    "(0,1);" * (MEGABYTE // 6),
    "0..7," * (MEGABYTE // 5),
    "0_" * (MEGABYTE // 2),
    "0s" * (MEGABYTE // 2),
    ":" * MEGABYTE,
    "0" + " " * MEGABYTE + "x",
    "0@0." + "1" * MEGABYTE,
    ":{" + "a:2," * (MEGABYTE // 4) + "a:2}",
    ":{" + "a" * MEGABYTE + ":2}",
    "0:8;kv=" + "0x1_" * (MEGABYTE // 4),
    "\ud800" * MEGABYTE,
    "1" * MEGABYTE + ".yaml",
]


@pytest.mark.parametrize("text", LONG, ids=lambda text: text[:8].encode("ascii", "replace").decode())
@pytest.mark.parametrize("depth", [8, 16384])
def test_long_texts_end_soon(text: str, depth: int) -> None:
    start = time.process_time()
    try:
        restack.plan(text, depth)
    except PlanError as error:
        assert len(str(error)) < 1000
    assert time.process_time() - start < 10  # a second is enough; what is quadratic takes minutes


@given(st.fractions(0, 1), st.fractions(0, 1), st.integers(1, 40))
def test_a_fraction_is_as_good_as_its_float(one: Fraction, two: Fraction, depth: int) -> None:
    one, two = sorted(number.limit_denominator(1000) for number in (one, two))
    exact = restack.plan(ratio_repeat=[(one, two)], layers=depth)
    assert restack.plan(ratio_repeat=[(float(one), float(two))], layers=depth) == exact
