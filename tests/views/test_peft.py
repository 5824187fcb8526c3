"""peft: adapters on a view, one a visit, and views of a model that has adapters."""

import re

import pytest
import torch

import restack
from tests.views.architectures import BY_NAME
from tests.views.pairs import ORDER, PROMPT, greedy, logits, pair, state, unchanged

peft = pytest.importorskip("peft")
TARGETS = ["q_proj", "v_proj", "down_proj"]


def lora(model, **options):
    """A LoRA of every visit that does something: by default its second half would be zeros."""
    config = peft.LoraConfig(
        r=4, target_modules=TARGETS, init_lora_weights=False, task_type="CAUSAL_LM", **options
    )
    return peft.get_peft_model(model, config)


def adapters(model):
    return {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}


def copy_adapters(source, target, order=None):
    """By name; with an order, those of visit i of the target are those of layer order[i] of the source."""
    theirs = adapters(source)

    def name_in_source(name):
        if order is None:
            return name
        return re.sub(r"\.layers\.(\d+)\.", lambda match: f".layers.{order[int(match[1])]}.", name)

    with torch.no_grad():
        for name, parameter in adapters(target).items():
            parameter.copy_(theirs[name_in_source(name)])


@pytest.mark.parametrize("name", ["llama", "gemma3", "mixtral"])
def test_an_adapter_a_visit(name):
    base, view, twin = pair(BY_NAME[name])
    before, modules = state(base), {id(module) for module in base.modules()}
    plain = logits(base)
    on_view, on_twin = lora(view), lora(twin)
    copy_adapters(on_view, on_twin)
    assert adapters(on_view).keys() == adapters(on_twin).keys()
    targets = sum(name.endswith(".q_proj.lora_A.default.weight") for name in adapters(on_view))
    assert targets == len(ORDER)
    assert torch.equal(logits(on_view), logits(on_twin))
    assert torch.equal(greedy(on_view), greedy(on_twin))
    assert not torch.equal(logits(on_view), logits(restack.view(base, ORDER)))
    assert unchanged(base, before) and {id(module) for module in base.modules()} == modules
    assert torch.equal(logits(base), plain)


def test_adapters_alone_are_trained():
    base, view, twin = pair()
    on_view, on_twin = lora(view), lora(twin)
    copy_adapters(on_view, on_twin)
    for model in (on_view, on_twin):
        model(PROMPT, labels=PROMPT).loss.backward()
    theirs = adapters(on_twin)
    for name, parameter in adapters(on_view).items():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-6, rtol=1e-4)
    assert all(parameter.grad is None for parameter in base.parameters())
    first, second = (on_view.base_model.model.model.layers[i].self_attn.q_proj for i in (1, 3))  # of layer 1
    assert first.base_layer.weight is second.base_layer.weight
    assert not torch.equal(first.lora_A["default"].weight.grad, second.lora_A["default"].weight.grad)


def test_adapters_saved_and_loaded_onto_another_view(tmp_path):
    base, view, _ = pair()
    on_view = lora(view)
    on_view.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(restack.view(base, ORDER), tmp_path)
    assert torch.equal(logits(again), logits(on_view))


def test_through_transformers_own_integration(tmp_path):
    """`model.add_adapter`: adapters inside a plain model, whose `save_pretrained` saves them alone."""
    _, view, twin = pair()
    config = peft.LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False)
    view.add_adapter(config)
    twin.add_adapter(config)
    copy_adapters(view, twin)
    assert torch.equal(logits(view), logits(twin))
    view.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_view_of_a_peft_model(name, tmp_path):
    """Visits of one layer share its adapter."""
    base, _, twin = pair(BY_NAME[name])
    adapted = lora(base)
    view, on_twin = restack.view(adapted, ORDER), lora(twin)
    copy_adapters(adapted, on_twin, ORDER)
    assert type(view) is type(adapted) and view.restack_plan.order == tuple(ORDER)
    assert torch.equal(logits(view), logits(on_twin))
    assert torch.equal(greedy(view), greedy(on_twin))
    owned = {id(parameter) for parameter in adapted.parameters()}
    assert all(id(parameter) in owned for parameter in view.parameters())

    view(PROMPT, labels=PROMPT).loss.backward()
    on_twin(PROMPT, labels=PROMPT).loss.backward()
    of_copies = adapters(on_twin)
    for name, parameter in adapters(adapted).items():
        number = int(re.search(r"\.layers\.(\d+)\.", name)[1])
        copies = [
            name.replace(f".layers.{number}.", f".layers.{visit}.")
            for visit, layer in enumerate(ORDER)
            if layer == number
        ]
        total = sum(of_copies[copy].grad for copy in copies)
        torch.testing.assert_close(parameter.grad, total, atol=1e-6, rtol=1e-4)
    view.save_pretrained(tmp_path)  # adapters of all visits, as the twin's
    again = peft.PeftModel.from_pretrained(pair(BY_NAME[name_of(base)]).twin, tmp_path)
    assert torch.equal(logits(again), logits(on_twin))


def name_of(base):
    return {"llama": "llama", "gemma3_text": "gemma3"}[base.config.model_type]


def test_adapters_are_switched_and_disabled_in_the_view_alone():
    base, _, twin = pair()
    adapted = lora(base)
    adapted.add_adapter("other", peft.LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False))
    view = restack.view(adapted, ORDER)
    with_default, with_other = logits(adapted), None
    view.set_adapter("other")
    assert torch.equal(logits(adapted), with_default)
    with_other = logits(view)
    with view.disable_adapter():
        assert torch.equal(logits(view), logits(twin))
        assert torch.equal(logits(adapted), with_default)
    assert torch.equal(logits(view), with_other) and not torch.equal(with_other, logits(twin))


def test_merged_into_a_model_of_its_own():
    """The weights of a view are the base's, so adapters of its visits are merged into copies."""
    base, view, twin = pair()
    on_view = lora(view)
    before, expected = state(view), logits(on_view)
    own = restack.materialise(on_view, "all").merge_and_unload()
    assert type(own) is type(base)
    torch.testing.assert_close(logits(own), expected, atol=1e-4, rtol=1e-4)
    on_twin = lora(twin)
    copy_adapters(on_view, on_twin)
    assert torch.equal(logits(own), logits(on_twin.merge_and_unload()))
    assert unchanged(
        restack.view(base, ORDER),
        {k.replace(".base_layer", ""): v for k, v in before.items() if "lora_" not in k},
    )


@pytest.mark.xfail(strict=True, reason="peft adds what it merges to the base's weights: once for each visit")
def test_merged_into_the_view_itself():
    base, view, _ = pair()
    before = state(base)
    lora(view).merge_and_unload()
    assert unchanged(base, before)
