"""Folders in the layouts of others, opened by transformers' Auto classes: LCKV's, and Meta's own."""

import json
import subprocess
import sys

import pytest
import safetensors.torch
import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers

import restack
from restack import ModelError, RestackError
from restack.llama import LCKVLlamaForCausalLM, RestackLlamaConfig, RestackLlamaForCausalLM
from tests.llama import meta_folders
from tests.llama.reference import token_by_token
from tests.llama.tiny import settings_of, tokens, weights_of

# As the config.json of whynlp/tinyllama-lckv-w10-100b has it, the sizes apart.
CONFIG = {
    "architectures": ["LCKVLlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_lckv.LCKVLlamaConfig",
        "AutoModelForCausalLM": "modeling_lckv.LCKVLlamaForCausalLM",
    },
    "backward_passes": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "force_nodiag": True,
    "forward_passes": 7,
    "head_dim": 8,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "layer_types": "0_3_3_3_4",
    "max_position_embeddings": 2048,
    "mlp_bias": False,
    "model_type": "lckv-llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.2",
    "use_cache": True,
    "use_sequential": False,
    "vocab_size": 50,
}
OWNERS = {0, 3, 4}
WORDS = ["<unk>", "<s>", "</s>", "the", "meaning", "of", "life", "is", "a", "tension", "that", "lets"]


def lckv_weights(dtype=torch.bfloat16) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = {"model.embed_tokens.weight": (50, 32), "model.norm.weight": (32,), "lm_head.weight": (50, 32)}
    for layer in range(5):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.input_layernorm.weight": (32,),
            f"{at}.post_attention_layernorm.weight": (32,),
            f"{at}.self_attn.q_proj.weight": (32, 32),
            f"{at}.self_attn.o_proj.weight": (32, 32),
            f"{at}.mlp.gate_proj.weight": (48, 32),
            f"{at}.mlp.up_proj.weight": (48, 32),
            f"{at}.mlp.down_proj.weight": (32, 48),
        }
        if layer in OWNERS:
            shapes |= {f"{at}.self_attn.{kind}_proj.weight": (16, 32) for kind in "kv"}
    return {
        name: (torch.randn(shape) * 0.2 + (1 if len(shape) == 1 else 0)).to(dtype)
        for name, shape in shapes.items()
    }


@pytest.fixture
def lckv(tmp_path):
    """A folder in the layout of whynlp/tinyllama-lckv-*, with remote code that must not run."""
    folder = tmp_path / "tinyllama-lckv"
    folder.mkdir()
    write(folder)
    for code in ("configuration_lckv", "modeling_lckv"):
        (folder / f"{code}.py").write_text("raise SystemExit('remote code was run')\n")
    generation = {
        "_from_model_config": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "transformers_version": "4.45.2",
    }
    (folder / "generation_config.json").write_text(json.dumps(generation))
    backend = tokenizers.Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def write(folder, weights=None, **settings) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **settings}))
    state = lckv_weights() if weights is None else weights
    safetensors.torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


class TestLCKV:
    @pytest.mark.parametrize(
        "trust", [{}, {"trust_remote_code": True}, {"trust_remote_code": False}], ids=str
    )
    def test_auto_classes_open_it_without_its_code(self, lckv, trust):
        house = transformers.AutoModelForCausalLM.from_pretrained(lckv, dtype=torch.float32, **trust)
        assert type(house) is LCKVLlamaForCausalLM
        assert house.config.kv_map == "0_3_3_3_4" and house.config.force_nodiag
        row = tokens(9)
        expected = token_by_token(weights_of(house), settings_of(house.config), row[0])
        with torch.no_grad():
            assert (house(row).logits[0] - expected).abs().max() < 1e-5
        base = transformers.AutoModel.from_pretrained(lckv, dtype=torch.float32, **trust)
        assert torch.equal(base.layers[3].mlp.up_proj.weight, house.model.layers[3].mlp.up_proj.weight)

    def test_force_nodiag_is_honoured(self, lckv):
        row, found = tokens(9), []
        for force in (True, False):
            write(lckv, force_nodiag=force)
            house = transformers.AutoModelForCausalLM.from_pretrained(lckv, dtype=torch.float32)
            expected = token_by_token(weights_of(house), settings_of(house.config), row[0])
            with torch.no_grad():
                found.append(house(row).logits[0])
            assert (found[-1] - expected).abs().max() < 1e-5
        assert (found[0] - found[1]).abs().max() > 0.1

    def test_saving_writes_the_layout_that_was_read(self, lckv, tmp_path):
        house = transformers.AutoModelForCausalLM.from_pretrained(lckv)
        house.save_pretrained(tmp_path / "again")
        again = json.loads((tmp_path / "again" / "config.json").read_text())
        assert again["layer_types"] == "0_3_3_3_4" and again["model_type"] == "lckv-llama"
        assert "plan" not in again
        state = safetensors.torch.load_file(tmp_path / "again" / "model.safetensors")
        expected = lckv_weights()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
        ours = RestackLlamaForCausalLM.from_pretrained(lckv)
        assert type(ours.config) is RestackLlamaConfig
        assert torch.equal(ours(tokens(5)).logits, house(tokens(5)).logits)

    @pytest.mark.parametrize("plan", ["0:3,3@0.5,4:", "0:2,2@0,3:", "0:5"])
    def test_damped_visits_survive_saving(self, lckv, tmp_path, plan):
        house = transformers.AutoModelForCausalLM.from_pretrained(lckv, dtype=torch.float32)
        view = restack.view(house, plan)
        view.save_pretrained(tmp_path / "view")
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "view")
        assert torch.equal(again(tokens(7)).logits, view(tokens(7)).logits)

    def test_settings_beside_a_name(self, lckv):
        opened = transformers.AutoModelForCausalLM.from_pretrained(lckv, kv_map="0_0_0_3_4")
        assert opened.config.kv_map == "0_0_0_3_4"
        opened = transformers.AutoModelForCausalLM.from_pretrained(lckv, layer_types="0_0_0_0_4")
        assert opened.config.kv_map == "0_0_0_0_4"
        with pytest.raises(ModelError, match="num_key_value_heads is 2, and attention 'mqa' has 1"):
            transformers.AutoModelForCausalLM.from_pretrained(lckv, attention="MQA")
        with pytest.raises(ModelError, match="kv_map is given beside a config"):
            RestackLlamaForCausalLM.from_pretrained(lckv, config=opened.config, kv_map="cla2")

    @pytest.mark.parametrize("orders", [("plan", "kv_map"), ("kv_map", "plan")])
    def test_a_plan_and_a_kv_map_in_either_order(self, tmp_path, orders):
        config = RestackLlamaConfig(
            vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4
        )
        RestackLlamaForCausalLM(config).save_pretrained(tmp_path)
        given = {"plan": "0:4,0:2", "kv_map": "cla2"}
        opened = RestackLlamaForCausalLM.from_pretrained(tmp_path, **{name: given[name] for name in orders})
        assert opened.config.whole_plan == restack.plan("0:4,0:2;kv=0_0_2_2_4_4", 4)

    def test_keys_and_values_of_readers_and_old_frequencies_may_be_there(self, lckv):
        """As in a checkpoint of TinyLlama to which the config was added (paper, appendix C.1)."""
        weights = lckv_weights()
        weights |= {f"model.layers.1.self_attn.{kind}_proj.weight": torch.randn(16, 32) for kind in "kv"}
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.randn(4)
        write(lckv, weights)
        house = transformers.AutoModelForCausalLM.from_pretrained(lckv)
        assert not hasattr(house.model.layers[1].self_attn, "k_proj")

    @pytest.mark.parametrize(
        ("changed", "told"),
        [
            (
                {"model.layers.3.self_attn.k_proj.weight": None},
                r"lacks model\.layers\.3\.self_attn\.k_proj\.weight",
            ),
            ({"model.norm.weight": None}, r"lacks model\.norm\.weight, which its config asks for"),
            (
                {"model.layers.9.mlp.up_proj.weight": (48, 32)},
                r"holds model\.layers\.9\.mlp\.up_proj\.weight, for which",
            ),
            (
                {"model.layers.0.self_attn.x_proj.weight": (1, 1)},
                r"holds model\.layers\.0\.self_attn\.x_proj",
            ),
            (
                {"model.layers.4.self_attn.v_proj.weight": (8, 32)},
                r"v_proj\.weight of .* is \[8, 32\], .* \[16, 32\]",
            ),
        ],
    )
    def test_tensors_that_do_not_fit_are_refused(self, lckv, changed, told):
        weights = lckv_weights()
        for name, shape in changed.items():
            weights.pop(name, None)
            if shape is not None:
                weights[name] = torch.randn(shape)
        write(lckv, weights)
        with pytest.raises(ModelError, match=told):
            transformers.AutoModelForCausalLM.from_pretrained(lckv)

    @pytest.mark.parametrize(
        ("settings", "told"),
        [
            ({"layer_types": "0_3_3_3"}, "the map ends after 4 of the plan's 5 visits"),
            ({"layer_types": "0_3_3_3_7"}, "owner 7 is past the plan's 5 visits"),
            (
                {"layer_types": "0_3s_3_3_4", "sliding_window": None},
                "visit 1 slides .* sliding_window is None",
            ),
            ({"num_key_value_heads": 3}, "num_attention_heads is 4, not a multiple of num_key_value_heads"),
        ],
    )
    def test_configs_that_make_no_sense_are_refused(self, lckv, settings, told):
        write(lckv, **settings)
        with pytest.raises(RestackError, match=told):
            transformers.AutoModelForCausalLM.from_pretrained(lckv)

    def test_a_truncated_file_is_refused(self, lckv):
        file = lckv / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])
        with pytest.raises(ModelError, match=r"the weights of .* cannot be read"):
            transformers.AutoModelForCausalLM.from_pretrained(lckv)

    def test_a_truncated_pickle_is_refused(self, lckv):
        (lckv / "model.safetensors").unlink()
        file = lckv / "pytorch_model.bin"
        torch.save(lckv_weights(), file)
        file.write_bytes(file.read_bytes()[:-2000])
        with pytest.raises(ModelError, match=r"the weights of .* cannot be read"):
            transformers.AutoModelForCausalLM.from_pretrained(lckv)

    def test_the_snippets_of_the_model_card(self, lckv):
        """As they stand there; the last without its GPU: device and flash attention are left out."""
        name = str(lckv)
        script = f"""
import restack
# Use a pipeline as a high-level helper
from transformers import pipeline
pipe = pipeline("text-generation", model={name!r}, trust_remote_code=True)

# Load model directly
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({name!r}, trust_remote_code=True)

import torch
from accelerate.utils import set_seed

from transformers import pipeline


set_seed(42)

pipe = pipeline(
    "text-generation",
    model={name!r},
    torch_dtype=torch.bfloat16,
    trust_remote_code=True,
)

response = pipe(
    "the meaning of life is",
    add_special_tokens=False,
    max_new_tokens=50,
    temperature=1.0,
    top_k=0,
    top_p=0.9,
    repetition_penalty=1.0,
    do_sample=True,
)

print(response[0]["generated_text"])
"""
        pytest.importorskip("accelerate")
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("the meaning of life is")


@pytest.mark.parametrize(
    "first", ["import restack; import transformers", "import transformers; import restack"]
)
@pytest.mark.parametrize(
    "module",
    [
        "pipeline",
        *[
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("Trainer", "AutoTokenizer", "GenerationMixin", "LlamaForCausalLM")
        ],
    ],
)
def test_the_auto_classes_know_them_in_any_order_of_import(first, module):
    script = (
        f"{first}; from transformers import {module}, AutoConfig, AutoModelForCausalLM; "
        "config = AutoConfig.for_model('restack-llama', vocab_size=9, hidden_size=8, num_hidden_layers=2, "
        "num_attention_heads=2, intermediate_size=8, kv_map='0_0'); "
        "assert type(AutoModelForCausalLM.from_config(config)).__name__ == 'RestackLlamaForCausalLM'"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_a_plan_in_the_config_survives_saving(tmp_path):
    config = RestackLlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        plan="0:3,1:4@0.5", kv_map="0_0_2_5_5_5", tie_word_embeddings=True,
    )  # fmt: skip
    house = RestackLlamaForCausalLM(config).eval()
    house.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.plan == str(restack.plan("0:3,1:4@0.5;kv=0_0_2_5x3", 4))
    assert torch.equal(again.eval()(tokens(7)).logits, house(tokens(7)).logits)
    assert len(safetensors.torch.load_file(tmp_path / "model.safetensors")) == len(
        dict(house.named_parameters())
    )


class TestMeta:
    """Meta's folders by the Auto classes; what is in them is compared in test_meta_files.py."""

    @pytest.fixture
    def folder(self, tmp_path):
        values = meta_folders.params(vocab_size=346)
        weights = meta_folders.random_weights(values, 346)
        meta_folders.write_pieces(tmp_path / "tokenizer.model")
        return meta_folders.write(tmp_path / "llama-2-7b", values, meta_folders.split(weights, 2))

    def test_model_config_and_tokenizer(self, folder):
        house = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        assert type(house) is RestackLlamaForCausalLM
        values = meta_folders.params(vocab_size=346)
        row = tokens(7)
        expected = meta_folders.logits(values, meta_folders.random_weights(values, 346), row[0])
        with torch.no_grad():
            assert (house(row).logits[0] - expected).abs().max() < 1e-4
        assert transformers.AutoConfig.from_pretrained(folder).model_type == "restack-llama"
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        assert tokenizer.decode(tokenizer("The llama")["input_ids"], skip_special_tokens=True) == "The llama"
        pipe = transformers.pipeline("text-generation", model=str(folder))
        answer = pipe("The llama", max_new_tokens=4, do_sample=False)[0]["generated_text"]
        assert answer.startswith("The llama")

    def test_with_a_kv_map(self, folder):
        house = transformers.AutoModelForCausalLM.from_pretrained(folder, kv_map="cla2")
        assert house.config.kv_map.startswith("0_0")


def test_a_kv_map_beside_a_llamas_name(tmp_path):
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 50}
    for family in ("Llama", "Qwen3"):
        config = getattr(transformers, f"{family}Config")(**sizes, num_hidden_layers=4, num_key_value_heads=4)
        getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(tmp_path / family)
        house = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / family, kv_map="0_2_2_3")
        assert type(house) is RestackLlamaForCausalLM and house.config.kv_map == "0_2_2_3"
        plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / family)
        assert type(plain).__name__ == f"{family}ForCausalLM"
