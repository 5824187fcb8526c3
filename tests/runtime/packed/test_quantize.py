"""Models with packed weights, beside plain models that have the weights which the packed ones stand for."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

import restack
from restack.errors import ModelError, UsageError
from restack.runtime.packed import PackedConfig, PackedLinear
from restack.views.cost import own_bytes
from tests.views.architectures import ARCHITECTURES, BY_NAME, LLAMA
from tests.views.pairs import ORDER, PROMPT, greedy, logits

WIDE = {"hidden_size": 64, "intermediate_size": 128}
FORMATS = ["int8", "int4"]


def layers_of(model):
    return {path: module for path, module in model.named_modules() if isinstance(module, PackedLinear)}


def rounded(model, packed):
    """A plain copy of the model with the weights that the packed ones stand for."""
    model = copy.deepcopy(model)
    for path, layer in layers_of(packed).items():
        module = model.get_submodule(path)
        weight = layer.packed.unpacked()
        if path == "lm_head":
            module.weight = nn.Parameter(weight)  # or an embedding that it is tied to would change as well
        else:
            module.weight.data.copy_(weight.T if isinstance(module, Conv1D) else weight)
    return model


def close(ours, theirs):
    """The activations have 16 bits: two orders of magnitude finer than bfloat16."""
    return float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-3


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
@pytest.mark.filterwarnings("ignore:.*of a width that 32 does not divide")
def test_every_architecture_reads_and_writes_with_packed_weights(architecture, format):
    model = architecture.model()
    packed = restack.quantize(copy.deepcopy(model), format)
    plain = rounded(model, packed)
    assert layers_of(packed)
    assert close(logits(packed), logits(plain))
    assert torch.equal(greedy(packed), greedy(plain))
    assert not torch.equal(logits(packed), logits(model))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "qwen2_moe"])
@pytest.mark.filterwarnings("ignore:.*of a width that 32 does not divide")
def test_views_share_the_packed_weights(name, format):
    base = restack.quantize(BY_NAME[name].model(), format)
    view = restack.view(base, ORDER)
    ours, theirs = ([*m.parameters(), *m.buffers()] for m in (view, base))
    assert {tensor.data_ptr() for tensor in ours} == {tensor.data_ptr() for tensor in theirs}
    whole = restack.materialise(base, ORDER)
    assert torch.equal(logits(view), logits(whole))
    assert torch.equal(greedy(view), greedy(whole))


def test_views_share_what_torchs_own_kernels_read(monkeypatch):
    monkeypatch.setattr("restack.runtime.packed.linear.kernel", lambda: None)
    base = restack.quantize(LLAMA.model(**WIDE), "int4")
    assert all(layer.for_torch is not None for layer in layers_of(base).values() if layer.out_features == 64)
    assert own_bytes(restack.view(base, "0:3,1:4"), base) == 0
    assert not [name for name in base.state_dict() if name.rpartition(".")[2].startswith("_")]


@pytest.mark.parametrize("plan", ["0:3,1:4@0.5", "0:4,2:4{o_proj:0.5,q_proj:2}", "0:4;kv=0_0_2_2"])
def test_views_of_every_kind(plan):
    model = LLAMA.model(**WIDE)
    packed = restack.quantize(copy.deepcopy(model), "int8")
    plain = rounded(model, packed)
    assert close(logits(restack.view(packed, plan)), logits(restack.view(plain, plan)))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("name", "settings"), [("llama", WIDE), ("llama", WIDE | {"tie_word_embeddings": True})]
)
def test_packed_weights_are_saved_and_loaded(tmp_path, name, settings, format):
    packed = restack.quantize(BY_NAME[name].model(**settings), format)
    packed.set_attn_implementation("sdpa")  # which loaded models have
    packed.save_pretrained(tmp_path)
    script = (
        "import sys, torch, restack\nfrom transformers import LlamaForCausalLM\n"
        "model = LlamaForCausalLM.from_pretrained(sys.argv[1])\n"
        "torch.save(model(torch.tensor(eval(sys.argv[2]))).logits, sys.argv[1] + '/logits')\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(PROMPT.tolist())]
    subprocess.run(command, check=True, capture_output=True)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert close(torch.load(tmp_path / "logits"), logits(packed))  # another process, other threads
    assert torch.equal(logits(again), logits(packed))
    assert torch.equal(logits(restack.open(f"{tmp_path}@0:3,1:4")), logits(restack.view(packed, "0:3,1:4")))
    assert {type(layer) for layer in layers_of(again).values()} == {PackedLinear}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
@pytest.mark.filterwarnings("ignore:.*of a width that 32 does not divide")
def test_packed_while_it_is_loaded(tmp_path, architecture, format):
    model = architecture.model()
    model.save_pretrained(tmp_path)
    loaded, told = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        quantization_config=PackedConfig(format),
        attn_implementation="eager",
        output_loading_info=True,
    )
    assert not told["missing_keys"] and not told["unexpected_keys"]
    packed = restack.quantize(model, format)
    assert layers_of(loaded).keys() == layers_of(packed).keys()
    ours, theirs = loaded.state_dict(), packed.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(logits(loaded), logits(packed))
    assert not any(
        tensor.requires_grad for layer in layers_of(loaded).values() for tensor in layer.parameters()
    )


def test_a_weight_of_another_shape_is_told_of(tmp_path):
    LLAMA.model(**WIDE).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(
            tmp_path, quantization_config=PackedConfig("int4"), intermediate_size=192
        )


LOAD = """
import sys
from pathlib import Path

import torch, transformers.models.llama.modeling_llama
from restack import recipes
from restack.runtime.packed import PackedConfig

def resident(kind):
    return int(Path("/proc/self/status").read_text().split(kind + ":")[1].split()[0]) * 1024

PackedConfig("int8")
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
model = recipes.open(sys.argv[1], quantization_config=PackedConfig("int8"))
weights = [*model.parameters(), *model.buffers()]
print(resident("VmHWM") - before, sum(weight.nbytes for weight in weights))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_the_plain_weights_are_never_all_in_memory(tmp_path):
    model = LLAMA.model(vocab_size=1000, hidden_size=1024, intermediate_size=4096, num_hidden_layers=16)
    plain = sum(weight.nbytes for weight in model.parameters())
    model.save_pretrained(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path)], capture_output=True, text=True, check=True
    )
    grown, packed = map(int, done.stdout.split())
    largest = max(weight.nbytes for weight in model.parameters())
    modules = 60e6  # of transformers, imported for a quantised model, and what torch allocates once
    assert plain > 3.5 * packed > 700e6
    assert grown < packed + largest + modules


def test_a_tied_head_is_packed_beside_the_embedding():
    model = LLAMA.model(**WIDE, tie_word_embeddings=True)
    before = model.get_input_embeddings().weight.clone()
    packed = restack.quantize(model, "int4")
    packed.tie_weights()  # which transformers calls now and then
    assert isinstance(packed.lm_head, PackedLinear)
    assert torch.equal(packed.get_input_embeddings().weight, before)


def test_another_dtype_leaves_the_packed_weights_alone():
    packed = restack.quantize(LLAMA.model(**WIDE), "int4")
    before = {name: tensor.clone() for name, tensor in packed.state_dict().items()}
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        nn.Module.to(packed, dtype)  # transformers' own refuses
    for path, layer in layers_of(packed).items():
        for name, tensor in layer.named_parameters():
            assert tensor.dtype == before[f"{path}.{name}"].dtype
            assert torch.equal(tensor, before[f"{path}.{name}"])
    assert packed.dtype == torch.float32


def test_widths_that_no_group_divides_are_packed_with_8_bits():
    model = LLAMA.model(hidden_size=40, intermediate_size=64)
    with pytest.warns(UserWarning, match="25 layers of a width that 32 does not divide, .*q_proj the first"):
        packed = restack.quantize(model, "int4")
    bits = {layer.in_features: layer.bits for layer in layers_of(packed).values()}
    assert bits == {40: 8, 64: 4}


def test_what_cannot_be_quantised_is_refused(tmp_path):
    model = LLAMA.model(**WIDE)
    with pytest.raises(UsageError, match="no format 'int3'; write int8 or int4"):
        restack.quantize(model, "int3")
    with pytest.raises(ModelError, match="a view cannot be quantised"):
        restack.quantize(restack.view(model, "0:3"), "int8")
    with pytest.raises(ModelError, match="weights of the model are not in memory"):
        restack.quantize(LLAMA.model(**WIDE).to("meta"), "int8")
    with pytest.raises(ModelError, match="not a Linear"):
        restack.quantize(nn.Linear(3, 4), "int8")
    assert not layers_of(model)
    restack.quantize(model, "int8")
    with pytest.raises(ModelError, match="quantised already"):
        restack.quantize(model, "int4")


def test_long_prompts_are_read_as_short_ones():
    """Few rows are multiplied with the packed weights, many with unpacked ones."""
    packed = restack.quantize(LLAMA.model(**WIDE), "int4")
    tokens = torch.arange(3, 90)[None]
    with torch.no_grad():
        whole = packed(tokens).logits
        cache, parts = None, []
        for part in tokens.split(5, dim=1):
            output = packed(part, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            parts.append(output.logits)
    assert close(torch.cat(parts, dim=1), whole)
