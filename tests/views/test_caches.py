"""Every cache of transformers, under a view: the twin's tokens and logits, and the twin's slots."""

import pytest
import torch
from transformers import ContinuousBatchingConfig, DynamicCache, GenerationConfig, StaticCache

from tests.versions import IS_OLD, skip_where_old
from tests.views.architectures import BY_NAME, LLAMA
from tests.views.pairs import NEW_TOKENS, ORDER, PROMPT, greedy, logits, pair

# Sliding everywhere; sliding and full; convolution, Mamba and attention together; latent attention.
KINDS = ["llama", "mistral", "gemma3", "lfm2", "jamba", "bamba", "deepseek_v3"]


def generated(model, ids=PROMPT, **options):
    """The tokens, the logits (B, NEW_TOKENS, V) that each new one was chosen by, and the cache."""
    model.generation_config.disable_compile = True
    out = greedy(model, ids, return_dict_in_generate=True, output_logits=True, **options)
    return out.sequences, torch.stack(out.logits, dim=1), out.past_key_values


def assert_equal(view, twin, **options):
    tokens, chosen_by, cache = generated(view, **options)
    expected, expected_by, expected_cache = generated(twin, **options)
    assert torch.equal(tokens, expected)
    assert torch.equal(chosen_by, expected_by)
    slots, expected_slots = cache.layers, expected_cache.layers
    assert [type(slot) for slot in slots] == [type(slot) for slot in expected_slots]
    assert len(slots) == len(ORDER)
    for slot, expected_slot in zip(slots, expected_slots, strict=True):
        for name in ("keys", "values", "conv_states", "recurrent_states"):
            ours, theirs = getattr(slot, name, None), getattr(expected_slot, name, None)
            assert isinstance(ours, torch.Tensor) == isinstance(theirs, torch.Tensor)
            if isinstance(ours, torch.Tensor):
                assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("name", KINDS)
def test_dynamic(name):
    _, view, twin = pair(BY_NAME[name])
    assert_equal(view, twin)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3"])
def test_static(name):
    _, view, twin = pair(BY_NAME[name])
    assert_equal(view, twin, cache_implementation="static")


def test_quantised_to_eight_bits():
    skip_where_old("there is no fp8 cache")
    _, view, twin = pair()
    options = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}
    assert_equal(view, twin, **options)
    assert not torch.equal(generated(view, **options)[1], generated(view)[1])  # it was quantised


def test_quantised_to_four_bits():
    pytest.importorskip("optimum.quanto")
    _, view, twin = pair(hidden_size=64, head_dim=16)
    config = {"backend": "quanto", "nbits": 4, "residual_length": 4, "q_group_size": 16}
    options = {"cache_implementation": "quantized", "cache_config": config}
    assert_equal(view, twin, **options)
    assert not torch.equal(generated(view, **options)[1], generated(view)[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="transformers offloads caches from CUDA only")
@pytest.mark.parametrize("kind", ["offloaded", "offloaded_static"])
def test_offloaded(kind):
    base, view, twin = pair()
    base.to("cuda")
    view, twin = view.to("cuda"), twin.to("cuda")
    ours, theirs = (greedy(model, PROMPT.cuda(), cache_implementation=kind) for model in (view, twin))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("made", [DynamicCache, StaticCache])
def test_a_cache_of_our_own_is_gone_on_with(name, made):
    """As in a conversation: prefill, generate, add a turn, generate."""
    _, view, twin = pair(BY_NAME[name])
    extra = {"max_cache_len": 64} if made is StaticCache else {}
    results = []
    for model in (view, twin):
        cache = made(config=model.config, **extra)
        first = greedy(model, past_key_values=cache)
        turn = torch.cat([first, PROMPT[:, :5]], dim=1)
        results.append(greedy(model, turn, past_key_values=cache))
    assert torch.equal(*results)
    fresh = greedy(view, results[0][:, :-NEW_TOKENS])
    assert torch.equal(fresh, results[0])  # what was cached is what would be computed


def test_a_cropped_cache():
    _, view, twin = pair()
    seen = []
    for model in (view, twin):
        cache = DynamicCache(config=model.config)
        logits(model, past_key_values=cache)
        cache.crop(-3)
        seen.append(logits(model, PROMPT[:, :3], past_key_values=cache))
    assert torch.equal(*seen)


@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2", "bamba"])
def test_beam_search(name):
    _, view, twin = pair(BY_NAME[name])
    options = {
        "num_beams": 4,
        "num_return_sequences": 2,
        "output_scores": True,
        "return_dict_in_generate": True,
    }
    ours, theirs = (greedy(model, **options) for model in (view, twin))
    assert torch.equal(ours.sequences, theirs.sequences)
    assert torch.equal(ours.sequences_scores, theirs.sequences_scores)
    assert torch.equal(ours.beam_indices, theirs.beam_indices)
    assert ours.beam_indices.max() > 0  # beams did change places, and their caches with them


def test_sampling():
    _, view, twin = pair()
    drawn = []
    for model in (view, twin):
        torch.manual_seed(0)
        drawn.append(greedy(model, do_sample=True, top_k=0, temperature=1.5))
    assert torch.equal(*drawn)


@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_row_with_padding_at_its_left(name, attention):
    """Equals the twin's bit for bit, and what the row alone gives."""
    _, view, twin = pair(BY_NAME[name], attention=attention)
    pads = 4
    mask = torch.ones_like(PROMPT)
    mask[1, :pads] = 0
    padded = PROMPT.masked_fill(mask == 0, 0)
    tokens, chosen_by, _ = generated(view, padded, attention_mask=mask)
    expected, expected_by, _ = generated(twin, padded, attention_mask=mask)
    assert torch.equal(tokens, expected)
    assert torch.equal(chosen_by, expected_by)
    alone, alone_by, _ = generated(view, PROMPT[1:, pads:])
    assert torch.equal(tokens[1:, pads:], alone)
    torch.testing.assert_close(chosen_by[1:], alone_by, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_continuous_batching(name):
    """`generate_batch`, with its paged cache: prompts of unlike lengths, each as the twin alone has it."""
    _, view, twin = pair(BY_NAME[name], attention="sdpa")
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15, 16, 17], [40]]
    config = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=0)
    page = {"block_size" if IS_OLD else "page_size": 32}
    small = ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=64, **page)  # else half of all memory
    results = view.generate_batch(
        prompts, generation_config=config, continuous_batching_config=small, warmup=False
    )
    answers = {tuple(result.prompt_ids): result.generated_tokens for result in results.values()}
    assert len(answers) == len(prompts)
    for prompt in prompts:
        alone = greedy(twin, torch.tensor([prompt]))[0, len(prompt) :]
        assert answers[tuple(prompt)] == alone.tolist()


def test_the_view_and_its_base_keep_apart():
    """Two caches at once, of unlike depth, over the same weights."""
    base, view, twin = pair()
    plain = LLAMA.twin(base, range(4))
    caches = [DynamicCache(config=model.config) for model in (base, view)]
    for step in range(PROMPT.shape[1]):
        one = PROMPT[:, step : step + 1]
        for model, cache in zip((base, view), caches, strict=True):
            logits(model, one, past_key_values=cache)
    after = [logits(m, PROMPT[:, :1], past_key_values=c) for m, c in zip((base, view), caches, strict=True)]
    whole = torch.cat([PROMPT, PROMPT[:, :1]], dim=1)
    for ours, oracle in zip(after, (plain, twin), strict=True):
        torch.testing.assert_close(ours[:, -1], logits(oracle, whole)[:, -1], atol=2e-5, rtol=1e-4)
