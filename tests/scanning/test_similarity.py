"""What compares hidden states, on vectors with known angles, and against transformers' own hidden states."""

import math

import pytest
import torch
from torch.nn.functional import cosine_similarity

import restack
from restack.errors import UsageError
from restack.scanning.probe import Row
from restack.scanning.similarity import (
    angular_distances,
    block_influence,
    hidden_sums,
    layer_facts,
    similarity,
)
from tests.llama import tiny as house
from tests.training.tiny import demo_tokenizer, llama, rows


def at(*degrees):
    """Vectors (T, 2) at these angles, of different lengths."""
    return torch.tensor(
        [
            [length * math.cos(math.radians(angle)), length * math.sin(math.radians(angle))]
            for length, angle in enumerate(degrees, start=1)
        ]
    )


# Two texts of two tokens: what enters visits 0 and 1, and what leaves.
HIDDEN = [
    torch.stack([at(0, 0), at(0, 0)]),
    torch.stack([at(60, 90), at(0, 45)]),
    torch.stack([at(120, 180), at(90, 45)]),
]


def test_block_influence_is_one_minus_the_mean_cosine():
    # visit 0 turns by 60, 90, 0 and 45 degrees; visit 1 by 60, 90, 90 and 0
    first = 1 - (1 / 2 + 0 + 1 + math.sqrt(1 / 2)) / 4
    second = 1 - (1 / 2 + 0 + 0 + 1) / 4
    assert block_influence(HIDDEN).tolist() == pytest.approx([first, second])


def test_angular_distance_is_that_of_the_last_token_as_a_share_of_a_half_turn():
    # at the last tokens, visit 0 turns by 90 and 45 degrees, visit 1 by 90 and 0, both by 180 and 45
    assert angular_distances(HIDDEN, 1).tolist() == pytest.approx([(1 / 2 + 1 / 4) / 2, (1 / 2 + 0) / 2])
    assert angular_distances(HIDDEN, 2).tolist() == pytest.approx([(1 + 1 / 4) / 2])


def test_a_mean_of_angles_is_not_the_angle_of_a_mean_cosine():
    hidden = [torch.stack([at(0), at(0)]), torch.stack([at(0), at(90)])]
    assert angular_distances(hidden, 1).tolist() == pytest.approx([1 / 4])  # arccos(1/2) / pi is 1/3


def test_similarity_is_the_mean_cosine_of_all_pairs():
    between = (math.cos(math.radians(120)) - 1 + 0 + math.sqrt(1 / 2)) / 4  # 120, 180, 90 and 45 degrees
    found = similarity(HIDDEN)
    assert found[0, 2].item() == found[2, 0].item() == pytest.approx(between)
    assert found.diagonal().tolist() == pytest.approx([1, 1, 1])


def test_the_three_are_float64_and_do_not_mind_lengths():
    scaled = [states.half() * 64 for states in HIDDEN]
    assert block_influence(scaled).dtype == torch.float64
    assert torch.allclose(block_influence(scaled), block_influence(HIDDEN), atol=1e-3)


def as_rows(tokens):
    return [Row(tuple(row), len(row) - 1) for row in tokens.tolist()]


def by_hooks(model, tokens):
    """x^0 to x^L: transformers' own, but the last, which it gives after the final norm."""
    last = []
    hook = model.model.layers[-1].register_forward_hook(lambda module, given, out: last.append(out))
    with torch.no_grad():
        states = model(tokens, output_hidden_states=True).hidden_states
    hook.remove()
    return [*states[:-1], last[0] if isinstance(last[0], torch.Tensor) else last[0][0]]


def test_many_batches_of_different_lengths_are_as_one(monkeypatch):
    monkeypatch.setattr("restack.scanning.similarity.AT_ONCE", 16)  # two rows of eight
    monkeypatch.setattr("restack.scanning.similarity.CHUNK", 5 * 16 * 3)  # three tokens
    model = llama()
    long, short = rows(5, 8), rows(4, 3, seed=2)
    sums = hidden_sums(model, [*as_rows(short), *as_rows(long)])
    assert (sums.tokens, sums.samples) == (52, 9)
    states = [by_hooks(model, tokens) for tokens in (long, short)]
    for i in range(4):
        cosines = torch.cat([cosine_similarity(some[i], some[i + 1], dim=-1).flatten() for some in states])
        assert sums.influence[i].item() == pytest.approx(1 - cosines.double().mean().item(), abs=1e-6)
    last = torch.cat([cosine_similarity(some[1][:, -1], some[4][:, -1], dim=-1) for some in states])
    expected = (last.double().clamp(-1, 1).arccos() / math.pi).mean().item()
    assert sums.distances(3)[1].item() == pytest.approx(expected, abs=1e-6)


def test_a_layer_that_does_nothing_has_no_influence():
    model = llama()
    for matrix in (model.model.layers[2].self_attn.o_proj, model.model.layers[2].mlp.down_proj):
        torch.nn.init.zeros_(matrix.weight)
    sums = hidden_sums(model, as_rows(rows()))
    assert sums.influence[2].item() == pytest.approx(0, abs=1e-12)
    assert sums.distances(1)[2].item() == pytest.approx(0, abs=1e-7)
    assert sums.influence[[0, 1, 3]].min() > 1e-3


def test_the_layers_of_a_view_are_its_visits():
    model = llama()
    view = restack.view(model, [0, 1, 1, 3])
    twin = restack.materialise(model, [0, 1, 1, 3])
    tokens = rows()
    states = by_hooks(twin, tokens)
    assert torch.allclose(hidden_sums(view, as_rows(tokens)).influence, block_influence(states), atol=1e-7)


def test_layer_facts_of_a_text():
    model, tokenizer = restack.open("demo"), demo_tokenizer()
    facts = layer_facts(model, tokenizer, "Ann has a red boat. Bob has a blue drum.", "two sentences")
    assert facts.text == "two sentences"
    assert facts.similarity.shape == (13, 13) and facts.influence.shape == (12,)
    assert (facts.influence > 0).all() and (facts.influence < 1).all()


@pytest.mark.parametrize("kv_map", [None, "0_0_2_2_4_4"])
def test_a_house_model_is_as_its_own_hooks_say(kv_map):
    model = house.model(kv_map)
    tokens = house.tokens(8, 3)
    entered = []
    hooks = [
        layer.register_forward_pre_hook(lambda module, given: entered.append(given[0]))
        for layer in model.model.layers
    ]
    hooks.append(model.model.norm.register_forward_pre_hook(lambda module, given: entered.append(given[0])))
    with torch.no_grad():
        model(tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    found = hidden_sums(model, as_rows(tokens)).influence
    assert torch.allclose(found, block_influence(entered), atol=1e-9)


def test_visits_that_are_iterated_are_refused():
    with pytest.raises(UsageError, match=r"what enters visit 2 .* is iterated .*sleb"):
        hidden_sums(house.model("0_4x4_5"), as_rows(house.tokens(8, 2)))


def test_what_cannot_be_read_is_refused():
    with pytest.raises(UsageError, match="there is no text to read"):
        hidden_sums(llama(), [])
    with pytest.raises(UsageError, match="token 40, and the model knows 40"):
        hidden_sums(llama(), [Row((1, 40), 1)])
    broken = llama()
    broken.model.layers[1].mlp.down_proj.weight.data.fill_(math.inf)
    with pytest.raises(UsageError, match="enter visit 2 are not finite; load the model with --dtype"):
        hidden_sums(broken, as_rows(rows()))
