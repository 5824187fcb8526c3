"""What is left out: against brute force with models of their own, and where some layers do nothing at all."""

import itertools
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

import restack
from restack.errors import UsageError
from restack.runtime import perplexity
from restack.scanning.probe import Row
from restack.scanning.probes.text import text_rows
from restack.scanning.pruning import METHODS, layers_to_drop, prune, without
from tests.llama import tiny as house
from tests.recipes.tiny import built
from tests.training.tiny import demo_tokenizer, llama, rows

DEPTH = 6


def model(seed=0):
    """Layers that matter: the larger the weights, the more they change."""
    return llama(seed, num_hidden_layers=DEPTH, initializer_range=0.3)


def as_rows(tokens, targets=None):
    return [Row(tuple(row), targets or len(row) - 1) for row in tokens.tolist()]


def loss_by_hand(base, order, tokens):
    """The loss of a Llama that its own constructor makes of these layers."""
    twin = built(base, order)
    with torch.no_grad():
        logits = twin(tokens).logits[:, :-1].double()
    return cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item()


def idle(model, *layers):
    """Have layers do exactly nothing."""
    for layer in layers:
        for matrix in (model.model.layers[layer].self_attn.o_proj, model.model.layers[layer].mlp.down_proj):
            torch.nn.init.zeros_(matrix.weight)
    return model


def words_of(model, count=8):
    """Rows of what the model itself says, greedily: every layer that does anything is missed there."""
    tokens = rows(count, 4, seed=5)
    said = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=8, do_sample=False)
    return as_rows(said, targets=8)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sleb_is_brute_force_step_by_step(seed):
    base, tokens, others = model(seed), rows(6, 12, seed=5), rows(4, 12, seed=6)
    left, dropped, tried = list(range(DEPTH)), [], []
    for _ in range(3):
        losses = {layer: loss_by_hand(base, [n for n in left if n != layer], tokens) for layer in left}
        tried.append(losses)
        worst = min(losses, key=losses.get)
        left.remove(worst)
        dropped.append(worst)
    found = prune(base, None, as_rows(tokens), 3, "sleb", held_out=as_rows(others))
    assert found.dropped == tuple(dropped)
    assert found.plan.order == tuple(left)
    for tried_one in found.tried:
        [layer] = tried_one.layers
        assert tried_one.value == pytest.approx(tried[tried_one.step][layer], abs=1e-5)
        assert tried_one.taken == (layer == dropped[tried_one.step])
    assert len(found.tried) == 6 + 5 + 4
    for losses, some in ((found.chosen_on, tokens), (found.held_out, others)):
        assert losses.base == pytest.approx(loss_by_hand(base, range(DEPTH), some), abs=1e-5)
        assert losses.pruned == pytest.approx(loss_by_hand(base, left, some), abs=1e-5)
        assert losses.tokens == some[:, 1:].numel()


def test_sleb_is_not_the_best_of_single_removals():
    """Greedy re-evaluation matters: some model here loses others than those that are least missed alone."""
    differs = []
    for seed in range(4):
        base, tokens = model(seed), as_rows(rows(6, 12, seed=5))
        found = prune(base, None, tokens, 3, "sleb", held_out=tokens)
        alone = sorted((tried for tried in found.tried if tried.step == 0), key=lambda tried: tried.value)
        differs.append({tried.layers[0] for tried in alone[:3]} != set(found.dropped))
    assert any(differs)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_contiguous_is_brute_force(count):
    base, tokens = model(), rows(6, 12, seed=5)
    blocks = [range(start, start + count) for start in range(DEPTH - count + 1)]
    losses = [loss_by_hand(base, [n for n in range(DEPTH) if n not in block], tokens) for block in blocks]
    found = prune(base, None, as_rows(tokens), count, "contiguous", held_out=as_rows(tokens))
    assert [tried.layers for tried in found.tried] == [tuple(block) for block in blocks]
    assert [tried.value for tried in found.tried] == pytest.approx(losses, abs=1e-5)
    assert found.dropped == tuple(blocks[losses.index(min(losses))])


def test_angular_is_brute_force():
    base, tokens, count = model(), rows(6, 12, seed=5), 2
    with torch.no_grad():  # transformers' last hidden states are after the norm: take a model without one
        headless = built(base, range(DEPTH)).model
        headless.norm = torch.nn.Identity()
        states = headless(tokens, output_hidden_states=True).hidden_states
    distances = []
    for start in range(DEPTH - count + 1):
        before, after = states[start][:, -1].double(), states[start + count][:, -1].double()
        cosines = (before * after).sum(-1) / (before.norm(dim=-1) * after.norm(dim=-1))
        distances.append((cosines.arccos() / math.pi).mean().item())
    found = prune(base, None, as_rows(tokens), count, "angular", held_out=as_rows(tokens))
    assert [tried.value for tried in found.tried] == pytest.approx(distances, abs=1e-6)
    start = distances.index(min(distances))
    assert found.dropped == (start, start + 1)


@pytest.mark.parametrize("nothing", [(1, 2), (3, 4), (4, 5)])
@pytest.mark.parametrize("by", [method for method in METHODS if method != "deepest"])
def test_layers_that_do_nothing_go_by_every_method(by, nothing):
    base = idle(model(), *nothing)
    found = prune(base, None, words_of(base), 2, by)
    assert set(found.dropped) == set(nothing)
    for losses in (found.chosen_on, found.held_out):
        assert losses.pruned == pytest.approx(losses.base, abs=1e-6)


@pytest.mark.parametrize("by", ["block-influence", "sleb"])
def test_layers_apart_go_one_by_one(by):
    base = idle(model(), 0, 3)
    found = prune(base, None, words_of(base), 2, by)
    assert set(found.dropped) == {0, 3}


def test_deepest_keeps_the_last():
    tokens = as_rows(rows(6, 12))
    found = prune(model(), None, tokens, 3, "deepest")
    assert (found.dropped, found.plan.order, found.tried) == ((2, 3, 4), (0, 1, 5), ())
    assert prune(model(), None, tokens, 5, "deepest").plan.order == (5,)


@pytest.mark.parametrize("by", METHODS)
def test_the_layers_of_a_view_are_its_visits(by):
    base, order = model(), [0, 1, 2, 1, 2, 3, 4, 5]
    tokens = as_rows(rows(6, 12, seed=5))
    view = restack.view(base, order)
    twin = built(base, order)
    ours, theirs = (prune(each, None, tokens, "25%", by) for each in (view, twin))
    assert ours == theirs
    assert len(ours.plan) == 6
    whole = restack.view(base, order).restack_plan.then(ours.plan)
    assert whole.order == tuple(layer for n, layer in enumerate(order) if n not in ours.dropped)


def test_the_half_that_is_held_out_takes_no_part():
    base, tokens = model(), rows(8, 12, seed=5)
    found = prune(base, None, as_rows(tokens), 2, "sleb")
    assert found == prune(base, None, as_rows(tokens[:4]), 2, "sleb", held_out=as_rows(tokens[4:]))
    assert found.held_out.base == pytest.approx(loss_by_hand(base, range(DEPTH), tokens[4:]), abs=1e-5)


def test_only_targets_count():
    base, tokens = model(), rows(6, 12, seed=5)
    found = prune(base, None, as_rows(tokens, targets=3), 1, "contiguous", held_out=as_rows(tokens))
    with torch.no_grad():
        logits = base(tokens).logits[:, 8:-1]
    expected = cross_entropy(logits.flatten(0, 1), tokens[:, 9:].flatten()).item()
    assert found.chosen_on.base == pytest.approx(expected, abs=1e-5)
    assert found.chosen_on.tokens == 18


def test_a_text_is_read_in_windows_and_its_loss_is_the_perplexitys():
    base, tokenizer = restack.open("demo"), demo_tokenizer()
    text = "Ann has a red boat. Bob has a blue drum. Cleo likes cats, and Dan likes rain. " * 4
    found = prune(base, tokenizer, text, 3, held_out=text, window=16)
    windows = text_rows(tokenizer, text, 16)
    size = len(windows[0].tokens)
    same = tokenizer.decode([token for row in windows for token in row.tokens])
    assert tokenizer(same)["input_ids"] == [token for row in windows for token in row.tokens]
    assert found.held_out.base == pytest.approx(perplexity(base, tokenizer, same, window=size).loss, abs=1e-5)
    assert found.held_out.base == found.chosen_on.base
    assert found.held_out.perplexities[0] == pytest.approx(math.exp(found.held_out.base))


def test_owners_of_keys_and_values_stay_while_they_are_read():
    base = idle(house.model("0_0_2_2_4_4", initializer_range=0.3), 2, 3)
    tokens = words_of(base)
    for by in ("block-influence", "sleb"):
        found = prune(base, None, tokens, 2, by)
        assert found.dropped == (3, 2)  # the reader first
    for by in ("angular", "contiguous"):
        assert prune(base, None, tokens, 2, by).dropped == (2, 3)
    with pytest.raises(UsageError, match="others read their keys and values"):
        prune(house.model("0_1_2_3_3_3"), None, tokens, 2, "deepest")


def test_iterated_visits_are_pruned_by_the_loss_alone():
    base, tokens = house.model("0_4x4_5"), as_rows(house.tokens(12, 6))
    with pytest.raises(UsageError, match="is iterated"):
        prune(base, None, tokens, 1)
    found = prune(base, None, tokens, 1, "sleb")
    assert len(found.plan) == 5 and 4 not in found.dropped


@pytest.mark.parametrize(
    ("drop", "depth", "count"),
    [("25%", 12, 3), ("25%", 10, 2), ("25%", 32, 8), ("30%", 12, 4), ("50%", 3, 1), ("12.5%", 8, 1),
     ("16.7%", 6, 1), ("33.4%", 3, 1), ("95%", 12, 11), ("8", 32, 8), (8, 32, 8),
     (" 3 ", 4, 3)],
)  # fmt: skip
def test_how_much_goes(drop, depth, count):
    assert layers_to_drop(drop, depth) == count


@pytest.mark.parametrize(
    ("drop", "depth", "told"),
    [
        ("100%", 12, "drop 100% of 12 layers is 12 layers: everything would go; write 1 to 11"),
        ("96%", 12, "is 12 layers: everything would go"),
        ("4%", 12, "drop 4% of 12 layers is 0 layers: nothing would go; write 1 to 11"),
        ("12.5%", 4, "is 0 layers: nothing would go; write 1 to 3"),
        ("0", 12, "drop 0 of 12 layers: nothing would go"),
        (12, 12, "drop 12 of 12 layers: everything would go"),
        ("99999999", 12, "everything would go"),
        ("50%", 1, "a model needs one; there is nothing to leave out"),
        ("1", 1, "a model needs one"),
        ("a quarter", 12, "drop is 'a quarter'; write a share, 25%, or a number of layers, 8"),
        ("-1", 12, "write a share"),
        ("2.5", 12, "write a share"),
        ("", 12, "write a share"),
        ("٣", 12, "write a share"),
        (True, 12, "write a share"),
    ],
)
def test_what_is_no_amount(drop, depth, told):
    with pytest.raises(UsageError) as caught:
        layers_to_drop(drop, depth)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_input():
    base, tokens = model(), as_rows(rows(6, 12))
    with pytest.raises(UsageError, match="there is no method 'bi'; choose one of block-influence, angular"):
        prune(base, None, tokens, 2, "bi")
    with pytest.raises(UsageError, match="the text has 1 window; one half is held out: give two"):
        prune(base, None, tokens[:1], 2)
    with pytest.raises(UsageError, match="token 40, and the model knows 40"):
        prune(base, None, [Row((1, 2, 40), 1)] * 2, 2, "sleb")


def test_progress_is_told():
    told = []
    prune(model(), None, as_rows(rows(6, 12)), 2, "sleb", watch=lambda done, of: told.append((done, of)))
    assert told == [*((done, 11) for done in range(1, 12)), (11, 11)]


def test_without():
    for left_out in itertools.chain.from_iterable(itertools.combinations(range(4), n) for n in range(4)):
        assert without(left_out, 4).order == tuple(n for n in range(4) if n not in left_out)
