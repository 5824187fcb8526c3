from pathlib import Path

import pytest
import torch

from restack import demo, recipes
from restack.errors import ModelError
from restack.recipes import memory, parse_reference
from tests.recipes.copies import copy_of_demo


def test_a_model_larger_than_free_memory_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 1_000_000)
    with pytest.raises(ModelError, match=r"demo needs .* GB .* free on cpu"):
        recipes.open("demo")


def test_the_dtype_counts_when_memory_is_checked(monkeypatch):
    stored = sum(file.stat().st_size for file in demo.FOLDER.glob("*.safetensors"))
    monkeypatch.setattr(memory, "free_memory", lambda: int(1.5 * stored))
    recipes.open("demo")
    with pytest.raises(ModelError, match="needs"):
        recipes.open("demo", dtype="float32")


SIZES = {"pytorch_model.bin": 7, "consolidated.safetensors": 1000, "adapter_model.safetensors": 50}


@pytest.mark.parametrize(
    ("files", "index", "stored"),
    [
        ({"model.safetensors": 10}, None, 10),
        ({"model-00001-of-00002.safetensors": 10, "model-00002-of-00002.safetensors": 20}, None, 30),
        ({"model-00001-of-00002.safetensors": 10}, '{"metadata": {"total_size": 25}}', 25),
        ({"model-00001-of-00002.safetensors": 10}, "{}", 10),
        ({"model-00001-of-00002.safetensors": 10}, "[not json", 10),
        ({}, None, 7),
    ],
)
def test_only_the_weights_that_are_read_count(tmp_path, files, index, stored):
    for name, size in (SIZES | files).items():
        (tmp_path / name).write_bytes(bytes(size))
    if index is not None:
        (tmp_path / "model.safetensors.index.json").write_text(index)
    assert memory.stored_bytes(tmp_path) == stored


@pytest.mark.parametrize(
    ("limit", "free"), [("5000000\n", 3_200_000), ("1000000\n", 0), ("max\n", None), (None, None)]
)
def test_free_memory_respects_the_cgroup(tmp_path, monkeypatch, limit, free):
    before = memory._system_memory()
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    (tmp_path / "memory.current").write_text("2000000\n")
    (tmp_path / "memory.stat").write_text("anon 1800000\nactive_file 50000\ninactive_file 150000\n")
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
    ours = Path("/proc/self/cgroup")
    if not ours.exists() or "0::" not in ours.read_text():
        pytest.skip("no cgroup of version 2")
    told = memory.free_memory()
    assert told == free if free is not None else told > before / 2


def test_free_memory_is_plausible():
    assert 10**7 < memory.free_memory() < 10**14


@pytest.fixture
def cached_demo(tmp_path, monkeypatch):
    """The demo model as huggingface_hub keeps what it has fetched, and no way to the hub."""
    root = tmp_path / "models--somebody--tiny"
    copy_of_demo(root / "snapshots" / "abc123")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("abc123")
    for module in ("huggingface_hub.constants", "transformers.utils.hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", True)
    return "somebody/tiny"


def test_a_model_of_the_hub_that_is_here_is_checked_for_memory(cached_demo, monkeypatch):
    assert len(recipes.open(cached_demo).model.layers) == 12
    monkeypatch.setattr(memory, "free_memory", lambda: 1_000_000)
    with pytest.raises(ModelError, match=r"somebody/tiny needs .* GB .* free on cpu"):
        recipes.open(cached_demo)
    with pytest.raises(ModelError, match=r"somebody/tiny needs .* GB"):
        recipes.open(cached_demo, revision="abc123")


@pytest.mark.parametrize(
    ("dtype", "on_gpu", "in_machine", "told"),
    [
        ("auto", 10**9, 10, None),  # mapped from its file into memory: none is taken
        (torch.bfloat16, 10**9, 10, None),
        (torch.float32, 10**9, 10, r"free on cpu; try --dtype auto"),  # converted there, and then moved
        (torch.float32, 10**9, 10**9, None),
        ("auto", 10, 10**9, r"free on cuda:0; try a smaller"),
    ],
)
def test_memory_for_a_gpu(monkeypatch, dtype, on_gpu, in_machine, told):
    monkeypatch.setattr(memory, "free_memory", lambda: in_machine)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (on_gpu, 10**12))
    arguments = parse_reference("demo"), recipes.open_config("demo"), dtype, torch.device("cuda:0")
    if told is None:
        memory.check_memory(*arguments)
        return
    with pytest.raises(ModelError, match=told):
        memory.check_memory(*arguments)


def test_quantised_weights_are_not_converted(monkeypatch):
    config = recipes.open_config("demo")
    config.quantization_config = {"quant_method": "awq"}
    stored = memory.stored_bytes(demo.FOLDER)
    monkeypatch.setattr(memory, "free_memory", lambda: int(1.5 * stored))
    memory.check_memory(parse_reference("demo"), config, torch.float32, torch.device("cpu"))
