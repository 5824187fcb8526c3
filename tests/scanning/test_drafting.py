"""Which view drafts best: acceptance against generation itself, and the cost model against a simulation."""

import random

import numpy as np
import pytest
import torch

import restack
from restack.errors import UsageError
from restack.scanning.drafting import acceptances, draft, own_words, ratio, share_of
from restack.scanning.pruning import without
from restack.scanning.speculation import (
    Costs,
    best_length,
    measured_costs,
    rounds,
    speed_up,
    tokens_per_round,
    visit_costs,
)
from tests.llama import tiny as house
from tests.training.tiny import llama, rows

DEPTH = 6


def model(seed=0, **settings):
    """Layers that change something, and yet not all: a view says some of the same words."""
    return llama(seed, num_hidden_layers=DEPTH, **{"initializer_range": 0.15} | settings)


def prompts(count=8, length=4, seed=5):
    return rows(count, length, seed).tolist()


def idle(model, *layers):
    for layer in layers:
        for matrix in (model.model.layers[layer].self_attn.o_proj, model.model.layers[layer].mlp.down_proj):
            torch.nn.init.zeros_(matrix.weight)
    return model


def greedy(model, prompt, count):
    """One token after another, the whole text each time."""
    tokens = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens


def test_the_formula_on_hand_numbers():
    assert tokens_per_round(0.5, 1) == 1.5
    assert tokens_per_round(0.5, 3) == 1.875
    assert tokens_per_round(0.8, 5) == pytest.approx((1 - 0.8**6) / 0.2)
    assert tokens_per_round(1.0, 4) == 5 and tokens_per_round(0.0, 4) == 1
    assert speed_up(0.5, 1, 0.5) == pytest.approx(1.0)  # 1.5 tokens in 1.5 steps
    assert speed_up(0.8, 5, 0.05) == pytest.approx((1 - 0.8**6) / (0.2 * 1.25))
    assert speed_up(0.8, 2, 0.2, 1.5) == pytest.approx(2.44 / 1.9)
    assert speed_up(1.0, 3, 1.0) == 1.0  # the model drafting for itself
    assert speed_up(0.0, 1, 0.5) == pytest.approx(1 / 1.5)


def test_the_length_is_the_best_of_all():
    for acceptance in (0.3, 0.6, 0.9, 0.99):
        for price in (0.05, 0.3, 0.8):
            for checks in ([1.0] * 12, [1 + 0.2 * n for n in range(12)]):
                worth = [speed_up(acceptance, g, price, checks[g - 1]) for g in range(1, 13)]
                assert worth[best_length(acceptance, price, checks) - 1] == max(worth)
    assert best_length(0.99, 0.01, [1.0] * 5) == 5
    assert best_length(0.1, 0.9, [1.0] * 5) == 1
    assert best_length(0.9, 0.1, [1.0, 9.0, 9.0]) == 1


@pytest.mark.parametrize(("acceptance", "length"), [(0.6, 3), (0.9, 6), (0.3, 1)])
def test_the_formula_against_a_simulation(acceptance, length):
    """Rounds of a draft whose every token is taken with one probability."""
    chance, price, check = random.Random(1), 0.4, 1.2
    tokens = time = 0.0
    trials = 40_000
    for _ in range(trials):
        taken = 0
        while taken < length and chance.random() < acceptance:
            taken += 1
        tokens += taken + 1
        time += length * price + check
    assert tokens_per_round(acceptance, length) == pytest.approx(tokens / trials, rel=0.01)
    assert speed_up(acceptance, length, price, check) == pytest.approx(tokens / time, rel=0.01)


@pytest.mark.parametrize(("acceptance", "length"), [(0.6, 3), (0.9, 6)])
def test_the_rounds_of_a_long_text_are_as_the_formula_says(acceptance, length):
    answers = torch.rand(100_000, generator=torch.Generator().manual_seed(3)) < acceptance
    found = rounds(answers, length)
    assert found.tokens / len(found.drafted) == pytest.approx(tokens_per_round(acceptance, length), rel=0.01)
    costs = Costs("measured", (), tuple(1 + 0.1 * n for n in range(length)))
    expected = speed_up(acceptance, length, 0.3, costs.checks[-1])
    assert found.tokens / found.seconds(costs, 0.3) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("answers", "length", "drafted"),
    [
        ("1111", 3, (3,)),  # three and one more of the model's own
        ("11111", 3, (3, 1)),
        ("0111", 3, (3, 3)),  # the first is wrong: the model says it; then three are right and end the text
        ("0", 3, (3,)),
        ("1", 3, (1,)),  # it says the end itself, and stops
        ("110110", 2, (2, 2)),
        ("10010", 1, (1, 1, 1)),
        ("0000", 2, (2, 2, 2, 2)),
    ],
)
def test_rounds_by_hand(answers, length, drafted):
    found = rounds(torch.tensor([answer == "1" for answer in answers]), length)
    assert (found.drafted, found.tokens) == (drafted, len(answers))
    costs = Costs("measured", (), (1.1, 1.2, 1.4))
    by_hand = sum(count * 0.5 + {1: 1.1, 2: 1.2, 3: 1.4}[count] for count in drafted)
    assert found.seconds(costs, 0.5) == pytest.approx(by_hand)


@pytest.mark.parametrize("left_out", [(1,), (2, 3), (1, 4)])
def test_acceptance_is_that_of_a_plain_loop(left_out):
    base, given = model(), prompts(5)
    shallow = restack.materialise(base, without(left_out, DEPTH))
    texts = [greedy(base, prompt, 10) for prompt in given]
    expected = [[greedy(shallow, text[:at], 1)[-1] == text[at] for at in range(4, 14)] for text in texts]
    words = own_words(base, given, 10)
    assert [list(row.tokens) for row in words] == texts
    assert {row.targets for row in words} == {10}
    found = acceptances(base, [without((), DEPTH), without(left_out, DEPTH)], words)
    assert [places.tolist() for places in found[1]] == expected
    assert all(places.all() for places in found[0])
    assert share_of(found[1]).mean == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8])
def test_rounds_are_those_of_transformers_own_speculation(length):
    """A skip view as the assistant: the model runs as often as there are rounds, for the same words."""
    base, left_out, new = model(), (2, 3), 24
    base.generation_config.eos_token_id = None
    [words] = own_words(base, [prompts(1)[0]], new)
    [[places]] = acceptances(base, [without(left_out, DEPTH)], [words])
    assert 0.1 < places.double().mean() < 0.95
    assistant = restack.view(base, without(left_out, DEPTH))
    assistant.generation_config.num_assistant_tokens = length
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    runs = []
    hook = base.register_forward_pre_hook(lambda *given: runs.append(1))
    prompt = torch.tensor([words.tokens[:4]])
    said = base.generate(prompt, max_new_tokens=new, do_sample=False, assistant_model=assistant)
    hook.remove()
    assert said[0].tolist() == list(words.tokens)
    assert len(runs) == len(rounds(places, length).drafted)


def test_a_text_ends_where_the_model_ends_it():
    base = model()
    free = own_words(base, prompts(6), 12)
    end = free[0].tokens[4 + 3]
    base.generation_config.eos_token_id = end
    base.generation_config.pad_token_id = 0
    for before, after in zip(free, own_words(base, prompts(6), 12), strict=True):
        said = before.tokens[4:]
        count = said.index(end) + 1 if end in said else 12
        assert after.tokens == before.tokens[: 4 + count] and after.targets == count


def test_prompts_of_any_length_keep_their_order():
    base = model()
    given = [row[: 2 + number % 3] for number, row in enumerate(prompts(7, 6))]
    for prompt, row in zip(given, own_words(base, given, 5), strict=True):
        assert list(row.tokens) == greedy(base, prompt, 5)


def test_greedy_is_brute_force_step_by_step():
    base, given = model(), prompts(8)
    found = draft(base, given, costs="visits", length=10, most=3)
    words = own_words(base, given, 10)[:4]

    def share(left_out):
        shallow = restack.materialise(base, without(left_out, DEPTH))
        right = [
            greedy(shallow, row.tokens[:at], 1)[-1] == row.tokens[at] for row in words for at in range(4, 14)
        ]
        return sum(right) / len(right)

    left_out = ()
    for drafter in found.drafters:
        shares = {(*left_out, n): share((*left_out, n)) for n in range(1, DEPTH - 1) if n not in left_out}
        left_out = max(shares, key=shares.get)
        assert drafter.skipped == left_out
        assert drafter.searched == pytest.approx(shares[left_out])
        assert drafter.plan == without(left_out, DEPTH)
    assert found.texts == (8, 4) and found.drafters


def test_contiguous_is_the_best_block_of_each_size():
    base, given = model(), prompts(8)
    found = draft(base, given, search="contiguous", costs="visits", length=10, most=3)
    words = own_words(base, given, 10)[:4]
    for count, drafter in enumerate(found.drafters, start=1):
        blocks = [tuple(range(start, start + count)) for start in range(1, DEPTH - count)]
        shares = [
            torch.cat(acceptances(base, [without(block, DEPTH)], words)[0]).double().mean().item()
            for block in blocks
        ]
        assert drafter.searched == pytest.approx(max(shares))
        assert drafter.skipped == blocks[shares.index(max(shares))]
    assert [len(drafter.skipped) for drafter in found.drafters] == [1, 2, 3]


@pytest.mark.parametrize("search", ["greedy", "contiguous"])
def test_layers_that_do_nothing_are_left_out_and_pay(search):
    base = idle(model(), 2, 3)
    found = draft(base, prompts(8), search=search, costs="visits", length=10, most=2)
    best = found.best
    assert set(best.skipped) == {2, 3} and best.acceptance.mean == 1 == best.acceptance.low
    price = visit_costs(base, [best.plan])[0]
    assert (best.cost, best.length) == (price, 8)
    assert best.speed_up.mean == pytest.approx(9 / (8 * price + 1))
    assert found.pays == (best.replayed.mean > 1)
    assert found.own == 1


def test_what_is_told_is_of_texts_that_took_no_part():
    base, given = model(), prompts(8)
    found = draft(base, given, costs="visits", length=10, most=2)
    words = own_words(base, given, 10)[4:]
    for drafter in found.drafters:
        [places] = acceptances(base, [drafter.plan], words)
        assert drafter.acceptance == share_of(places)
        assert drafter.acceptance.n == 4 and drafter.tokens == 40
        assert drafter.length == best_length(drafter.searched, drafter.cost, [1.0] * 8)
        assert drafter.searched_speed_up == speed_up(drafter.searched, drafter.length, drafter.cost)
        expected = speed_up(drafter.acceptance.mean, drafter.length, drafter.cost)
        assert drafter.speed_up.mean == pytest.approx(expected)
        time = sum(rounds(each, drafter.length).seconds(found.costs, drafter.cost) for each in places)
        assert drafter.replayed.mean == pytest.approx(40 / time)
    assert found.best.searched_speed_up == max(each.searched_speed_up for each in found.drafters)


@pytest.mark.parametrize("tied", [True, False])
def test_cost_by_visits_is_of_the_weights_that_a_step_reads(tied):
    base = model(tie_word_embeddings=tied)
    layer = sum(weight.nbytes for weight in base.model.layers[0].parameters())
    beside = base.lm_head.weight.nbytes + base.model.norm.weight.nbytes
    expected = [(kept * layer + beside) / (6 * layer + beside) for kept in (6, 5, 3)]
    plans = [without(left_out, DEPTH) for left_out in ((), (2,), (1, 2, 3))]
    assert visit_costs(base, plans) == pytest.approx(expected)


def test_measured_costs_are_of_steps():
    base = llama(num_hidden_layers=12, hidden_size=64, intermediate_size=256)
    plans = [without((), 12), without(range(1, 11), 12)]
    costs = measured_costs(base, plans, rows(1, 20)[0].tolist(), 3)
    assert costs.how == "measured" and len(costs.checks) == 3 and costs.seconds > 0
    assert len(costs.drafts) == 2 and min(*costs.drafts, *costs.checks) > 0


def test_a_view_and_a_house_model():
    base, order = model(), [0, 1, 2, 1, 2, 3, 4, 5]
    view, twin = restack.view(base, order), restack.materialise(base, order)
    ours, theirs = (draft(each, prompts(6), costs="visits", length=8, most=3) for each in (view, twin))
    assert ours.drafters == theirs.drafters
    shared = draft(house.model("0_0_2_2_4_4"), house.tokens(4, 6).tolist(), length=12, most=3)
    for drafter in shared.drafters:  # no reader is left without its owner
        assert not ({2, 4} & set(drafter.skipped)) - {n - 1 for n in drafter.skipped}
    iterated = draft(house.model("0_4x4_5"), house.tokens(4, 6).tolist(), length=12, most=1)
    assert 4 not in iterated.best.skipped and iterated.costs.how == "measured"


def test_the_interval_of_a_ratio():
    """Against the bootstrap of the ratio itself."""
    chance = np.random.default_rng(0)
    below = chance.integers(5, 40, 60)
    above = chance.binomial(below, 0.7)
    found = ratio(above.tolist(), below.tolist())
    assert found.mean == pytest.approx(above.sum() / below.sum()) and found.n == 60
    draws = chance.integers(0, 60, (4000, 60))
    low, high = np.quantile(above[draws].sum(1) / below[draws].sum(1), [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.01) and found.high == pytest.approx(high, abs=0.01)
    all_right = share_of([torch.ones(3, dtype=torch.bool), torch.ones(5, dtype=torch.bool)])
    assert (all_right.mean, all_right.low, all_right.high) == (1, 1, 1)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"search": "beam"}, "there is no search 'beam'; choose one of greedy, contiguous"),
        ({"costs": "guessed"}, "there is no cost 'guessed'; choose one of measured, visits"),
        ({"most": "100%"}, "everything would go"),
        ({"longest": 0}, "0 tokens are none"),
        ({"length": 3, "longest": 8}, "a text of 7 tokens is too short to time drafts of 8"),
    ],
)
def test_wrong_settings(settings, told):
    with pytest.raises(UsageError) as caught:
        draft(model(), prompts(4), **settings)
    assert told in str(caught.value)


def test_too_little():
    with pytest.raises(UsageError, match="3 prompts are too few to choose on and to report on; give 4"):
        draft(model(), prompts(3))
    with pytest.raises(UsageError, match="the model has 2 layers, none between first and last"):
        draft(llama(num_hidden_layers=2), prompts(4))
    with pytest.raises(UsageError, match="token 40, and the model knows 40"):
        draft(model(), [[1, 40]] * 4)
    with pytest.raises(UsageError, match="a text has no tokens"):
        draft(model(), [[]] * 4)
    with pytest.raises(UsageError, match="the model's context is 64"):
        draft(model(), [list(range(30)) * 3] * 4)
