"""Every command on the house model's folders: Meta's own files, LCKV's, ours, and a Llama under a KV map."""

import io
import json
import sys

import pytest
import tokenizers
import torch
import transformers

import restack
from restack import ModelError, demo
from restack.cli import main
from restack.llama import RestackLlamaConfig, RestackLlamaForCausalLM
from restack.llama.meta_tokenizer import read_tokenizer, special_tokens
from tests.llama import meta_folders
from tests.llama.test_checkpoints import WORDS, write
from tests.recipes.tiny import saved_llama

LLAMA_2 = meta_folders.params(vocab_size=346, n_layers=3)  # an even number, for two shards
SHORT, LONG = "The llama", "A layer that runs twice is still one layer, and it has"
TINY_LLAMA = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632,
    "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4, "torch_dtype": "bfloat16",
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def weights():
    drawn = meta_folders.random_weights(LLAMA_2, 346)
    drawn["output.weight"][345] = 0  # which the tokenizer does not know
    return drawn


@pytest.fixture
def folder(tmp_path, weights):
    """Llama 2, as Meta gives it out: in two shards, the tokenizer beside the folder."""
    meta_folders.write_pieces(tmp_path / "tokenizer.model")
    shards = meta_folders.split(weights, 2)
    return str(meta_folders.write(tmp_path / "llama-2-7b", LLAMA_2, shards)) + "/"


@pytest.fixture
def talker(tmp_path):
    """A Llama 3 that says "llama" after any other token, and then ends its turn."""
    ranks = meta_folders.ranks()
    values = meta_folders.params(n_kv_heads=4, rope_theta=500000.0, vocab_size=len(ranks) + 256)
    weights = meta_folders.random_weights(values, values["vocab_size"])
    for name, weight in weights.items():
        if name.endswith(("wo.weight", "w2.weight")):
            weight.zero_()  # so that a token alone decides the next
    word, end = ranks[b" llama"], len(ranks) + special_tokens().index("<|eot_id|>")
    embedding, output = weights["tok_embeddings.weight"].zero_(), weights["output.weight"].zero_()
    embedding[:, 0] = output[word, 0] = 1
    embedding[word, :2] = torch.tensor([0.0, 1.0])
    output[end, 1] = 1
    weights["norm.weight"].fill_(1)
    shards = meta_folders.split(weights, 1, embedding_dimension=0)
    folder = meta_folders.write(tmp_path / "Llama-3-8B", values, shards)
    meta_folders.write_ranks(folder / "tokenizer.model")
    return str(folder)


@pytest.fixture
def lckv(tmp_path):
    (tmp_path / "lckv").mkdir()
    write(tmp_path / "lckv")
    model = tokenizers.models.WordLevel(
        {word: number for number, word in enumerate(WORDS)}, unk_token=WORDS[0]
    )
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token=WORDS[0], bos_token=WORDS[1], eos_token=WORDS[2]
    )
    tokenizer.save_pretrained(tmp_path / "lckv")
    return str(tmp_path / "lckv")


def said(capsys, *arguments):
    capsys.readouterr()
    assert main([*arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def facts(capsys, *arguments):
    return json.loads(said(capsys, "show", *arguments, "--json"))


def generated(capsys, *arguments):
    return said(capsys, "generate", *arguments, "--temperature", "0", "--max-new-tokens", "6")


def refused(capsys, *arguments):
    capsys.readouterr()
    assert main([*arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "Traceback" not in err
    return err


def likeliest(values, weights, tokenizer, prompt, count=6):
    """What Meta's code goes on with, computed token by token from the whole text."""
    tokens = tokenizer(prompt, return_tensors="pt")["input_ids"][0]
    start = len(tokens)
    for _ in range(count):
        tokens = torch.cat([tokens, meta_folders.logits(values, weights, tokens)[-1:].argmax(-1)])
    return tokenizer.decode(tokens[start:], skip_special_tokens=True)


class TestMetaFolders:
    @pytest.mark.parametrize("order", [[0, 1, 2], [0, 1, 0, 1, 2]])
    def test_generate_continues_as_metas_model_does(self, capsys, folder, weights, order):
        values, stack = {**LLAMA_2, "n_layers": len(order)}, dict(weights)
        for number, layer in enumerate(order):
            at = f"layers.{layer}."
            stack |= {
                f"layers.{number}.{name.removeprefix(at)}": weight
                for name, weight in weights.items()
                if name.startswith(at)
            }
        expected = likeliest(values, stack, restack.recipes.open_tokenizer(folder), SHORT)
        model = f"{folder}@{','.join(map(str, order))}"
        assert generated(capsys, model, "--raw", "--prompt", SHORT) == expected + "\n"

    def test_several_prompts_are_a_batch_and_each_is_answered_as_alone(self, capsys, folder):
        for options in ([], ["--raw"], ["--repetition-penalty", "1.5"]):
            alone = [generated(capsys, folder, "-p", prompt, *options) for prompt in (SHORT, LONG, "x")]
            together = generated(capsys, folder, "-p", SHORT, "-p", LONG, "-p", "x", *options)
            pairs = zip((SHORT, LONG, "x"), alone, strict=True)
            assert together == "\n".join(f"> {prompt}\n{answer}" for prompt, answer in pairs)

    def test_a_seed_repeats_a_batch(self, capsys, folder):
        options = ["-p", SHORT, "-p", LONG, "--top-p", "0.9", "--temperature", "1.5", "--max_new_tokens", "9"]
        first, again, other = (
            said(capsys, "generate", folder, *options, "--seed", seed) for seed in ("1", "1", "2")
        )
        assert first == again != other

    def test_a_chat_ends_its_turns(self, capsys, talker, monkeypatch):
        """`<|eot_id|>`, one of several tokens at which Llama 3 stops."""
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hello!\n/layers 0,1,1\nAnd you?\n")))
        answers = [
            line for line in said(capsys, "chat", talker, "--temp", "0").splitlines() if line[:4] == "A.I."
        ]
        assert answers == ["A.I. >  llama"] * 2

    def test_a_batch_ends_its_turns(self, capsys, talker):
        told = said(capsys, "generate", talker, "-p", "Hello!", "-p", "And you there?", "--temp", "0")
        assert told == "> Hello!\n llama\n\n> And you there?\n llama\n"

    def test_show(self, capsys, folder):
        found = facts(capsys, folder)
        assert (found["architecture"], found["layers"], found["heads"]) == ("RestackLlamaForCausalLM", 3, 8)
        assert found["own_plan"] is None and found["context"] == 4096
        assert found["parameters"] == 2 * 346 * 64 + 64 + 3 * (4 * 64 * 64 + 3 * 64 * 176 + 2 * 64)
        assert found["plan"]["kv_bytes_per_token"] == 3 * 2 * 64 * 4
        found = facts(capsys, folder, "--layers", "0:3,1:", "--kv", "lckv-w2", "--verify")
        assert found["plan"]["refused"] is None and found["verified"]["holds"]
        assert found["plan"]["kv_bytes_per_token"] == 3 * 2 * 64 * 4
        assert facts(capsys, folder, "--dtype", "bf16")["dtype"] == "bfloat16"

    def test_dtypes(self, folder, talker):
        assert restack.open(folder).dtype == torch.float32
        assert restack.open(folder, dtype="bfloat16").dtype == torch.bfloat16

    def test_recipes(self, capsys, folder, tmp_path, monkeypatch):
        view = f"{folder}@0:3,1:"
        expected = generated(capsys, view, "-p", SHORT)
        assert said(capsys, "save", view, str(tmp_path / "one")).startswith(f"{tmp_path / 'one'}: a recipe")
        restack.save(restack.open(view), tmp_path / "two")
        for name in ("one", "two"):
            kept = json.loads((tmp_path / name / "config.json").read_text())
            assert (
                kept["base"]["name"] == folder.rstrip("/")
                and None not in kept["base"]["fingerprint"].values()
            )
            assert generated(capsys, str(tmp_path / name), "-p", SHORT) == expected
            assert facts(capsys, f"{tmp_path / name}@0:2")["plan"]["visits"] == [0, 1]
        auto = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "one")
        assert auto.config.whole_plan.order == (0, 1, 2, 1, 2)
        assert transformers.AutoConfig.from_pretrained(tmp_path / "one").plan == "0:3,1:3"
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "one")
        assert tokenizer(SHORT) == read_tokenizer(tmp_path / "llama-2-7b")(SHORT)

    @pytest.mark.parametrize("kept", ["shared", "full"])
    def test_weights_are_stored_when_asked_for(self, capsys, folder, tmp_path, kept):
        view = f"{folder}@0:3,1:"
        said(capsys, "save", view, str(tmp_path / "saved"), "--weights", kept)
        assert generated(capsys, str(tmp_path / "saved"), "-p", SHORT) == generated(capsys, view, "-p", SHORT)

    @pytest.mark.parametrize("name", ["model.layers.1.self_attn.q_proj.weight", "model.norm.weight"])
    def test_a_recipe_of_weights_that_were_changed_is_refused(self, folder, tmp_path, name):
        view = restack.view(restack.open(folder), "0:3,1:")
        with torch.no_grad():
            view.get_parameter(name).mul_(1.5)
        with pytest.raises(ModelError, match=rf"the weights in memory are not those of .*\({name} differs\)"):
            restack.save(view, tmp_path / "recipe")

    def test_a_recipe_of_another_model_is_refused(self, capsys, folder, tmp_path, weights):
        said(capsys, "save", f"{folder}@0:2", str(tmp_path / "recipe"))
        other = {name: weight * 1.01 for name, weight in weights.items()}
        meta_folders.write(tmp_path / "llama-2-7b", LLAMA_2, meta_folders.split(other, 2))
        told = refused(capsys, "generate", str(tmp_path / "recipe"), "-p", SHORT)
        assert "another set of weights" in told
        meta_folders.write(
            tmp_path / "llama-2-7b", LLAMA_2 | {"norm_eps": 1e-6}, meta_folders.split(weights, 2)
        )
        assert "another config" in refused(capsys, "show", str(tmp_path / "recipe"))

    def test_what_does_not_fit_is_not_read(self, folder, monkeypatch):
        """The shards are joined in memory, and what is converted of them comes on top."""
        stored = 785_000  # bytes; float32
        monkeypatch.setattr("restack.recipes.memory.free_memory", lambda: stored * 5 // 4)
        assert restack.open(folder).dtype == torch.float32
        for free, dtype in ((stored * 5 // 4, "bfloat16"), (stored * 3 // 4, "auto")):
            monkeypatch.setattr("restack.recipes.memory.free_memory", lambda free=free: free)
            with pytest.raises(ModelError, match=r"needs 0\.0 GB and 0\.0 GB are free on cpu"):
                restack.open(folder, dtype=dtype)

    @pytest.mark.parametrize(
        ("spoil", "told"),
        [
            (lambda path: (path / "consolidated.01.pth").unlink(), "is one of 2 shards, and 1 are here"),
            (lambda path: (path / "consolidated.00.pth").unlink(), "lacks consolidated.00.pth, and has"),
            (lambda path: cut(path / "consolidated.01.pth"), "consolidated.01.pth is no checkpoint of torch"),
            (lambda path: (path / "params.json").write_text("{"), "params.json is not a JSON object"),
            (lambda path: (path / "params.json").write_text('{"dim": -4}'), "dim is -4; it must be"),
            (lambda path: (path / "params.json").unlink(), "has consolidated.*.pth, and no params.json"),
            (lambda path: [file.unlink() for file in path.glob("*.pth")], "and no consolidated.00.pth"),
            (lambda path: (path.parent / "tokenizer.model").unlink(), "has no tokenizer.model, nor has"),
            (lambda path: cut(path.parent / "tokenizer.model"), "tokenizer.model is neither a BPE model"),
        ],
    )
    def test_damage_is_told_in_one_line(self, capsys, folder, tmp_path, spoil, told):
        spoil(tmp_path / "llama-2-7b")
        assert told in refused(capsys, "generate", folder, "-p", SHORT)

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["--prompt", SHORT, "--prompt", " "], "a prompt is empty"),
            (["--prompt", SHORT, "--kv", "0_1"], "the map ends after 2 of the plan's 3 visits"),
            (["--prompt", SHORT, "--kv", "yoco"], "through a sliding window (s)"),
            (["--prompt", SHORT, "--layers", "0:4"], "past the model's 3 layers"),
            (["--prompt", SHORT, "--prompt", "a\udcff"], "character 2 of --prompt is not UTF-8"),
        ],
    )
    def test_wrong_input(self, capsys, folder, arguments, told):
        assert main(["generate", folder, *arguments]) == 2
        assert told in capsys.readouterr().err


def cut(file):
    file.write_bytes(file.read_bytes()[:-500])


def cached_bytes(model):
    """Bytes a token that the cache keeps."""
    with torch.no_grad():
        layers = model(torch.arange(3, 9)[None], use_cache=True).past_key_values.layers
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers) / 6


class TestFoldersWithAPlan:
    def test_lckv(self, capsys, lckv):
        found = facts(capsys, lckv)
        assert (found["architecture"], found["layers"]) == ("LCKVLlamaForCausalLM", 5)
        assert found["own_plan"] == {"plan": "0:5;kv=0_3x3_4", "depths": [5]}
        plan = found["plan"]
        assert (plan["visits"], plan["kv_map"]) == ([0, 1, 2, 3, 4], "0_3_3_3_4")
        assert plan["kv_bytes_per_token"] == 3 * 2 * 2 * 8 * 2 == cached_bytes(restack.open(lckv))
        assert found["parameters"] == plan["unique_parameters"] == plan["effective_parameters"]
        assert "its own plan  0:5;kv=0_3x3_4" in said(capsys, "show", lckv)
        again = facts(capsys, lckv, "--layers", "0:4,1:")
        assert again["plan"]["kv_map"] == "0_3_3_3_6_6_6_7"
        assert again["plan"]["kv_bytes_per_token"] == cached_bytes(restack.open(f"{lckv}@0:4,1:"))

    def test_lckv_talks(self, capsys, lckv, tmp_path):
        prompts = ["--raw", "-p", "the meaning of life is", "-p", "is"]
        alone = [generated(capsys, lckv, "--raw", "-p", prompt) for prompt in prompts[2::2]]
        assert generated(capsys, lckv, *prompts) == "\n".join(
            f"> {prompt}\n{answer}" for prompt, answer in zip(prompts[2::2], alone, strict=True)
        )
        said(capsys, "save", lckv, str(tmp_path / "recipe"), "--layers", "0:4,1:", "--kv", "lckv-w2")
        view = [lckv, "--layers", "0:4,1:", "--kv", "lckv-w2"]
        assert "layer 1, which has no weights" in refused(
            capsys, "generate", lckv, "-p", "is", "--kv", "0_1_1_1_1"
        )
        assert generated(capsys, str(tmp_path / "recipe"), *prompts) == generated(capsys, *view, *prompts)

    def test_ours(self, capsys, tmp_path):
        torch.manual_seed(0)
        config = RestackLlamaConfig(
            vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
            plan="0:3,1:4", kv_map="0_0_2_5_5_5",
        )  # fmt: skip
        model = RestackLlamaForCausalLM(config)
        model.save_pretrained(tmp_path)
        found = facts(capsys, str(tmp_path))
        assert (found["layers"], found["plan"]["visits"]) == (4, list(range(6)))
        assert found["parameters"] == found["plan"]["unique_parameters"] == model.num_parameters()
        assert found["plan"]["kv_bytes_per_token"] == cached_bytes(model) == 3 * 2 * 32 * 4
        whole = restack.materialise(model, "all")
        assert found["plan"]["effective_parameters"] == whole.num_parameters()
        part = facts(capsys, f"{tmp_path}@0:4,4:6,5")["plan"]
        assert (part["kv_map"], part["of"]) == ("0_0_2_5_5_5_6", 6)
        assert "its own plan  0:3,1:4;kv=0x2_2_5x3" in said(capsys, "show", str(tmp_path))
        assert "leave out layer" in refused(capsys, "show", f"{tmp_path}@3")


class TestKVMapsOnTop:
    @pytest.mark.parametrize(
        ("kv", "parameters", "kv_bytes"),
        [("lckv-w2", 1_080_125_440, 3072), ("lckv-w10", 1_088_514_048, 11264)],  # LCKV's published counts
    )
    def test_what_it_costs(self, capsys, tmp_path, kv, parameters, kv_bytes):
        (tmp_path / "config.json").write_text(json.dumps(TINY_LLAMA))
        found = facts(capsys, str(tmp_path), "--kv", kv)
        assert (found["architecture"], found["plan"]["refused"]) == ("RestackLlamaForCausalLM", None)
        assert found["plan"]["unique_parameters"] == found["plan"]["effective_parameters"] == parameters
        assert found["plan"]["kv_bytes_per_token"] == kv_bytes
        assert facts(capsys, str(tmp_path), "--kv", "cla2")["architecture"] == "LlamaForCausalLM"

    def test_it_is_the_house_model(self, capsys, tmp_path):
        base = saved_llama(tmp_path / "base", initializer_range=0.3)
        view = restack.open(f"{base}@all;kv=0_2_2_3")
        expected = RestackLlamaForCausalLM.from_pretrained(base, kv_map="0_2_2_3")
        tokens = torch.tensor([[5, 9, 2, 7, 11, 3]])
        with torch.no_grad():
            assert torch.equal(view(tokens).logits, expected(tokens).logits)
        told = generated(capsys, base, "--kv", "0_2_2_3", "-p", "Hello")
        assert told == generated(capsys, f"{base}@all;kv=0_2_2_3", "-p", "Hello")
        said(capsys, "save", base, str(tmp_path / "recipe"), "--kv", "0_2_2_3")
        assert generated(capsys, str(tmp_path / "recipe"), "-p", "Hello") == told
        restack.save(view, tmp_path / "again")
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again")
        with torch.no_grad():
            assert torch.equal(again(tokens).logits, expected(tokens).logits)

    def test_chats_too(self, capsys, monkeypatch):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hello!\n/layers 0:12\n")))
        told = said(capsys, "chat", str(demo.FOLDER), "--kv", "lckv-w2", "--max-tokens", "3")
        assert "plan 0:12;kv=0_10x10_11: 12 visits" in told and "Going on with plan 0:12: 12" in told

    def test_other_families_are_refused(self, capsys, tmp_path):
        config = transformers.GPTNeoXConfig(
            num_hidden_layers=4, hidden_size=16, num_attention_heads=2, vocab_size=50, intermediate_size=16
        )
        transformers.GPTNeoXForCausalLM(config).save_pretrained(tmp_path)
        for file in demo.FOLDER.glob("tokenizer*"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
        told = refused(capsys, "generate", str(tmp_path), "--kv", "0_2_2_3", "-p", "Hello")
        assert "only models of the type restack-llama share with owners above" in told
        assert "which runs after it" in facts(capsys, str(tmp_path), "--kv", "0_2_2_3")["plan"]["refused"]
