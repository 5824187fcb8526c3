"""Speculative decoding with shallower views of the same weights as drafts: the tokens stay the same."""

import pytest
import torch

import restack
from tests.versions import skip_where_old
from tests.views.architectures import BY_NAME
from tests.views.pairs import NEW_TOKENS, ORDER, PROMPT, greedy, pair

ONE = PROMPT[:1]  # transformers speculates one sequence at a time


def counted(model):
    """The number of tokens that each forward pass of a model is given, as they come."""
    given = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: given.append((args[0] if args else kwargs["input_ids"]).shape[1]),
        with_kwargs=True,
    )
    return given


@pytest.mark.parametrize("draft", [[0, 3], [0, 1, 2, 3], [3]], ids=str)
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "mixtral", "gpt2"])
def test_a_shallower_view_drafts(name, draft):
    if name == "gemma3":
        skip_where_old("a rejected draft leaves a sliding window that is cut wrongly")
    base, view, twin = pair(BY_NAME[name])
    expected = greedy(twin, ONE)
    assistant = restack.view(base, draft)
    drafted, checked = counted(assistant), counted(view)
    assert torch.equal(greedy(view, ONE, assistant_model=assistant), expected)
    assert (
        drafted and sum(checked) > ONE.shape[1] + len(checked) - 1
    )  # it drafted, and several were checked at once


def test_what_a_perfect_draft_saves():
    """A view that is the model accepts every draft, so the model runs far less often than it makes tokens."""
    base, _, _ = pair()
    same = restack.view(base, range(4))
    same.generation_config.num_assistant_tokens = 5
    same.generation_config.num_assistant_tokens_schedule = "constant"
    same.generation_config.assistant_confidence_threshold = 0.0
    expected = greedy(base, ONE)
    runs = counted(base)
    assert torch.equal(greedy(base, ONE, assistant_model=same), expected)
    assert len(runs) <= NEW_TOKENS // 3


def test_the_base_drafts_for_a_deeper_view():
    base, view, twin = pair()
    assert torch.equal(greedy(view, ONE, assistant_model=base), greedy(twin, ONE))
    assert torch.equal(greedy(base, ONE, assistant_model=restack.view(base, [0, 3])), greedy(base, ONE))


def test_leaving_early():
    """transformers' own self-speculation, by the first layers of the model: here, the first visits."""
    _, view, twin = pair()
    assert torch.equal(greedy(view, ONE, assistant_early_exit=2), greedy(twin, ONE))
    assert view.config.num_hidden_layers == len(ORDER)


def test_looking_up_the_prompt():
    _, view, twin = pair()
    repeating = ONE.repeat(1, 3)
    assert torch.equal(greedy(view, repeating, prompt_lookup_num_tokens=4), greedy(twin, repeating))


@pytest.mark.slow
def test_sampling_is_of_the_same_distribution():
    """A token that was drafted, and taken or not, is distributed as the model's own: chi-squared."""
    base, view, twin = pair(vocab_size=8)
    draft = restack.view(base, [0, 3])
    prompt = ONE % 5 + 3
    with torch.no_grad():
        expected, drafted = (model(prompt).logits[0, -1].softmax(-1) for model in (twin, draft))
    assert (expected - drafted).abs().sum() > 0.2  # else a draft that were always taken would pass
    torch.manual_seed(0)
    draws = 400
    counts = torch.zeros(8)
    for _ in range(draws):
        drawn = view.generate(prompt, max_new_tokens=2, do_sample=True, top_k=0, assistant_model=draft)
        counts[drawn[0, prompt.shape[1]]] += 1
    chi_squared = ((counts - draws * expected) ** 2 / (draws * expected)).sum()
    assert chi_squared < 24.3  # 7 degrees of freedom: p = 0.001
