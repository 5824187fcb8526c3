"""Layers folded into shared ones: what holds by the mathematics, and models built by hand."""

import json
import re
import sys
from itertools import pairwise

import numpy
import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import restack
from restack import recipes
from restack.conversion.folding import fold, folded
from restack.errors import ModelError, PlanError, UsageError, ViewError
from restack.llama import RestackLlamaForCausalLM
from tests.llama.tiny import model as tiny_house
from tests.recipes.tiny import SETTINGS, logits, saved_llama

peft = pytest.importorskip("peft")
LAYERS, WIDTH = 6, 16
LINEAR = {
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
}  # fmt: skip
FULL = 64  # a rank above that of every matrix


def llama(layers=LAYERS, random_norms=False, seed=0, **settings):
    """A random Llama; its norms are alike unless they are random, too."""
    torch.manual_seed(seed)
    config = LlamaConfig(**SETTINGS | {"num_hidden_layers": layers, "initializer_range": 0.2} | settings)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if random_norms and "norm" in name:
                parameter.normal_(1, 0.1)
    return model


def of_layer(model, number):
    return {name: tensor.detach().clone() for name, tensor in model.model.layers[number].state_dict().items()}


def by_hand(model, sources):
    """A Llama whose layer i is the mean of those layers of the model that sources[i] names."""
    made = llama(len(sources), seed=1)
    made.load_state_dict(model.state_dict(), strict=False)
    for layer, numbers in zip(made.model.layers, sources, strict=True):
        states = [of_layer(model, number) for number in numbers]
        layer.load_state_dict(
            {name: sum(state[name] for state in states) / len(states) for name in states[0]}
        )
    return made.to(model.dtype)


def same(ours, theirs, **tolerance):
    torch.testing.assert_close(ours, theirs, **({"atol": 1e-5, "rtol": 1e-5} | tolerance))


def storage(model):
    return {parameter.data_ptr(): parameter.nbytes for parameter in model.parameters()}


@pytest.mark.parametrize("init", ["average", "stepwise", "lower"])
@pytest.mark.parametrize(("block", "loops"), [(None, 2), (None, 3), ((1, 5), 2), ("2:", 2), ("-2:", 2)])
def test_at_full_rank_and_with_equal_norms_nothing_changes(init, block, loops):
    model = llama().double()
    expected = logits(model)
    found = folded(model, block, loops, init, FULL)
    same(logits(found.view), expected, atol=1e-10, rtol=1e-10)
    assert found.left == 0
    assert found.view.config.num_hidden_layers == LAYERS
    plain = logits(fold(model, block=block, loops=loops, init=init, rank=0))
    assert not torch.allclose(plain, expected, atol=1e-2)


def test_in_single_precision_nothing_changes_but_for_rounding():
    model = llama()
    same(logits(fold(model, rank=FULL)), logits(model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("init", "block", "loops", "sources"),
    [
        ("average", None, 2, [[0, 3], [1, 4], [2, 5]] * 2),
        ("average", None, 3, [[0, 2, 4], [1, 3, 5]] * 3),
        ("average", (1, 5), 2, [[0], [1, 3], [2, 4], [1, 3], [2, 4], [5]]),
        ("lower", None, 2, [[0], [1], [2]] * 2),
        ("lower", "2:", 2, [[0], [1], [2], [3], [2], [3]]),
        ("stepwise", None, 2, [[0], [3], [5]] * 2),
        ("stepwise", None, 3, [[0], [5]] * 3),
        ("stepwise", (1, 5), 2, [[0], [1], [4], [1], [4], [5]]),
        ("stepwise", (1, 3), 2, [[0], [1], [1], [3], [4], [5]]),
    ],
)
def test_without_adapters_it_is_the_model_of_shared_layers(init, block, loops, sources):
    """Norms that differ show that they are made by the same rule."""
    model = llama(random_norms=True)
    view = fold(model, block=block, loops=loops, init=init, rank=0)
    assert "lora_" not in str(view)
    same(logits(view), logits(by_hand(model, sources)))


def test_the_plan_runs_the_shared_layers_in_a_cycle():
    assert str(fold(llama(8), block=(2, 8), rank=1).restack_plan) == "0:5,2:5"
    view = fold(llama(8), block=(1, 7), loops=3, rank=1)
    assert view.restack_plan.order == (0, 1, 2, 1, 2, 1, 2, 3) and view.restack_plan.depths == (4,)


@pytest.mark.parametrize("rank", [1, 5])
@pytest.mark.parametrize("init", ["average", "lower"])
def test_each_adapter_is_the_best_of_its_rank(rank, init):
    """What is left are the singular values past the rank (Eckart and Young 1936), here by numpy."""
    model = llama()
    found = folded(model, (1, 5), 2, init, rank)
    fractions = []
    for visit in range(1, 5):
        ours, theirs = found.view.model.layers[visit], model.model.layers[visit]
        adapted = {name for name, module in ours.named_modules() if hasattr(module, "lora_A")}
        assert adapted == LINEAR
        for name in LINEAR:
            layer = ours.get_submodule(name)
            wanted = theirs.get_submodule(name).weight.detach().double().numpy()
            shared = layer.base_layer.weight.detach().double().numpy()
            a, b = (part["default"].weight.detach().double().numpy() for part in (layer.lora_A, layer.lora_B))
            assert a.shape[0] == rank and layer.scaling["default"] == 1
            tail = numpy.linalg.svd(wanted - shared, compute_uv=False)[rank:]
            left = numpy.linalg.norm(wanted - shared - b @ a)
            assert left == pytest.approx(numpy.sqrt((tail**2).sum()), abs=1e-5)
            size = numpy.linalg.norm(wanted - shared)
            fractions.append(left / size if size else 0.0)
    assert found.left == pytest.approx(numpy.mean(fractions), abs=1e-5)


def test_a_higher_rank_leaves_less():
    model = llama()
    left = [folded(model, None, 2, "average", rank).left for rank in (1, 2, 4, 8, 16)]
    assert all(more > less for more, less in pairwise(left))
    assert left[0] < 1 and left[-1] == 0


def test_other_layers_and_the_model_itself_are_left_alone():
    model = llama(random_norms=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = model.config.to_dict()
    view = fold(model, block=(2, 4), rank=2)
    for visit, layer in ((0, 0), (1, 1), (4, 4), (5, 5)):
        ours = of_layer(view, visit)
        assert all(torch.equal(ours[name], tensor) for name, tensor in of_layer(model, layer).items())
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert torch.equal(view.get_parameter(name), before[name])
    assert model.state_dict().keys() == before.keys() and model.config.to_dict() == settings
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not storage(view).keys() & storage(model).keys()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_memory_is_that_of_the_shared_layers():
    model = llama()
    whole, layer = sum(storage(model).values()), sum(p.nbytes for p in model.model.layers[0].parameters())
    assert sum(storage(fold(model, loops=3, rank=0)).values()) == whole - 4 * layer
    view = fold(model, loops=3, rank=2)
    adapters = sum(p.nbytes for name, p in view.named_parameters() if "lora_" in name)
    assert sum(storage(view).values()) == whole - 4 * layer + adapters
    sizes = sum(sum(model.model.layers[0].get_submodule(name).weight.shape) for name in LINEAR)
    assert adapters == LAYERS * 2 * sizes * 4
    assert {name for name, p in view.named_parameters() if p.requires_grad} == {
        name for name, _ in view.named_parameters() if "lora_" in name
    }


def test_ranks_above_those_of_the_matrices_are_cut(tmp_path):
    view = fold(llama(), rank=12)
    layer = view.model.layers[3]  # keys and values have 8 rows: one head of two
    assert layer.self_attn.k_proj.lora_A["default"].weight.shape == (8, WIDTH)
    assert layer.self_attn.q_proj.lora_A["default"].weight.shape == (12, WIDTH)
    assert {module.scaling["default"] for module in view.modules() if hasattr(module, "lora_A")} == {1.0}
    assert (layer.self_attn.k_proj.r, layer.self_attn.q_proj.r) == ({"default": 8}, {"default": 12})
    opened = restack.open(str(restack.save(view, tmp_path / "saved", weights="shared")))
    assert torch.equal(logits(opened), logits(view))


def test_layers_of_gpt2_are_folded_and_biases_are_shared():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(n_layer=4, n_embd=16, n_head=2, vocab_size=1147, n_positions=32)
    ).eval()
    same(logits(fold(model, rank=FULL)), logits(model), atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        for layer in model.transformer.h:
            layer.mlp.c_fc.bias.normal_()
    view = fold(model, rank=FULL)
    shared = (model.transformer.h[1].mlp.c_fc.bias + model.transformer.h[3].mlp.c_fc.bias) / 2
    for visit in (1, 3):
        same(view.transformer.h[visit].mlp.c_fc.base_layer.bias, shared)
    assert not torch.allclose(logits(view), logits(model), atol=1e-3)


def test_layers_of_a_restack_llama_are_folded():
    model = tiny_house(seed=2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1)
    view = fold(model, rank=FULL)
    assert type(view) is RestackLlamaForCausalLM and view.restack_plan.depths == (3,)
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        same(view(tokens, use_cache=False).logits, model(tokens, use_cache=False).logits, atol=1e-4)
        cached = view.generate(tokens, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert cached.shape == (1, 9)
    with pytest.raises(ViewError, match="runs a plan by itself"):
        fold(tiny_house(plan="0:4,2:6"), rank=0)


def test_a_view_is_folded_by_its_visits():
    view = restack.view(llama(4), "0:3,1:4")
    assert fold(view, rank=2).restack_plan.order == (0, 1, 2, 0, 1, 2)
    same(logits(fold(view, rank=FULL)), logits(view), atol=1e-4, rtol=1e-4)
    with pytest.raises(ViewError, match="damped or scaled"):
        fold(restack.view(llama(4), "0:4@0.5"), rank=0)


def test_lower_precision_keeps_precise_adapters():
    view = fold(llama().to(torch.bfloat16), rank=4)
    assert view.model.layers[0].mlp.up_proj.base_layer.weight.dtype == torch.bfloat16
    assert {p.dtype for name, p in view.named_parameters() if "lora_" in name} == {torch.float32}


@pytest.mark.parametrize("weights", ["shared", "full"])
def test_a_folded_model_is_saved_and_opened(tmp_path, weights):
    model = llama(random_norms=True)
    model.save_pretrained(tmp_path / "llama")
    view = fold(restack.open(str(tmp_path / "llama")), block=(1, 5), rank=3)
    opened = restack.open(str(restack.save(view, tmp_path / "saved", weights=weights)))
    same(logits(opened), logits(view))
    if weights == "shared":
        base = LlamaForCausalLM.from_pretrained(tmp_path / "saved" / "base")
        assert base.config.num_hidden_layers == LAYERS - 2 == len(base.model.layers)
        assert opened.restack_plan == view.restack_plan
        config = json.loads((tmp_path / "saved" / "adapter" / "adapter_config.json").read_text())
        assert config["r"] == 3 and config["layers_to_transform"] == [1, 2, 3, 4]
    with pytest.raises(ModelError, match="made in memory"):
        restack.save(view, tmp_path / "recipe")


def test_a_folded_model_is_trained(tmp_path):
    view = fold(llama(), rank=2).train()
    tokens = torch.tensor([[5, 9, 2, 7, 11, 3]])
    view(tokens, labels=tokens).loss.backward()
    first, second = (view.model.layers[visit].mlp.up_proj.lora_B["default"].weight for visit in (0, 3))
    assert first.grad.abs().max() > 0 and not torch.equal(first.grad, second.grad)


def hybrid():
    kinds = ["sliding_attention", "full_attention", "full_attention", "full_attention"]
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, sliding_window=4, layer_types=kinds,
        )
    )  # fmt: skip


def uneven():
    model = llama(4)
    model.model.layers[3].mlp.up_proj = torch.nn.Linear(16, 20, bias=False)
    return model


def with_adapter():
    model = llama(4)
    model.add_adapter(peft.LoraConfig(target_modules=["q_proj"]))
    return model


@pytest.mark.parametrize(
    ("make", "options", "error", "reason"),
    [
        (
            llama,
            {"loops": 4},
            UsageError,
            "0:6 has 6 layers, which 4 loops do not divide; write 2 or 3 or 6 loops",
        ),
        (llama, {"block": "1:6"}, UsageError, "1:6 has 5 layers, which 2 loops .*; write 5 loops"),
        (llama, {"block": "2"}, UsageError, "2:3 has 1 layers, which 2 loops .*; write a longer block"),
        (llama, {"loops": 1}, UsageError, "whole number from 2"),
        (llama, {"rank": -1}, UsageError, "the rank is -1"),
        (llama, {"rank": 2.0}, UsageError, "the rank is 2.0"),
        (llama, {"init": "random"}, UsageError, "average, stepwise, lower"),
        (llama, {"block": (2, 9)}, PlanError, "<= 6"),
        (llama, {"block": (4, 2)}, PlanError, "<= 6"),
        (llama, {"block": "0:2,4:6"}, PlanError, "consecutive"),
        (llama, {"block": "0:9"}, PlanError, "past the model's 6 layers"),
        (hybrid, {}, ViewError, "layers 0 and 2 .*the kind of attention is sliding_attention in one"),
        (uneven, {}, ViewError, r"layers 1 and 3 .*mlp\.up_proj.* is \(?24.*20"),
        (with_adapter, {}, ModelError, "has adapters already"),
        (lambda: llama().to("meta"), {}, ModelError, "no weights in memory"),
    ],
)
def test_what_cannot_be_folded_is_refused(make, options, error, reason):
    with pytest.raises(error, match=reason) as raised:
        fold(make(), **options)
    assert "\n" not in str(raised.value) or error is PlanError


def test_unlike_layers_outside_the_block_do_no_harm():
    model = hybrid().eval()
    view = fold(model, block=(1, 3), rank=FULL)
    tokens = torch.arange(2, 12)[None]
    with torch.no_grad():
        same(view(tokens).logits, model(tokens).logits, atol=1e-4, rtol=1e-4)


def test_biases_of_other_models_are_averaged():
    torch.manual_seed(0)
    settings = {name: value for name, value in SETTINGS.items() if name != "max_position_embeddings"}
    model = Qwen2ForCausalLM(Qwen2Config(**settings)).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.bias.normal_()
    view = fold(model, rank=2)
    names = [name for name, _ in view.named_parameters() if re.search(r"layers\.1\..*q_proj.*bias", name)]
    wanted = (model.model.layers[1].self_attn.q_proj.bias + model.model.layers[3].self_attn.q_proj.bias) / 2
    assert len(names) == 1
    same(view.get_parameter(names[0]), wanted)


def test_without_peft_only_adapters_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match=r"pip install 'restack\[train\]'"):
        fold(llama())
    assert len(fold(llama(), rank=0).restack_plan) == LAYERS


@pytest.mark.parametrize("rank", [0, 2])
def test_the_command_says_what_was_made(tmp_path, capsys, rank):
    from restack.cli import fold as command
    from restack.cli.loading import Source

    saved_llama(tmp_path / "llama")
    source = Source(model=str(tmp_path / "llama"))
    command.run(source, "0:4", 2, "average", rank, tmp_path / "folded")
    told = capsys.readouterr().out
    base = restack.open(str(tmp_path / "llama"))
    opened = restack.open(str(tmp_path / "folded"))
    same(logits(opened), logits(fold(base, rank=rank)))
    assert "layers 0:4 folded into 2" in told and f"4 -> 2, {opened.restack_plan}\n" in told
    whole, layer = sum(storage(base).values()), sum(p.nbytes for p in base.model.layers[0].parameters())
    assert f"{whole / 1e3:.1f} kB -> {(whole - 2 * layer) / 1e3:.1f} kB" in told
    assert ("rank 2, for 4 visits; they leave" in told) == bool(rank)
    assert len(recipes.open_tokenizer(str(tmp_path / "folded"))) == len(recipes.open_tokenizer("demo"))


def test_the_command_refuses_before_it_loads(tmp_path, monkeypatch):
    from restack.cli import fold as command
    from restack.cli.loading import Source

    monkeypatch.setattr(Source, "load", lambda self: pytest.fail("loaded the model"))
    with pytest.raises(UsageError, match="3 loops do not divide"):
        command.run(Source(model=saved_llama(tmp_path / "llama")), None, 3, "average", 4, tmp_path / "folded")
