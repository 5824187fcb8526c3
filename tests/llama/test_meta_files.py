"""Meta's own checkpoints: the model that comes out is Meta's, and each damage is one clear error."""

import builtins
import importlib.util
import json
import os
import random

import pytest
import torch
from jinja2 import TemplateError
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from restack.errors import ModelError
from restack.llama import meta_tokenizer
from restack.llama.meta import half_split, interleaved, read_settings, read_weights
from restack.llama.meta_layout import is_meta_folder
from restack.llama.meta_tokenizer import read_tokenizer
from tests.llama import meta_folders

TOKENS = torch.randint(96, (40,), generator=torch.Generator().manual_seed(1))
TEXTS = [
    "A llama",
    " one space",
    "   three",
    "",
    "two\n\nlines ",
    "é 漢字 🦙 12345",
    "\ttab",
    "a  b",
    "[INST] x",
]
QUESTION = [{"role": "user", "content": " What is a llama? "}]
CHAT = [
    {"role": "system", "content": "Be brief."},
    *QUESTION,
    {"role": "assistant", "content": "An animal."},
    {"role": "user", "content": "Thanks!"},
]
LLAMA_2 = {"norm_eps": 1e-5}
LLAMA_3 = {"n_kv_heads": 8, "n_heads": 16, "rope_theta": 500000.0, "ffn_dim_multiplier": 1.3}
LLAMA_31 = LLAMA_3 | {"n_heads": 8, "use_scaled_rope": True}


def model_of(folder):
    settings = read_settings(folder)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**settings, attn_implementation="eager"))
    model.load_state_dict(read_weights(folder, settings), assign=True)  # strict: every name, no other
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return model.eval().double()  # where transformers does not compute in float32 whatever the weights


def logits(model):
    with torch.no_grad():
        return model(TOKENS[None]).logits[0]


def folder_of(place, shards=1, embedding_dimension=1, **changes):
    values = meta_folders.params(**changes)
    parts = meta_folders.split(meta_folders.random_weights(values), shards, embedding_dimension)
    return meta_folders.write(place, values, parts)


@pytest.fixture
def folder(tmp_path):
    return folder_of(tmp_path / "model", shards=2, n_kv_heads=4)


def change(folder, **values):
    file = folder / "params.json"
    changed = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in changed.items() if value != "gone"}))


def change_shard(folder, edit, number=1):
    file = folder / f"consolidated.{number:02}.pth"
    tensors = torch.load(file)
    edit(tensors)
    torch.save(tensors, file)


@pytest.mark.parametrize("shards", [1, 2, 8])
@pytest.mark.parametrize(
    "changes",
    [LLAMA_2, {"vocab_size": -1}, {"n_kv_heads": 8, "multiple_of": 64}, LLAMA_3, LLAMA_31],
    ids=["mha", "vocabulary-from-weights", "kv-heads-given", "gqa", "scaled"],
)
def test_it_is_metas_model(tmp_path, shards, changes):
    values = meta_folders.params(**changes)
    weights = meta_folders.random_weights(values)
    parts = meta_folders.split(weights, shards, embedding_dimension=0 if "rope_theta" in changes else 1)
    model = model_of(meta_folders.write(tmp_path, values, parts))
    expected = meta_folders.logits(values, weights, TOKENS, factor=32.0)
    assert expected.std() > 0.5
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("shards", "kv_heads"), [(1, 1), (1, 2), (2, 2), (2, 4), (8, 4)])
def test_few_kv_heads(tmp_path, shards, kv_heads):
    folder = folder_of(tmp_path, shards, n_kv_heads=kv_heads)
    values = json.loads((folder / "params.json").read_text())
    expected = meta_folders.logits(values, meta_folders.random_weights(values), TOKENS)
    torch.testing.assert_close(logits(model_of(folder)), expected, atol=1e-5, rtol=1e-5)


def test_scaled_frequencies_matter_and_8_is_for_large_models(tmp_path):
    values = meta_folders.params(**LLAMA_31)
    weights = meta_folders.random_weights(values)
    plain, small, large = (
        meta_folders.logits(values | {"use_scaled_rope": scaled}, weights, TOKENS, factor)
        for scaled, factor in [(False, 1.0), (True, 32.0), (True, 8.0)]
    )
    assert (plain - small).abs().max() > 1e-3 and (large - small).abs().max() > 1e-4  # seen at 1e-5
    for dim, factor in [(3072, 32.0), (4096, 8.0)]:
        folder = tmp_path / str(dim)
        meta_folders.write(folder, values | {"dim": dim}, [])
        assert read_settings(folder)["rope_parameters"]["factor"] == factor


def test_rows_of_heads():
    weight = torch.arange(2 * 6 * 3).view(12, 3)  # 2 heads of size 6
    assert half_split(weight, 2)[:, 0].div(3).tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    draw = random.Random(0)
    for _ in range(20):
        heads, half, columns = draw.randint(1, 6), draw.randint(1, 6), draw.randint(1, 5)
        weight = torch.randn(heads * 2 * half, columns)
        assert torch.equal(interleaved(half_split(weight, heads), heads), weight)
        assert torch.equal(half_split(interleaved(weight, heads), heads), weight)
    assert half_split(torch.randn(12), 2).shape == (12,)  # a bias


def test_both_rotary_formulas_give_the_same_scores():
    heads, size, length = 3, 8, 11
    wq, wk, x = torch.randn(heads * size, 5), torch.randn(heads * size, 5), torch.randn(length, 5)
    angles = torch.outer(torch.arange(length).float(), 10000.0 ** -(torch.arange(0, size, 2) / size))

    def pairs(rows):  # Meta: complex numbers
        turned = torch.view_as_complex(rows.reshape(length, heads, -1, 2)) * torch.polar(
            torch.ones(()), angles[:, None]
        )
        return torch.view_as_real(turned).flatten(-2)

    def halves(rows):  # transformers: rotate_half
        rows = rows.view(length, heads, size)
        cos, sin = (torch.cat([f(angles)] * 2, -1)[:, None] for f in (torch.cos, torch.sin))
        low, high = rows.chunk(2, -1)
        return rows * cos + torch.cat([-high, low], -1) * sin

    def scores(turn, q, k):
        return torch.einsum("thd,shd->hts", turn(x @ q.T), turn(x @ k.T))

    split = scores(halves, half_split(wq, heads), half_split(wk, heads))
    torch.testing.assert_close(split, scores(pairs, wq, wk), atol=1e-4, rtol=1e-5)
    assert not torch.allclose(scores(halves, wq, wk), scores(pairs, wq, wk), atol=0.1)


def test_published_shapes(tmp_path):
    """The params.json of published models, written from memory, and what their configs on the hub say."""
    plain = {"multiple_of": 256, "n_layers": 1, "norm_eps": 1e-5, "vocab_size": 32000}
    grouped = {"n_kv_heads": 8, "vocab_size": 128256, "rope_theta": 500000.0}
    published = [
        ({"dim": 4096, "n_heads": 32, "norm_eps": 1e-6}, 11008, 2048),  # Llama 1 7B
        ({"dim": 5120, "n_heads": 40}, 13824, 4096),  # Llama 2 13B
        (
            {"dim": 8192, "n_heads": 64, "n_kv_heads": 8, "multiple_of": 4096, "ffn_dim_multiplier": 1.3},
            28672,
            4096,
        ),
        ({"dim": 4096, "n_heads": 32, "rope_theta": 1e6, "vocab_size": 32016}, 11008, 16384),  # Code Llama 7B
        (grouped | {"dim": 4096, "n_heads": 32, "multiple_of": 1024, "ffn_dim_multiplier": 1.3}, 14336, 8192),
        (
            grouped | {"dim": 2048, "n_heads": 32, "ffn_dim_multiplier": 1.5, "use_scaled_rope": True},
            8192,
            131072,
        ),
    ]
    for number, (values, width, context) in enumerate(published):
        folder = meta_folders.write(tmp_path / str(number), plain | values, [])
        settings = read_settings(folder)
        assert (settings["intermediate_size"], settings["max_position_embeddings"]) == (width, context)
        assert settings["num_key_value_heads"] == values.get("n_kv_heads", values["n_heads"])
        assert settings["rms_norm_eps"] == values.get("norm_eps", 1e-5)
        assert LlamaConfig(**settings).rope_parameters["rope_theta"] == values.get("rope_theta", 10000.0)


def test_settings(folder):
    assert is_meta_folder(folder) and not is_meta_folder(folder.parent)
    settings = read_settings(folder)
    assert settings["dtype"] is torch.float32 and settings["tie_word_embeddings"] is False
    assert settings["bos_token_id"] is settings["eos_token_id"] is settings["pad_token_id"] is None
    meta_folders.write_pieces(folder.parent / "tokenizer.model")  # beside the folders of the models
    assert read_settings(folder)["eos_token_id"] == 2 and read_settings(folder)["bos_token_id"] == 1
    meta_folders.write_ranks(folder / "tokenizer.model")
    assert read_settings(folder)["eos_token_id"] == [275, 282, 283]
    change(folder, max_seq_len=2048, max_batch_size=4, model_parallel_size=2, lora_args=None)
    assert LlamaConfig(**read_settings(folder)).vocab_size == 96
    for path in folder.glob("*.pth"):
        path.unlink()
    assert not is_meta_folder(folder)
    change(folder, vocab_size=-1)
    assert read_settings(folder)["vocab_size"] == 274 + 256  # of the tokenizer
    meta_folders.write_pieces(folder / "tokenizer.model")
    assert read_settings(folder)["vocab_size"] == 345


def test_half_precision_stays(tmp_path):
    values = meta_folders.params()
    weights = {name: weight.bfloat16() for name, weight in meta_folders.random_weights(values).items()}
    folder = meta_folders.write(tmp_path, values, meta_folders.split(weights, 2))
    settings = read_settings(folder)
    read = read_weights(folder, settings)
    assert {settings["dtype"]} == {tensor.dtype for tensor in read.values()} == {torch.bfloat16}
    assert torch.equal(read["lm_head.weight"], weights["output.weight"])
    assert torch.equal(
        interleaved(read["model.layers.1.self_attn.q_proj.weight"], 8),
        weights["layers.1.attention.wq.weight"],
    )


def test_weights_may_be_changed_without_changing_the_files(tmp_path):
    folder = folder_of(tmp_path)
    before = (folder / "consolidated.00.pth").read_bytes()
    for tensor in read_weights(folder, read_settings(folder)).values():
        tensor.zero_()
    assert (folder / "consolidated.00.pth").read_bytes() == before


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"dim": "gone"}, "dim is missing"),
        ({"n_layers": "gone"}, "n_layers is missing"),
        ({"n_heads": None}, "n_heads is missing"),
        ({"dim": "64"}, "dim is '64'; it must be a whole number above 0"),
        ({"dim": 64.0}, "dim is 64.0; it must be a whole number"),
        ({"n_layers": 0}, "n_layers is 0; it must be a whole number above 0"),
        ({"n_layers": True}, "n_layers is True; it must be"),
        ({"n_heads": 5}, "dim 64 is no multiple of 2 * n_heads 5"),
        ({"n_heads": 64}, "dim 64 is no multiple of 2 * n_heads 64"),
        ({"n_kv_heads": 3}, "n_heads 8 is no multiple of n_kv_heads 3"),
        ({"n_kv_heads": 16}, "n_heads 8 is no multiple of n_kv_heads 16"),
        ({"norm_eps": "small"}, "norm_eps is 'small'; it must be a number above 0"),
        ({"norm_eps": float("nan")}, "norm_eps is nan; it must be a number above 0"),
        ({"rope_theta": -1}, "rope_theta is -1; it must be a number above 0"),
        ({"ffn_dim_multiplier": 0}, "ffn_dim_multiplier is 0; it must be a number above 0"),
        ({"multiple_of": 1.5}, "multiple_of is 1.5; it must be a whole number above 0"),
        ({"vocab_size": -2}, "vocab_size is -2; it must be a whole number above 0"),
        ({"use_scaled_rope": "yes"}, "use_scaled_rope is 'yes'; it must be true or false"),
        (
            {"moe": {}, "vision_chunk_size": 448},
            "has moe, vision_chunk_size, which no Llama 1 to 3 of text has",
        ),
    ],
)
def test_wrong_params(folder, values, said):
    change(folder, **values)
    with pytest.raises(ModelError) as error:
        read_settings(folder)
    assert said in str(error.value) and str(folder / "params.json") in str(error.value)
    assert "\n" not in str(error.value)


def test_unreadable_params(folder):
    for text in ("{", "[1]", "\0"):
        (folder / "params.json").write_text(text)
        with pytest.raises(ModelError, match="is not a JSON object; get it again"):
            read_settings(folder)
    (folder / "params.json").unlink()
    with pytest.raises(ModelError, match=r"has no params.json"):
        read_settings(folder)


def test_a_vocabulary_that_nothing_tells(tmp_path):
    folder = meta_folders.write(tmp_path / "model", meta_folders.params(vocab_size=-1), [])
    with pytest.raises(
        ModelError, match=r"vocab_size is -1, and there is no output.weight and no tokenizer.model"
    ):
        read_settings(folder)


def drop(name):
    return lambda tensors: tensors.pop(name)


def put(name, value):
    return lambda tensors: tensors.update({name: value})


WQ, NORM = "layers.1.attention.wq.weight", "layers.1.ffn_norm.weight"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (drop(WQ), f"lacks {WQ}, which params.json calls for"),
        (
            put("layers.2.attention.wq.weight", torch.ones(2)),
            "has layers.2.attention.wq.weight, which the Llama of",
        ),
        (put("lora.weight", torch.ones(2)), "has lora.weight, which the Llama of"),
        (
            put(WQ, torch.ones(32, 63)),
            f"{WQ} is (32, 63); params.json makes it (64, 64), (32, 64) in each of 2 shards",
        ),
        (
            put(WQ, torch.ones(64, 64)),
            f"{WQ} is (64, 64); params.json makes it (64, 64), (32, 64) in each of 2 shards",
        ),
        (put(NORM, torch.ones(64)), f"{NORM} differs from that of the first shard; they must be equal"),
        (put(NORM, torch.ones(63)), f"{NORM} is (63,); params.json makes it (64,)"),
        (put(WQ, torch.ones(32, 64).half()), f"{WQ} is torch.float16; expected torch.float32"),
        (put(WQ, "weights"), f"{WQ} is a str; expected a tensor"),
    ],
)
def test_wrong_tensors(folder, edit, said):
    change_shard(folder, edit)
    with pytest.raises(ModelError) as error:
        read_weights(folder, read_settings(folder))
    assert said in str(error.value) and str(folder / "consolidated.01.pth") in str(error.value)
    assert "\n" not in str(error.value)


def test_params_of_another_model(folder):
    for values, said in [
        (
            {"multiple_of": 1024},
            r"feed_forward.w1.weight is \(88, 64\); params.json makes it \(1024, 64\), \(512, 64\) in each",
        ),
        ({"vocab_size": 100}, r"tok_embeddings.weight is \(96, 32\); params.json makes it \(100, 64\)"),
        (
            {"vocab_size": 95},
            r"tok_embeddings.weight is \(96, 32\); params.json makes it \(95, 64\), \(95, 32\) in each",
        ),
        ({"n_kv_heads": 8}, r"wk.weight is \(16, 64\); params.json makes it \(64, 64\), \(32, 64\) in each"),
        ({"n_layers": 3}, "lacks layers.2.attention.wq.weight"),
        ({"n_layers": 1}, "has layers.1.attention.wk.weight, which"),
    ]:
        before = (folder / "params.json").read_text()
        change(folder, **values)
        with pytest.raises(ModelError, match=said):
            read_weights(folder, read_settings(folder))
        (folder / "params.json").write_text(before)


def test_weights_that_are_no_floating_point_numbers(tmp_path):
    folder = folder_of(tmp_path)
    change_shard(folder, put(WQ, torch.ones(64, 64).to(torch.int8)), number=0)
    with pytest.raises(ModelError, match=f"{WQ} is torch.int8; expected floating-point numbers"):
        read_weights(folder, read_settings(folder))


def test_a_width_that_does_not_divide(tmp_path):
    folder = folder_of(tmp_path, shards=4, multiple_of=2)
    with pytest.raises(
        ModelError, match=r"w1.weight is .* makes it \(170, 64\), which does not divide in each of 4"
    ):
        read_weights(folder, read_settings(folder))


def test_missing_shards(tmp_path):
    folder = folder_of(tmp_path, shards=8)
    (folder / "consolidated.07.pth").unlink()
    with pytest.raises(ModelError, match="is one of 8 shards, and 7 are here; get all of them"):
        read_weights(folder, read_settings(folder))
    (folder / "consolidated.01.pth").unlink()
    for read in (read_settings, lambda folder: read_weights(folder, {})):
        with pytest.raises(ModelError, match=r"lacks consolidated.01.pth, and has consolidated.06.pth"):
            read(folder)
    for path in folder.glob("*.pth"):
        path.unlink()
    with pytest.raises(ModelError, match=r"has no consolidated.00.pth"):
        read_weights(folder, read_settings(folder))


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_shards_that_are_no_checkpoints(folder, monkeypatch):
    monkeypatch.chdir(folder)
    file = folder / "consolidated.01.pth"
    whole = file.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(
            ModelError, match=rf"consolidated.01.pth is no .* cut short: {size} bytes; get it again"
        ):
            read_settings(folder)
    torch.save({"weight": torch.ones(2), "more": Evil()}, file)
    with pytest.raises(
        ModelError, match=r"consolidated.01.pth holds something other than tensors, and is not run"
    ):
        read_settings(folder)
    assert not (folder / "evil").exists()
    torch.save([torch.ones(2)], file)
    with pytest.raises(
        ModelError, match=r"consolidated.01.pth holds a list; expected tensors by their names"
    ):
        read_settings(folder)
    file.unlink()
    file.mkdir()
    with pytest.raises(ModelError, match=r"consolidated.01.pth cannot be read: Is a directory"):
        read_settings(folder)


@pytest.fixture
def pieces(tmp_path):
    pytest.importorskip("sentencepiece")
    meta_folders.write_pieces(tmp_path / "tokenizer.model")
    (tmp_path / "llama-2-7b").mkdir()
    return tmp_path / "llama-2-7b"


@pytest.fixture
def ranks(tmp_path):
    meta_folders.write_ranks(tmp_path / "tokenizer.model")
    return tmp_path


def test_pieces(pieces):
    import sentencepiece

    reference = sentencepiece.SentencePieceProcessor(model_file=str(pieces.parent / "tokenizer.model"))
    tokenizer = read_tokenizer(pieces)
    assert len(tokenizer) == len(reference) == 345
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    draw = random.Random(0)
    drawn = ["".join(draw.choices(" ▁\naelmnotxé漢0<>", k=draw.randint(1, 20))) for _ in range(200)]
    for text in TEXTS + drawn:
        tokens = tokenizer(text)["input_ids"]
        assert tokens == [1, *reference.encode(text)], text
        assert tokenizer.decode(tokens, skip_special_tokens=True) == reference.decode(tokens)
        assert "▁" in text or reference.decode(tokens) == text
    assert tokenizer.decode([1, 2]) == "<s></s>"
    batch = tokenizer(["llama", "a"], add_special_tokens=False)
    assert list(batch) == ["input_ids", "attention_mask"] and batch["input_ids"][0][0] != 1


def test_ranks(ranks):
    tokenizer = read_tokenizer(ranks)
    table = meta_folders.ranks()
    assert len(tokenizer) == len(table) + 256
    assert tokenizer("the llama layer")["input_ids"] == [
        len(table),
        *[table[piece] for piece in (b"t", b"he", b" llama", b" lay", b"er")],
    ]
    for text in TEXTS:
        tokens = tokenizer(text)["input_ids"]
        assert tokens[0] == tokenizer.bos_token_id == len(table)
        assert tokenizer.decode(tokens, skip_special_tokens=True) == text
    special = tokenizer("<|eot_id|><|end_of_text|><|reserved_special_token_247|>")["input_ids"]
    assert special == [len(table), len(table) + 9, len(table) + 1, len(table) + 255]
    names = [
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|python_tag|>",
        "<|reserved_special_token_2|>",
    ]
    assert tokenizer.convert_tokens_to_ids(names) == [len(table) + place for place in (6, 7, 8, 10, 5)]
    assert tokenizer.pad_token == "<|finetune_right_pad_id|>"


def test_ranks_as_tiktoken_reads_them(ranks):
    tiktoken = pytest.importorskip("tiktoken")
    pattern = (  # of Meta's Tokenizer
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    table = meta_folders.ranks()
    special = {name: len(table) + place for place, name in enumerate(meta_tokenizer.special_tokens())}
    reference = tiktoken.Encoding("llama", pat_str=pattern, mergeable_ranks=table, special_tokens=special)
    tokenizer = read_tokenizer(ranks)
    draw = random.Random(0)
    drawn = ["".join(draw.choices(" \n'lamheyrtus1,é漢", k=draw.randint(1, 30))) for _ in range(200)]
    for text in TEXTS + drawn:
        tokens = tokenizer(text)["input_ids"]
        assert tokens == [len(table), *reference.encode(text)], text
        assert tokenizer.decode(tokens[1:]) == text


def test_a_file_that_changes_is_read_again(ranks):
    assert len(read_tokenizer(ranks)) == 274 + 256
    lines = (ranks / "tokenizer.model").read_text().splitlines()
    (ranks / "tokenizer.model").write_text("\n".join(lines[:260]))
    assert len(read_tokenizer(ranks)) == 260 + 256


@pytest.mark.parametrize("kind", ["pieces", "ranks"])
def test_tokenizers_are_saved_as_they_are(kind, request, tmp_path):
    tokenizer = read_tokenizer(request.getfixturevalue(kind))
    tokenizer.save_pretrained(tmp_path / "saved")
    LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in TEXTS:
        assert saved(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert saved.decode(saved(text)["input_ids"], skip_special_tokens=True) == text
    assert saved.apply_chat_template(CHAT) == tokenizer.apply_chat_template(CHAT)


def test_chats_of_llama_2(pieces):
    import sentencepiece

    tokenizer = read_tokenizer(pieces)
    assert tokenizer.apply_chat_template(QUESTION, tokenize=False) == "<s>[INST] What is a llama? [/INST]"
    turn = "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n What is a llama?  [/INST] An animal. ".replace(
        "?  [", "? ["
    )
    expected = f"<s>{turn}</s><s>[INST] Thanks! [/INST]"
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == expected
    assert tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True) == expected
    # Meta's chat_completion encodes each turn by itself.
    reference = sentencepiece.SentencePieceProcessor(model_file=str(pieces.parent / "tokenizer.model"))
    tokens = [1, *reference.encode(turn), 2, 1, *reference.encode("[INST] Thanks! [/INST]")]
    assert tokenizer.apply_chat_template(CHAT)["input_ids"] == tokens
    for wrong in (QUESTION * 2, [CHAT[2]], [*CHAT, CHAT[0]], [CHAT[0], *CHAT]):
        with pytest.raises(TemplateError, match="takes user and assistant in turns"):
            tokenizer.apply_chat_template(wrong, tokenize=False)


def test_chats_of_llama_3(ranks):
    tokenizer = read_tokenizer(ranks)
    question = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhat is a llama?<|eot_id|>"
    assert tokenizer.apply_chat_template(QUESTION, tokenize=False) == question
    assert tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True) == (
        f"{question}<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhat is a llama?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nAn animal.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nThanks!<|eot_id|>"
    )
    # Meta's ChatFormat encodes the role, the two line ends and the content each by itself.
    first = len(meta_folders.ranks())
    alone = [
        tokenizer(part, add_special_tokens=False)["input_ids"]
        for part in ("user", "\n\n", "What is a llama?")
    ]
    expected = [first, first + 6, *alone[0], first + 7, *alone[1], *alone[2], first + 9]
    assert tokenizer.apply_chat_template(QUESTION)["input_ids"] == expected


def test_damaged_tokenizers(ranks):
    file = ranks / "tokenizer.model"
    text = file.read_text()
    for damaged, said in [
        (text + "%%% 274\n", "line 275 is no token and its rank"),
        (text + "AAAA\n", "line 275 is no token and its rank"),
        (text + "AAAA 7x\n", "line 275 is no token and its rank"),
        (text.rstrip("\n")[:-1], "its ranks are not 0 to 273"),
        ("hello there", "neither a BPE model of SentencePiece nor lines of tokens and ranks"),
        ("", "neither a BPE model of SentencePiece nor lines of tokens and ranks"),
    ]:
        file.write_text(damaged)
        with pytest.raises(ModelError, match=said):
            read_tokenizer(ranks)
    file.unlink()
    with pytest.raises(
        ModelError, match=r"has no tokenizer.model, nor has the folder above it; copy it there"
    ):
        read_tokenizer(ranks)


def test_a_sentencepiece_model_cut_short(pieces):
    file = pieces.parent / "tokenizer.model"
    whole = file.read_bytes()
    for size in (1, 40, len(whole) // 2):
        file.write_bytes(whole[:size])
        with pytest.raises(ModelError, match="neither a BPE model of SentencePiece"):
            read_tokenizer(pieces)


@pytest.mark.parametrize("name", ["sentencepiece", "google.protobuf"])
def test_without_its_packages(pieces, ranks, name, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(meta_tokenizer, "find_spec", lambda wanted: None if wanted == name else find(wanted))
    meta_folders.write_pieces(ranks / "tokenizer.model")
    with pytest.raises(ModelError, match="pip install sentencepiece protobuf"):
        read_tokenizer(pieces)


def test_tiktoken_is_not_needed(ranks, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "tiktoken":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert len(read_tokenizer(ranks)) == 530
