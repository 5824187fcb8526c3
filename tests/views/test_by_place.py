"""Gemma 3n and Gemma 4: embeddings for each layer, and layers that read the keys and values of others."""

import io

import pytest
import torch

import restack
from tests.views.survey_models import VOCABULARY, tiny
from tests.views.survey_twins import twin

PROMPT = torch.randint(3, VOCABULARY, (2, 11), generator=torch.Generator().manual_seed(1))
ORDER = [0, 1, 2, 1, 3, 3]
each_gemma = pytest.mark.parametrize("gemma", ["gemma3n_text", "gemma4_text", "gemma4_unified_text"])


@torch.no_grad()
def logits(model):
    return model(PROMPT).logits


@each_gemma
def test_in_place_and_back(gemma):
    base = tiny(gemma)
    plain, said = logits(base), base.config.to_dict()
    for order in (ORDER, [0, 2, 1, 3]):
        expected = logits(twin(gemma, base, order))
        with restack.slung(base, order):
            assert torch.equal(logits(base), expected)
            with restack.slung(base, ORDER):
                assert torch.equal(logits(base), logits(twin(gemma, tiny(gemma), ORDER)))
            assert torch.equal(logits(base), expected)
    assert torch.equal(logits(base), plain)
    assert base.config.to_dict() == said
    assert not any(module._forward_hooks for module in base.modules())


@each_gemma
def test_a_view_of_a_view(gemma):
    base = tiny(gemma)
    view = restack.view(restack.view(base, ORDER), [0, 3, 2, 4, 4])
    assert torch.equal(logits(view), logits(twin(gemma, base, [0, 1, 2, 3, 3])))


@each_gemma
def test_materialised_it_has_the_parts_of_its_visits_alone(gemma):
    base = tiny(gemma)
    made = restack.materialise(base, ORDER)
    expected = twin(gemma, base, ORDER)
    assert torch.equal(logits(made), logits(expected))
    shapes = {name: tensor.shape for name, tensor in made.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in expected.state_dict().items()}


@each_gemma
def test_the_base_and_pickled_views_are_untouched(gemma):
    base = tiny(gemma)
    plain = logits(base)
    view = restack.view(base, ORDER)
    expected = logits(view)
    assert torch.equal(logits(base), plain)
    stored = io.BytesIO()
    torch.save(view, stored)
    stored.seek(0)
    assert torch.equal(logits(torch.load(stored, weights_only=False)), expected)
