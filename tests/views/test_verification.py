"""`restack.verify`: what it tells of right models, and that wrong ones are told."""

import time

import pytest
import torch
import transformers
from torch import nn

import restack
from restack.views import Verification
from tests.views.architectures import ARCHITECTURES, LLAMA
from tests.views.survey_models import tiny

EVERY_TENSOR = 3 + 4 * 9  # of the llama: embedding, norm and head, and nine a layer


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_right_models(architecture):
    found = restack.verify(architecture.model())
    assert found.layers == 4 and found.tokens == 6
    assert 0 <= found.cache_difference < 1e-5


def test_what_it_tells():
    model = LLAMA.model()
    found = restack.verify(model)
    buffers = len(list(model.buffers()))
    assert found == Verification("LlamaForCausalLM", 4, 6, EVERY_TENSOR + buffers, found.cache_difference)


@pytest.mark.parametrize("name", ["cosmos3_edge_text", "gemma3n_text", "roformer", "openai-gpt"])
def test_other_kinds_of_models(name):
    """Without a head; with embeddings for each layer; what was an encoder; without a cache."""
    assert restack.verify(tiny(name)).layers == 4


def test_views_of_all_kinds():
    view = restack.view(LLAMA.model(), "0:3,1@0.5,3")
    assert restack.verify(view).layers == 5
    assert view.restack_plan.order == (0, 1, 2, 1, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes(dtype):
    assert restack.verify(LLAMA.model().to(dtype)).cache_difference < 0.01


def test_it_takes_about_a_second():
    model = LLAMA.model(num_hidden_layers=12, hidden_size=256, intermediate_size=688)
    restack.verify(model)  # imports
    start = time.process_time()
    restack.verify(model)
    assert time.process_time() - start < 2


def test_it_leaves_the_model_as_it_is():
    model = LLAMA.model(attention_dropout=0.5).train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    said, generation = model.config.to_dict(), model.generation_config.to_dict()
    tensors = {name: (id(t), t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
    torch.manual_seed(7)
    state = torch.get_rng_state()
    restack.verify(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert (model.config.to_dict(), model.generation_config.to_dict()) == (said, generation)
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert id(tensor) == tensors[name][0] and torch.equal(tensor, tensors[name][1])
        assert tensor.grad is None


def test_views_that_are_refused():
    with pytest.raises(restack.ViewError, match="rescales its weights"):
        restack.verify(tiny("rwkv"))
    with pytest.raises(restack.ViewError, match="needs a loaded model"):
        restack.verify("llama")


def test_a_model_without_weights():
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA.settings))
    with pytest.raises(restack.ViewError, match="has no weights"):
        restack.verify(model)


class Numbered(nn.Module):
    """An attention that finds its slot in the cache by a number that views do not recognise."""

    def __init__(self, attention: nn.Module, number: int) -> None:
        super().__init__()
        self.attention, self.place = attention, (number,)

    def forward(self, *args, **kwargs):
        self.attention.layer_idx = self.place[0]
        return self.attention(*args, **kwargs)


def test_slots_in_the_cache_that_views_do_not_renumber():
    model = LLAMA.model()
    for number, layer in enumerate(model.model.layers):
        layer.self_attn = Numbered(layer.self_attn, number)
    with pytest.raises(restack.ViewError, match=r"(cannot decode|decodes otherwise) with its cache"):
        restack.verify(model)


def test_a_cache_that_is_wrong_without_a_view():
    model = LLAMA.model()
    norm = model.model.norm
    norm.forward = type("Forgetful", (), {"__call__": lambda self, x: x * x.shape[1]})()
    with pytest.raises(restack.ViewError, match=r"with its cache .* so does the model without a view"):
        restack.verify(model)


def test_logits_that_differ_from_the_models():
    class OfTheBase(nn.Module):
        def __deepcopy__(self, memo):
            return nn.Identity()

        def forward(self, x):
            return x + 1

    model = LLAMA.model()
    model.model.norm = OfTheBase()
    with pytest.raises(restack.ViewError, match="identity view of LlamaForCausalLM gives other logits"):
        restack.verify(model)


def test_logits_that_are_others_each_time():
    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    model = LLAMA.model()
    model.model.norm = Noise()
    with pytest.raises(restack.ViewError, match="other logits each time it runs"):
        restack.verify(model)


def test_tensors_that_are_not_shared():
    class Selfish(nn.Linear):
        def __deepcopy__(self, memo):
            copied = Selfish(self.in_features, self.out_features, bias=False)
            copied.weight.data = self.weight.data.clone()
            return copied

    model = LLAMA.model()
    head = Selfish(32, 96, bias=False)
    head.weight.data = model.lm_head.weight.data
    model.lm_head = head
    with pytest.raises(restack.ViewError, match=r"1 tensors of its own, lm_head\.weight for one"):
        restack.verify(model)
