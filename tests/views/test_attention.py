"""Every attention implementation that a CPU can run, and one of the user's own, under a view."""

import pytest
import torch
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.models.llama.modeling_llama import eager_attention_forward

from tests.views.architectures import BY_NAME
from tests.views.pairs import ORDER, PROMPT, greedy, logits, pair

NAMES = ["llama", "mistral", "qwen2", "gemma3", "mixtral", "gpt2"]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", NAMES)
def test_prefill_and_generation(name, attention):
    _, view, twin = pair(BY_NAME[name], attention=attention)
    assert view.config._attn_implementation == twin.config._attn_implementation == attention
    assert torch.equal(logits(view), logits(twin))
    assert torch.equal(greedy(view), greedy(twin))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_flex(name):
    """Prefill alone: torch has no flex attention for generation, nor its backward, on a CPU."""
    _, view, twin = pair(BY_NAME[name], attention="flex_attention", head_dim=16)
    ours = logits(view, use_cache=False)
    assert torch.equal(ours, logits(twin, use_cache=False))
    view.set_attn_implementation("eager")
    torch.testing.assert_close(ours, logits(view), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_set_on_the_view(name):
    """The view's implementation is its own, also in layers that it shares weights of."""
    base, view, twin = pair(BY_NAME[name], attention="eager")
    view.set_attn_implementation("sdpa")
    twin.set_attn_implementation("sdpa")
    assert base.config._attn_implementation == "eager"
    assert torch.equal(logits(view), logits(twin))
    assert all(layer.self_attn.config._attn_implementation == "sdpa" for layer in view.model.layers)


def test_a_users_own():
    """It is called once a visit, with the number of the visit."""
    called = []

    def attend(module, *args, **kwargs):
        called.append(module.layer_idx)
        return eager_attention_forward(module, *args, **kwargs)

    AttentionInterface.register("of_a_test", attend)
    AttentionMaskInterface.register("of_a_test", ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    _, view, twin = pair(attention="eager")
    expected = logits(twin)
    view.set_attn_implementation("of_a_test")
    assert torch.equal(logits(view), expected)
    assert called == list(range(len(ORDER)))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_mask_of_the_users_own(attention):
    """(B, 1, T, T): a document boundary in the middle of each row."""
    _, view, twin = pair(attention=attention)
    length = PROMPT.shape[1]
    document = torch.arange(length) >= length // 2
    allowed = (document[:, None] == document[None]) & torch.ones(length, length, dtype=torch.bool).tril()
    mask = torch.zeros(2, 1, length, length).masked_fill(~allowed, torch.finfo(torch.float32).min)
    ours = logits(view, attention_mask=mask, use_cache=False)
    assert torch.equal(ours, logits(twin, attention_mask=mask, use_cache=False))
    assert not torch.equal(ours, logits(view, use_cache=False))


def test_packed_rows():
    """Two rows packed into one, told apart by their positions, as `DataCollatorWithFlattening` does."""
    _, view, twin = pair(attention="sdpa")
    packed = PROMPT.reshape(1, -1)
    positions = torch.arange(PROMPT.shape[1]).repeat(2)[None]
    ours = logits(view, packed, position_ids=positions, use_cache=False)
    assert torch.equal(ours, logits(twin, packed, position_ids=positions, use_cache=False))
    torch.testing.assert_close(ours.view(2, -1, ours.shape[-1]), logits(view), atol=2e-4, rtol=1e-4)
