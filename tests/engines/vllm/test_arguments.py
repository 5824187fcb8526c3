"""What vLLM is told of a plan; these need no vLLM."""

import json
import shlex

import pytest
import torch
import transformers

import restack
from restack.cli import main
from restack.engines.vllm import arguments, versions, vllm_arguments
from tests.recipes.tiny import SETTINGS, saved_llama
from tests.views.architectures import BY_NAME

DEEPSEEK = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16,
    "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 2, "n_routed_experts": 4,
    "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "q_lora_rank": 16,
    "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
}  # fmt: skip


@pytest.fixture
def llama(tmp_path):
    return saved_llama(tmp_path / "llama")


def test_a_plan_becomes_overrides_of_the_config(llama):
    assert vllm_arguments(f"{llama}@0:3,1:") == {
        "model": llama,
        "served_model_name": f"{llama}@0:3,1:",
        "hf_overrides": {
            "architectures": ["PlannedLlamaForCausalLM"],
            "num_hidden_layers": 6,
            "restack_plan": "0:3,1:4",
            "restack_layers": 4,
        },
    }


def test_a_model_as_it_is_needs_none(llama):
    assert vllm_arguments(llama) == {"model": llama, "served_model_name": llama}
    assert vllm_arguments(f"{llama}@all", transformers_backend=True)["model_impl"] == "transformers"


def test_settings_of_layers_follow_the_plan(tmp_path):
    torch.manual_seed(0)
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    config = transformers.Gemma3TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, layer_types=kinds
    )
    config.architectures = ["Gemma3ForCausalLM"]
    config.save_pretrained(tmp_path)
    overrides = vllm_arguments(f"{tmp_path}@0:2,1:4")["hf_overrides"]
    assert overrides["layer_types"] == [kinds[0], kinds[1], kinds[1], kinds[2], kinds[3]]
    read = type(config).from_pretrained(tmp_path)
    read.update(overrides)  # as vLLM does
    read.validate()
    assert read.num_hidden_layers == 5


def test_gpt2_counts_its_layers_by_another_name(tmp_path):
    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=4, n_head=2)
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(tmp_path)
    assert vllm_arguments(f"{tmp_path}@::2")["hf_overrides"]["n_layer"] == 2


def test_a_recipe_is_its_base_and_its_plan(llama, tmp_path):
    restack.save(restack.view(restack.open(llama), "0:3,1:"), tmp_path / "recipe")
    found = vllm_arguments(f"{tmp_path / 'recipe'}@0:5")
    assert found["model"] == llama
    assert found["hf_overrides"]["restack_plan"] == "0:3,1:3"


def test_the_transformers_backend(llama, tmp_path):
    found = vllm_arguments(f"{llama}@0:3", transformers_backend=True)
    assert found["hf_overrides"]["architectures"] == ["PlannedTransformersForCausalLM"]
    config = transformers.MixtralConfig(**SETTINGS, num_local_experts=4)
    config.architectures = ["MixtralForCausalLM"]
    config.save_pretrained(tmp_path / "mixtral")
    found = vllm_arguments(f"{tmp_path / 'mixtral'}@0:3", transformers_backend=True)
    assert found["hf_overrides"]["architectures"] == ["PlannedTransformersMoEForCausalLM"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("0:2{o_proj:0.5},2:", r"visit 0 scales tensors of its layer.*convert full"),
        ("all;kv=0_0_1_3", r"visit 2 reads .* of visit 1, which reads those of visit 0 .*name visit 0"),
    ],
)
def test_plans_that_vllm_cannot_run(llama, spec, message):
    with pytest.raises(restack.ViewError, match=message):
        vllm_arguments(f"{llama}@{spec}")


def test_a_window_of_its_own(tmp_path):
    config = transformers.MistralConfig(**SETTINGS, sliding_window=8)
    config.architectures = ["MistralForCausalLM"]
    config.save_pretrained(tmp_path)
    with pytest.raises(restack.ViewError, match=r"visit 1 reads .* through a window"):
        vllm_arguments(f"{tmp_path}@all;kv=0_0s_2_3")


def test_layers_that_are_of_a_kind_by_their_place(tmp_path):
    config = transformers.DeepseekV3Config(**DEEPSEEK)
    config.architectures = ["DeepseekV3ForCausalLM"]
    config.save_pretrained(tmp_path)
    with pytest.raises(restack.ViewError, match="visit 2 is of layer 0, and deepseek_v3 makes another kind"):
        vllm_arguments(f"{tmp_path}@0,1,0,1")
    assert vllm_arguments(f"{tmp_path}@0:3,1:4")["hf_overrides"]["num_hidden_layers"] == 6


def test_layers_that_a_rule_sets(tmp_path):
    config = BY_NAME["jamba"].model().config
    config.architectures = ["JambaForCausalLM"]
    config.save_pretrained(tmp_path)
    with pytest.raises(
        restack.ViewError, match=r"a rule of jamba .* sets layers by their place.*convert full"
    ):
        vllm_arguments(f"{tmp_path}@0:3,1:")


def test_owners_above_their_readers(llama):
    assert vllm_arguments(f"{llama}@all;kv=3x4") == {
        "model": llama,
        "served_model_name": f"{llama}@all;kv=3x4",
        "hf_overrides": {
            "architectures": ["PlannedLlamaForCausalLM"],
            "restack_plan": "0:4;kv=3x4",
            "restack_layers": 4,
            "restack_passes": 9,
        },
        "enforce_eager": True,
        "enable_prefix_caching": False,
    }


def test_owners_above_their_readers_in_models_that_cannot(tmp_path):
    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=4, n_head=2)
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(tmp_path)
    with pytest.raises(restack.ViewError, match=r"visit 0 .* of visit 3, which runs after it; views share"):
        vllm_arguments(f"{tmp_path}@all;kv=3x4")


@pytest.mark.parametrize("kind", ["RestackLlama", "LCKVLlama"])
def test_our_models_are_their_relatives(tmp_path, kind):
    made = getattr(restack.llama, f"{kind}Config")
    made(**SETTINGS, kv_map="0_2_2_3", forward_passes=4).save_pretrained(tmp_path)
    assert vllm_arguments(f"{tmp_path}@0:3,1:") == {
        "model": str(tmp_path),
        "served_model_name": f"{tmp_path}@0:3,1:",
        "config_format": "restack",
        "hf_overrides": {
            "architectures": ["PlannedLlamaForCausalLM"],
            "num_hidden_layers": 6,
            "restack_plan": "0:3,1:4;kv=0_2x2_4x2_5",
            "restack_layers": 4,
            "restack_passes": 6,
        },
        "enforce_eager": True,
        "enable_prefix_caching": False,
    }


def test_our_models_without_a_plan(tmp_path):
    restack.llama.RestackLlamaConfig(**SETTINGS).save_pretrained(tmp_path)
    assert vllm_arguments(str(tmp_path)) == {
        "model": str(tmp_path), "served_model_name": str(tmp_path), "config_format": "restack",
    }  # fmt: skip
    restack.llama.RestackLlamaConfig(**SETTINGS, force_nodiag=True).save_pretrained(tmp_path)
    assert vllm_arguments(str(tmp_path))["hf_overrides"]["restack_force_nodiag"] is True


@pytest.mark.parametrize("named", ["LlamaForCausalLM", ["A", "B"], [7]])
def test_architectures_that_name_no_class(tmp_path, named):
    folder = saved_llama(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": named}))
    with pytest.raises(restack.ModelError, match=r"^architectures of .* write a list of one class's name$"):
        vllm_arguments(f"{folder}@0:3")


def test_packed_weights(llama, tmp_path):
    restack.save(restack.quantize(restack.open(llama), "int8"), tmp_path / "packed", weights="full")
    with pytest.raises(restack.ModelError, match="as Restack packs them, which vLLM does not read"):
        vllm_arguments(str(tmp_path / "packed"))


def test_our_models_that_vllm_cannot_run(tmp_path):
    restack.llama.RestackLlamaConfig(**SETTINGS, kv_map="0_2_2_3").save_pretrained(tmp_path)
    with pytest.raises(restack.ViewError, match=r"keys and values of layer 1, for which .* has no weights"):
        vllm_arguments(f"{tmp_path}@all;kv=1_1_2_3")
    for settings, message in (
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
            "has the rotary embedding dynamic, which vLLM scales",
        ),
        ({"qk_norm": True, "mlp_bias": True}, "no relative of Llama has biases"),
        ({"qk_norm": True, "attention_bias": True}, "has a bias behind its attention.*--transformers"),
        (
            {"attention_bias": True, "attention_out_bias": False, "head_dim": 32},
            "has heads of 32.*--transformers",
        ),
    ):
        restack.llama.RestackLlamaConfig(**SETTINGS, **settings).save_pretrained(tmp_path)
        with pytest.raises(restack.ModelError, match=message):
            vllm_arguments(str(tmp_path))
        if "--transformers" in message:
            assert vllm_arguments(str(tmp_path), transformers_backend=True)["model_impl"] == "transformers"


@pytest.mark.parametrize(
    ("version", "is_fine"), [("0.32.0", True), ("0.32", True), ("0.320", False), ("1.0", False)]
)
def test_versions(monkeypatch, llama, version, is_fine):
    monkeypatch.setattr(arguments, "installed", lambda: version)
    if is_fine:
        vllm_arguments(llama)
        return
    with pytest.raises(restack.UsageError, match=rf"plans on vLLM 0.32, and this is {version}; pip install"):
        vllm_arguments(llama)


def test_what_the_extra_installs_is_what_is_supported():
    from importlib.metadata import requires

    (wanted,) = [line for line in requires("restack") if line.startswith("vllm")]
    lowest = wanted.split(">=")[1].split(",")[0].split(";")[0].strip()
    assert versions.unsupported(lowest) is None


def test_the_command_prints_what_a_shell_reads(llama, capsys):
    assert main(["vllm-args", llama, "--layers", "0:3,1:4@0.5"]) == 0
    given = shlex.split(capsys.readouterr().out)
    assert given[:3] == [llama, "--served-model-name", f"{llama}@0:3,1:4@0.5"]
    assert given[3] == "--hf-overrides"
    assert json.loads(given[4])["restack_plan"] == "0:3,1:4@0.5"


def test_the_command_prints_switches(llama, capsys):
    assert main(["vllm-args", f"{llama}@all;kv=3x4"]) == 0
    assert shlex.split(capsys.readouterr().out)[-2:] == ["--enforce-eager", "--no-enable-prefix-caching"]


def test_the_command_prints_json(llama, capsys):
    assert main(["vllm-args", f"{llama}@0:3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == vllm_arguments(f"{llama}@0:3")


def test_the_command_refuses(llama, capsys):
    assert main(["vllm-args", f"{llama}@0:9"]) == 2
    assert "stop 9 is past the model's 4 layers" in capsys.readouterr().err
