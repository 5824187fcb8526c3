"""Flash attention needs a GPU; what is asked of it is given here to code that does what it is documented to.

`flash_attn_func`: causal masks are aligned to the bottom right corner, a query sees `window` keys up to its
own place, a row that sees nothing is 0. As transformers calls it: padding is taken out by a mask (B, S).
"""

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, StaticCache
from transformers.masking_utils import flash_attention_mask

from restack import ViewError
from tests.llama.tiny import ACYCLIC, CYCLIC, model, tokens

MAPS = ACYCLIC | CYCLIC
NAME = "flash_as_documented"


def flash(module, query, key, value, attention_mask, scaling, sliding_window=None, **kwargs):
    """Heads (B, T, nh_q, hs) of queries (B, nh_q, T, hs) over keys and values (B, nh_kv, S, hs)."""
    rows, heads, length, width = query.shape
    assert key.shape[2] and value.shape == key.shape
    result = torch.zeros(rows, length, heads, width)
    groups = heads // key.shape[1]
    for row in range(rows):
        there = (
            torch.ones(key.shape[2], dtype=torch.bool)
            if attention_mask is None
            else attention_mask[row].bool()
        )
        assert len(there) == key.shape[2]
        asks = there[-length:] if length > 1 else torch.ones(1, dtype=torch.bool)
        q = query[row][:, asks]
        k, v = (x[row][:, there].repeat_interleave(groups, 0) for x in (key, value))
        place = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1]
        seen = torch.arange(k.shape[1]) <= place
        if sliding_window is not None:
            seen &= torch.arange(k.shape[1]) > place - sliding_window
        scores = (q @ k.transpose(1, 2) * scaling).masked_fill(~seen, -torch.inf)
        result[row, asks] = (scores.softmax(-1).nan_to_num() @ v).transpose(0, 1)
    return result, None


@pytest.fixture(autouse=True)
def registered():
    AttentionInterface.register(NAME, flash)
    AttentionMaskInterface.register(NAME, flash_attention_mask)


@pytest.mark.parametrize("nodiag", [False, True], ids=["", "force_nodiag"])
@pytest.mark.parametrize("name", MAPS)
def test_prefill_chunks_and_decoding(name, nodiag):
    house = model(MAPS[name], force_nodiag=nodiag, forward_passes=14)
    row, found = tokens(14), {}
    for attention in ("eager", NAME):
        house.config._attn_implementation = attention
        cache, logits = None, []
        for start, stop in [(0, 6), (6, 10), *((at, at + 1) for at in range(10, 14))]:
            with torch.no_grad():
                output = house(row[:, start:stop], past_key_values=cache)
            cache = output.past_key_values
            logits.append(output.logits)
        found[attention] = torch.cat(logits, dim=1)
    assert torch.allclose(found[NAME], found["eager"], atol=1e-5)


@pytest.mark.parametrize("name", MAPS)
def test_left_padding(name):
    house = model(MAPS[name], forward_passes=14)
    rows = tokens(14, batch=2)
    mask = torch.ones_like(rows)
    mask[1, :5] = 0
    found = {}
    for attention in ("eager", NAME):
        house.config._attn_implementation = attention
        found[attention] = house.generate(
            rows, attention_mask=mask, do_sample=False, max_new_tokens=5, pad_token_id=0,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    for ours, theirs in zip(found[NAME].logits, found["eager"].logits, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_static_cache_and_a_hidden_diagonal_are_refused():
    house = model(CYCLIC["lckv-w2"])
    house.config._attn_implementation = NAME
    with pytest.raises(
        ViewError, match="flash attention cannot leave out a token's own key in a static cache"
    ):
        house(tokens(5), past_key_values=StaticCache(house.config, max_cache_len=9))


def test_packed_rows_and_a_hidden_diagonal_are_refused():
    house = model(CYCLIC["lckv-w2"])
    house.config._attn_implementation = NAME
    positions = torch.tensor([[0, 1, 2, 0, 1]])
    with pytest.raises(ViewError, match="where sequences are packed in one row"):
        house(tokens(5), position_ids=positions, use_cache=False)


def test_packed_rows_are_told_by_positions():
    given = {}

    def noted(module, query, key, value, attention_mask, scaling, **kwargs):
        given.update(kwargs)
        return flash(module, query, key, value, attention_mask, scaling)

    AttentionInterface.register(NAME, noted)
    house = model()
    house.config._attn_implementation = NAME
    positions = torch.tensor([[0, 1, 2, 0, 1]])
    house(tokens(5), position_ids=positions, use_cache=False)
    assert torch.equal(given["position_ids"], positions)
