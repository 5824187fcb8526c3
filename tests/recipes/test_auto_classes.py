"""transformers' own doors to a recipe, and what must not come in through them."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    pipeline,
)

import restack
from restack import recipes
from restack.errors import ModelError
from tests.recipes.tiny import TOKENS, built, logits, saved_llama

ORDER = [0, 1, 2, 1, 2, 3]


@pytest.fixture
def recipe(tmp_path):
    base = restack.open(saved_llama(tmp_path / "llama"))
    return str(restack.save(restack.view(base, ORDER), tmp_path / "recipe"))


@pytest.fixture
def expected(recipe, tmp_path):
    return logits(built(LlamaForCausalLM.from_pretrained(tmp_path / "llama"), ORDER))


ORDERS_OF_IMPORT = {
    "restack first": "import restack, transformers",
    "after the classes": "from transformers import AutoConfig, AutoModelForCausalLM as M, AutoTokenizer\n"
    "import restack",
}


@pytest.mark.parametrize("imports", ORDERS_OF_IMPORT.values(), ids=ORDERS_OF_IMPORT)
def test_either_order_of_import(recipe, expected, imports, tmp_path):
    program = f"""{imports}
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
assert AutoTokenizer.from_pretrained({recipe!r}).eos_token == '<|im_end|>'
assert AutoConfig.from_pretrained({recipe!r}).num_hidden_layers == 6
model = AutoModelForCausalLM.from_pretrained({recipe!r})
torch.save(model(torch.tensor({TOKENS.tolist()})).logits.detach(), {str(tmp_path / "logits.pt")!r})
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)


def test_without_restack_transformers_says_what_is_missing(recipe):
    program = f"""
from transformers import AutoConfig
try:
    AutoConfig.from_pretrained({recipe!r})
except ValueError as error:
    assert "model type `restack`" in str(error), error
else:
    raise SystemExit("opened a recipe")
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


def test_the_model_is_a_view_of_the_bases_class(recipe, expected):
    model, info = AutoModelForCausalLM.from_pretrained(recipe, output_loading_info=True)
    assert type(model) is LlamaForCausalLM
    assert model.restack_plan.order == tuple(ORDER)
    assert not info["missing_keys"]
    assert torch.equal(logits(model), expected)


def test_what_from_pretrained_is_told_reaches_the_base(recipe):
    model = AutoModelForCausalLM.from_pretrained(
        recipe, dtype=torch.bfloat16, attn_implementation="eager", use_cache=False
    )
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert model.config.use_cache is False
    by_config = AutoConfig.from_pretrained(recipe, rms_norm_eps=0.25)
    by_config.use_cache = False
    model = AutoModelForCausalLM.from_pretrained(recipe, config=by_config)
    assert (model.config.rms_norm_eps, model.config.use_cache) == (0.25, False)
    assert model.model.layers[0].input_layernorm.variance_epsilon == 0.25


def test_the_config_is_that_of_the_view(recipe, tmp_path):
    config = AutoConfig.from_pretrained(recipe)
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (6, 16, 1147)
    assert type(config.get_text_config()) is LlamaConfig
    assert copy.deepcopy(config).num_hidden_layers == 6
    assert not hasattr(config, "no_such_setting")
    config.save_pretrained(tmp_path / "again")
    assert torch.equal(
        logits(restack.open(str(tmp_path / "again"))), logits(AutoModelForCausalLM.from_pretrained(recipe))
    )


def test_a_model_with_random_weights_can_be_made_of_it(recipe):
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(recipe))
    assert len(model.model.layers) == 6
    assert model.model.layers[1].mlp.up_proj.weight is model.model.layers[3].mlp.up_proj.weight


def test_the_pipeline_runs_the_view(recipe, expected):
    talks = pipeline("text-generation", recipe)
    assert torch.equal(logits(talks.model), expected)
    assert talks("hello", max_new_tokens=2, do_sample=False)[0]["generated_text"].startswith("hello")


@pytest.mark.parametrize("weights", ["none", "shared", "full"])
def test_the_tokenizer_is_the_bases(recipe, tmp_path, weights):
    view = restack.open(recipe)
    folder = restack.save(view, tmp_path / "saved", weights=weights)
    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs("What is 3 + 4?").input_ids == recipes.open_tokenizer("demo")("What is 3 + 4?").input_ids
    assert theirs.chat_template == recipes.open_tokenizer("demo").chat_template


def test_refusals_come_through_in_one_line(recipe, tmp_path):
    saved_llama(tmp_path / "llama", seed=1)
    with pytest.raises(ModelError, match="another set of weights"):
        AutoModelForCausalLM.from_pretrained(recipe)
    (tmp_path / "llama").rename(tmp_path / "away")
    for door in (AutoModelForCausalLM, AutoTokenizer):
        with pytest.raises(ModelError, match="that is not there"):
            door.from_pretrained(recipe)
    with pytest.raises(ModelError, match="that is not there"):
        AutoConfig.from_pretrained(recipe).num_hidden_layers  # noqa: B018


EVIL = """
from pathlib import Path
Path({mark!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM
class EvilConfig(LlamaConfig):
    model_type = "evil"
class EvilForCausalLM(LlamaForCausalLM):
    config_class = EvilConfig
"""
AUTO_MAP = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilForCausalLM"}


@pytest.fixture
def mark(tmp_path, monkeypatch, code_of_models):
    monkeypatch.setattr("builtins.input", lambda *arguments: pytest.fail("asked on standard input"))
    return tmp_path / "ran"


def carry_code(folder, mark):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": AUTO_MAP}))
    (folder / "evil.py").write_text(EVIL.format(mark=str(mark)))


@pytest.mark.parametrize("trust", [None, True])
def test_code_in_a_recipe_never_runs(recipe, tmp_path, mark, trust):
    carry_code(tmp_path / "recipe", mark)
    for door in (AutoConfig, AutoModelForCausalLM, AutoTokenizer):
        door.from_pretrained(recipe, trust_remote_code=trust)
    assert len(restack.open(recipe, trust_remote_code=bool(trust)).model.layers) == 6
    assert not mark.exists()


def test_code_in_a_base_runs_only_if_asked_for(recipe, tmp_path, mark):
    config = json.loads((tmp_path / "llama" / "config.json").read_text())
    (tmp_path / "llama" / "config.json").write_text(json.dumps(config | {"model_type": "evil"}))
    carry_code(tmp_path / "llama", mark)
    said = json.loads((tmp_path / "recipe" / "config.json").read_text())
    location = recipes.fingerprint.Location(str(tmp_path / "llama"))
    said["base"]["fingerprint"]["config"] = recipes.fingerprint.fingerprint_of_config(location).config
    (tmp_path / "recipe" / "config.json").write_text(json.dumps(said))
    for open_it in (restack.open, AutoModelForCausalLM.from_pretrained, recipes.open_config):
        with pytest.raises(ModelError, match="--trust-remote-code"):
            open_it(recipe)
    assert not mark.exists()
    for open_it in (restack.open, AutoModelForCausalLM.from_pretrained):
        assert type(open_it(recipe, trust_remote_code=True)).__name__ == "EvilForCausalLM"
    assert mark.exists()
