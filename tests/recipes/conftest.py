import sys

import pytest


@pytest.fixture
def code_of_models(tmp_path, monkeypatch):
    """A place of its own for code that comes with models, of which Python knows nothing yet."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])  # transformers puts the place there
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)
