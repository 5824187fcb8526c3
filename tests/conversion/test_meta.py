"""Meta's folders as checkpoints of transformers' Llama, beside Meta's model written down by another hand."""

import subprocess
import sys

import pytest
import sentencepiece
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from restack.conversion import convert_meta
from restack.errors import ModelError, UsageError
from tests.llama import meta_folders

TOKENS = torch.randint(96, (24,), generator=torch.Generator().manual_seed(1))
LLAMA_3 = {"n_kv_heads": 8, "n_heads": 16, "rope_theta": 500000.0, "ffn_dim_multiplier": 1.3}


@pytest.mark.parametrize("largest", [5_000_000_000, 30_000])
@pytest.mark.parametrize(
    ("shards", "changes", "embedding"), [(1, {}, 1), (2, {}, 1), (8, LLAMA_3, 0)], ids=["7B", "13B", "70B"]
)
def test_it_is_metas_model(shards, changes, embedding, largest, tmp_path):
    values = meta_folders.params(**changes)
    weights = meta_folders.random_weights(values)
    meta_folders.write(tmp_path / "meta", values, meta_folders.split(weights, shards, embedding))
    convert_meta(tmp_path / "meta", tmp_path / "out", largest=largest)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").double().eval()
    assert type(loaded).__name__ == "LlamaForCausalLM"
    with torch.no_grad():
        found = loaded(TOKENS[None]).logits[0]
    torch.testing.assert_close(
        found, meta_folders.logits(values, weights, TOKENS), atol=1e-5, rtol=1e-5
    )  # transformers turns heads in float32
    assert (len(list((tmp_path / "out").glob("*.safetensors"))) > 1) == (largest < 10**6)


def test_transformers_alone_loads_it(tmp_path):
    values = meta_folders.params()
    meta_folders.write(tmp_path / "meta", values, [meta_folders.random_weights(values)])
    convert_meta(tmp_path / "meta", tmp_path / "out")
    check = (
        "import sys; from transformers import AutoModelForCausalLM as A; "
        f"m = A.from_pretrained({str(tmp_path / 'out')!r}); "
        "assert 'restack' not in sys.modules; print(type(m).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=120)
    assert done.stdout == "LlamaForCausalLM\n", done.stderr


def test_its_tokenizer_comes_along(tmp_path):
    values = meta_folders.params(vocab_size=-1)
    weights = meta_folders.random_weights(values, vocabulary=345)
    folder = meta_folders.write(tmp_path / "meta", values, [weights])
    meta_folders.write_pieces(folder / "tokenizer.model")
    convert_meta(folder, tmp_path / "out")
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    text = "The llama walks over 12 hills"
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(text)["input_ids"] == [1, *reference.encode(text)]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.eos_token_id == 2


def test_refusals(tmp_path):
    values = meta_folders.params()
    folder = meta_folders.write(tmp_path / "meta", values, [meta_folders.random_weights(values)])
    convert_meta(folder, tmp_path / "out")
    with pytest.raises(UsageError, match="is no folder of Meta's"):
        convert_meta(tmp_path / "out", tmp_path / "again")
    with pytest.raises(UsageError, match="is there and not empty"):
        convert_meta(folder, tmp_path / "out")
    with pytest.raises(ModelError, match="there is no folder"):
        convert_meta(tmp_path / "nowhere", tmp_path / "again")
    whole = (folder / "consolidated.00.pth").read_bytes()
    (folder / "consolidated.00.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cut short"):
        convert_meta(folder, tmp_path / "again")
    assert sorted(place.name for place in tmp_path.iterdir()) == ["meta", "out"]
