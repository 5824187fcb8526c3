import json

import pytest
import transformers

from restack.cli import main
from restack.errors import ViewError

# meta-llama/Meta-Llama-3-8B's published config.
LLAMA_3_8B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama",
    "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama-3-8b")
    (folder / "config.json").write_text(json.dumps(LLAMA_3_8B))
    return str(folder)


def shown(capsys, *arguments):
    assert main(["show", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("spec", "parameters", "banner"),
    [  # the banners of chatllm.cpp's page on layer shuffling
        ("0:8,4:12,8:16,12:20,16:24,20:28,24:32", 13_264_949_248, "13,264,949,248 (13.3B)"),
        ("0:10,10:20:2,20:", 6_939_701_248, "6,939,701,248 (6.9B)"),
        ("all", 8_030_261_248, "8,030,261,248 (8.0B)"),
    ],
)
def test_effective_parameters_are_chatllms(capsys, llama, spec, parameters, banner):
    assert shown(capsys, llama, "--layers", spec)["plan"]["effective_parameters"] == parameters
    assert main(["show", f"{llama}@{spec}"]) == 0
    assert banner in capsys.readouterr().out


def test_costs_of_a_self_merge(capsys, llama):
    facts = shown(capsys, llama, "--layer_spec", "0:8,4:12,8:16,12:20,16:24,20:28,24:32")
    assert (facts["layers"], facts["heads"], facts["kv_heads"], facts["context"]) == (32, 32, 8, 8192)
    assert (facts["architecture"], facts["dtype"]) == ("LlamaForCausalLM", "bfloat16")
    plan = facts["plan"]
    assert plan["unique_parameters"] == facts["parameters"] == 8_030_261_248
    assert plan["weight_bytes"] == 2 * 8_030_261_248
    assert plan["materialised"]["weight_bytes"] == 2 * 13_264_949_248
    # 2 (keys and values) x 8 heads x 128 x 2 bytes, for each of 56 visits
    assert plan["kv_bytes_per_token"] == plan["materialised"]["kv_bytes_per_token"] == 56 * 4096


def test_shared_keys_and_values_are_kept_once(capsys, llama):
    plan = shown(capsys, llama, "--kv", "cla2")["plan"]
    assert plan["kv_bytes_per_token"] == 16 * 4096
    assert plan["materialised"]["kv_bytes_per_token"] == 32 * 4096


def test_pruned_layers_are_not_counted(capsys, llama):
    plan = shown(capsys, llama, "--layers", "0:10,10:20:2,20:")["plan"]
    assert plan["unique_parameters"] == plan["effective_parameters"] == 6_939_701_248


@pytest.mark.parametrize("ranges", ["0:0.5,0.3:0.8,0.5:1", "[(0, .5), (.3, .8), (.5, 1)]"])
def test_depth_ranges(capsys, tmp_path, ranges):
    config = {"model_type": "llama", "num_hidden_layers": 7, "hidden_size": 32, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    visits = shown(capsys, str(tmp_path), "--ratio", ranges)["plan"]["visits"]
    assert visits == [0, 1, 2, 3, 2, 3, 4, 5, 3, 4, 5, 6]  # David's README


def test_the_picture_has_a_bar_a_run(capsys, llama):
    main(["show", llama, "--layers", "0:16,8:32,31"])
    out = capsys.readouterr().out
    assert "0..15" in out
    assert "8..31" in out
    assert out.count("█") == 16 + 24 + 1


@pytest.mark.parametrize(
    ("spec", "bars"),
    [
        ("::-1", ["31..0"]),
        ("0:4,3:0:-1,0:2,2", ["0..3", "3..1", "0..2"]),
        ("3,2,3,4", ["3", "2..4"]),
        ("5x3", ["5", "5", "5"]),
        ("0,1x60", ["0..1", *["1"] * 39, "and 20 more such runs of layers"]),
    ],
)
def test_the_picture_is_no_longer_than_it_must_be(capsys, llama, spec, bars):
    main(["show", llama, "--layers", spec])
    picture = capsys.readouterr().out.partition("plan  ")[2].partition("as a view")[0].splitlines()[1:-1]
    assert [line.partition("█")[0].strip() for line in picture if line.strip()] == bars


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--layers", "0,1{o_proj:0.5},1{nothing:2}"], "no tensor of a layer has nothing in its name"),
        (["--layers", "0,5{nothing:0.5}"], "no tensor of a layer has nothing in its name"),
    ],
)
def test_what_no_view_can_run_is_costed_and_told(capsys, llama, options, why):
    assert shown(capsys, llama, *options)["plan"]["refused"].startswith(why)
    assert main(["show", llama, *options]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "No view can run this plan" in line]
    assert len(told) == 1
    assert why in told[0]


def test_a_model_that_views_refuse_is_told_too(capsys, tmp_path):
    config = {
        "model_type": "gemma3n_text", "num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4,
        "num_kv_shared_layers": 2, "vocab_size": 99, "vocab_size_per_layer_input": 99,
        "intermediate_size": [64] * 4,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused = shown(capsys, str(tmp_path), "--layers", "2,0,1")["plan"]["refused"]
    assert "visit 0 is of layer 2, which reads what another layer keeps for it" in refused
    assert shown(capsys, str(tmp_path))["plan"]["refused"] is None


@pytest.mark.parametrize("options", [[], ["--layers", "::-1"], ["--layers", "0:8,4:12"]])
def test_nothing_is_told_of_a_plan_that_views_run(capsys, llama, options):
    assert shown(capsys, llama, *options)["plan"]["refused"] is None
    main(["show", llama, *options])
    assert "No view" not in capsys.readouterr().out


def test_the_unique_parameters_are_those_of_a_view(capsys, llama):
    main(["show", llama, "--layers", "0:8,4:32"])
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "unique parameters" in line]
    assert row.split()[2:] == ["8,030,261,248", "(8.0B)", "-"]


def test_a_model_without_a_limit_has_no_context(capsys, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "xlnet", "n_layer": 2, "d_model": 32}))
    assert shown(capsys, str(tmp_path))["context"] is None
    main(["show", str(tmp_path)])
    out = capsys.readouterr().out
    assert "context      no limit in its config" in out


def test_no_columns_are_as_many_as_usual(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    main(["show", "demo"])
    usual = capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "0")
    assert main(["show", "demo"]) == 0
    assert capsys.readouterr().out == usual != ""


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        ("fp16", "float16"),
        ("half", "float16"),
        ("bf16", "bfloat16"),
        ("fp32", "float32"),
        ("auto", "bfloat16"),
    ],
)
def test_dtypes_have_their_short_names(capsys, dtype, name):
    assert shown(capsys, "demo", "--dtype", dtype)["dtype"] == name


def test_a_folder_called_demo_is_named_by_its_path(capsys, monkeypatch, tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "config.json").write_text(json.dumps(LLAMA_3_8B))
    monkeypatch.chdir(tmp_path)
    assert [shown(capsys, name)["layers"] for name in ("demo", "./demo", "demo/", "./demo@0:4")] == [
        12,
        32,
        32,
        32,
    ]
    main(["show", "--help"])
    assert "./demo" in capsys.readouterr().out


def test_hybrids_count_only_layers_that_keep_keys_and_values(capsys, tmp_path):
    config = {
        "model_type": "lfm2", "num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 99, "intermediate_size": 128,
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    facts = shown(capsys, str(tmp_path), "--layers", "0,1,1,3", "--dtype", "float32")
    assert facts["plan"]["kv_bytes_per_token"] == 3 * 2 * 2 * 16 * 4


def test_sizes_of_quantised_models_are_said_to_be_those_before(capsys, tmp_path):
    settings = {"quant_method": "awq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_8B | {"quantization_config": settings}))
    assert shown(capsys, str(tmp_path))["quantised"] == "awq"
    assert main(["show", str(tmp_path)]) == 0
    assert "Sizes are those of the weights before awq quantised them." in capsys.readouterr().out
    assert shown(capsys, "demo")["quantised"] is None


def test_a_sliding_map_is_of_a_model_with_a_window(capsys, tmp_path):
    config = {"model_type": "mistral", "num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(config | {"sliding_window": 16}))
    assert shown(capsys, str(tmp_path), "--kv", "yoco")["plan"]["kv_map"] == "0s_1s_2_2"
    (tmp_path / "config.json").write_text(json.dumps(config | {"sliding_window": None}))
    assert main(["show", str(tmp_path), "--kv", "yoco"]) == 2
    assert "write the KV map without s, or set sliding_window" in capsys.readouterr().err


@pytest.fixture(scope="module")
def little_llama(tmp_path_factory):
    """A llama with weights, and no tokenizer."""
    folder = tmp_path_factory.mktemp("little-llama")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(vocab_size=96, num_hidden_layers=4, **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def test_verified(capsys, little_llama):
    assert "verified" not in shown(capsys, little_llama)
    found = shown(capsys, little_llama, "--verify")["verified"]
    assert found["holds"] and found["model"] == "LlamaForCausalLM" and found["layers"] == 4
    assert shown(capsys, f"{little_llama}@0:3,1:", "--verify")["verified"]["layers"] == 6
    assert shown(capsys, little_llama, "--layers", "0:2", "--verify")["verified"]["layers"] == 2
    assert main(["show", little_llama, "--verify"]) == 0
    out = capsys.readouterr().out
    assert "the identity view's logits are the model's, bitwise" in out
    assert "decoding with a cache differs from decoding without by" in out


def test_not_verified(capsys, monkeypatch, little_llama):
    def refuse(model):
        raise ViewError("views do not know this")

    monkeypatch.setattr("restack.cli.show.verify", refuse)
    assert main(["show", little_llama, "--verify", "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["verified"] == {"holds": False, "reason": "views do not know this"}
    assert err.count("\n") == 1 and "views do not know this" in err
    assert main(["show", little_llama, "--verify"]) == 2
    assert "verified" not in capsys.readouterr().out
