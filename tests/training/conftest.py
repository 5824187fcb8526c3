"""Training needs accelerate, and its tests no pictures."""

import pytest

pytest.importorskip("accelerate")


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    """Drawing takes longer than training a tiny model; whether it is drawn is what most tests ask."""
    monkeypatch.setattr(
        "restack.training.run.draw_log", lambda log, path, title, steps: path.write_text(title)
    )
