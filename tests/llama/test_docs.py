"""The Python of docs/house-model.md, run as it stands, with small models in place of those that it names."""

import re
from pathlib import Path

import pytest
import torch

from restack.llama import LLAMA_ATTENTIONS_CLASSES, LLAMA_ROTARY_EMBEDDINGS_CLASSES, LlamaAttention
from tests.llama import meta_folders
from tests.llama.test_checkpoints import write
from tests.recipes.tiny import saved_llama

PAGE = Path(__file__).parents[2] / "docs" / "house-model.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A folder with the models that the page names; what is registered is gone afterwards."""
    (tmp_path / "tinyllama-lckv").mkdir()
    write(tmp_path / "tinyllama-lckv")
    values = meta_folders.params(vocab_size=345)
    shards = meta_folders.split(meta_folders.random_weights(values, 345), 1)
    meta_folders.write_pieces(meta_folders.write(tmp_path / "llama-2-7b", values, shards) / "tokenizer.model")
    saved_llama(tmp_path / "TinyLlama_v1.1")
    monkeypatch.chdir(tmp_path)
    for registry in (LLAMA_ATTENTIONS_CLASSES, LLAMA_ROTARY_EMBEDDINGS_CLASSES):
        monkeypatch.setattr(registry, "data", dict(registry.data))


def promised(block):
    """What the comments of a block say that it prints: behind a `print`, or in lines after a loop."""
    return re.findall(r"^(?:print\(.*\)  )?# (.*)$", block, re.MULTILINE)


def test_the_python_blocks(models, capsys):
    names = {"__name__": "__main__"}
    printed = 0
    for block in BLOCKS:
        exec(compile(block, str(PAGE), "exec"), names)
        lines = capsys.readouterr().out.splitlines()
        assert lines == promised(block)
        printed += len(lines)
    assert len(BLOCKS) == 10 and printed == 15
    attention = names["GatedAttention"]
    assert LLAMA_ATTENTIONS_CLASSES["gated"] is attention and issubclass(attention, LlamaAttention)
    gated = names["gated"].eval()
    with torch.no_grad():
        row = torch.randint(512, (1, 12))
        before = gated(row).logits
        cached = [gated(row[:, :8], use_cache=True)]
        for at in range(8, 12):
            cached.append(gated(row[:, at : at + 1], past_key_values=cached[-1].past_key_values))
        assert torch.allclose(torch.cat([each.logits for each in cached], 1), before, atol=1e-5)
        for layer in gated.model.layers:
            layer.self_attn.gate_proj.bias.fill_(-1e9)  # closed gates: nothing passes
        closed = gated(row).logits
    for layer in gated.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    with torch.no_grad():
        assert torch.equal(closed, gated(row).logits) and not torch.equal(closed, before)


def test_an_attention_of_ones_own_takes_less_than_20_lines():
    (block,) = [block for block in BLOCKS if "class GatedAttention" in block]
    code = block.partition("class GatedAttention")[2].partition("register_attention")[0]
    assert len([line for line in code.splitlines() if line.strip()]) < 20


def test_the_pages_links_are_there():
    for target in re.findall(r"\]\(((?!https?:)[^)#]+)", TEXT):
        assert (PAGE.parent / target).exists()
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in TEXT.splitlines()
        if line.startswith("#")
    }
    for anchor in re.findall(r"\]\(#([^)]+)\)", TEXT):
        assert anchor in headings
