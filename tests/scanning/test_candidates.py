"""Candidates are the plans that others' notations write, each once, and bad ones are told."""

import pytest

from restack import plan
from restack.errors import PlanError, UsageError
from restack.scanning import base, grid, named, read_specs, repeated, skipped
from restack.scanning.beam import Beam, composed
from restack.scanning.candidates import blocks, distinct


def test_blocks_are_those_of_rys():
    for candidate in grid(6):
        i, j = candidate.block
        assert candidate.plan == plan(f"({i},{j})", 6)
        assert candidate.label == f"({i},{j})"
    assert len(list(blocks(80))) + 1 == 3241  # RYS's own count, with the base


def test_repeats_damps_and_skips():
    found = grid(5, repeats=(2, 3), damps=(0.5, 1.0), skips=True)
    assert len(found) == 4 * 15 + 14
    assert len({candidate.plan for candidate in found}) == len(found)
    assert str(repeated(5, (1, 3), 3, 0.5).plan) == "0:3,1:3x2@0.5,3:5"
    assert repeated(5, (1, 3), 3, 0.5).label == "(1,3)x3@0.5"
    assert skipped(5, (1, 3)).plan.order == (0, 3, 4)
    assert skipped(5, (1, 3)).label == "-(1,3)"
    assert base(5).plan.is_identity


def test_blocks_no_wider_than_asked():
    assert {j - i for i, j in (c.block for c in grid(9, widest=2))} == {1, 2}


def test_each_plan_once():
    candidates = [base(4), *grid(4), *named(4, ["all", "(1,3)", "::-1"])]
    found = distinct(candidates)
    assert len(found) == 12
    assert [c.kind for c in found if str(c.plan) == "0:3,1:4"] == ["block"]


def test_a_file_of_specs(tmp_path):
    file = tmp_path / "specs.txt"
    file.write_text("# what others found\n0:8,4:12\n\n(2,5)   # a block\n[0,1,1,2]\n")
    assert [c.plan for c in read_specs(file, 12)] == [plan(s, 12) for s in ("0:8,4:12", "(2,5)", "[0,1,1,2]")]
    file.write_text("0:8\n0:99,\n")
    with pytest.raises(PlanError, match=r"specs.txt, line 2:\n0:99"):
        read_specs(file, 12)
    file.write_text("# nothing\n")
    with pytest.raises(UsageError, match="holds no spec"):
        read_specs(file, 12)
    with pytest.raises(UsageError, match="cannot be read"):
        read_specs(tmp_path / "none", 12)


@pytest.mark.parametrize("options", [{"repeats": (1,)}, {"widest": 0}])
def test_grids_that_cannot_be_are_refused(options):
    with pytest.raises(UsageError, match="or more"):
        grid(4, **options)


def test_a_beam_puts_disjoint_blocks_together():
    beam = Beam(width=2, most=3, parts=3)
    gains = {
        composed(((i, j),), 6).plan: g for (i, j), g in {(0, 2): 3, (1, 3): 2, (4, 6): 1, (2, 4): 0}.items()
    }
    singles = beam.singles(gains, 6)
    assert singles == [((0, 2),), ((1, 3),), ((4, 6),)]
    assert beam.larger(singles[:2], singles) == [((0, 2), (4, 6)), ((1, 3), (4, 6))]
    assert composed(((0, 2), (4, 6)), 6).plan == plan("(0,2);(4,6)", 6)
    with pytest.raises(UsageError, match="width"):
        Beam(width=0)
