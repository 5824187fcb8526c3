"""The spec language against Python's own slices, and every way to get it wrong."""

import re

import pytest

import restack
from restack import Plan, PlanError, Visit
from restack.plans import parse


def layers(text: str, depth: int = 8) -> list[int]:
    return list(parse(text, (depth,)).order)


def refusal(text: str, depth: int | tuple[int, ...] = 8) -> str:
    with pytest.raises(PlanError) as caught:
        restack.plan(text, depth)
    return str(caught.value)


def pointed(message: str) -> tuple[str, str]:
    """What stands over the carets of an error, and what is said beside them."""
    shown, below = message.split("\n")
    carets = re.match(r"( *)(\^+) (.+)", below)
    assert carets, message
    return shown[carets.start(2) : carets.end(2)], carets[3]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", [0, 1, 2, 3, 4, 5, 6, 7]),
        (" all ", [0, 1, 2, 3, 4, 5, 6, 7]),
        (":", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("::", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("0:3,1:4", [0, 1, 2, 1, 2, 3]),
        ("0:4,2:6", [0, 1, 2, 3, 2, 3, 4, 5]),
        ("0:8:2", [0, 2, 4, 6]),
        ("1:8:3", [1, 4, 7]),
        ("0,0,0", [0, 0, 0]),
        ("5", [5]),
        ("-1", [7]),
        ("-8", [0]),
        ("-3:", [5, 6, 7]),
        (":-3", [0, 1, 2, 3, 4]),
        (" 0:2 , 4:6 ", [0, 1, 4, 5]),
        ("::-1", [7, 6, 5, 4, 3, 2, 1, 0]),
        ("7:0:-1", [7, 6, 5, 4, 3, 2, 1]),
        ("5:1:-2", [5, 3]),
        ("2:4x3", [2, 3, 2, 3, 2, 3]),
        ("2x2,-1x2", [2, 2, 7, 7]),
        ("00002:0004", [2, 3]),
        ("0" * 6000 + "1", [1]),
        ("0:8", [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_layers(text: str, expected: list[int]) -> None:
    assert layers(text) == expected


def test_every_slice_of_a_small_model_is_pythons() -> None:
    bounds = [None, *range(-5, 6)]
    accepted = 0
    for start in bounds:
        for stop in bounds:
            for step in (None, -3, -2, -1, 1, 2, 3):
                text = ":".join("" if bound is None else str(bound) for bound in (start, stop))
                text += "" if step is None else f":{step}"
                expected = list(range(4))[start:stop:step]
                inside = (start is None or -4 <= start < 4) and (stop is None or -4 <= stop <= 4)
                if expected and inside:
                    assert layers(text, 4) == expected, text
                    accepted += 1
                else:
                    refusal(text, 4)
    assert accepted > 300


@pytest.mark.parametrize("depth", [1, 2, 5, 16384])
def test_all_is_every_layer(depth: int) -> None:
    plan = parse("all", (depth,))
    assert plan.order == tuple(range(depth))
    assert plan.is_identity


def test_modifiers() -> None:
    plan = parse("1:3x2@0.5{o_proj:.7,*:-2},0@-1", (4,))
    scaled = {"damp": 0.5, "scale": (("o_proj", 0.7), ("*", -2.0))}
    expected = tuple(Visit(layer, **scaled) for layer in (1, 2, 1, 2))
    assert plan.visits == (*expected, Visit(0, damp=-1.0))


def test_damp_of_a_block() -> None:
    plan = restack.plan("0:52,45:52@0.7,52:", 80)
    assert plan.order == (*range(52), *range(45, 80))
    assert [number for number, visit in enumerate(plan.visits) if visit.damp == 0.7] == list(range(52, 59))
    assert {visit.damp for visit in plan.visits} == {1.0, 0.7}


def test_donors() -> None:
    plan = parse("0/0:2,1/-2:,0/1x2", (3, 5))
    assert [(visit.donor, visit.layer) for visit in plan.visits] == [
        (0, 0),
        (0, 1),
        (1, 3),
        (1, 4),
        (0, 1),
        (0, 1),
    ]
    assert parse("0/1:3", (4,)) == parse("1:3", (4,))


def test_kv_map_of_a_spec() -> None:
    plan = parse("0:2,0:2;kv=0_1_0s_1", (2,))
    assert [visit.kv for visit in plan.visits] == [None, None, 0, 1]
    assert [visit.sliding for visit in plan.visits] == [False, False, True, False]


def test_the_error_of_the_design() -> None:
    assert refusal("0:8,4:120,8:", 32) == (
        "0:8,4:120,8:\n      ^^^ stop 120 is past the model's 32 layers (0..31); write 4: to run to the end"
    )


@pytest.mark.parametrize(
    ("text", "place", "wrong", "remedy"),
    [  # first what chatllm.cpp lets pass, or dies of: notes/chatllm.md, section 1
        ("0:2,,4:6", ",", "an empty item", "remove the comma"),
        ("0:2,", "", "an empty item", "remove the comma"),
        (",0:2", ",", "an empty item", "remove the comma"),
        ("+1:3", "+", "not a layer or a slice", "0:8"),
        ("0:100", "100", "stop 100 is past the model's 8 layers (0..7)", "write 0: to run to the end"),
        ("8:9", "8", "start 8 is past the model's 8 layers (0..7)", "a start from 0 to 7"),
        ("8", "8", "layer 8 is past the model's 8 layers (0..7)", "the last layer is 7 or -1"),
        ("-9", "-9", "layer -9 is past the model's 8 layers (0..7)", "the last layer is 7 or -1"),
        ("-20:4", "-20", "start -20 is past", "write :4 to start at layer 0"),
        ("7:-9:-1", "-9", "stop -9 is past", "write 7::-1 to run to layer 0"),
        ("9:4:-1", "9", "start 9 is past", "write :4:-1 to start at the end"),
        ("5:5", "5:5", "holds no layer: its stop is not included", "write 5 for that layer alone"),
        ("0:8:0", "0", "step 0 goes nowhere", "write 1"),
        ("0:4:-1", "0:4:-1", "holds no layer: its step is -1", "write 0:4 to run up, or 4:0:-1"),
        ("6:2:3", "6:2:3", "holds no layer: its step is 3", "write 2:6:3 to run up, or 6:2:-3"),
        ("0:0x3", "0:0", "holds no layer", "write 0"),
        ("abc", "abc", "neither a spec such as 0:8,4:12 nor a KV preset", "lckv-w2"),
        ("0-3", "-", "not part of a spec", "write 0:4 for layers 0 to 3"),
        ("0:2;4:6", ";", "only a KV map may follow", "a comma between items"),
        ("1:2:3:4", ":", "at most start:stop:step", "a comma"),
        # and more of our own
        ("0:2 4:6", "4", "not part of a spec", "with a comma between them"),
        ("0:2\t", None, None, None),  # blank ends are dropped
        ("0:2\t,3", "\N{REPLACEMENT CHARACTER}", "not part of a spec", "comma"),
        ("0:2\n3", "\N{REPLACEMENT CHARACTER}", "not part of a spec", "comma"),
        ("0:2\0", "\N{REPLACEMENT CHARACTER}", "not part of a spec", "comma"),
        ("0:2\ud800", "\N{REPLACEMENT CHARACTER}", "not part of a spec", "comma"),
        ("٣", "٣", "not a layer or a slice", "0:8"),
        ("²", "²", "not a layer or a slice", "0:8"),
        ("all,0", "a", "not a layer or a slice", "0:8"),
        ("--1", "-", "not a layer or a slice", "0:8"),
        ("1.5", ".", "not part of a spec", "0:8"),
        ("0:8x", "", "a whole number should stand here", "digits"),
        ("0:8x0", "0", "0 runs is not a repeat", "x1"),
        ("0:8x-2", "-2", "-2 runs is not a repeat", "x1"),
        ("0:8x99999", "0:8x99999", "more than 16384 visits", "repeat less"),
        ("0x9000,1x9000", "1x9000", "passes 16384 visits here", "repeat less"),
        ("0x9999999999", "9999999999", "past any model's layers", "fewer digits"),
        ("0:8@", "", "a decimal number should stand here", "0.7"),
        ("0:8@nan", "n", "a decimal number should stand here", "0.7"),
        ("0:8@inf", "i", "a decimal number should stand here", "0.7"),
        ("0:8@1e3", "e", "no exponents", "0.001"),
        ("0:8@" + "9" * 310, None, "too long", "finite"),
        ("0:8@0." + "1" * 5000, None, "too long", "finite"),
        ("0:8@1x2", "x", "not part of a spec", "0:8"),
        ("0:8{", "", "part of a tensor's name should stand here", "{o_proj:0.7}"),
        ("0:8{}", "}", "part of a tensor's name should stand here", "{o_proj:0.7}"),
        ("0:8{a}", "}", "a filter needs its scale", "{o_proj:0.7}"),
        ("0:8{a/b:1}", "/", "a filter needs its scale", "{o_proj:0.7}"),
        ("0:8{a:1", "", "the filters do not end", "close them with }"),
        ("0:8{a:x}", "x", "a decimal number should stand here", "0.7"),
        ("0{" + "a:2," * 70 + "a:2}", "a", "more than 16 filters", "fewer"),
        ("1/0:8", "1", "donor 1 is past the plan's 1", "0/"),
        ("0:8;", ";", "only a KV map may follow", ";kv=0_0_2_2"),
        ("0:8;kv", ";", "only a KV map may follow", ";kv=0_0_2_2"),
        ("0:2;kv=", "", "a visit's number should stand here", "0_1_1_3s"),
        ("0:2;kv=cla2", "c", "a visit's number should stand here", "a map by its name goes into --kv"),
        ("0:2;kv=0", "", "the map ends after 1 of the plan's 2 visits", "one entry a visit"),
        ("0:2;kv=0_1_1", "1", "more entries than the plan's 2 visits", "one entry a visit"),
        ("0:2;kv=0_2", "2", "owner 2 is past the plan's 2 visits", "0 to 1"),
        ("0:2;kv=0_1z", "z", "not part of a KV map", "0_1_1_3s"),
        ("0:2;kv=0x0_0_0", "0", "0 times is no repeat", "x1"),
        ("1_000:2", ":", "not part of a KV map", "0_1_1_3s"),
    ],
)
def test_refusals_point_at_the_place(
    text: str, place: str | None, wrong: str | None, remedy: str | None
) -> None:
    if wrong is None:
        assert restack.plan(text, 8).order == (0, 1)
        return
    at, said = pointed(refusal(text))
    if place is not None:
        assert at == place
    assert wrong in said
    assert remedy in said.partition("; ")[2]


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_an_empty_plan_is_refused(text: str) -> None:
    assert refusal(text) == "the plan is empty; write a spec as in 0:8,4:12, or all"


def test_the_slice_that_a_refusal_proposes_is_accepted() -> None:
    bounds = ["", *map(str, range(-7, 8))]
    for start in bounds:
        for stop in bounds:
            for step in ("", ":-2", ":-1", ":1", ":2"):
                try:
                    restack.plan(f"{start}:{stop}{step}", 5)
                except PlanError as error:
                    proposed = re.findall(r"(?:write|or) ([-:0-9]*[:0-9])(?= to | for )", str(error))
                    for text in proposed:
                        restack.plan(text, 5)
                    assert proposed or "write a start from 0 to 4 and a stop up to 5" in str(error)


def test_plans_of_several_donors_are_refused_without_their_number() -> None:
    assert pointed(refusal("0/0:8,0:8", (8, 8)))[1].startswith("which of the 2 donors?")
    assert pointed(refusal("all", (8, 8)))[1].startswith("all of which donor?")
    assert pointed(refusal("0/0:8,2/0:8", (8, 8)))[0] == "2"
    assert pointed(refusal("0/0:8,-1/0:8", (8, 8)))[0] == "-1"
    assert pointed(refusal("1/0:9", (9, 8)))[0] == "9"


def test_a_model_of_one_layer() -> None:
    assert "past the model's one layer (0)" in refusal("1", 1)
    assert layers("0x3", 1) == [0, 0, 0]


def test_long_texts_are_excerpted_around_the_place() -> None:
    text = "0," * 500 + "9," + "0," * 500
    message = refusal(text)
    at, said = pointed(message)
    assert at == "9"
    assert said.startswith("layer 9 is past")
    assert max(map(len, message.split("\n"))) < 150
    assert message.startswith("...") and message.split("\n")[0].endswith("...")


def test_carets_stand_under_wide_characters() -> None:
    shown, below = refusal("0:2,\N{FULLWIDTH DIGIT THREE}:4").split("\n")
    assert shown == "0:2,\N{FULLWIDTH DIGIT THREE}:4"
    assert below.startswith("    ^^ ")  # it takes two columns of a terminal


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("all", "0:8"),
        ("0,1,2,3", "0:4"),
        ("0:52", None),
        ("0:4,4:8", "0:8"),
        ("3,3,3", "3x3"),
        ("0,1,0,1,0,1", "0:2x3"),
        ("0,1,0,1,2", "0:2,0:3"),
        ("0,2,4,6", "0:8:2"),
        ("0,2,4", "0:6:2"),
        ("0,2", "0,2"),
        ("7,6,5", "7:4:-1"),
        ("2,1,0", "2::-1"),
        ("2,1", "2,1"),
        ("-1", "7"),
        ("1:3@1.0", "1:3"),
        ("1:3@0.50", "1:3@0.5"),
        ("1@-0", "1@0"),
        ("1:3{o_proj:1}", "1:3"),
        ("1:3{a:2,*:3,b:4}", "1:3{a:2,*:3}"),
        ("1:3{a:1,*:2,b:4}", "1:3{a:1,*:2}"),
        ("0:3,0:3@0.5", "0:3,0:3@0.5"),
        ("0:3;kv=0_1_2", "0:3"),
        ("0:3;kv=0_0_0s", "0:3;kv=0x2_0s"),
    ],
)
def test_canonical_text(given: str, canonical: str | None) -> None:
    if canonical is None:
        refusal(given)
    else:
        assert str(parse(given, (8,))) == canonical


def test_canonical_text_of_donors() -> None:
    assert str(parse("0/0,0/1,1/2,1/3,1/3", (4, 4))) == "0/0:2,1/2:4,1/3"


@pytest.mark.parametrize("number", [5e-324, 1.7976931348623157e308, 1e22, 1 / 3, -2.5, 1e-7, 123456.789])
def test_any_float_survives_the_text(number: float) -> None:
    plan = Plan((Visit(0, damp=number, scale=(("a", number),)),), (1,))
    assert "e" not in str(plan)
    assert parse(str(plan), (1,)) == plan


@pytest.mark.parametrize("text", [None, 5, b"0:8", ["0:8"]])
def test_only_text_is_a_spec(text: object) -> None:
    with pytest.raises(PlanError, match="is no text"):
        parse(text, (8,))  # type: ignore[arg-type]
