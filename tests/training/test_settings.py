import math
import subprocess
import sys

import pytest

from restack.errors import UsageError
from restack.training import Training
from restack.training.settings import Course, rate_at


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"steps": 1, "epochs": 1}, "both say how long"),
        ({"steps": 0}, "--steps is 0; write a whole number from 1 up"),
        ({"steps": 1.5}, "--steps is 1.5"),
        ({"batch": True}, "--batch is True"),
        ({"batch": -1}, "--batch is -1"),
        ({"accumulate": 0}, "--accumulate is 0"),
        ({"eval_every": 0}, "--eval-every is 0"),
        ({"length": 1}, "--length is 1; write 2 or more"),
        ({"epochs": 0}, "--epochs is 0; write a number above 0"),
        ({"epochs": math.inf}, "--epochs is inf"),
        ({"lr": math.nan}, "--lr is nan"),
        ({"lr": -1e-3}, "--lr is -0.001"),
        ({"weight_decay": -0.1}, "--weight-decay is -0.1; write 0 or more"),
        ({"warmup": 1.0}, "--warmup is 1.0; write a share"),
        ({"eval_share": 1}, "--eval-share is 1"),
        ({"schedule": "linear"}, "--schedule is 'linear'; write cosine or constant"),
        ({"parallel": "tp"}, "--parallel is 'tp'; write auto or ddp or fsdp"),
        ({"seed": -1}, "--seed is -1"),
        ({"lora": 0}, "--lora is 0"),
        ({"lora_alpha": 4}, "no rank"),
        ({"lora_visits": "all"}, "no rank"),
    ],
)
def test_settings_that_cannot_be(settings, told):
    with pytest.raises(UsageError, match=told):
        Training(**settings)


def test_what_is_left_open_is_decided_by_the_data():
    course = Course.of(Training(batch=4, accumulate=2), rows=100, processes=3, trains_adapters=False)
    assert (course.rows_per_step, course.steps) == (24, 5)  # 100 / 24, rounded up
    assert (course.lr, course.weight_decay) == (2e-5, 0.01)
    assert (course.eval_every, course.save_every) == (1, 1)
    course = Course.of(Training(steps=20_000, lora=4), rows=100, processes=1, trains_adapters=True)
    assert (course.lr, course.weight_decay, course.eval_every) == (2e-4, 0.0, 500)
    course = Course.of(Training(epochs=0.5, batch=5), rows=100, processes=1, trains_adapters=False)
    assert (course.steps, course.save_every) == (10, 1)


def test_the_rate_rises_in_a_line_and_falls_along_half_a_cosine():
    shares = [rate_at(Training(warmup=0.2), 10, step) for step in range(10)]
    assert shares[:3] == [0.5, 1.0, 1.0]
    assert shares[6] == pytest.approx(0.5)  # half way from step 2 to 10
    assert 0 < shares[-1] < 0.05
    assert [rate_at(Training(warmup=0.2, schedule="constant"), 10, step) for step in (2, 9)] == [1.0, 1.0]
    assert rate_at(Training(warmup=0.0), 1, 0) == 1.0


def test_settings_are_checked_without_torch():
    check = "import sys; from restack.training import Training; Training(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)
