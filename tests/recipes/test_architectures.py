"""Recipes of many architectures: what comes back equals what the architecture's own constructor builds."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import restack
from restack.errors import ViewError
from tests.views.architectures import ARCHITECTURES, VOCABULARY

ORDER = [0, 1, 2, 1, 3, 3]  # leaves no rule such as "every second layer" as it was
TOKENS = torch.randint(VOCABULARY, (1, 12), generator=torch.Generator().manual_seed(0))


def logits(model):
    with torch.no_grad():
        return model(TOKENS, use_cache=False).logits


@pytest.fixture(params=ARCHITECTURES, ids=lambda architecture: architecture.name)
def architecture(request):
    return request.param


@pytest.fixture
def base(architecture, tmp_path):
    architecture.model().save_pretrained(tmp_path / "base")
    return AutoModelForCausalLM.from_pretrained(tmp_path / "base", attn_implementation="eager")


def test_recipes_and_shared_weights(architecture, base, tmp_path):
    expected = logits(architecture.twin(base, ORDER))
    view = restack.view(base, ORDER)
    for weights in ("none", "shared"):
        folder = restack.save(view, tmp_path / weights, weights=weights)
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", output_loading_info=True
        )
        assert not info["missing_keys"] and not info["mismatched_keys"]
        assert torch.equal(logits(model), expected)
        assert AutoConfig.from_pretrained(folder).num_hidden_layers == len(ORDER)


def test_full_weights_are_right_or_refused(architecture, base, tmp_path):
    view = restack.view(base, ORDER)
    try:
        folder = restack.save(view, tmp_path / "full", weights="full")
    except ViewError as error:
        assert not architecture.saved, error
        assert not (tmp_path / "full").exists()
        return
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["mismatched_keys"]
    assert torch.equal(logits(model), logits(architecture.twin(base, ORDER)))
