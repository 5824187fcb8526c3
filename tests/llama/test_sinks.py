"""Attention sinks against a recomputation of what the window holds, all of it turned anew, in float64."""

import pytest
import torch

from restack import UsageError
from restack.llama import SinkCache
from tests.llama.reference import attend_one, finish, project, rms_norm, rotate, to_logits
from tests.llama.tiny import ACYCLIC, CYCLIC, model, settings_of, tokens, weights_of

SINKS, WINDOW = 3, 8
MAPS = {name: (ACYCLIC | CYCLIC)[name] for name in ("identity", "cla2", "lckv-w2", "all top", "two groups")}


def recomputed(weights, settings, row):
    """Logits (T, V): at each token, the keys of what is kept are turned by where they stand among it."""
    keys, values = ([[] for _ in settings.visits] for _ in "kv")  # of each visit; keys before they are turned
    found = []
    for t, token in enumerate(row):
        h = weights["model.embed_tokens.weight"][token]
        kept = [s for s in range(t + 1) if s < SINKS or s > t - WINDOW]
        for number, visit in enumerate(settings.visits):
            x = rms_norm(weights, f"model.layers.{visit.layer}.input_layernorm", h, settings.eps)
            if settings.is_owner(number):
                keys[number].append(project(weights, settings, visit.layer, "k", x))
                values[number].append(project(weights, settings, visit.layer, "v", x))
            visible = kept if visit.owner <= number else kept[:-1]
            query = turned(project(weights, settings, visit.layer, "q", x), len(kept) - 1, settings)
            shown = [turned(keys[visit.owner][s], place, settings) for place, s in enumerate(visible)]
            mixed = attend_one(settings, query, shown, [values[visit.owner][s] for s in visible])
            h = finish(weights, settings, visit, h, mixed)
        found.append(to_logits(weights, settings, h))
    return torch.stack(found)


def turned(heads, place, settings):
    return rotate(heads, torch.tensor(place), settings.theta)


def streamed(house, row):
    """Logits (T, V) of one token after another, and the bytes that the cache has after each."""
    cache, found, sizes = SinkCache(house.config, SINKS, WINDOW), [], []
    for token in row:
        with torch.no_grad():
            found.append(house(token.view(1, 1), past_key_values=cache).logits[0, 0])
        sizes.append(sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers))
    return torch.stack(found), sizes


@pytest.mark.parametrize("name", MAPS)
def test_ten_windows_in_constant_memory(name):
    house = model(MAPS[name])
    row = tokens(10 * (SINKS + WINDOW))[0]
    expected = recomputed(weights_of(house), settings_of(house.config), row)
    for attention in ("eager", "sdpa"):
        house.set_attn_implementation(attention)
        found, sizes = streamed(house, row)
        assert (found - expected).abs().max() < 1e-5
        owners = len(house.config.schedule.slots)
        assert sizes[-1] == max(sizes) == owners * 2 * (SINKS + WINDOW - 1) * 2 * 8 * 4


def test_a_text_that_fits_is_as_without_sinks():
    house = model()
    with torch.no_grad():
        cache = SinkCache(house.config, SINKS, WINDOW)
        found = house(tokens(SINKS + WINDOW), past_key_values=cache).logits
        assert torch.allclose(found, house(tokens(SINKS + WINDOW)).logits, atol=1e-6)


@pytest.mark.parametrize("name", ["identity", "lckv-w2"])
def test_generate(name):
    """The prompt in one piece, then far past the window; greedy by hand gives the same."""
    house, prompt = model(MAPS[name]), tokens(5)
    options = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 40}
    found = house.generate(prompt, past_key_values=SinkCache(house.config, SINKS, WINDOW), **options)
    cache, row = SinkCache(house.config, SINKS, WINDOW), prompt
    with torch.no_grad():
        for _ in range(40):
            new = row if row.shape[1] == 5 else row[:, -1:]
            row = torch.cat([row, house(new, past_key_values=cache).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(found, row)
    assert cache.get_query_offset() == SINKS + WINDOW - 1


def test_a_second_turn_of_generate_feeds_what_is_new():
    house = model()
    cache, options = SinkCache(house.config, 2, 6), {"do_sample": False, "pad_token_id": 0}
    first = house.generate(tokens(5), past_key_values=cache, max_new_tokens=12, **options)
    row = torch.cat([first, tokens(3, seed=5)], dim=1)
    fed = []
    house.model.embed_tokens.register_forward_pre_hook(lambda module, args: fed.append(args[0].shape[1]))
    found = house.generate(row, past_key_values=cache, max_new_tokens=3, **options)
    assert fed == [4, 1, 1]  # the last token of the first turn, never fed, and the three new ones

    house.model.embed_tokens._forward_pre_hooks.clear()
    cache, logits = SinkCache(house.config, 2, 6), None
    with torch.no_grad():
        for part in (row[:, :5], *row[:, 5:16].split(1, dim=1), row[:, 16:]):
            logits = house(part, past_key_values=cache).logits
    assert found[0, 20] == logits[0, -1].argmax()


def test_what_cannot_be_is_refused():
    house = model()
    with pytest.raises(UsageError, match="0 sinks"):
        SinkCache(house.config, 0, 8)
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[1, :2] = 0
    with pytest.raises(UsageError, match="padding stands where the attention sinks are"):
        house(tokens(6, batch=2), attention_mask=mask, past_key_values=SinkCache(house.config, SINKS, WINDOW))
    cache = SinkCache(house.config, SINKS, WINDOW)
    house(tokens(6), past_key_values=cache)
    with pytest.raises(UsageError, match="cannot take tokens back"):
        cache.crop(-1)
