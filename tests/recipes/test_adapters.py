"""Recipes with an adapter: a LoRA for each visit, saved beside the plan and put on again."""

import json
import re
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

import restack
from restack import recipes
from restack.errors import ModelError
from restack.llama import RestackLlamaForCausalLM
from tests.llama.tiny import model as tiny_house
from tests.llama.tiny import tokens
from tests.recipes.tiny import built, logits, saved_llama

peft = pytest.importorskip("peft")
SPEC, ORDER = "0:3,1:4", [0, 1, 2, 1, 2, 3]
TARGETS = ["q_proj", "down_proj"]
FILES = {"adapter_config.json", "adapter_model.safetensors"}


def lora(model, **options):
    """A PeftModel whose LoRA, different for each visit, does something."""
    torch.manual_seed(7)
    settings = {"r": 2, "lora_alpha": 3, "target_modules": TARGETS, "init_lora_weights": False} | options
    return peft.get_peft_model(model, peft.LoraConfig(**settings)).eval()


def deltas(adapted, scaling):
    """scaling * B A of each adapted module, computed by hand from the parameters: {path: (out, in)}."""
    found = {}
    for name, a in adapted.named_parameters():
        if ".lora_A." in name:
            b = adapted.get_parameter(name.replace(".lora_A.", ".lora_B."))
            path = name.partition(".lora_A.")[0].removeprefix("base_model.model.")
            found[path] = scaling * b.detach() @ a.detach()
    return found


def merged_by_hand(plain, changes, transposed=False):
    """A plain model, whose layers are copies in the order of the visits, with deltas added to its weights."""
    with torch.no_grad():
        for path, delta in changes.items():
            plain.get_submodule(path).weight.add_(delta.T if transposed else delta)
    return plain


def said_by(folder):
    return json.loads((folder / "config.json").read_text())


def told(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def base(tmp_path):
    return restack.open(saved_llama(tmp_path / "llama"))


@pytest.fixture
def adapted(base):
    return lora(restack.view(base, SPEC))


@pytest.fixture
def recipe(adapted, tmp_path):
    return restack.save(adapted, tmp_path / "recipe")


def test_visits_of_one_layer_have_adapters_of_their_own(base, adapted):
    changes = deltas(adapted, scaling=1.5)
    assert len(changes) == 2 * len(ORDER)
    expected = logits(merged_by_hand(built(base, ORDER), changes))
    torch.testing.assert_close(logits(adapted), expected, atol=1e-5, rtol=1e-5)
    exchanged = {1: 3, 3: 1}  # the two visits of layer 1: only their adapters differ
    swapped = {
        re.sub(
            r"layers\.(\d+)", lambda found: f"layers.{exchanged.get(int(found[1]), int(found[1]))}", path
        ): delta
        for path, delta in changes.items()
    }
    assert not torch.allclose(logits(merged_by_hand(built(base, ORDER), swapped)), expected, atol=1e-3)


@pytest.mark.parametrize("weights", ["none", "shared"])
def test_an_adapter_comes_back(adapted, tmp_path, weights):
    expected = logits(adapted)
    folder = restack.save(adapted, tmp_path / "saved", weights=weights)
    assert {file.name for file in (folder / "adapter").iterdir()} == FILES
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None and config["init_lora_weights"] is True
    opened = restack.open(str(folder))
    assert type(opened) is LlamaForCausalLM and opened.restack_plan.order == tuple(ORDER)
    assert torch.equal(logits(opened), expected)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder)), expected)
    assert not any(
        parameter.requires_grad for name, parameter in opened.named_parameters() if "lora_" in name
    )
    assert torch.equal(logits(adapted), expected)  # saving took nothing off the model
    again = restack.save(opened, tmp_path / "again", weights=weights)
    assert torch.equal(logits(restack.open(str(again))), expected)
    first, second = (load_file(place / "adapter" / "adapter_model.safetensors") for place in (folder, again))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_tensors_are_named_by_visit_and_no_path_is_told(adapted, recipe, tmp_path):
    stored = load_file(recipe / "adapter" / "adapter_model.safetensors")
    ours = dict(adapted.named_parameters())
    assert len(stored) == 2 * len(TARGETS) * len(ORDER)
    for name, tensor in stored.items():
        assert torch.equal(tensor, ours[name.replace(".weight", ".default.weight")])
    config = json.loads((recipe / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None and config["target_modules"] == sorted(TARGETS)
    for file in (recipe / "adapter" / "adapter_config.json", recipe / "README.md"):
        assert str(tmp_path) not in file.read_text()
    assert "restack[train]" in (recipe / "README.md").read_text()
    assert not (recipe / "mergekit_config.yml").exists()  # mergekit would leave the adapter out


def test_an_older_restack_refuses_a_recipe_with_an_adapter(base, recipe, tmp_path):
    assert (said_by(recipe)["recipe_format"], said_by(recipe)["adapter"]) == (2, "./adapter")
    plain = said_by(restack.save(restack.view(base, SPEC), tmp_path / "plain"))
    assert plain["recipe_format"] == 1 and "adapter" not in plain


@pytest.mark.parametrize(
    "settings", [{"adapter": "../adapter"}, {"adapter": None}, {"recipe_format": 1}, {"adapter": 3}]
)
def test_a_damaged_recipe_is_told(recipe, settings):
    (recipe / "config.json").write_text(json.dumps(said_by(recipe) | settings))
    with pytest.raises(ModelError, match="no recipe") as error:
        restack.open(str(recipe))
    told(error)


def test_full_weights_have_each_adapter_in_its_own_visit(base, adapted, tmp_path):
    folder = restack.save(adapted, tmp_path / "full", weights="full")
    assert said_by(folder)["model_type"] == "llama" and not (folder / "adapter").exists()
    model, info = LlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    expected = merged_by_hand(built(base, ORDER), deltas(adapted, scaling=1.5)).state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=0)
    torch.testing.assert_close(logits(model), logits(adapted), atol=1e-5, rtol=1e-5)


def test_full_weights_of_a_scaled_view_are_multiplied_without_the_adapter(base, tmp_path):
    adapted = lora(restack.view(base, "0:4{q_proj:0.5},3"))
    folder = restack.save(adapted, tmp_path / "full", weights="full")
    torch.testing.assert_close(logits(LlamaForCausalLM.from_pretrained(folder)), logits(adapted))
    for weights in ("none", "shared"):
        opened = restack.open(str(restack.save(adapted, tmp_path / weights, weights=weights)))
        assert torch.equal(logits(opened), logits(adapted))


@pytest.mark.parametrize("weights", ["none", "shared", "full"])
def test_a_view_of_gpt2(tmp_path, weights):
    torch.manual_seed(0)
    config = GPT2Config(n_layer=3, n_embd=16, n_head=2, vocab_size=64, n_positions=32)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    adapted = lora(
        restack.view(restack.open(str(tmp_path / "gpt2")), [0, 1, 1, 2]), target_modules=["c_attn"]
    )
    plain = restack.materialise(restack.open(str(tmp_path / "gpt2")), [0, 1, 1, 2])
    expected = logits(merged_by_hand(plain, deltas(adapted, 1.5), transposed=True))
    torch.testing.assert_close(logits(adapted), expected, atol=1e-5, rtol=1e-5)
    folder = restack.save(adapted, tmp_path / "saved", weights=weights)
    opened = restack.open(str(folder))
    assert ("lora_A" in str(opened)) == (weights != "full")
    torch.testing.assert_close(logits(opened), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("weights", ["none", "shared", "full"])
def test_an_adapter_of_transformers_in_a_model_that_is_no_view(base, tmp_path, weights):
    config = peft.LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False)
    base.add_adapter(config, "mine")
    folder = restack.save(base, tmp_path / "saved", weights=weights)
    torch.testing.assert_close(logits(restack.open(str(folder))), logits(base), atol=1e-5, rtol=1e-5)
    if weights != "full":
        assert restack.open(str(folder)).restack_plan.is_identity


def test_a_view_of_a_peft_model_repeats_its_adapters(base, tmp_path):
    view = restack.view(lora(restack.view(base, "0,2:4")), [0, 1, 1, 2])
    folder = restack.save(view, tmp_path / "saved")
    assert restack.open(str(folder)).restack_plan.order == (0, 2, 2, 3)
    assert torch.equal(logits(restack.open(str(folder))), logits(view))


@pytest.fixture
def house(tmp_path):
    """The folder of a restack-llama of six layers that runs seven visits by itself."""
    model = tiny_house(seed=3, plan="0:4,2:5")
    model.save_pretrained(tmp_path / "house")
    return str(tmp_path / "house")


def house_logits(model):
    with torch.no_grad():
        return model(tokens(), use_cache=False).logits


def one_layer_a_visit(house_view):
    """What training has peft adapt: a copy of a house model with a layer object for each visit."""
    from restack.plans import Plan
    from restack.views.arranging import sharing_memo
    from restack.views.planned import unrolled, visit_count

    visits = visit_count(house_view)
    return unrolled(house_view, Plan.of(range(visits), visits), sharing_memo(house_view))


@pytest.mark.parametrize("spec", [None, "0:3,1:7", "0:7;kv=0_1_1_3_3_5_5", "0:7;kv=0_5x5_6"])
@pytest.mark.parametrize("weights", ["none", "shared", "full"])
def test_visits_of_a_restack_llama_are_taken_apart(house, tmp_path, spec, weights):
    base = restack.open(house)
    view = base if spec is None else restack.view(base, spec)
    adapted = lora(one_layer_a_visit(view), target_modules=[*TARGETS, "k_proj"])  # some keys are not read
    expected = house_logits(adapted)
    changes = deltas(adapted, scaling=1.5)
    visits = len(base.config.whole_plan.then(view.restack_plan) if spec else base.config.whole_plan)
    assert len(changes) == 3 * visits
    assert not torch.allclose(expected, house_logits(view), atol=1e-3)
    folder = restack.save(adapted, tmp_path / "saved", weights=weights)
    opened = restack.open(str(folder))
    assert type(opened) is RestackLlamaForCausalLM
    torch.testing.assert_close(house_logits(opened), expected, atol=1e-5, rtol=1e-5)
    if weights == "none":
        assert len(said_by(folder)["plan"]["depths"]) == 1 and said_by(folder)["plan"]["depths"] == [7]
    if weights == "shared":  # each layer once
        stored = load_file(folder / "base" / "model.safetensors")
        layers = {name.split(".")[2] for name in stored if "layers." in name}
        assert (
            len(layers)
            == len(set(base.config.whole_plan.then(restack.plan(spec or "all", 7)).order))
            < visits
        )
    if weights != "full":
        config = AutoConfig.from_pretrained(folder)
        assert config.num_hidden_layers == opened.config.num_hidden_layers == visits
        shown = restack.open(f"{folder}@0:3,1:")
        again = restack.open(str(restack.save(shown, tmp_path / "again", weights=weights)))
        torch.testing.assert_close(house_logits(again), house_logits(shown), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            house_logits(shown), house_logits(restack.view(opened, "0:3,1:")), atol=1e-5, rtol=1e-5
        )


def test_an_adapter_of_the_layers_of_a_restack_llama_is_kept_for_each_visit(house, tmp_path):
    adapted = lora(restack.view(restack.open(house), "::-1"))
    folder = restack.save(adapted, tmp_path / "saved")
    opened = restack.open(str(folder))
    torch.testing.assert_close(house_logits(opened), house_logits(adapted), atol=1e-5, rtol=1e-5)
    assert len(opened.model.layers) == 7


def test_changed_weights_of_a_restack_llama_are_seen(house, tmp_path):
    adapted = lora(one_layer_a_visit(restack.open(house)))
    weight = adapted.base_model.model.model.layers[6].mlp.up_proj.weight  # of layer 4
    with torch.no_grad():
        weight.mul_(1.5)
    with pytest.raises(ModelError, match=r"layers\.4\.mlp\.up_proj\.weight differs"):
        restack.save(adapted, tmp_path / "saved")


def test_trained_weights_below_an_adapter_are_not_lost(adapted, tmp_path):
    with torch.no_grad():
        adapted.base_model.model.model.layers[4].self_attn.q_proj.base_layer.weight.mul_(1.5)
    with pytest.raises(ModelError, match=r"layers\.2\.self_attn\.q_proj\.weight differs") as error:
        restack.save(adapted, tmp_path / "saved")
    told(error)
    opened = restack.open(str(restack.save(adapted, tmp_path / "shared", weights="shared")))
    assert torch.equal(logits(opened), logits(adapted))


def test_a_spec_runs_over_the_adapted_visits(adapted, recipe, tmp_path):
    expected = logits(restack.view(adapted, "0:4,2,::-1"))
    opened = restack.open(f"{recipe}@0:4,2,::-1")
    assert torch.equal(logits(opened), expected)
    folder = restack.save(opened, tmp_path / "again")
    assert torch.equal(logits(restack.open(str(folder))), expected)
    unloaded = recipes.save_recipe(str(recipe), restack.plan("0:4,2,::-1", 6), tmp_path / "by-name")
    assert torch.equal(logits(restack.open(str(unloaded))), expected)


def test_what_is_adapted_follows_the_visits(base, tmp_path):
    """A config that names layers, ranks and scalings by their place is for that order alone."""
    options = {
        "layers_to_transform": [0, 3], "rank_pattern": {"q_proj": 3}, "use_rslora": True,
        "alpha_pattern": {r"layers\.3\.mlp\.down_proj": 5},
    }  # fmt: skip
    plain = logits(restack.view(base, "::-1"))
    view = restack.view(lora(base, **options), "::-1")
    folder = restack.save(view, tmp_path / "saved")
    stored = load_file(folder / "adapter" / "adapter_model.safetensors")
    ranks = {
        name.split(".")[4] + name.split(".")[6]: len(tensor)
        for name, tensor in stored.items()
        if "_A" in name
    }
    assert ranks == {"0q_proj": 3, "3q_proj": 3, "0down_proj": 2, "3down_proj": 2}
    assert torch.equal(logits(restack.open(str(folder))), logits(view))
    assert not torch.allclose(logits(view), plain, atol=1e-3)


def test_what_was_said_of_a_layer_is_not_said_of_the_visit_in_its_place(base, tmp_path):
    adapted = lora(base, rank_pattern={r"layers\.3\.mlp\.down_proj": 3})
    view = restack.view(adapted, [0, 1, 2, 1])  # where all ranks are 2
    assert torch.equal(logits(restack.open(str(restack.save(view, tmp_path / "saved")))), logits(view))


def test_a_scaling_that_was_changed_is_kept(adapted, tmp_path):
    adapted.base_model.model.model.layers[3].mlp.down_proj.scale_layer(0.25)
    expected = logits(adapted)
    assert torch.equal(logits(restack.open(str(restack.save(adapted, tmp_path / "saved")))), expected)


def recipe_over(recipe, folder, plan, depth, **more):
    """A recipe whose base is another recipe."""
    base = recipes.fingerprint.fingerprint_of_config(recipes.fingerprint.Location(str(recipe)))
    said = said_by(recipe)
    said.pop("adapter", None)
    said["base"] |= {
        "name": f"../{recipe.name}",
        "fingerprint": {"config": base.config, "tensors": None, "samples": None},
    }
    said |= {"recipe_format": 1, "plan": {"plan": plan, "depths": [depth]}} | more
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(said))
    return folder


def test_a_recipe_over_one_with_an_adapter(adapted, recipe, tmp_path):
    over = recipe_over(recipe, tmp_path / "over", "5,1,0:3", 6)
    expected = logits(restack.view(adapted, "5,1,0:3"))
    assert torch.equal(logits(restack.open(str(over))), expected)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(over)), expected)
    twice = logits(restack.view(restack.view(adapted, "5,1,0:3"), "1:"))
    assert torch.equal(logits(restack.open(f"{over}@1:")), twice)


def test_an_adapter_over_a_recipe(base, tmp_path):
    below = restack.save(restack.view(base, SPEC), tmp_path / "below")
    adapted = lora(restack.open(f"{below}@0,3:"))
    flat = restack.save(adapted, tmp_path / "flat")
    over = recipe_over(below, tmp_path / "over", "0,3:", 6, recipe_format=2, adapter="./adapter")
    (flat / "adapter").rename(over / "adapter")
    assert torch.equal(logits(restack.open(str(over))), logits(adapted))


def test_two_adapters_one_over_the_other_are_refused(recipe, tmp_path):
    over = recipe_over(recipe, tmp_path / "over", "0:6", 6, recipe_format=2, adapter="./adapter")
    with pytest.raises(
        ModelError, match=r"over has an adapter, and so has .*recipe below it.*'full'"
    ) as error:
        restack.open(str(over))
    told(error)


def test_peft_itself_puts_it_on_a_view_to_train_it_further(adapted, base, recipe):
    again = peft.PeftModel.from_pretrained(restack.view(base, SPEC), recipe / "adapter", is_trainable=True)
    assert torch.equal(logits(again.eval()), logits(adapted))
    trained = {name for name, parameter in again.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in again.named_parameters() if "lora_" in name}


def test_an_adapter_keeps_its_dtype(tmp_path):
    base = restack.open(saved_llama(tmp_path / "llama"), dtype="bfloat16")
    adapted = lora(restack.view(base, SPEC))  # which keeps its own weights in float32
    assert {tensor.dtype for tensor in deltas(adapted, 1.0).values()} == {torch.float32}
    folder = restack.save(adapted, tmp_path / "saved")
    assert torch.equal(logits(restack.open(str(folder), dtype="bfloat16")), logits(adapted))
    whole = restack.open(str(restack.save(adapted, tmp_path / "full", weights="full")))
    weight = whole.model.layers[3].mlp.down_proj.weight
    change = deltas(adapted, scaling=1.5)["model.layers.3.mlp.down_proj"]
    assert torch.equal(weight, (base.model.layers[1].mlp.down_proj.weight.float() + change).bfloat16())


def two(model):
    adapted = lora(model)
    adapted.add_adapter("other", peft.LoraConfig(target_modules=TARGETS))
    return adapted


def merged(model):
    adapted = lora(restack.materialise(model, "all"))
    adapted.merge_adapter()
    return adapted


def switched_off(model):
    model.add_adapter(peft.LoraConfig(target_modules=TARGETS))
    model.disable_adapters()
    return model


REFUSED = {
    "delete the others: model.delete_adapter\\('other'\\)": two,
    "is merged into the weights": merged,
    "is switched off": switched_off,
    "type IA3": lambda model: peft.get_peft_model(
        model, peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[])
    ),
    "more than W \\+ BA": lambda model: lora(model, use_dora=True),
    "more than LoRA \\(modules_to_save\\)": lambda model: lora(model, modules_to_save=["lm_head"]),
    "more than LoRA \\(bias\\)": lambda model: lora(model, bias="all"),
}


@pytest.mark.parametrize("reason", REFUSED)
@pytest.mark.parametrize("weights", ["none", "full"])
def test_what_a_recipe_cannot_keep_is_refused(base, tmp_path, reason, weights):
    adapted = REFUSED[reason](restack.view(base, SPEC))
    with pytest.raises(ModelError, match=reason) as error:
        restack.save(adapted, tmp_path / "saved", weights=weights)
    told(error)
    assert [file.name for file in tmp_path.iterdir()] == ["llama"]


def test_a_model_whose_adapter_was_merged_and_taken_out_has_none(base, adapted, tmp_path):
    own = lora(restack.materialise(restack.view(base, SPEC), "all")).merge_and_unload()
    folder = restack.save(own, tmp_path / "full", weights="full")
    assert torch.equal(logits(LlamaForCausalLM.from_pretrained(folder)), logits(own))


def test_a_tied_head_takes_no_adapter_of_its_own(tmp_path):
    base = restack.open(saved_llama(tmp_path / "llama", tie_word_embeddings=True))
    adapted = lora(restack.view(base, SPEC), target_modules=["lm_head", "q_proj"])
    with pytest.raises(ModelError, match="lm_head would change what is tied to it") as error:
        restack.save(adapted, tmp_path / "full", weights="full")
    told(error)
    folder = restack.save(adapted, tmp_path / "recipe")
    assert torch.equal(logits(restack.open(str(folder))), logits(adapted))


@pytest.mark.parametrize("weights", ["none", "shared", "full"])
def test_an_adapter_of_the_embedding(base, tmp_path, weights):
    adapted = lora(restack.view(base, SPEC), target_modules=["embed_tokens", "q_proj"])
    assert not torch.allclose(
        logits(adapted), logits(restack.view(restack.open(str(tmp_path / "llama")), SPEC))
    )
    folder = restack.save(adapted, tmp_path / "saved", weights=weights)
    torch.testing.assert_close(logits(restack.open(str(folder))), logits(adapted), atol=1e-5, rtol=1e-5)
    if weights != "full":
        assert (folder / "adapter" / "adapter_model.safetensors").stat().st_size < 30_000  # no embedding


def test_an_adapter_that_began_as_part_of_the_weights(base, tmp_path):
    """PiSSA takes out of the base what it starts from, when it is loaded too."""
    adapted = lora(restack.view(base, SPEC), init_lora_weights="pissa")
    with pytest.raises(ModelError, match="differs"):
        restack.save(adapted, tmp_path / "recipe")
    folder = restack.save(adapted, tmp_path / "shared", weights="shared")
    assert torch.equal(logits(restack.open(str(folder))), logits(adapted))
    config = folder / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace('"init_lora_weights": true', '"init_lora_weights": "pissa"'))
    with pytest.raises(ModelError, match="init_lora_weights is 'pissa', which changes the base") as error:
        restack.open(str(folder))
    told(error)


def test_without_peft_an_adapter_is_told(recipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match=r"pip install 'restack\[train\]'") as error:
        restack.open(str(recipe))
    told(error)


def test_files_of_an_adapter_that_are_not_right_are_told(recipe):
    file = recipe / "adapter" / "adapter_model.safetensors"
    whole = load_file(file)
    name = sorted(whole)[0]
    wrong = {
        "lacks": {other: tensor for other, tensor in whole.items() if other != name},
        "is also for": whole | {name.replace("layers.0", "layers.6"): whole[name].clone()},
        "adapter of .*size mismatch": whole | {name: whole[name][:1].contiguous()},
    }
    for reason, tensors in wrong.items():
        save_file(tensors, file)
        with pytest.raises(ModelError, match=reason) as error:
            restack.open(str(recipe))
        told(error)
    save_file(whole, file)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ModelError, match="cannot open the adapter") as error:
        restack.open(str(recipe))
    told(error)
    file.unlink()
    with pytest.raises(ModelError, match=r"there is no .*adapter_model\.safetensors") as error:
        restack.open(str(recipe))
    told(error)


def test_commands_take_a_recipe_with_an_adapter(adapted, recipe, tmp_path, capsys):
    from restack.cli import main

    assert main(["show", str(recipe), "--json"]) in (0, None)
    assert json.loads(capsys.readouterr().out)["plan"]["visits"] == list(range(6))
    assert main(["save", f"{recipe}@0:5", str(tmp_path / "named")]) in (0, None)
    expected = logits(restack.view(adapted, "0:5"))
    assert torch.equal(logits(restack.open(str(tmp_path / "named"))), expected)


def test_a_recipe_of_the_hub_has_its_adapter_fetched(tmp_path, monkeypatch):
    for module in ("huggingface_hub.constants", "transformers.utils.hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", True)
    commit = "1" * 40

    def put(name, folder):
        place = tmp_path / "hub" / f"models--me--{name}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text(commit)
        (place / "snapshots").mkdir()
        return folder.rename(place / "snapshots" / commit)

    saved_llama(tmp_path / "llama")
    put("base", tmp_path / "llama")
    adapted = lora(restack.view(restack.open("me/base"), SPEC))
    place = put("adapted", restack.save(adapted, tmp_path / "recipe"))
    config = json.loads((place / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "me/base"
    assert torch.equal(logits(restack.open("me/adapted")), logits(adapted))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained("me/adapted")), logits(adapted))


@pytest.mark.parametrize("weights", ["none", "shared", "full"])
def test_a_view_in_which_no_visit_keeps_its_adapter(base, tmp_path, weights):
    model = restack.view(base, SPEC)
    adapted = lora(model, layers_to_transform=[5], layers_pattern="layers")
    left = restack.view(adapted, "0:3")
    folder = restack.save(left, tmp_path / "saved", weights=weights)
    assert not (folder / "adapter").exists()
    assert torch.equal(logits(restack.open(str(folder))), logits(restack.view(base, "0:3")))
