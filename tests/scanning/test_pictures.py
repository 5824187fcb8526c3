"""Pictures of a scan: what their axes and colours say."""

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest

from restack.scanning.candidates import grid, named
from restack.scanning.reporting.heat_map import BETTER, GREY, WORSE, colour, draw_heat_map, plain, ticks
from restack.scanning.reporting.order import limit
from restack.scanning.reporting.pareto import draw_pareto
from restack.scanning.reporting.pictures import as_png, draw_all, draw_influence, draw_similarity
from restack.scanning.reporting.wording import wordings
from tests.scanning.made_findings import CHAINS, TEXT, compared, entry, made, made_layers, specs

colors = pytest.importorskip("matplotlib.colors")


def heat(findings, probe="chains"):
    return draw_heat_map(findings, wordings(findings)[probe])


def cell(panel, i, j):
    red, green, blue, _ = panel.images[0].get_array()[i, j]
    return red, green, blue


def is_grey(rgb):
    return max(rgb) - min(rgb) < 0.02


def rgb(name):
    return pytest.approx(colors.to_rgb(name), abs=0.02)


@pytest.mark.parametrize("probe", ["chains", "text"])
def test_grey_is_chance_blue_is_better_and_red_is_worse(probe):
    twice, thrice, left_out = heat(made(), probe).axes[:3]
    assert is_grey(cell(twice, 3, 8)) and is_grey(cell(twice, 10, 11))
    assert cell(twice, 3, 8) != (1, 1, 1)  # it was tried
    for panel in (twice, thrice):
        red, _, blue = cell(panel, 4, 8)
        assert blue > red + 0.15
    assert cell(left_out, 4, 8) == rgb(WORSE[-1])  # far beyond the scale
    assert cell(twice, 8, 4) == (1, 1, 1) and cell(left_out, 0, 12) == (1, 1, 1)  # no blocks


def test_the_further_from_the_base_the_darker():
    near, far = colour(0.01, False, 0.1), colour(0.09, False, 0.1)
    assert near[0] > far[0] and is_grey(near[:3]) and is_grey(far[:3])
    assert colour(5.0, False, 0.1)[:3] == rgb(GREY[-1])
    assert colour(0.1, True, 0.1)[:3] == colour(9.0, True, 0.1)[:3] == rgb(BETTER[-1])
    assert colour(0.001, True, 0.1)[:3] == rgb(BETTER[0])  # never as pale as grey
    assert colour(-0.001, True, 0.1)[:3] == rgb(WORSE[0])


def test_one_scale_about_the_base():
    figure = heat(made())
    bar = figure.axes[-1]
    low, high = bar.get_ylim()
    assert low == -high
    assert [tick.get_text() for tick in bar.get_yticklabels()][2] == "base 0.900"
    assert bar.get_yticks()[2] == 0
    assert len(figure.axes) == 4  # three panels and one scale


def test_ruined_models_do_not_make_the_others_pale():
    findings = made()
    assert 0.095 < limit(findings, "chains") < 0.35
    ruined = [each for each in findings.entries if each.compared["chains"].gain < -0.5]
    assert len(ruined) > 90


def test_the_scale_where_nothing_helps():
    tried = [each for each in grid(12) if each.block != (4, 8)]
    findings = made((CHAINS,), candidates=tried)
    assert 0.01 < limit(findings, "chains") < 0.2  # the median change, of which a seventh ruins the model


def test_a_panel_for_each_variant():
    tried = grid(6, repeats=(2, 3), damps=(1.0, 0.5), skips=True)
    figure = heat(made((CHAINS,), depth=6, candidates=[*tried, *named(6, ["::-1"])]))
    titles = [axes.get_title(loc="left").partition(":")[0] for axes in figure.axes if axes.get_visible()]
    assert titles[:5] == ["twice", "twice, damp 0.5", "3 times", "3 times, damp 0.5", "left out"]


def test_titles_count():
    titles = [axes.get_title(loc="left") for axes in heat(made(failing=2)).axes[:3]]
    assert titles == [
        "twice: 1 better, 10 worse, 65 neither",
        "3 times: 1 better, 12 worse, 65 neither",
        "left out: 0 better, 77 worse, 0 neither",
    ]


def test_the_best_is_outlined_and_the_failed_are_crossed():
    twice, thrice, left_out = heat(made(failing=2)).axes[:3]
    (frame,) = thrice.patches
    assert (frame.get_x() + frame.get_width() / 2, frame.get_y() + frame.get_height() / 2) == (8, 4)
    assert not twice.patches and not left_out.patches
    crosses = [dots for dots in twice.collections if len(dots.get_offsets()) == 2]
    assert crosses[0].get_offsets().tolist() == [[1, 0], [2, 0]]
    base = twice.collections[-1].get_offsets().tolist()
    assert base == [[0, 0]]


def test_nothing_is_outlined_where_nothing_is_better():
    findings = made((CHAINS,), candidates=[each for each in grid(12) if each.block != (4, 8)])
    assert not heat(findings).axes[0].patches


def test_numbers_are_in_the_cells_of_a_small_model_only():
    texts = {text.get_position(): text.get_text() for text in heat(made()).axes[0].texts}
    assert texts[8, 4] == "+.09" and texts[4, 0] == "-.70" and texts[7, 4] == "+.03"
    deep = made((CHAINS,), depth=20, candidates=grid(20))
    assert not heat(deep).axes[0].texts


@pytest.mark.slow
def test_a_deep_model_of_3240_blocks():
    figure = heat(made((CHAINS,), depth=80, candidates=grid(80)))
    assert figure.axes[0].images[0].get_array().shape == (80, 81, 4)
    assert len(figure.axes[0].get_xticks()) < 15
    assert as_png(figure)[:4] == b"\x89PNG"


def test_ticks():
    assert list(ticks(4)) == [0, 1, 2, 3, 4]
    for depth in (*range(1, 200), 1000):
        assert 2 <= len(ticks(depth)) <= 16 and ticks(depth)[-1] <= depth


def test_no_heat_map_without_blocks():
    assert heat(made(candidates=specs())) is None
    assert heat(made(failing=233)) is None


def test_the_pictures_of_a_scan():
    figures = draw_all(made())
    assert set(figures) == {
        "heat-chains.png", "heat-text.png", "similarity.png", "influence.png", "pareto.png",
    }  # fmt: skip
    assert set(draw_all(made(candidates=specs(), layers=False))) == {"pareto.png"}
    assert set(draw_all(made(failing=233, layers=False))) == set()


def test_a_picture_is_a_png_of_150_dots_an_inch():
    image = pytest.importorskip("matplotlib.image")
    figure = draw_influence(made_layers(4), "demo")
    width, height = figure.get_size_inches()
    pixels = image.imread(BytesIO(as_png(figure)), format="png")
    assert pixels.shape[:2] == (round(height * 150), round(width * 150))


def test_names_with_dollars_are_no_formulas():
    assert plain("a$b$") == r"a\$b\$"
    findings = made((replace(CHAINS, name="$\\frac$"),), depth=4, model="$x_{$")
    for figure in draw_all(findings).values():
        as_png(figure)


def test_similarity_and_influence_are_as_measured():
    layers = made_layers(12)
    assert np.array_equal(draw_similarity(layers, "demo").axes[0].images[0].get_array(), layers.similarity)
    heights = [bar.get_height() for bar in draw_influence(layers, "demo").axes[0].patches]
    assert heights == pytest.approx(layers.influence.tolist())


def pareto(findings, probe="chains"):
    figure = draw_pareto(findings, wordings(findings)[probe])
    return figure, figure.axes[0]


def labels(axes):
    return {text.get_text(): text for text in axes.texts if hasattr(text, "xy")}


@pytest.mark.parametrize("probe", ["chains", "text"])
def test_the_front_starts_at_the_base_and_takes_what_is_beyond_chance(probe):
    _, axes = pareto(made(), probe)
    (front,) = [line for line in axes.lines if line.get_label() == "front"]
    assert front.get_xydata() == pytest.approx(np.array([[1, 0], [16 / 12, 0.09], [20 / 12, 0.095]]))
    assert set(labels(axes)) == {"(4,8)", "(4,8)x3"}
    (below,) = [text.get_text() for text in axes.texts if "below" in text.get_text()]
    assert below == f"{12 + 12 + 77} stacks further below"  # that begin at layer 0, or leave out


def test_what_is_chance_is_grey():
    _, axes = pareto(made((CHAINS,)))
    colours = {dots.get_label(): dots.get_facecolor()[0][:3] for dots in axes.collections}
    assert is_grey(colours["neither beyond chance"])
    assert not is_grey(colours["better"])
    counts = {dots.get_label(): len(dots.get_offsets()) for dots in axes.collections}
    assert counts == {"neither beyond chance": 130, "better": 2, "base (0.900)": 1}


def test_a_few_stacks_are_all_named_with_their_intervals():
    _, axes = pareto(made((TEXT,), candidates=specs()), "text")
    assert set(labels(axes)) == {"0:8,4:12", "0:6,3:12", "11::-1"}
    reaches = [line.get_ydata() for line in axes.lines if len(set(line.get_xdata())) == 1]
    assert len(reaches) == 3
    assert reaches[0] == pytest.approx([-0.01, 0.03])  # 0.01 lower, 0.02 to either side


def test_names_do_not_cover_each_other():
    text = pytest.importorskip("matplotlib.text").Text
    tried = grid(80, widest=12)
    entries = tuple(
        entry(each, {"chains": compared(CHAINS, 0.01 * (each.block[1] - each.block[0]), 0.01)})
        for each in tried
        if each.block[0] == 30
    )
    findings = replace(made((CHAINS,), depth=80, candidates=tried[:1]), entries=entries * 2)
    figure, axes = pareto(findings)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent(label) for label in labels(axes).values()]
    assert len(boxes) > 4
    assert not any(one.overlaps(other) for n, one in enumerate(boxes) for other in boxes[:n])
