import math

import pytest

from restack.training.picture import draw_log, smooth


def log(steps):
    trained = [{"step": step, "loss": 2 + 3 * math.exp(-step / 50)} for step in range(1, steps + 1)]
    return [*trained, {"step": steps, "eval_loss": 2.5, "perplexity": 12.2}]


@pytest.mark.parametrize("steps", [1, 10, 400])
def test_a_picture_of_any_run(tmp_path, steps):
    matplotlib = pytest.importorskip("matplotlib.image")
    draw_log(log(steps), tmp_path / "loss.png", "a run", steps)
    picture = matplotlib.imread(tmp_path / "loss.png")
    assert picture.shape[:2] == (675, 1200)
    blue = (picture[..., 2] > picture[..., 0] + 0.2).sum()
    assert (blue > 300) == (steps > 1)  # one step is no line
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


def test_a_picture_of_nothing(tmp_path):
    draw_log([], tmp_path / "loss.png", "a run", 5)
    assert (tmp_path / "loss.png").is_file()


def test_the_smooth_line():
    assert smooth([3.0] * 5, 2) == [3.0]
    assert smooth([1.0, 5.0, 2.0, 10.0], 1) == pytest.approx([8 / 3, 17 / 3])
    line = [float(number) for number in range(20)]
    assert smooth(line, 4) == pytest.approx(line[4:-4])  # no lag
