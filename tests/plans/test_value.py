"""Plan as a value: what it checks, and what can be done with it."""

import copy
import json
import pickle
import subprocess
import sys
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import restack
from restack import Plan, PlanError, RestackError, Visit
from restack.plans import parse


def refusal(call: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(PlanError) as caught:
        call(*args, **options)
    return str(caught.value)


def test_plans_need_no_torch() -> None:
    code = "import restack, sys; restack.plan('0:8,4:12', 32); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_equal_plans_have_equal_hashes() -> None:
    plans = [
        restack.plan("0,1,2,1,2", 3),
        restack.plan("0:3,1:", 3),
        restack.plan([0, 1, -1, 1, 2], 3),
        restack.plan((1, 3), 3),
        Plan((Visit(0), Visit(1), Visit(2), Visit(1, kv=3), Visit(2)), (3,)),
        Plan([Visit(np.int64(layer), damp=1) for layer in (0, 1, 2, 1, 2)], [np.int32(3)]),  # type: ignore[arg-type]
    ]
    assert len(set(plans)) == 1
    assert restack.plan("0,1,2,1,2", 4) not in plans


def test_plans_are_made_of_plain_values() -> None:
    visit = Visit(
        np.int64(1),  # type: ignore[arg-type]
        kv=np.int64(0),  # type: ignore[arg-type]
        damp=np.float32(0.5),  # type: ignore[arg-type]
        scale=[["o_proj", Fraction(1, 4)]],  # type: ignore[arg-type]
    )
    plan = Plan([Visit(0), visit], [2])  # type: ignore[arg-type]
    checked = plan.visits[1]
    assert checked == Visit(1, kv=0, damp=0.5, scale=(("o_proj", 0.25),))
    assert [type(value) for value in (checked.layer, checked.kv, checked.damp)] == [int, int, float]
    assert type(checked.scale) is type(checked.scale[0]) is tuple
    assert type(plan.depths) is type(plan.visits) is tuple
    hash(plan)


@pytest.mark.parametrize(
    ("visits", "depths", "said"),
    [
        ([], (3,), "a plan needs at least one visit"),
        ([Visit(3)], (3,), "visit 0: layer 3 is past the model's 3 layers (0..2)"),
        ([Visit(0), Visit(-1)], (3,), "visit 1: layer -1 is past"),
        ([Visit(0, donor=1)], (3,), "visit 0: donor 1 is past the plan's 1 (0..0)"),
        ([Visit(0, donor=-1)], (3,), "donor -1 is past"),
        ([Visit(2, donor=1)], (3, 2), "layer 2 is past the model's 2 layers"),
        ([Visit(0, kv=1)], (3,), "visit 0 reads visit 1, past the plan's 1 visits (0..0)"),
        ([Visit(0, kv=-1)], (3,), "visit 0 reads visit -1"),
        ([Visit(0.0)], (3,), "visit 0: the layer must be a whole number, not 0.0"),
        ([Visit(True)], (3,), "the layer must be a whole number, not True"),
        ([Visit("0")], (3,), "the layer must be a whole number, not '0'"),
        ([Visit(None)], (3,), "the layer must be a whole number, not None"),
        ([Visit(10**5000)], (3,), "too many digits"),
        ([Visit(0, donor=None)], (3,), "the donor must be a whole number"),
        ([Visit(0, kv="0")], (3,), "the owner must be a whole number"),
        ([Visit(0, sliding=1)], (3,), "sliding must be True or False, not 1"),
        ([Visit(0, damp=float("nan"))], (3,), "the damp must be a finite number, not nan"),
        ([Visit(0, damp=float("-inf"))], (3,), "the damp must be a finite number, not -inf"),
        ([Visit(0, damp="0.5")], (3,), "the damp must be a finite number, not '0.5'"),
        ([Visit(0, damp=True)], (3,), "the damp must be a finite number, not True"),
        ([Visit(0, damp=None)], (3,), "the damp must be a finite number"),
        ([Visit(0, damp=1j)], (3,), "the damp must be a finite number"),
        ([Visit(0, damp=10**400)], (3,), "the damp must be a finite number"),
        ([Visit(0, scale=None)], (3,), "scale must be as in"),
        ([Visit(0, scale="o_proj")], (3,), "scale must be as in"),
        ([Visit(0, scale={"o_proj": 0.5})], (3,), "scale must be as in"),
        ([Visit(0, scale=("o_proj", 0.5))], (3,), "'o_proj' is no scale filter"),
        ([Visit(0, scale=(("o proj", 0.5),))], (3,), "('o proj', 0.5) is no scale filter"),
        ([Visit(0, scale=(("", 0.5),))], (3,), "is no scale filter"),
        ([Visit(0, scale=((("a", "b"), 0.5),))], (3,), "is no scale filter"),
        ([Visit(0, scale=(("a" * 101, 0.5),))], (3,), "is no scale filter"),
        ([Visit(0, scale=(("o", float("inf")),))], (3,), "the scale of o must be a finite number"),
        ([Visit(0, scale=(("o", True),))], (3,), "the scale of o must be a finite number, not True"),
        ([Visit(0, scale=(("o", 2.0),) * 17)], (3,), "17 scale filters"),
        ([0], (3,), "visit 0 is 0; write Visit(layer)"),
        ([None], (3,), "visit 0 is None"),
        (5, (3,), "a plan's visits must be a tuple of Visit, not 5"),
        ("0:3", (3,), "visit 0 is '0'"),
        ([Visit(0)] * 16385, (3,), "more than 16384 visits"),
        ([Visit(0)], (), "there is no layer count"),
        ([Visit(0)], (0,), "0 is no layer count; give a whole number from 1 to 16384"),
        ([Visit(0)], (16385,), "16385 is no layer count"),
        ([Visit(0)], (True,), "a layer count must be a whole number, not True"),
        ([Visit(0)], (3.0,), "a layer count must be a whole number, not 3.0"),
        ([Visit(0)], 3, "depths must list the layer count of each donor, as in (32,), not 3"),
        ([Visit(0)], "3", "depths must list"),
        ([Visit(0)], None, "depths must list"),
    ],
)
def test_what_is_no_plan(visits: Any, depths: Any, said: str) -> None:
    assert said in refusal(Plan, visits, depths)


def test_a_plan_is_frozen_and_its_errors_are_restacks() -> None:
    with pytest.raises(AttributeError):
        restack.plan("all", 3).depths = (4,)  # type: ignore[misc]
    assert issubclass(PlanError, RestackError) and issubclass(PlanError, ValueError)


def test_properties() -> None:
    plan = restack.plan("0:4,2:4,7,0@0.5", 8)
    assert plan.order == (0, 1, 2, 3, 2, 3, 7, 0)
    assert plan.runs == (range(4), range(2, 4), range(7, 8), range(1))
    assert plan.owners == (0, 1, 2, 3, 4, 5, 6, 7)
    assert len(plan) == 8
    assert not plan.is_plain and not plan.is_identity
    assert restack.plan("0,0", 8).is_plain and not restack.plan("0,0", 8).is_identity
    assert restack.plan("0:8", 8).is_identity
    for text in ("0:7", "::-1", "0:8@2", "0:8;kv=0x8", "0:8;kv=0s_1_2_3_4_5_6_7", "0:8{a:2}"):
        assert not restack.plan(text, 8).is_identity
    for text in ("0:8@2", "0:8;kv=0x8", "0:8;kv=0s_1_2_3_4_5_6_7", "0:8{a:2}"):
        assert not restack.plan(text, 8).is_plain
    assert not parse("0/:", (8, 8)).is_plain


def test_a_plan_prints_as_what_makes_it() -> None:
    for plan in (restack.plan("0:8,4:12@0.5", 12), parse("0/0,1/1", (2, 2))):
        assert eval(repr(plan), {"restack": restack}) == plan
    assert repr(restack.plan("0:8,4:12", 12)) == "restack.plan('0:8,4:12', (12,))"


def test_copies_and_pickles_are_equal() -> None:
    plan = restack.plan("0:4,2:4@0.5{o_proj:2};kv=0_0_2_2_2s_5", 4)
    assert pickle.loads(pickle.dumps(plan)) == copy.deepcopy(plan) == plan


def test_json() -> None:
    plan = parse("0/0:4,1/2:4@0.5{o_proj:0.7};kv=0_0_2_2_5_5s", (4, 6))
    written = json.dumps(plan.to_json())
    assert json.loads(written) == {
        "plan": "0/0:4,1/2:4@0.5{o_proj:0.7};kv=0x2_2x2_5_5s",
        "depths": [4, 6],
    }
    assert Plan.from_json(json.loads(written)) == plan
    assert restack.plan(json.loads(written)) == plan
    assert restack.plan(json.loads(written), (4, 6)) == plan
    assert "the model has 4 + 5 layers" in refusal(restack.plan, json.loads(written), (4, 5))


@pytest.mark.parametrize(
    "value",
    [
        None,
        5,
        "0:4",
        [],
        {},
        {"plan": "0:4"},
        {"depths": [4]},
        {"plan": 5, "depths": [4]},
        {"plan": "0:4", "depths": [4], "more": 1},
        {"plan": "0:4", "depths": 4},
        {"plan": "0:5", "depths": [4]},
        {"plan": "0:4", "depths": ["4"]},
        {"plan": "0:4", "depths": []},
        {"plan": "0:4", "depths": [True]},
        {"plan": "0:4", "depths": [4.0]},
        {"plan": "0:4", "depths": [[4]]},
        {"plan": "", "depths": [4]},
        {"plan": "cla2", "depths": [4]},
        {"plan": "0:4", "depths": "4"},
        {"plan": "0:4", "depths": {4: 4}},
    ],
)
def test_what_is_no_plan_in_json(value: Any) -> None:
    refusal(Plan.from_json, value)


def test_joining_plans() -> None:
    joined = restack.plan("0:2;kv=0_0s", 4) + restack.plan("3,2@0.5;kv=1_0", 4)
    assert str(joined) == "0:2,3,2@0.5;kv=0_0s_3_2"
    assert "over 4 layers and one over 5 layers" in refusal(
        lambda: restack.plan("0", 4) + restack.plan("0", 5)
    )
    with pytest.raises(TypeError):
        restack.plan("0", 4) + "1"  # type: ignore[operator]


def test_then_looks_up_visits() -> None:
    first = restack.plan("0:4,2:6", 6)  # visits of layers 0 1 2 3 2 3 4 5
    assert first.then(restack.plan("::-1", 8)).order == (5, 4, 3, 2, 3, 2, 1, 0)
    assert first.then(restack.plan("4,4,0", 8)).order == (2, 2, 0)
    damped = restack.plan("0,1@0.5", 2).then(restack.plan("1@0.5,1,0@3", 2))
    assert damped == restack.plan("1@0.25,1@0.5,0@3", 2)
    donors = parse("0/0,1/2", (1, 3)).then(restack.plan("1,0", 2))
    assert donors == parse("1/2,0/0", (1, 3))


def test_then_keeps_scales_and_windows() -> None:
    scaled, plain = restack.plan("0:2{o_proj:2};kv=0s_1", 2), restack.plan("1,0", 2)
    assert scaled.then(plain) == restack.plan("1,0;kv=0_1s", 2).then(restack.plan("0:2{o_proj:2}", 2))
    assert "scaled by both plans" in refusal(scaled.then, restack.plan("0{up:3}", 2))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("0:3;kv=0_0_2", "0:3,0:3", [0, 0, 2, 3, 3, 5]),  # the nearest visit before it
        ("0:3;kv=0_0_2", "0,2,1,1", [0, 1, 0, 0]),
        ("0:3;kv=2_1_2", "0:3,0:3", [2, 1, 2, 5, 4, 5]),  # the nearest after it
        ("0:3;kv=2_1_2", "0,0,1,2,2", [3, 3, 2, 3, 4]),
        ("0:3;kv=0_0_2", "1,0,1;kv=0_1_0", None),
        ("0:3;kv=0_0_2", "0,1,1;kv=0_0_1", [0, 0, 1]),  # a map of its own comes first
        ("0:3;kv=0_0_2", "1,0", None),
        ("0:3;kv=0_0_2", "1,2", None),
        ("0:3;kv=2_1_2", "2,0", None),
    ],
)
def test_then_finds_owners(first: str, second: str, expected: list[int] | None) -> None:
    one, two = restack.plan(first, 3), restack.plan(second, 3)
    if expected is None:
        assert "which is not visited" in refusal(one.then, two) or "not visited" in refusal(one.then, two)
    else:
        assert list(one.then(two).owners) == expected


def test_what_cannot_follow_a_plan() -> None:
    plan = restack.plan("0:4", 8)
    assert "a plan over 8 layers cannot follow a plan of 4 visits" in refusal(plan.then, restack.plan("0", 8))
    assert "a plan over 2 + 2 layers" in refusal(plan.then, parse("0/0", (2, 2)))
    assert "'0:4' cannot follow" in refusal(plan.then, "0:4")


class Config:
    """What a transformers config offers."""

    def __init__(self, layers: Any) -> None:
        self.layers = layers

    def get_text_config(self, decoder: bool = False) -> Any:
        assert decoder
        if isinstance(self.layers, Exception):
            raise self.layers
        return SimpleNamespace(num_hidden_layers=self.layers)


def test_a_model_may_stand_for_its_layer_count() -> None:
    model = SimpleNamespace(config=Config(32))
    expected = restack.plan("0:8,4:12", 32)
    assert expected.order == (*range(8), *range(4, 12))
    assert restack.plan("0:8,4:12", model) == expected
    assert restack.plan("0:8,4:12", model.config) == expected
    assert restack.plan("0:8,4:12", [model]) == expected
    assert restack.plan("0:8,4:12", {"m": model}) == expected
    assert restack.plan("0:8,4:12", np.int64(32)) == expected
    assert restack.plan("0/0:8,1/4:12", {"a": model, "b": 12}).depths == (32, 12)
    assert restack.plan(ratio_repeat=[(0, 1)], layers=model).is_identity


@pytest.mark.parametrize(
    "layers",
    [
        0,
        -1,
        True,
        3.0,
        "8",
        None,
        [],
        {},
        {5: 8},
        {"m": None},
        [[8]],
        {8},
        object(),
        10**400,
        10**6,
        b"8",
        SimpleNamespace(config=None),
        SimpleNamespace(config=Config(None)),
        Config(ValueError("several")),
        Config(AttributeError("num_hidden_layers")),
        Config(0),
        float("nan"),
        np.array([8, 8]),
        range(3),
        int,
    ],
)
def test_what_is_no_layer_count(layers: Any) -> None:
    refusal(restack.plan, "0", layers)


def test_a_plan_stands_as_it_is() -> None:
    plan = restack.plan("0:8,4:12", 12)
    assert restack.plan(plan) is plan
    assert restack.plan(plan, 12) is plan
    assert "the plan is for 12 layers, the model has 13 layers" in refusal(restack.plan, plan, 13)
    assert restack.plan(plan, kv="cla2").owners[:4] == (0, 0, 2, 2)


def test_exactly_one_notation() -> None:
    for options in (
        {},
        {"ratio_repeat": [(0, 1)], "blocks": [(1, 2)]},
        {"notation": "all", "blocks": [(1, 2)]},
        {"notation": "all", "ratio_repeat": [(0, 1)]},
    ):
        assert "give one of" in refusal(restack.plan, layers=8, **options)


def test_notations_of_one_model_are_refused_for_several() -> None:
    for notation in ((1, 2), "(1,2)", [0, 1], "0..3", "cla2", "0_0_2_2"):
        assert "there are 2" in refusal(restack.plan, notation, (4, 4))
    assert "there are 2" in refusal(restack.plan, layers=(4, 4), blocks=[(1, 2)])
    assert "there are 2" in refusal(restack.plan, layers=(4, 4), ratio_repeat=[(0, 1)])
    assert restack.plan("0/:,1/:", (2, 2), kv="cla2").owners == (0, 0, 2, 2)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([], "the list of layers is empty"),
        ([8], "entry 0: layer 8 is past the model's 8 layers (0..7); the last layer is 7 or -1"),
        ([0, -9], "entry 1: layer -9 is past"),
        ([0, 1.0], "entry 1 of the list of layers must be a whole number, not 1.0"),
        ([False], "must be a whole number, not False"),
        (["0"], "must be a whole number, not '0'"),
        ([None], "must be a whole number, not None"),
        ([0, [1]], "must be a whole number, not [1]"),
        ([10**5000], "too many digits"),
        ([0] * 20000, "more than 16384 visits"),
        (np.array([0, 1]), "is no notation of a plan"),
        ({0, 1}, "is no notation of a plan"),
        (iter([0]), "is no notation of a plan"),
        (b"0:8", "is no notation of a plan"),
        (5, "5 is no notation of a plan"),
        (1.5, "1.5 is no notation of a plan"),
        (True, "True is no notation of a plan"),
        ({}, "merge_method is None"),
        ({"layers": [0]}, "'layers' is not understood"),
    ],
)
def test_what_is_no_list_of_layers(layers: Any, said: str) -> None:
    assert said in refusal(restack.plan, layers, 8)


def test_lists_of_layers() -> None:
    assert restack.plan([0, -1, np.int64(3)], 8).order == (0, 7, 3)
    assert restack.plan(range(7, -1, -1), 8).order == (7, 6, 5, 4, 3, 2, 1, 0)
    assert restack.plan("[0,1,2,1,2,3]", 8).order == (0, 1, 2, 1, 2, 3)


class Hostile:
    """A value that cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_values_that_cannot_be_shown() -> None:
    endless: list[Any] = []
    endless.append(endless)
    for value in (Hostile(), [Hostile()], {"plan": Hostile()}, endless, 10**5000, [10**5000]):
        assert len(refusal(restack.plan, value, 8)) < 500
        assert len(refusal(restack.plan, "0", value)) < 500
        assert len(refusal(restack.plan, "all", 8, kv=value)) < 500
        assert len(refusal(restack.plan, blocks=value, layers=8)) < 500
        assert len(refusal(restack.plan, ratio_repeat=value, layers=8)) < 500
