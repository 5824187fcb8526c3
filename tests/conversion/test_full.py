"""Plans written out a shard at a time: beside twins that architectures' own constructors build."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import restack
from restack.conversion import convert_full, full, writing
from restack.errors import PlanError, UsageError, ViewError
from tests.llama import tiny
from tests.views.architectures import ARCHITECTURES, BY_NAME, COMMON, LLAMA, VOCABULARY

ORDER, SPEC = [0, 1, 2, 1, 2, 3, 3], "0:3,1:,3"
PROMPT = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(4))


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")  # as twins are


def logits(model):
    with torch.no_grad():
        return model.eval()(PROMPT).logits


@pytest.fixture
def streamed(monkeypatch):
    """How often a checkpoint was written without loading the model."""
    calls = []

    def spy(*args, **kwargs):
        calls.append(args)
        return writing.write(*args, **kwargs)

    monkeypatch.setattr(full, "write", spy)
    return calls


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_equals_the_twin(architecture, tmp_path, streamed):
    base = architecture.model()
    base.save_pretrained(tmp_path / "base")
    try:
        convert_full(f"{tmp_path / 'base'}@{SPEC}", tmp_path / "out", largest=30_000)
    except ViewError as error:
        assert "save" in str(error)
        assert sorted(place.name for place in tmp_path.iterdir()) == ["base"]
        with pytest.raises(ViewError):
            restack.materialise(base, ORDER).save_pretrained(tmp_path / "other")
        return
    loaded = load(tmp_path / "out")
    twin = architecture.twin(base, ORDER)
    assert type(loaded) is type(base)
    assert torch.equal(logits(loaded), logits(twin))
    assert streamed


def save_donors(folder):
    models = {}
    for seed, name in enumerate(("one", "two")):
        models[name] = LLAMA.model(seed)
        models[name].save_pretrained(folder / name)
    return models


def write_yaml(folder, donors, **changes):
    slices = [
        {"sources": [{"model": str(folder / name), "layer_range": layers} | more]}
        for name, layers, more in donors
    ]
    config = {"slices": slices, "merge_method": "passthrough", "dtype": "float32"} | changes
    (folder / "merge.yaml").write_text(yaml.safe_dump(config))
    return config


SCALE = {"parameters": {"scale": [{"filter": "o_proj", "value": 0.7}, {"filter": "down_proj", "value": 0.5}]}}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mergekit_makes_the_same_of_two_models(tmp_path, streamed, dtype):
    mergekit = pytest.importorskip("mergekit.merge")
    from mergekit.config import MergeConfiguration
    from mergekit.options import MergeOptions

    save_donors(tmp_path)
    donors = [("one", [0, 3], {}), ("two", [1, 4], SCALE), ("one", [2, 4], {}), ("two", [3, 4], {})]
    config = write_yaml(tmp_path, donors, dtype=dtype)
    convert_full(str(tmp_path / "merge.yaml"), tmp_path / "ours")
    options = MergeOptions(quiet=True, write_model_card=False, copy_tokenizer=False)
    mergekit.run_merge(MergeConfiguration.model_validate(config), str(tmp_path / "theirs"), options)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert streamed
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor), name
    loaded, peer = (load(tmp_path / name) for name in ("ours", "theirs"))
    assert loaded.dtype == peer.dtype
    assert torch.equal(logits(loaded), logits(peer))


def test_a_recipe_and_a_spec_over_it(tmp_path, streamed):
    base = LLAMA.model()
    base.save_pretrained(tmp_path / "base")
    restack.save(
        restack.view(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), "0:3,1:4"), tmp_path / "recipe"
    )
    convert_full(f"{tmp_path / 'recipe'}@0,2:6", tmp_path / "out")
    order = [[0, 1, 2, 1, 2, 3][visit] for visit in (0, 2, 3, 4, 5)]
    assert streamed
    assert torch.equal(logits(load(tmp_path / "out")), logits(LLAMA.twin(base, order)))


def test_a_house_model(tmp_path, streamed):
    """A visit whose keys and values nobody reads gets no weights for them."""
    house = tiny.model("0_0_2_2_4_4")
    house.save_pretrained(tmp_path / "base")
    convert_full(f"{tmp_path / 'base'}@0:4,2:", tmp_path / "out")
    loaded = load(tmp_path / "out").eval()
    assert streamed
    assert loaded.config.num_hidden_layers == 8
    rows = tiny.tokens(9)
    with torch.no_grad():
        torch.testing.assert_close(loaded(rows).logits, restack.view(house, "0:4,2:")(rows).logits)


def test_dtype(tmp_path):
    base = LLAMA.model()
    base.save_pretrained(tmp_path / "base")
    convert_full(f"{tmp_path / 'base'}@{SPEC}", tmp_path / "out", dtype="bfloat16")
    loaded = load(tmp_path / "out")
    assert loaded.dtype == torch.bfloat16
    expected = LLAMA.twin(base, ORDER).to(torch.bfloat16).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


def test_files_of_the_base_model_alone(tmp_path, streamed):
    gpt2 = BY_NAME["gpt2"].model()
    gpt2.transformer.save_pretrained(tmp_path / "base")
    convert_full(f"{tmp_path / 'base'}@{SPEC}", tmp_path / "out")
    assert streamed
    assert torch.equal(
        logits(load(tmp_path / "out")),
        logits(BY_NAME["gpt2"].twin(gpt2, ORDER)),
    )


@pytest.mark.parametrize(
    ("spec", "error", "told"),
    [
        ("0:2,1:@0.5", ViewError, "is damped, and no weights say that"),
        ("all;kv=0_0_2_2", ViewError, "reads keys and values as no plain checkpoint can"),
        ("0:9", PlanError, "past the model's 4 layers"),
    ],
)
def test_refusals(spec, error, told, tmp_path):
    LLAMA.model().save_pretrained(tmp_path / "base")
    with pytest.raises(error, match=told):
        convert_full(f"{tmp_path / 'base'}@{spec}", tmp_path / "out")
    assert [place.name for place in tmp_path.iterdir()] == ["base"]


def test_a_folder_that_is_there(tmp_path):
    LLAMA.model().save_pretrained(tmp_path / "base")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="is there and not empty"):
        convert_full(f"{tmp_path / 'base'}@{SPEC}", tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


# Between the second shard and the third: killed, interrupted, or out of space.
STOPPED = """
import os, signal, sys
from restack.conversion import writing
whole, written = writing.save_file, []
def save_file(tensors, file, metadata):
    if len(written) == 2:
        file.write_bytes(b"half of a shard")
        {end}
    whole(tensors, file, metadata)
    written.append(file)
writing.save_file = save_file
from restack.cli import main
sys.exit(main(["convert", "full", sys.argv[1], "-o", sys.argv[2], "--max-shard-size", "30kB"]))
"""
ENDS = {
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
    "interrupted": ("os.kill(os.getpid(), signal.SIGINT)", 130, "restack: interrupted\n"),
    "full": ("raise OSError(28, 'No space left on device', str(file))", 2, "No space left on device"),
}


@pytest.mark.parametrize("how", ENDS)
def test_it_goes_on_where_it_was_stopped(how, tmp_path):
    end, status, told = ENDS[how]
    base = LLAMA.model()
    base.save_pretrained(tmp_path / "base")
    reference, out = f"{tmp_path / 'base'}@{SPEC}", tmp_path / "out"
    script = STOPPED.format(end=end)
    done = subprocess.run(
        [sys.executable, "-c", script, reference, out], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == status, done.stderr
    assert told in done.stderr
    assert not out.exists()
    part = tmp_path / ".out.part"
    kept = {file.name: file.stat().st_mtime_ns for file in part.glob("*.safetensors")}
    assert len(kept) == 2
    time.sleep(0.01)
    convert_full(reference, out, largest=30_000)
    assert not part.exists()
    assert sorted(file.suffix for file in out.iterdir() if file.suffix not in (".safetensors", ".json")) == []
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept  # not written again
    assert torch.equal(logits(load(out)), logits(LLAMA.twin(base, ORDER)))


def test_another_job_starts_anew(tmp_path):
    base = LLAMA.model()
    base.save_pretrained(tmp_path / "base")
    reference, out = f"{tmp_path / 'base'}@{SPEC}", tmp_path / "out"
    script = STOPPED.format(end=ENDS["killed"][0])
    subprocess.run([sys.executable, "-c", script, reference, out], check=False, timeout=120)
    LLAMA.model(seed=1).save_pretrained(tmp_path / "base")  # other weights under the same name
    convert_full(reference, out, largest=30_000)
    found = load(out)
    assert torch.equal(logits(found), logits(LLAMA.twin(LLAMA.model(seed=1), ORDER)))


MEASURED = """
import sys
from pathlib import Path
import torch
from restack.conversion import convert_full
def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key))) * 1024
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
convert_full(sys.argv[1], sys.argv[2], largest=int(sys.argv[3]))
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is Linux's to tell"
)
def test_memory_is_bounded_by_a_shard_and_a_layer(tmp_path):
    """Of 400 MB of weights, in shards of 40 MB and layers of 20 MB."""
    settings = COMMON | {"hidden_size": 512, "intermediate_size": 2600, "num_hidden_layers": 20}
    import transformers

    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    layer = sum(parameter.nbytes for parameter in base.model.layers[0].parameters())
    base.save_pretrained(tmp_path / "base")
    assert 15e6 < layer < 25e6
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            MEASURED,
            f"{tmp_path / 'base'}@0:15,5:",
            str(tmp_path / "out"),
            str(2 * layer),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    written = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    assert written > 29 * layer
    imports = 60e6  # of transformers' modules of this architecture
    assert int(done.stdout) < 3 * layer + imports
