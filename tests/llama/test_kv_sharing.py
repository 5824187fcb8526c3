"""Shared keys and values against the reference: one token after another, in float64, by code of its own."""

import weakref

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask
from torch.nn.attention.flex_attention import flex_attention as uncompiled
from transformers import DynamicCache, StaticCache, masking_utils
from transformers.integrations import flex_attention as flex

from tests.llama.reference import token_by_token, unrolled
from tests.llama.tiny import ACYCLIC, CYCLIC, config, model, settings_of, tokens, weights_of

MAPS = ACYCLIC | CYCLIC
LENGTH, PROMPT, CHUNK = 14, 6, 4
EXACT = {"forward_passes": LENGTH}  # as many passes as tokens: converged, whatever the weights
CLOSE = 1e-5


@pytest.fixture(autouse=True)
def flex_as_torch_defines_it(monkeypatch):
    """Uncompiled: torch 2.13 makes C++ that does not compile of it on a CPU, of transformers' Mistral too."""
    monkeypatch.setattr(
        flex,
        "compile_friendly_flex_attention",
        lambda *args, training, **options: uncompiled(*args, **options),
    )
    monkeypatch.setattr(
        masking_utils,
        "create_block_mask",
        lambda *args, _compile, **options: create_block_mask(*args, **options),
    )


def reference(house, row: torch.Tensor) -> torch.Tensor:
    return token_by_token(weights_of(house), settings_of(house.config), row)


def prefilled_and_decoded(house, row: torch.Tensor, cache=None) -> torch.Tensor:
    """Logits (T, V): a prompt, another chunk, and then one token after another."""
    found, at = [], 0
    for stop in (PROMPT, PROMPT + CHUNK, *range(PROMPT + CHUNK + 1, len(row) + 1)):
        with torch.no_grad():
            output = house(row[None, at:stop], past_key_values=cache, use_cache=True)
        cache, at = output.past_key_values, stop
        found.append(output.logits[0])
    return torch.cat(found)


def equals_reference(house) -> None:
    """In a forward over the whole text, and in prefill, chunk and decoding."""
    row = tokens(LENGTH)[0]
    expected = reference(house, row)
    with torch.no_grad():
        assert difference(house(row[None], use_cache=False).logits[0], expected) < CLOSE
    assert difference(prefilled_and_decoded(house, row), expected) < CLOSE


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return (ours.double() - theirs).abs().max().item()


@pytest.mark.parametrize(
    "settings", [{}, {"force_nodiag": True}, {"qk_norm": True, "attention_bias": True}], ids=str
)
@pytest.mark.parametrize("name", MAPS)
def test_prefill_and_decoding_equal_one_token_after_another(name, settings):
    equals_reference(model(MAPS[name], **EXACT, **settings))


PRESETS = [
    f"{shape}-{place}:3"
    for shape in ("pizza", "sandwich", "lasagna")
    for place in ("bottom", "middle", "top")
]


@pytest.mark.parametrize("preset", [*PRESETS, "lckv-w2", "lckv-w4", "cla2", "cla3", "yoco", "mix-attention"])
def test_presets(preset):
    """All nine layouts of the NAACL study (2410.14442), and those of other papers."""
    house = model(preset, **EXACT, sliding_window=4)
    row = tokens(LENGTH)[0]
    expected = reference(house, row)
    assert difference(prefilled_and_decoded(house, row), expected) < CLOSE


@pytest.mark.parametrize("attention", ["sdpa", "flex_attention"])
@pytest.mark.parametrize("name", MAPS)
def test_other_attention_implementations(name, attention):
    equals_reference(model(MAPS[name], attention=attention, **EXACT))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", MAPS)
def test_static_caches(name, attention):
    house = model(MAPS[name], attention=attention, **EXACT)
    row = tokens(LENGTH)[0]
    cache = StaticCache(house.config, max_cache_len=LENGTH + 3)
    assert difference(prefilled_and_decoded(house, row, cache), reference(house, row)) < CLOSE


@pytest.mark.parametrize("name", CYCLIC)
def test_static_windows_that_are_full(name):
    house = model(CYCLIC[name], attention="sdpa", **EXACT | {"forward_passes": 40})
    row = tokens(40)[0]
    cache = StaticCache(house.config, max_cache_len=50)
    assert difference(prefilled_and_decoded(house, row, cache), reference(house, row)) < CLOSE


@pytest.mark.parametrize(("forward", "backward"), [(0, 1), (0, 2), (3, 2), (7, 2)])
@pytest.mark.parametrize("name", CYCLIC)
def test_as_many_positions_are_exact_as_there_are_passes(name, forward, backward):
    passes = {"forward_passes": forward, "backward_passes": backward}
    house = model(CYCLIC[name], **passes, dtype=torch.float64, initializer_range=0.2)  # too large to converge
    row = tokens(LENGTH)[0]
    expected = reference(house, row)
    with torch.no_grad():
        found = house(row[None], use_cache=False).logits[0].double()
    exact = forward + backward
    assert difference(found[:exact], expected[:exact]) < CLOSE
    assert difference(found[exact:], expected[exact:]) > 100 * CLOSE


def test_passes_are_read_at_every_forward():
    house, row = model(CYCLIC["lckv-w2"], initializer_range=0.5), tokens(LENGTH)
    with torch.no_grad():
        first = house(row, use_cache=False).logits
        house.config.forward_passes = 0
        second = house(row, use_cache=False).logits
        house.config.forward_passes = 7
        assert not torch.equal(second, first)
        assert torch.equal(house(row, use_cache=False).logits, first)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
def test_a_later_token_never_moves_an_earlier_logit(name, attention):
    house = model(MAPS[name], attention=attention, initializer_range=0.3)
    row = tokens(LENGTH)
    other = row.clone()
    other[:, 7:] = (other[:, 7:] + 1) % 50
    with torch.no_grad():
        ours, theirs = house(row, use_cache=False).logits, house(other, use_cache=False).logits
    assert torch.equal(ours[:, :7], theirs[:, :7])
    assert not torch.equal(ours[:, 7], theirs[:, 7])


@pytest.mark.parametrize("name", MAPS)
def test_decoding_sees_the_keys_and_values_of_the_previous_token(name):
    """LCKV's own decoding does not: it puts the placeholder of the current token in the wrong place."""
    house, row = model(MAPS[name], initializer_range=0.3), tokens(LENGTH)
    other = row.clone()
    other[0, -2] = (other[0, -2] + 1) % 50
    last = []
    for each in (row, other):
        cache = DynamicCache(config=house.config)
        with torch.no_grad():
            house(each[:, :-2], past_key_values=cache)
            house(each[:, -2:-1], past_key_values=cache)
            last.append(house(each[:, -1:], past_key_values=cache).logits)
    assert not torch.allclose(last[0], last[1], atol=1e-3)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize("name", MAPS)
def test_left_padding_changes_nothing(name, attention):
    house = model(MAPS[name], attention=attention, initializer_range=0.1)
    long, short = tokens(LENGTH)[0], tokens(LENGTH - 5, seed=2)[0]
    batch = torch.stack([long, torch.cat([torch.zeros(5, dtype=torch.long), short])])
    mask = torch.ones_like(batch)
    mask[1, :5] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    new = tokens(3, seed=3)[0]

    def logits(rows, mask=None, positions=None):
        """Of a prompt and three more tokens, decoded."""
        cache = DynamicCache(config=house.config)
        found = []
        with torch.no_grad():
            found.append(house(rows, mask, positions, cache).logits[:, -1:])
            for number, token in enumerate(new):
                if mask is not None:
                    mask = torch.cat([mask, torch.ones(len(mask), 1, dtype=torch.long)], dim=1)
                    positions = positions[:, -1:] + 1
                output = house(token.expand(len(rows), 1), mask, positions, cache)
                found.append(output.logits)
                assert number < 3
        return torch.cat(found, dim=1)

    padded = logits(batch, mask, positions)
    assert torch.allclose(padded[0], logits(long[None])[0], atol=CLOSE)
    assert torch.allclose(padded[1], logits(short[None])[0], atol=CLOSE)


@pytest.mark.parametrize("name", ["lckv-w2", "yoco", "chain"])
@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
def test_sequences_packed_in_one_row_do_not_see_each_other(name, attention):
    house = model(MAPS[name], attention=attention, **EXACT)
    first, second = tokens(6)[0], tokens(7, seed=2)[0]
    positions = torch.cat([torch.arange(6), torch.arange(7)])[None]
    with torch.no_grad():
        packed = house(torch.cat([first, second])[None], position_ids=positions, use_cache=False).logits[0]
    assert difference(packed[:6], reference(house, first)) < CLOSE
    assert difference(packed[6:], reference(house, second)) < CLOSE


@pytest.mark.parametrize("name", CYCLIC)
def test_attention_to_nothing_is_zero(name):
    """The first token of a step that does not see its own: without a bias, its output projection gives 0."""
    house = model(CYCLIC[name])
    given = {}
    for number, layer in enumerate(house.model.layers):
        layer.self_attn.o_proj.register_forward_pre_hook(
            lambda module, args, number=number: given.setdefault(number, args[0])
        )
    with torch.no_grad():
        house(tokens(5), use_cache=False)
    for step in house.config.schedule.steps:
        assert (given[step.number][0, 0] == 0).all() == step.reading.strictly_past


@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["plain", "checkpointed", "reentrant"])
@pytest.mark.parametrize("passes", [(0, 1), (3, 2), (2, 4)], ids=str)
@pytest.mark.parametrize("name", [*CYCLIC, "cla2", "yoco"])
def test_loss_and_gradients_equal_those_of_the_unrolled_computation(name, passes, checkpointing):
    forward, backward = passes
    house = model(MAPS[name], dtype=torch.float64, forward_passes=forward, backward_passes=backward)
    rows = tokens(LENGTH, batch=2)
    weights = {name: tensor.requires_grad_() for name, tensor in weights_of(house).items()}
    logits = unrolled(weights, settings_of(house.config), rows, forward, backward)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
    loss.backward()

    house.train()
    if checkpointing is not None:
        house.gradient_checkpointing_enable({"use_reentrant": checkpointing})
    ours = house(rows, labels=rows, use_cache=False).loss
    ours.backward()
    assert ours.item() == pytest.approx(loss.item(), abs=1e-6)  # transformers computes losses in float32
    for name, parameter in house.named_parameters():
        expected = weights[name].grad
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        expected = torch.zeros_like(parameter) if expected is None else expected
        # norms, angles and softmax are computed in float32, as transformers has them
        assert torch.allclose(found, expected, atol=CLOSE), name


@pytest.mark.parametrize("name", MAPS)
def test_only_owners_have_weights_for_keys_and_values_and_cache_slots(name):
    house = model(MAPS[name])
    owners = {int(entry.rstrip("s")) for entry in config(MAPS[name]).kv_map.split("_")}
    for number, layer in enumerate(house.model.layers):
        names = {name for name, _ in layer.self_attn.named_parameters()}
        assert ("k_proj.weight" in names) == ("v_proj.weight" in names) == (number in owners)
    cache = house(tokens(LENGTH, batch=2)).past_key_values
    assert len(cache) == len(owners)
    found = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers if not layer.is_sliding)
    full = sum(not layer.is_sliding for layer in cache.layers)
    assert found == 2 * LENGTH * (2 * 2 * 8 * 4 * full)  # rows, tokens: keys and values, heads, width, bytes
    for layer in cache.layers:
        if layer.is_sliding:
            assert layer.keys.shape[-2] == 4 - 1  # the window but the current token


@pytest.mark.parametrize(
    ("kv_map", "parameters", "kv_bytes"),
    [("lckv-w2", 1_080_125_440, 3_072), ("lckv-w10", 1_088_514_048, 11_264), (None, 1_100_048_384, 22_528)],
)
def test_the_sizes_of_tinyllama(kv_map, parameters, kv_bytes):
    """Parameters and bytes a token in bfloat16, those of the released checkpoints (2405.10637)."""
    made = config(
        kv_map,
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
    )
    from restack.llama import RestackLlamaForCausalLM

    with torch.device("meta"):
        house = RestackLlamaForCausalLM(made).to(torch.bfloat16)
        cache = DynamicCache(config=made)
        house(torch.zeros(1, 9, dtype=torch.long), past_key_values=cache)
    assert sum(parameter.numel() for parameter in house.parameters()) == parameters
    assert sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) == 9 * kv_bytes


@pytest.mark.parametrize("name", ["identity", "cla2", "lckv-w2"])
def test_keys_and_values_are_let_go_when_nobody_reads_them(name):
    """Llama has those of one layer at a time; here none but what later steps read."""
    house, alive, most = model(MAPS[name]), [], []
    for layer in house.model.layers:
        original = layer.self_attn.keys_values

        def noted(x, rope, original=original):
            made = original(x, rope)
            alive.append(weakref.ref(made[1]))
            most.append(sum(value() is not None for value in alive))
            return made

        layer.self_attn.keys_values = noted
    house.config.forward_passes = 0
    house.config.backward_passes = 2
    with torch.no_grad():
        house(tokens(LENGTH), use_cache=False)
    assert max(most) <= {"identity": 2, "cla2": 2, "lckv-w2": 3}[name]


def test_float64_behind_padding_is_a_number():
    house = model(dtype=torch.float64)
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[1, :4] = 0
    with torch.no_grad():
        padded = house(tokens(LENGTH, batch=2), attention_mask=mask).logits[1, 4:]
        assert torch.allclose(padded, house(tokens(LENGTH, batch=2)[1:, 4:]).logits[0], atol=1e-6)
