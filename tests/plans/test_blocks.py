"""RYS's blocks and llm-circuit-finder's paths."""

from typing import Any

import numpy as np
import pytest

import restack
from restack import PlanError
from restack.plans import write_blocks, write_path


def refusal(*args: Any, **options: Any) -> str:
    with pytest.raises(PlanError) as caught:
        restack.plan(*args, **options)
    return str(caught.value)


def test_the_block_of_rys_xlarge() -> None:
    expected = (*range(52), *range(45, 80))  # 0..j-1, then i..n-1
    assert len(expected) == 87
    for notation in ((45, 52), "(45,52)", " ( 45 , 52 ) ", (np.int64(45), np.int32(52))):
        assert restack.plan(notation, 80).order == expected
    for blocks in ((45, 52), [45, 52], [(45, 52)], [[45, 52]], ((45, 52),), np.array([(45, 52)]).tolist()):
        assert restack.plan(blocks=blocks, layers=80).order == expected


def test_several_blocks() -> None:
    expected = (*range(34), *range(31, 45), *range(43, 64))
    assert restack.plan("(31,34);(43,45)", 64).order == expected
    assert restack.plan(" (31,34) ; (43,45) ", 64).order == expected
    assert restack.plan(blocks=[(31, 34), (43, 45)], layers=64).order == expected
    touching = (*range(4), *range(2, 6), *range(4, 8))
    assert restack.plan("(2,4);(4,6)", 8).order == touching


def test_the_base() -> None:
    assert restack.plan("(0,0)", 5).is_identity
    assert restack.plan((0, 0), 5).is_identity


def test_the_whole_model_twice() -> None:
    assert restack.plan((0, 5), 5).order == (0, 1, 2, 3, 4, 0, 1, 2, 3, 4)


def test_a_list_is_layers_and_a_tuple_a_block() -> None:
    assert restack.plan([45, 52], 80).order == (45, 52)
    assert restack.plan("45,52", 80).order == (45, 52)
    assert restack.plan("[45,52]", 80).order == (45, 52)
    assert restack.plan((3, 5), 8) == restack.plan("(3,5)", 8)
    for order in ((0, 1, 2, 1, 2, 3), (0,), ()):
        assert "write layers as a list" in refusal(order, 4)


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("(5,3)", "(5,3)", "block (5,3) ends before it starts; to skip layers 3..4 write 0:3,5:"),
        ("(5,0)", "(5,0)", "ends before it starts; to skip layers 0..4 write 5:"),
        ("(8,3)", "(8,3)", "ends before it starts; to skip layers 3..7 write 0:3"),
        ("(8,0)", "(8,0)", "ends before it starts; write (0,8)"),
        ("(3,3)", "(3,3)", "block (3,3) is empty: the end is not included; write (3,4)"),
        ("(8,8)", "(8,8)", "is empty: the end is not included; write (7,8)"),
        ("(3,9)", "(3,9)", "block (3,9) is past the model's 8 layers (0..7); write an end of at most 8"),
        ("(9,3)", "(9,3)", "block (9,3) is past the model's 8 layers"),
        ("(1,3);(2,4)", "(2,4)", "begins before layer 3, the end of the one before it"),
        ("(3,4);(1,2)", "(1,2)", "begins before layer 4, the end of the one before it"),
        ("(0,0);(1,2)", "(0,0)", "block (0,0) is empty"),
        ("(1,2);(0,0)", "(0,0)", "block (0,0) is empty"),
        ("(1,2),(3,4)", ",", "put ; between blocks"),
        ("(1,2);", " ", "not a block"),
        ("(1,2", "(", "not a block"),
        ("(-1,2)", "(", "not a block"),
        ("(1,2,3)", "(", "not a block"),
        ("(1,1234567890)", "1234567890", "past any model's layers"),
    ],
)
def test_refused_texts(text: str, place: str, said: str) -> None:
    message = refusal(text, 8)
    shown, below = message.split("\n")
    carets = below.partition(" ")[0] if below.startswith("^") else below.split()[0]
    start = below.index("^")
    assert (shown + " ")[start : start + len(carets)] == place
    assert said in below


def test_the_skip_that_a_refusal_names_is_a_plan() -> None:
    for i in range(9):
        for j in range(i):
            message = refusal((i, j), 8)
            if (i, j) != (8, 0):
                skip = message.rpartition("write ")[2]
                assert restack.plan(skip, 8).order == (*range(j), *range(i, 8))


@pytest.mark.parametrize(
    "blocks",
    [
        5,
        "(1,2)",
        b"ab",
        {(1, 2)},
        {1: 2},
        None,
        [5],
        [(1, 2, 3)],
        [(1.0, 2)],
        [(True, False)],
        ["12"],
        [None],
        (-1, 2),
        [(2, 1)],
        [(10**400, 2)],
        [[]],
        [(1, "2")],
        [(1, None)],
        [(3, 3)],
    ],
)
def test_refused_values(blocks: Any) -> None:
    refusal(blocks=blocks, layers=8)


@pytest.mark.parametrize("pair", [(1.0, 2), (True, 2), (None, 2), (-1, 2)])
def test_pairs_that_are_no_blocks(pair: Any) -> None:
    refusal(pair, 8)


def test_a_list_of_pairs_is_ambiguous() -> None:
    for pairs in ([(31, 34), (43, 45)], [[0, 0.5], [0.5, 1]], "[(31,34)]", "[ [1,2]]"):
        assert "say blocks=[...] or ratio_repeat=[...]" in refusal(pairs, 64)


@pytest.mark.parametrize("text", ["(0,0)", "(45,52)", "(31,34);(43,45)", "(2,4);(4,6)", "(0,80)"])
def test_written_blocks(text: str) -> None:
    assert write_blocks(restack.plan(text, 80)) == text


@pytest.mark.parametrize(
    "text", ["0:4", "1:8", "0:8,0", "0:3,3x2,4:8@0.5", "0:8;kv=0x8", "::-1", "0:8,0:8,0:8"]
)
def test_plans_that_blocks_cannot_say(text: str) -> None:
    with pytest.raises(PlanError, match="write this plan as a spec"):
        write_blocks(restack.plan(text, 8))
    with pytest.raises(PlanError, match="write this plan as a spec"):
        write_blocks(restack.plan("0/0:8,1/0:8", (8, 8)))


def test_the_path_of_llm_circuit_finder() -> None:
    plan = restack.plan("0..14,12,13,14,15..39", 40)
    assert plan.order == (*range(15), 12, 13, 14, *range(15, 40))
    assert restack.plan("0..14, 12..39", 40) == plan
    assert write_path(plan) == "0..14,12..39"
    assert write_path(restack.plan("3,1..2", 4)) == "3,1..2"


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("0..8", "8", "layer 8 is past the model's 8 layers (0..7); write at most 7"),
        ("9..3", "9", "layer 9 is past"),
        ("0..3,8", "8", "layer 8 is past"),
        ("3..1", "3..1", "3..1 runs downwards; write 1..3"),
        ("0..3,,4", ",", "not a layer or an inclusive range"),
        ("0..", ".", "not part of a path"),
        ("..3", ".", "not a layer or an inclusive range"),
        ("0...3", ".", "not part of a path"),
        ("0..3:4", ":", "not part of a path"),
        ("-2..3", "-", "not a layer or an inclusive range"),
    ],
)
def test_refused_paths(text: str, place: str, said: str) -> None:
    shown, below = refusal(text, 8).split("\n")
    start, end = below.index("^"), below.rindex("^") + 1
    assert (shown + " ")[start:end] == place
    assert said in below


@pytest.mark.parametrize("text", ["0:4@0.5", "0:4;kv=0_0_2_2"])
def test_plans_that_paths_cannot_say(text: str) -> None:
    with pytest.raises(PlanError, match="write this plan as a spec"):
        write_path(restack.plan(text, 4))


def test_a_path_stops_at_the_limit() -> None:
    assert "more than 16384 visits" in refusal("0..999," * 100 + "0", 1000)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "(4,8),10:",
            r"put ; between blocks; for more than blocks write a spec, which says this as 0:8,4:12",
        ),
        ("(4,8);10:", r"\^ not a block; .* write a spec, which says this as 0:8,4:12"),
        ("(4,8)@0.5", r"\^ not part of a list of blocks; .* says this as 0:8,4:12"),
        ("(4,8);kv=0_1", r"\^ not a block; .* says this as 0:8,4:12"),
        ("(2,4);(6,8),9", r"says this as 0:4,2:8,6:12"),
        ("(4,80),9", r"write \(45,52\), or \(31,34\);\(43,45\)"),
        ("0:4,(4,8)", r"\^ a block \(i,j\) stands alone; in a spec write slices"),
    ],
)
def test_blocks_beside_other_things(text, told):
    with pytest.raises(restack.PlanError, match=told):
        restack.plan(text, 12)
