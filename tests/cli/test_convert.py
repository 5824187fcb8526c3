"""`restack convert`: what it says, and what it refuses."""

import json

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from restack.cli import main
from tests.llama import meta_folders


@pytest.fixture(scope="module")
def untold(tmp_path_factory):
    """A model without a tokenizer, of a kind for which transformers makes an empty one up."""
    folder = tmp_path_factory.mktemp("models") / "untold"
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
    config = transformers.Qwen2Config(**sizes, num_attention_heads=8, num_key_value_heads=8)
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


def said(capsys, *arguments):
    assert main([*map(str, arguments)]) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments):
    assert main([*map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err


def expected_perplexity(folder, text):
    """By transformers' own loss, of a text that fits one window."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]
    assert tokens.shape[1] <= 512
    with torch.no_grad():
        return torch.exp(model(tokens, labels=tokens).loss.float()).item(), tokens.shape[1] - 1


def test_heads_reports_cache_and_perplexity(capsys, tmp_path):
    text = "Let a = fox; b = a; c = b. What is c? c is fox. Ben has a kite and Ann has a boat."
    (tmp_path / "text.txt").write_text(text)
    arguments = ("convert", "heads", "demo", "--kv-heads", 2, "--text", tmp_path / "text.txt")
    told = said(capsys, *arguments, "-o", tmp_path / "out")
    assert f"{tmp_path / 'out'}: 2 heads for keys and values (mean)" in told
    assert "KV cache a token: 6.1 kB -> 1.5 kB" in told  # 12 layers x 2 x 8 heads x 16 x 2 bytes
    facts = json.loads(said(capsys, *arguments, "-o", tmp_path / "again", "--json"))
    from restack import demo

    for name, folder in (("before", demo.FOLDER), ("after", tmp_path / "out")):
        perplexity, tokens = expected_perplexity(folder, text)
        assert facts[name]["perplexity"] == pytest.approx(perplexity, rel=1e-2)  # bfloat16
        assert facts[name]["tokens"] == tokens
    before, after = facts["before"], facts["after"]
    assert f"perplexity: {before['perplexity']:.2f} -> {after['perplexity']:.2f}" in told
    assert (before["kv_bytes_per_token"], after["kv_bytes_per_token"]) == (6144, 1536)


def test_the_built_in_text(capsys, tmp_path):
    told = said(capsys, "convert", "heads", "demo", "--kv-heads", 8, "-o", tmp_path / "out")
    line = next(line for line in told.splitlines() if line.startswith("perplexity"))
    before, after = line.split(" on ")[0].removeprefix("perplexity: ").split(" -> ")
    assert before == after  # as many heads as before
    assert line.endswith("of a built-in text")


@pytest.mark.parametrize(
    "arguments", [("heads", "--kv-heads", 2), ("kv", "--map", "lckv-w2")], ids=["heads", "kv"]
)
def test_without_a_tokenizer_it_converts_and_says_so(arguments, capsys, untold, tmp_path):
    kind, *options = arguments
    told = said(capsys, "convert", kind, untold, *options, "-o", tmp_path / "out")
    assert "perplexity: left out; there is no tokenizer" in told
    assert "restack chat" not in told
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not list((tmp_path / "out").glob("tokenizer*"))


def test_kv(capsys, tmp_path):
    told = said(capsys, "convert", "kv", "demo", "--map", "lckv-w2", "--init", "mean", "-o", tmp_path / "out")
    assert "a restack-llama under the KV map lckv-w2 (mean)" in told
    assert "KV cache a token: 6.1 kB -> 1.5 kB" in told  # 3 of 12 visits keep theirs
    assert said(capsys, "generate", tmp_path / "out", "--prompt", "Hi", "--max-tokens", 2) != ""


def test_full_and_meta(capsys, tmp_path):
    assert "a checkpoint of all visits" in said(
        capsys, "convert", "full", "demo@0:8,4:12", "-o", tmp_path / "full"
    )
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "full").config.num_hidden_layers == 16
    values = meta_folders.params()
    meta_folders.write(tmp_path / "llama", values, [meta_folders.random_weights(values)])
    said(capsys, "convert", "meta", tmp_path / "llama", "-o", tmp_path / "out", "--max-shard-size", "20kB")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ("heads", "demo", "--kv-heads", 3),
            "3 groups do not divide 8 key and value heads; write one of 1, 2",
        ),
        (
            ("heads", "demo", "--kv-heads", 2, "--pool", "max"),
            "pool is 'max'; write one of mean, first",
        ),
        (("heads", "demo@0:4", "--kv-heads", 2), "make it a checkpoint first: restack convert full"),
        (("heads", "demo", "--kv-heads", 2, "--text", "nowhere.txt"), "nowhere.txt"),
        (
            ("heads", "demo", "--kv-heads", 2, "--max-shard-size", "5 apples"),
            "'5 apples' is no size; write 5",
        ),
        (("heads", "demo", "--kv-heads", 2, "--max-shard-size", "0GB"), "'0GB' is no size"),
        (("kv", "demo", "--map", "0_1_2"), "the map ends after 3 of the plan's 12 visits"),
        (("kv", "demo", "--map", "lckv-w99"), "write an even number below 12"),
        (("kv", "demo", "--map", "cla2", "--init", "x"), "init is 'x'; write one of own, mean"),
        (("full", "demo@0:99"), "stop 99 is past the model's 12 layers"),
        (("full", "demo@0:8@0.5"), "visit 0 is damped, and no weights say that"),
        (("meta", "demo"), "is no folder of Meta's"),
        (("heads", "demo", "--kv-heads", 2, "--device", "foo"), "device 'foo' cannot be used"),
        (("heads", "demo", "--kv-heads", 2, "--dtype", "foo"), "dtype 'foo' is not known"),
        (("kv", "demo", "--map", "cla2", "--device", "meta"), "device 'meta' cannot be used"),
        (("kv", "demo", "--map", "yoco"), "sliding_window"),
        (("heads", "nowhere/at/all", "--kv-heads", 2), "nowhere/at/all"),
    ],
)
def test_refusals(arguments, told, capsys, tmp_path):
    assert told in refused(capsys, "convert", *arguments, "-o", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_left_alone(capsys, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    assert "is there and not empty" in refused(
        capsys, "convert", "heads", "demo", "--kv-heads", 2, "-o", tmp_path / "out"
    )
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize(("text", "told"), [(b"\xff\xfe\x00bad", "is not UTF-8"), (b" \n", "is empty")])
def test_a_text_that_is_none(text, told, capsys, tmp_path):
    (tmp_path / "text.txt").write_bytes(text)
    arguments = ("convert", "heads", "demo", "--kv-heads", 2, "--text", tmp_path / "text.txt")
    assert told in refused(capsys, *arguments, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_window_for_maps_that_slide(capsys, tmp_path):
    said(capsys, "convert", "kv", "demo", "--map", "yoco", "--window", 64, "-o", tmp_path / "out")
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "out").config
    assert config.sliding_window == 64
    assert config.kv_map.startswith("0s_1s_")


def test_fold(capsys, untold, tmp_path):
    told = said(capsys, "convert", "fold", untold, "--rank", 2, "-o", tmp_path / "out")
    assert "layers    4 -> 2, " in told
    assert "restack chat" not in told  # without a tokenizer nobody can talk with it
