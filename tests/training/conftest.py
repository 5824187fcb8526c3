"""Training needs accelerate; models this small are slower on two threads than on one."""

import pytest
import torch

pytest.importorskip("accelerate")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    """Drawing takes longer than training a tiny model; whether it is drawn is what most tests ask."""
    monkeypatch.setattr(
        "restack.training.run.draw_log", lambda log, path, title, steps: path.write_text(title)
    )
