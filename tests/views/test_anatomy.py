"""Where the layers are and how they are numbered, in models small enough to be ambiguous."""

import pytest
import torch
import transformers
from torch import nn

import restack
from restack.views.anatomy import anatomy, decoder_config
from tests.views.architectures import ARCHITECTURES, BY_NAME, COMMON, LLAMA, Architecture, copy_weights

PROMPT = torch.arange(3, 12)[None]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_finds_the_layers(architecture):
    model = architecture.model()
    parts = anatomy(model)
    assert parts.path == architecture.layers
    assert parts.layers is model.get_submodule(architecture.layers)
    assert parts.config is decoder_config(model) is model.config
    assert parts.index_attributes and all(name == "layer_idx" for _, name in parts.index_attributes)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "mixtral"])
def test_one_or_two_layers(name, depth):
    """With so few, other numbers look like an index: 0 heads, 1 group."""
    architecture = BY_NAME[name]
    base = architecture.model(**{architecture.depth: depth})
    for index, layer in enumerate(base.get_submodule(architecture.layers)):
        layer.flavour = index
    order = [0, depth - 1, 0]
    view, twin = restack.view(base, order), architecture.twin(base, order)
    assert all(attribute == "layer_idx" for _, attribute in anatomy(base).index_attributes)
    assert [layer.flavour for layer in view.get_submodule(architecture.layers)] == order
    assert torch.equal(
        view.generate(PROMPT, max_new_tokens=10, do_sample=False),
        twin.generate(PROMPT, max_new_tokens=10, do_sample=False),
    )


def test_a_number_by_another_name():
    """What is the index in every layer that has it is the index, whatever its name."""
    base = LLAMA.model()
    for index, layer in enumerate(base.model.layers):
        layer.place = index
    view = restack.view(base, [3, 1, 1])
    assert [layer.place for layer in view.model.layers] == [0, 1, 2]


def test_an_index_that_is_not_set_stays_unset():
    base = LLAMA.model()
    for layer in base.model.layers:
        layer.self_attn.extra_layer_idx = None
    view = restack.view(base, [3, 1, 1])
    assert all(layer.self_attn.extra_layer_idx is None for layer in view.model.layers)


def test_numbers_that_are_the_same_in_all_layers_are_no_index():
    base = LLAMA.model()
    for layer in base.model.layers:
        layer.num_layer_number = 2
    view = restack.view(base, [3, 1])
    assert [layer.num_layer_number for layer in view.model.layers] == [2, 2]


@pytest.fixture(scope="module")
def composite() -> nn.Module:
    """Text beside vision, whose encoder has as many layers as the decoder and more parameters."""
    text = COMMON | {
        "head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": 8,
    }
    vision = {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    for parameter in model.model.language_model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def test_a_composite_model(composite):
    order = [0, 1, 1, 2, 3]
    layers = "model.language_model.layers"
    assert anatomy(composite).path == layers
    view = restack.view(composite, order)

    settings = composite.config.to_dict()
    kinds = settings["text_config"]["layer_types"]
    settings["text_config"] |= {
        "layer_types": [kinds[layer] for layer in order],
        "num_hidden_layers": len(order),
    }
    twin = transformers.Gemma3ForConditionalGeneration(transformers.Gemma3Config(**settings)).eval()
    copy_weights(composite, twin, layers, order)

    with torch.no_grad():
        assert torch.equal(view(PROMPT).logits, twin(PROMPT).logits)
    options = {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(view.generate(PROMPT, **options), twin.generate(PROMPT, **options))
    assert view.config.text_config is view.model.language_model.config is not composite.config.text_config
    assert (
        view.config.vision_config.num_hidden_layers == composite.config.vision_config.num_hidden_layers == 4
    )
    assert composite.config.text_config.num_hidden_layers == 4


def test_a_composite_model_in_place(composite):
    with torch.no_grad():
        before = composite(PROMPT).logits
        with restack.slung(composite, [3, 2, 1, 0]):
            assert not torch.equal(composite(PROMPT).logits, before)
        assert torch.equal(composite(PROMPT).logits, before)


def test_the_bare_decoder():
    """A model without its head is a model too."""
    base = LLAMA.model()
    order = [0, 1, 2, 1, 3]
    with torch.no_grad():
        ours = restack.view(base.model, order)(PROMPT).last_hidden_state
        theirs = LLAMA.twin(base, order).model(PROMPT).last_hidden_state
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["gpt_neox", "mamba", "falcon"])
def test_bare_decoders_are_no_encoders(name):
    """GPT-NeoX's config says is_decoder=False, and Mamba's layers say nothing of it."""
    base = BY_NAME[name].model()
    bare = getattr(base, base.base_model_prefix)
    view = restack.view(restack.view(bare, [0, 1, 1, 3]), [0, 3])
    assert view.restack_plan.order == (0, 3)


def test_bert_as_a_decoder():
    bert = Architecture("bert", "BertConfig", {"is_decoder": True}, layers="bert.encoder.layer")
    base, order = bert.model(), [0, 2, 1, 2, 3]
    with torch.no_grad():
        assert torch.equal(restack.view(base, order)(PROMPT).logits, bert.twin(base, order)(PROMPT).logits)


def test_another_part_that_has_as_many_layers():
    """One with a config of its own is no part of the layers."""
    base = LLAMA.model()
    base.model.eye = nn.Module()
    base.model.eye.config = transformers.ViTConfig()
    base.model.eye.layers = nn.ModuleList(nn.Linear(2, 2) for _ in base.model.layers)
    assert restack.view(base, [3, 1]).restack_plan.order == (3, 1)
