import json

import pytest
import torch

from restack import demo, recipes
from restack.errors import ModelError, PlanError
from tests.recipes.copies import copy_of_demo


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000, "a\0b"])
def test_what_cannot_be_a_path_is_told_in_one_line(name):
    with pytest.raises(ModelError) as caught:
        recipes.open(name)
    assert "\n" not in str(caught.value)


def test_open_gives_a_view_of_the_stored_weights():
    base, view = recipes.open("demo"), recipes.open("demo@0:8,4:12")
    assert (len(base.model.layers), len(view.model.layers)) == (12, 16)
    assert torch.equal(base.model.layers[5].mlp.up_proj.weight, view.model.layers[9].mlp.up_proj.weight)
    assert not view.training


def test_dtype_is_as_asked():
    assert recipes.open("demo").dtype == torch.bfloat16
    assert recipes.open("demo", dtype="float32").dtype == torch.float32


def test_open_empty_reads_no_weights(tmp_path):
    config = {"model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80, "vocab_size": 32000}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = recipes.open_empty(str(tmp_path), dtype="bfloat16")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert model.dtype == torch.bfloat16


def test_a_wrong_spec_is_told_before_the_weights_are_read(monkeypatch):
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("read the weights")
    )
    with pytest.raises(PlanError, match="past the model's 12 layers"):
        recipes.open("demo@0:13")


CONFIGURATION = """
from transformers import LlamaConfig
class TinyConfig(LlamaConfig):
    model_type = "tiny-remote"
"""
MODELING = """
from transformers import LlamaForCausalLM
from .configuration_tiny import TinyConfig
class TinyForCausalLM(LlamaForCausalLM):
    config_class = TinyConfig
"""


def test_code_that_comes_with_a_model_runs_only_if_asked_for(tmp_path, monkeypatch, code_of_models):
    folder = tmp_path / "tiny"
    folder.mkdir()
    config = {
        "model_type": "tiny-remote", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "vocab_size": 50,
        "auto_map": {
            "AutoConfig": "configuration_tiny.TinyConfig",
            "AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM",
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration_tiny.py").write_text(CONFIGURATION)
    (folder / "modeling_tiny.py").write_text(MODELING)
    monkeypatch.setattr("builtins.input", lambda *arguments: pytest.fail("asked on standard input"))
    model = recipes.open_empty(str(folder), trust_remote_code=True)
    assert type(model).__name__ == "TinyForCausalLM"
    with pytest.raises(ModelError, match="run it with --trust-remote-code"):
        recipes.open_empty(str(folder))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "a folder without config.json"),
        ("{not json", "cannot open the model"),
        ('{"model_type": "no-such-architecture"}', "architecture is not known"),
        ('{"hidden_size": 8}', "cannot open the model"),
        ('{"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2}', "cannot open the model"),
    ],
)
def test_a_folder_that_is_no_model_is_told_in_one_line(tmp_path, content, told):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=told) as caught:
        recipes.open(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "a/b/c", "nobody/has-this-model"])
def test_a_model_that_is_nowhere_is_told_in_one_line(name):
    with pytest.raises(ModelError, match=r"no folder|no such folder") as caught:
        recipes.open(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"dtype": "int3"}, {"device": "abacus"}])
def test_a_wrong_option_is_refused(options):
    with pytest.raises(ModelError, match=r"is not known|cannot be used"):
        recipes.open("demo", **options)


def test_truncated_weights_are_told(tmp_path):
    for file in demo.FOLDER.iterdir():
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(content[:1000] if file.suffix == ".safetensors" else content)
    with pytest.raises(ModelError, match="cannot open the model"):
        recipes.open(str(tmp_path))


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"num_hidden_layers": 13}, r"lack \d+ of the tensors .* promises, model\.layers\.12\..* for one"),
        ({"intermediate_size": 128}, "do not have the shapes"),
    ],
)
def test_weights_that_do_not_agree_with_the_config_are_told(tmp_path, setting, told):
    for file in demo.FOLDER.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | setting))
    with pytest.raises(ModelError, match=told) as caught:
        recipes.open(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_weights_with_more_layers_than_the_config_are_told(tmp_path):
    config = json.loads((demo.FOLDER / "config.json").read_text())
    fewer = {
        name: value[:8] if isinstance(value, list) and len(value) == 12 else value
        for name, value in config.items()
    } | {"num_hidden_layers": 8}
    with pytest.raises(ModelError, match=r"have 12 layers and its config\.json says 8;"):
        recipes.open(copy_of_demo(tmp_path, **fewer))


def test_a_layer_that_predicts_the_tokens_after_the_next_is_none_of_them(tmp_path):
    """DeepSeek-V3 and others store it as one layer more."""
    from safetensors.torch import load_file, save_file
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    settings = {
        "vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 8,
        "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 8, "kv_lora_rank": 8,
        "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8, "n_routed_experts": 4,
        "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    DeepseekV3ForCausalLM(DeepseekV3Config(**settings, num_hidden_layers=2)).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for more in (2, 3):
        name = f"model.layers.{more}.input_layernorm.weight"
        weights[name] = weights["model.layers.0.input_layernorm.weight"].clone()
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        if more == 2:
            assert len(recipes.open(str(tmp_path)).model.layers) == 2
    with pytest.raises(ModelError, match=r"have 4 layers and its config\.json says 2;"):
        recipes.open(str(tmp_path))


@pytest.mark.parametrize(
    ("model_type", "told"),
    [
        ("t5", r"is an encoder-decoder \(t5\)"),
        ("bart", r"is an encoder-decoder \(bart\)"),
        ("whisper", r"is an encoder-decoder \(whisper\)"),
        ("bert", r"is an encoder \(bert\).* set is_decoder"),
        ("distilbert", r"is an encoder \(distilbert\)"),
        ("vit", r"is a vision model \(vit\)"),
        ("wav2vec2", r"is an audio model \(wav2vec2\)"),
        ("llava", r"is a vision-language model \(llava\).* AutoModelForImageTextToText"),
        ("depth_pro", r"is a vision model \(depth_pro\)"),
        ("timesfm", r"is no causal language model that transformers knows \(timesfm\)"),
    ],
)
@pytest.mark.parametrize("call", [recipes.open, recipes.open_empty, recipes.open_config])
def test_what_a_model_of_another_kind_is(tmp_path, call, model_type, told):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ModelError, match=told) as caught:
        call(str(tmp_path))
    assert "\n" not in str(caught.value) and "architecture" not in str(caught.value)


def test_bert_that_was_trained_as_a_decoder_is_opened(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "bert", "is_decoder": true, "num_hidden_layers": 2}'
    )
    assert type(recipes.open_empty(str(tmp_path))).__name__ == "BertLMHeadModel"
