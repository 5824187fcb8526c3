import subprocess
import sys
import time

import pytest

from restack.recipes import import_hook


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "waited_for.py").write_text("VALUE = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "waited_for", raising=False)
    yield "waited_for"
    sys.modules.pop("waited_for", None)


def test_it_calls_once_when_the_module_is_complete(module):
    seen = []
    import_hook.when_imported(module, lambda: seen.append(sys.modules[module].VALUE))
    assert seen == []
    import waited_for

    assert seen == [3]
    import importlib

    importlib.reload(waited_for)
    assert seen == [3]
    assert type(waited_for.__spec__.loader).__name__ == "SourceFileLoader"


def test_it_calls_at_once_if_the_module_is_there(module):
    import waited_for  # noqa: F401

    seen = []
    import_hook.when_imported(module, lambda: seen.append(1))
    assert seen == [1]


def test_a_module_that_is_nowhere_is_still_an_import_error():
    import_hook.when_imported("no_such_module_anywhere", lambda: None)
    with pytest.raises(ModuleNotFoundError):
        import no_such_module_anywhere  # noqa: F401


def test_import_restack_is_quick_and_light():
    check = "import sys, restack; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", check], check=True)
        whole = time.perf_counter() - start
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", ""], check=True)
        times.append(whole - (time.perf_counter() - start))
    assert min(times) < 0.3
