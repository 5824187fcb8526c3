"""Whatever drafts, the text is that of the model; and what both views run is run once."""

import pytest
import torch
from scipy import stats
from transformers.cache_utils import DynamicCache

from restack import quantize, view
from restack.runtime.decoding import Drafter, decode, is_assisted
from restack.runtime.decoding.pace import Pace
from restack.runtime.decoding.speculation import checked, drawn
from restack.runtime.native import Kernel, quiet_kernel
from restack.views.recording import recording
from tests.llama.tiny import model as house
from tests.runtime.decoding.test_decode import PROMPT, made

PAIRS = [
    ("0:4", "0:4"),  # the draft is always right
    ("0:4", "0:3"),
    ("0:4", "1:4"),  # nothing in common but the embedding
    ("0:3,1:4", "0:4"),  # the base drafts for a deeper view
    ("0:3", "0:4"),  # a draft that is deeper
    ("0:2,1@0.5,2,3", "0:2,3"),
    ("0:4;kv=0_0_2_2", "0:3;kv=0_0_2"),
]


@pytest.fixture(autouse=True)
def has_kernel():
    if quiet_kernel() is None:
        pytest.skip("no C++ compiler")


class Steady(Pace):
    """Drafts so many tokens always."""

    def __init__(self, length):
        super().__init__()
        self.length = length

    knows_steps = True

    def pays_to_begin(self, reading, share, remaining):
        return True

    def next_length(self):
        return self.length


def drafter(model, length):
    result = Drafter(model)
    result.pace = Steady(length)
    return result


def spoken(model, found=None, tokens=PROMPT, new=24, **options):
    def lean(model, input_ids, **given):
        return decode(model, input_ids, drafter=found, **given)

    options = {"max_new_tokens": new, "do_sample": False, "attention_mask": torch.ones_like(tokens)} | options
    torch.manual_seed(3)
    return model.generate(tokens, **options, **({} if found is None else {"custom_generate": lean}))


@pytest.mark.parametrize("length", [0, 1, 3, 8])
@pytest.mark.parametrize(("plan", "draft"), PAIRS)
def test_greedy_text_is_the_models_own(plan, draft, length):
    base = made("llama")
    model, found = view(base, plan), drafter(view(base, draft), length)
    assert torch.equal(spoken(model, found), spoken(model))
    assert bool(found.pace.drafted) == bool(length)


@pytest.mark.parametrize("name", ["mistral", "qwen2 with windows", "qwen3"])
def test_so_it_is_with_other_families(name):
    base = made(name)
    found = drafter(view(base, "0,1,3"), 3)
    assert torch.equal(spoken(base, found), spoken(base)) and found.pace.accepted < found.pace.drafted


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_so_it_is_with_packed_weights(bits):
    base = quantize(made("qwen3"), bits)
    assert torch.equal(spoken(base, drafter(view(base, "0:3"), 3)), spoken(base))


def test_so_it_is_in_bfloat16():
    """Of the loop's own text: several tokens at once are rounded as one."""
    base = made("qwen3").to(torch.bfloat16)
    texts = [spoken(base, drafter(view(base, "0:3"), length), new=60) for length in (0, 1, 3, 8)]
    assert all(torch.equal(text, texts[0]) for text in texts)


def test_so_it_is_with_the_house_model():
    base = house("0_0_2_2_4_4", initializer_range=0.3)
    tokens = PROMPT % base.config.vocab_size
    found = drafter(view(base, "0:4"), 3)
    assert torch.equal(spoken(base, found, tokens), spoken(base, tokens=tokens))


@pytest.mark.parametrize(("plan", "draft"), PAIRS)
def test_the_next_turn_is_read_from_where_the_draft_has_read(monkeypatch, plan, draft):
    base = made("llama")
    model, found = view(base, plan), drafter(view(base, draft), 3)
    forward, read = type(found.model).forward, []

    def counting(self, input_ids, **options):
        if self is found.model:
            read.append(input_ids.shape[1])
        return forward(self, input_ids, **options)

    counting.__module__ = forward.__module__  # or the loop would not know the model
    first = spoken(model, found)
    further = torch.cat([first, PROMPT + 1], dim=1)
    other = torch.cat([PROMPT[:, :3], further[:, 5:]], dim=1)
    expected = [spoken(model, tokens=tokens) for tokens in (further, other)]
    monkeypatch.setattr(type(found.model), "forward", counting)
    assert torch.equal(spoken(model, found, further), expected[0])
    assert len(read) == 1 and PROMPT.shape[1] <= read[0] <= PROMPT.shape[1] + 3
    read.clear()
    assert torch.equal(spoken(model, found, other), expected[1])
    assert read == [other.shape[1] - 3]


def test_a_draft_that_is_right_is_kept_whole():
    base = made("llama")
    found = drafter(view(base, "0:4"), 5)
    spoken(base, found, new=25)  # one from the prompt, and four rounds of six
    assert (found.pace.drafted, found.pace.accepted) == (20, 20)


def test_what_both_begin_with_is_run_once(monkeypatch):
    """Rows that were run, a visit each: of the common visits no more than there are tokens to run."""
    base, step = made("llama"), Kernel.step
    for plan, common in (("0:3", 3), ("0:2,3", 2), ("1:4", 0)):
        rows, found = [], drafter(view(base, plan), 2)

        def counted(kernel, visits, tokens, hidden, rows=rows):
            model = int(tokens.columns[0, 0])
            rows += [(model, visit, tokens.rows) for visit in visits]
            step(kernel, visits, tokens, hidden)

        with monkeypatch.context() as patch:
            patch.setattr(Kernel, "step", counted)
            spoken(base, found)
        target = next(model for model, visit, _ in rows if visit == 3)
        rounds = sum(visit == 3 for _, visit, _ in rows)
        ran = {
            visit: sum(count for model, each, count in rows if model == target and each == visit)
            for visit in range(4)
        }
        assert set(ran.values()) == {found.pace.drafted + rounds}  # each drafted token, and one more a round
        others = [visit for model, visit, _ in rows if model != target]
        assert (min(others) if others else common) == common


@pytest.mark.parametrize("likeness", [0.0, 0.5, 1.0])
def test_a_checked_guess_is_distributed_as_the_model_says(likeness):
    """Chi-square of what remains of a draft's guesses, whatever the draft is."""
    torch.manual_seed(2)
    scores, count = torch.randn(12) * 1.5, 20_000
    others = likeness * scores + (1 - likeness) * torch.randn(12) * 1.5
    others[3] = -torch.inf  # what the draft never says
    told = [checked(scores, drawn(others, True), others, True) for _ in range(count)]
    seen = torch.bincount(torch.tensor(told), minlength=12).numpy()
    assert stats.chisquare(seen, count * scores.double().softmax(0).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.8, "top_k": 0, "repetition_penalty": 1.4}])
def test_samples_are_distributed_as_the_model_says(settings):
    """Chi-square of the third token, against many rows without a draft."""
    base = made("llama", vocab_size=24, initializer_range=0.15)
    tokens, count, times = PROMPT % 24, 500, 8
    options = {"do_sample": True, "temperature": 1.2, "top_k": 0} | settings
    torch.manual_seed(1)
    many = base.generate(tokens.expand(times * count, -1), max_new_tokens=3, **options)[:, -1]
    seen, found = [], drafter(view(base, "0:2,3"), 2)

    def lean(model, input_ids, **given):
        return decode(model, input_ids, drafter=found, **given)

    for _ in range(count):
        seen.append(int(base.generate(tokens, max_new_tokens=3, custom_generate=lean, **options)[0, -1]))
    assert 0.1 < found.pace.accepted / found.pace.drafted < 0.9
    counts = torch.stack([torch.bincount(each, minlength=24) for each in (torch.tensor(seen), many)])
    counts = counts[:, counts.sum(0) > 0].numpy()
    assert stats.chi2_contingency(counts).pvalue > 1e-3


def test_the_cache_and_what_is_recorded_are_the_models_own():
    base, told = made("qwen3"), []
    for found in (None, drafter(view(base, "0:3"), 3)):
        cache = DynamicCache(config=base.config)
        with recording(base, (0, 2, 3, 4)) as hidden:
            text = spoken(base, found, past_key_values=cache)
        told.append((text, cache, {visit: hidden[visit] for visit in hidden}))
    (text, cache, hidden), (our_text, our_cache, our_hidden) = told
    assert torch.equal(our_text, text) and our_hidden.keys() == hidden.keys()
    for ours, theirs in zip(our_cache.layers, cache.layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.values, theirs.values, atol=1e-4, rtol=1e-4)
    for visit, states in hidden.items():
        torch.testing.assert_close(our_hidden[visit], states, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("place", [2, 5, 9])
def test_a_text_ends_where_it_ends_in_the_middle_of_a_draft(place):
    base = made("llama")
    whole = spoken(base)[0, 13:].tolist()
    options = {"eos_token_id": whole[place], "pad_token_id": 0}
    cache = DynamicCache(config=base.config)
    ours = spoken(base, drafter(view(base, "0:4"), 8), past_key_values=cache, **options)
    assert torch.equal(ours, spoken(base, **options))
    assert cache.get_seq_length() == ours.shape[1] - 1


def test_what_cannot_be_drafted_for_is_drawn_without(monkeypatch):
    cyclic = house("0_4x4_5", initializer_range=0.3)
    tokens = PROMPT % cyclic.config.vocab_size
    found = drafter(view(house(initializer_range=0.3), "0:4"), 3)
    assert torch.equal(spoken(cyclic, found, tokens), spoken(cyclic, tokens=tokens))
    base = made("llama")
    two = torch.cat([PROMPT, PROMPT.flip(1)])
    assert torch.equal(spoken(base, found, two), spoken(base, tokens=two))
    assert found.pace.drafted == 0


def test_another_model_drafts_with_its_own_embedding():
    """Wider, with fewer tokens than the model knows, or more."""
    base = made("llama")
    for settings in ({"hidden_size": 128}, {"vocab_size": 90}, {"vocab_size": 130}):
        other = made("llama", **({"head_dim": 8} | settings))
        found, tokens = drafter(other, 3), torch.cat([PROMPT, torch.tensor([[95]])], dim=1)
        assert torch.equal(spoken(base, found, tokens), spoken(base, tokens=tokens)) and found.pace.drafted
    twin = drafter(made("llama"), 3)  # equal weights, none of them shared
    assert torch.equal(spoken(base, twin), spoken(base)) and twin.pace.accepted > 0.8 * twin.pace.drafted


@pytest.mark.parametrize("place", range(1, 12))
def test_an_interrupt_in_a_draft_leaves_what_is_right(monkeypatch, place):
    base, step, calls = made("llama"), Kernel.step, []

    def interrupted(kernel, *given):
        calls.append(1)
        if len(calls) == place:
            raise KeyboardInterrupt
        step(kernel, *given)

    cache = DynamicCache(config=base.config)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Kernel, "step", interrupted)
        spoken(base, drafter(view(base, "0:2,3"), 2), past_key_values=cache)
    length = cache.get_seq_length()
    assert length >= 13
    fresh = DynamicCache(config=base.config)
    with torch.no_grad():
        base(spoken(base)[:, :length], past_key_values=fresh, use_cache=True)
    for ours, theirs in zip(cache.layers, fresh.layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys, atol=1e-4, rtol=1e-4)


def test_a_model_that_is_exact_a_token_at_a_time_is_not_drafted_for():
    cyclic = house("0_4x4_5", initializer_range=0.3)
    assert not is_assisted(cyclic, Drafter(house(initializer_range=0.3)))
    base = made("llama")
    assert not is_assisted(base, Drafter(view(base, "0:3")))
    base.model.layers[0].mlp.register_forward_hook(lambda *given: None)
    assert is_assisted(base, Drafter(made("llama")))
    assert not is_assisted(base, Drafter(made("llama", vocab_size=90)))


def told(pace, rounds, right, draft=0.3, check=lambda length: 1 + 0.1 * length):
    """The lengths that a pace chooses, where so many tokens of a draft are right."""
    lengths = []
    for _ in range(rounds):
        length = pace.next_length()
        lengths.append(length)
        pace.note(length, min(right, length), draft * length, check(length))
    return lengths


def test_a_good_draft_is_made_long():
    lengths = told(Pace(), 60, right=8)
    assert lengths[:4] == [0, 0, 1, 1] and max(lengths[-10:]) >= 4 and min(lengths[-10:]) > 0


def test_a_bad_draft_is_left_off():
    lengths = told(Pace(), 200, right=0)
    assert sum(lengths) <= 6 and not any(lengths[100:])


def test_a_draft_that_cannot_pay_is_not_tried_again():
    pace = Pace()
    assert sum(told(pace, 50, right=8, draft=0.9, check=lambda length: 1 + length)) <= 2 and pace.is_over
    pace.begin()
    assert not pace.pays_to_begin(reading=0.1, share=0.5, remaining=100)


def test_a_draft_may_become_good():
    pace = Pace()
    told(pace, 8, right=0)
    assert any(told(pace, 60, right=8)[-20:])


def test_a_draft_that_costs_more_to_begin_than_it_may_bring_is_not_begun():
    pace = Pace()
    assert not pace.knows_steps
    told(pace, 2, right=0)
    assert pace.pays_to_begin(reading=2, share=0.5, remaining=100)  # nothing is known: a little is risked
    assert not pace.pays_to_begin(reading=40, share=0.5, remaining=100)
    assert not pace.pays_to_begin(reading=2, share=0.5, remaining=10)
    told(pace, 30, right=8)
    assert pace.pays_to_begin(reading=40, share=0.5, remaining=100)  # now it is known to save more than that
    pace.note_reading(70.0)
    assert not pace.pays_to_begin(reading=40, share=0.5, remaining=100)
    bad = Pace()
    told(bad, 60, right=0)
    bad.begin()
    assert not bad.pays_to_begin(reading=40, share=0.5, remaining=100)
