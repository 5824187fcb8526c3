"""A materialised plan: the twin's equal, nothing shared, saved and loaded and trained like any model."""

import pytest
import torch
import transformers

import restack
from tests.views.architectures import ARCHITECTURES, BY_NAME, COMMON, LLAMA, VOCABULARY
from tests.views.survey_models import decoders, tiny
from tests.views.survey_twins import BAKED as BAKED_BY_PLACE

ORDER = [0, 1, 2, 1, 2, 3, 3]
PROMPT = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(4))
all_architectures = pytest.mark.parametrize(
    "architecture", ARCHITECTURES, ids=lambda architecture: architecture.name
)


@torch.no_grad()
def logits(model):
    return model(PROMPT).logits


@all_architectures
def test_equals_the_twin_and_shares_nothing(architecture):
    base = architecture.model()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    own = restack.materialise(base, ORDER)
    twin = architecture.twin(base, ORDER)
    assert torch.equal(logits(own), logits(twin))
    assert torch.equal(
        own.generate(PROMPT, max_new_tokens=12, do_sample=False),
        twin.generate(PROMPT, max_new_tokens=12, do_sample=False),
    )
    assert [name for name, _ in own.named_parameters()] == [name for name, _ in twin.named_parameters()]
    assert not hasattr(own, "restack_plan")

    in_layers = own.get_submodule(architecture.layers)
    tensors = [*own.parameters(), *in_layers.buffers()]
    storages = [tensor.untyped_storage().data_ptr() for tensor in tensors]
    assert len(set(storages)) == len(storages)
    shared = {tensor.untyped_storage().data_ptr() for tensor in [*base.parameters(), *base.buffers()]}
    assert shared.isdisjoint(
        tensor.untyped_storage().data_ptr() for tensor in [*own.parameters(), *own.buffers()]
    )
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


@all_architectures
def test_saved_and_loaded(architecture, tmp_path):
    base = architecture.model()
    own = restack.materialise(base, ORDER)
    if not architecture.saved:  # its config can say only periodic orders
        with pytest.raises(restack.ViewError, match="save the base and the plan"):
            own.save_pretrained(tmp_path)
        assert not any(tmp_path.iterdir())
        return
    own.save_pretrained(tmp_path)
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    assert type(loaded) is type(base)
    assert torch.equal(logits(loaded), logits(own))


def test_of_a_view_and_of_a_slung_model():
    base = LLAMA.model()
    view = restack.view(base, [0, 1, 2, 1, 2, 3])
    expected = logits(LLAMA.twin(base, [3, 1, 1]))
    assert torch.equal(logits(restack.materialise(view, [5, 1, 3])), expected)
    with restack.slung(base, [0, 1, 2, 1, 2, 3]):
        own = restack.materialise(base, [5, 1, 3])
    assert torch.equal(logits(own), expected)
    with pytest.raises(restack.ViewError, match="not slung"):
        restack.unsling(own)


def test_trains():
    base = LLAMA.model()
    own, twin = restack.materialise(base, ORDER), LLAMA.twin(base, ORDER)
    for model in (own, twin):
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(PROMPT, labels=PROMPT).loss
            loss.backward()
            optimizer.step()
    ours, theirs = own.state_dict(), twin.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    first, second = own.model.layers[1].mlp.up_proj.weight, own.model.layers[3].mlp.up_proj.weight
    assert not torch.equal(first, second)  # the two runs of layer 1 have gone their own ways


def test_ties_are_kept():
    own = restack.materialise(LLAMA.model(tie_word_embeddings=True), [0, 1, 1])
    assert own.lm_head.weight is own.model.embed_tokens.weight


def test_frozen_parameters_stay_frozen():
    base = BY_NAME["gpt2"].model()
    base.transformer.h[1].requires_grad_(False)
    own = restack.materialise(base, [1, 0])
    assert not any(parameter.requires_grad for parameter in own.transformer.h[0].parameters())
    assert all(parameter.requires_grad for parameter in own.transformer.h[1].parameters())


BAKED = {
    "diffllama": ("DiffLlamaConfig", COMMON, "lambda_init"),
    "gpt2": (
        "GPT2Config",
        {"n_embd": 32, "n_layer": 4, "n_head": 4, "scale_attn_by_inverse_layer_idx": True},
        "scal",
    ),
    "deepseek_v3": (
        "DeepseekV3Config",
        BY_NAME["deepseek_v3"].settings | {"first_k_dense_replace": 1},
        r"layers\.\d\.mlp",
    ),
    "lfm2_moe": (
        "Lfm2MoeConfig",
        COMMON
        | {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "num_dense_layers": 2,
            "layer_types": ["conv", "full_attention"] * 2,
        },
        r"layers\.\d\.feed_forward",
    ),
}


@pytest.mark.parametrize(("config", "settings", "where"), BAKED.values(), ids=BAKED)
def test_layers_that_no_config_makes_are_not_saved(config, settings, where, tmp_path):
    """Constants and experts that follow from a layer's number: loading would build another model."""
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**settings)).eval()
    own = restack.materialise(base, [0, 0, 1, 2, 3])
    assert torch.equal(logits(own), logits(restack.view(base, [0, 0, 1, 2, 3])))
    with pytest.raises(
        restack.ViewError, match=rf"loaded by its config would not be.*{where}.*save the base"
    ):
        own.save_pretrained(tmp_path)
    assert not any(tmp_path.iterdir())
    with pytest.raises(restack.ViewError, match="would not be this model"):
        restack.view(own, [0, 1, 2]).config.save_pretrained(tmp_path)
    restack.materialise(own, [0, 2, 3, 4]).save_pretrained(tmp_path)  # these are the base's again
    base.save_pretrained(tmp_path)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("order", [[3, 2, 1, 0], [0, 0, 1, 2, 3], [1, 3]], ids=str)
@pytest.mark.parametrize("model_type", [name for name in BAKED_BY_PLACE if name in decoders()])
def test_what_bakes_in_its_place_is_saved_only_if_it_loads_the_same(model_type, order, tmp_path):
    own = restack.materialise(tiny(model_type), order)
    try:
        own.save_pretrained(tmp_path)
    except restack.ViewError:
        assert not any(tmp_path.iterdir())
        return
    loaded = type(own).from_pretrained(tmp_path).eval()
    loaded.set_attn_implementation(own.config._attn_implementation)
    assert torch.equal(logits(loaded), logits(own))
