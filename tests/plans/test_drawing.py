import pytest

import restack
from restack.plans import parse
from restack.plans.bars import bars
from restack.plans.drawing import FIRST_RUN, LATER_RUNS, SKIPPED, draw


def colours(path):
    """The fill colours in an SVG."""
    text = path.read_text()
    return {colour for colour in (FIRST_RUN, *LATER_RUNS, SKIPPED) if colour in text}


def test_runs_and_skips_are_told_apart_by_colour(tmp_path):
    base, merged = restack.plan("all", 12), restack.plan("0:8,4:8,4:12", 12)
    draw({"base": base}, tmp_path / "base.svg")
    draw({"merged": merged, "pruned": restack.plan("0:5,7:", 12)}, tmp_path / "several.svg", "Plans")
    assert FIRST_RUN in colours(tmp_path / "base.svg")
    assert LATER_RUNS[0] not in colours(tmp_path / "base.svg")
    assert colours(tmp_path / "several.svg") == {FIRST_RUN, *LATER_RUNS[:2], SKIPPED}


def test_a_png_is_written(tmp_path):
    draw({"base": restack.plan("all", 3)}, tmp_path / "plans.png")
    assert (tmp_path / "plans.png").read_bytes().startswith(b"\x89PNG")


def test_several_donors_are_refused(tmp_path):
    with pytest.raises(restack.PlanError, match="one model"):
        draw({"goliath": restack.plan("0/0:4,1/2:4", (4, 4))}, tmp_path / "plans.png")
    assert not list(tmp_path.iterdir())


def test_bars_name_the_donor_where_there_are_several():
    drawn = bars(parse("0/0:3,1/3,1/2,0/1,1/1", (4, 4)), 40)
    assert [line.split() for line in drawn] == [
        ["0/0..2", "███"], ["1/3..2", "██"], ["0/1", "█"], ["1/1", "█"]
    ]  # fmt: skip
