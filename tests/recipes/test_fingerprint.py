import json
import struct
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from restack.errors import ModelError
from restack.recipes.fingerprint import fingerprint, spread, stored_tensors
from restack.recipes.location import Location
from tests.recipes.tiny import saved_llama


@pytest.fixture
def folder(tmp_path):
    saved_llama(tmp_path / "llama")
    return tmp_path / "llama"


def of(folder):
    return fingerprint(Location(str(folder)))


def test_samples_are_the_middles_of_the_stored_tensors(folder):
    stored = stored_tensors(Location(str(folder)))
    loaded = load_file(folder / "model.safetensors")
    assert stored.keys() == loaded.keys()
    for name, tensor in loaded.items():
        first, sample = stored[name].sample(64)
        count = min(16, tensor.numel())
        assert first == (tensor.numel() - count) // 2
        assert torch.equal(
            torch.frombuffer(bytearray(sample), dtype=torch.float32), tensor.flatten()[first : first + count]
        )


def test_how_a_model_is_cut_into_files_does_not_matter(folder):
    whole = of(folder)
    LlamaForCausalLM.from_pretrained(folder).save_pretrained(folder.parent / "cut", max_shard_size="20KB")
    assert len([*(folder.parent / "cut").glob("*.safetensors")]) > 3
    assert of(folder.parent / "cut") == whole
    lost = next((folder.parent / "cut").glob("*-00002-of-*"))
    lost.unlink()
    with pytest.raises(ModelError, match=f"lacks {lost.name}"):
        of(folder.parent / "cut")


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (lambda weights: weights["lm_head.weight"].add_(1e-3), ["set of weights"]),
        (lambda weights: weights.pop("lm_head.weight"), ["set of tensors", "set of weights"]),
        (
            lambda weights: weights.update({"lm_head.weight": weights["lm_head.weight"].half()}),
            ["set of tensors", "set of weights"],
        ),
    ],
)
def test_what_changes_is_named(folder, change, differs):
    before = of(folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    assert before.differences(of(folder)) == differs


def test_what_transformers_writes_anew_each_time_does_not_matter(folder):
    before = of(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"transformers_version": "9", "_name_or_path": "somewhere"}
    (folder / "config.json").write_text(json.dumps(dict(reversed(config.items()))))
    assert of(folder) == before
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 1.0}))
    assert before.differences(of(folder)) == ["config"]


def test_a_model_of_140_gigabytes_takes_no_time(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    size, header = 2 * 8192 * 28672, {}
    for number in range(300):
        header[f"layers.{number}.weight"] = {
            "dtype": "BF16", "shape": [8192, 28672], "data_offsets": [number * size, (number + 1) * size]
        }  # fmt: skip
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        try:
            file.truncate(8 + len(text) + 300 * size)  # sparse: it takes no place
        except OSError:
            pytest.skip("no sparse files here")
    assert (tmp_path / "model.safetensors").stat().st_size > 140e9
    start = time.perf_counter()
    of(tmp_path)
    assert time.perf_counter() - start < 2


def test_many_tensors_are_sampled_evenly():
    items = [f"{number:05}" for number in range(10_000)]
    chosen = spread(items, 4096)
    assert len(chosen) <= 4096
    assert chosen == items[::3]
    assert spread(items, 10_000) == items


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 7, b"\xff" * 8, struct.pack("<Q", 5) + b"hello", struct.pack("<Q", 9) + b'{"a": []}'],
)
def test_what_is_no_safetensors_file_is_told(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors is (no safetensors|cut short)") as error:
        of(folder)
    assert "\n" not in str(error.value)
