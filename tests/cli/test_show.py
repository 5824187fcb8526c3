import json

import pytest

from restack.cli import main

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


def test_hybrids_count_only_layers_that_keep_keys_and_values(capsys, tmp_path):
    config = {
        "model_type": "lfm2", "num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 99, "intermediate_size": 128,
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    facts = shown(capsys, str(tmp_path), "--layers", "0,1,1,3", "--dtype", "float32")
    assert facts["plan"]["kv_bytes_per_token"] == 3 * 2 * 2 * 16 * 4


def test_a_sliding_map_is_of_a_model_with_a_window(capsys, tmp_path):
    config = {"model_type": "mistral", "num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(config | {"sliding_window": 16}))
    assert shown(capsys, str(tmp_path), "--kv", "yoco")["plan"]["kv_map"] == "0s_1s_2_2"
    (tmp_path / "config.json").write_text(json.dumps(config | {"sliding_window": None}))
    assert main(["show", str(tmp_path), "--kv", "yoco"]) == 2
    assert "write the KV map without s, or set sliding_window" in capsys.readouterr().err
