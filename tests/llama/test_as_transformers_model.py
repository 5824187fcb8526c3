"""What transformers does with a model, done with house models: generation, forwards, copies."""

import copy
import pickle

import pytest
import torch
from transformers import StaticCache
from transformers.cache_utils import QuantoQuantizedLayer

from tests.llama.plans_run import (
    EACH,
    FEW,
    GREEDY,
    NEW,
    PLAIN,
    PLANS,
    PROMPT,
    continuation,
    expected_logits,
    expected_tokens,
    house_of,
    logits,
    unrolled_llama,
)
from tests.llama.tiny import tokens
from tests.versions import skip_where_old

CLOSE = 1e-5
SLIDING = ["yoco", "chain"]
FULL = [name for name in PLANS if name not in SLIDING]
FEW_FULL = [
    name if name in (*FEW, "lckv-w2") else pytest.param(name, marks=pytest.mark.slow) for name in FULL
]
QUANTO = {"backend": "quanto", "nbits": 4, "residual_length": 4, "q_group_size": 16}
EIGHT_BITS = {"backend": "fp8"}


def quantised(settings: dict) -> dict:
    return {"cache_implementation": "quantized", "cache_config": settings}


def generated(model, ids=PROMPT, **options) -> torch.Tensor:
    return model.generate(ids, **GREEDY | options)


@pytest.mark.parametrize("name", PLANS)
def test_logits_equal_the_reference(name):
    """Or all that is generated below would be compared with a wrong computation."""
    house = house_of(name)
    torch.testing.assert_close(logits(house).double(), expected_logits(house), atol=CLOSE, rtol=0)


class TestGeneration:
    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    @pytest.mark.parametrize("name", EACH)
    def test_each_cache_gives_the_tokens_of_the_reference(self, name, attention):
        house = house_of(name, attention=attention)
        for options in ({}, {"cache_implementation": "static"}):
            assert torch.equal(generated(house, **options), continuation(name)), options
            assert torch.equal(generated(house, prefill_chunk_size=4, **options), continuation(name)), options
        assert torch.equal(generated(house, use_cache=False), continuation(name))

    @pytest.mark.slow
    @pytest.mark.parametrize("name", SLIDING)
    def test_far_past_the_window(self, name):
        house = house_of(name)
        expected = expected_tokens(house, new=20)
        for kind in ("dynamic", "static"):
            assert torch.equal(generated(house, max_new_tokens=20, cache_implementation=kind), expected)

    @pytest.mark.parametrize("name", EACH)
    def test_a_row_with_padding_at_its_left(self, name):
        house = house_of(name)
        mask = torch.ones_like(PROMPT)
        mask[1, :3] = 0
        rows = expected_tokens(house, PROMPT[:1])[0], expected_tokens(house, PROMPT[1:, 3:])[0]
        for options in ({}, {"cache_implementation": "static"}, {"prefill_chunk_size": 4}):
            padded = generated(house, attention_mask=mask, pad_token_id=0, **options)
            assert torch.equal(padded[0], rows[0])
            assert torch.equal(padded[1, 3:], rows[1])

    @pytest.mark.parametrize("name", EACH)
    def test_beams_and_samples_need_no_cache(self, name):
        house = house_of(name)
        beams = {"num_beams": 3, "num_return_sequences": 2}
        found = generated(house, use_cache=False, **beams)
        assert not torch.equal(found[::2], found[1::2])
        for kind in ("dynamic", "static"):
            assert torch.equal(generated(house, cache_implementation=kind, **beams), found)
        drawn = []
        for use_cache in (True, False):
            torch.manual_seed(0)
            drawn.append(generated(house, do_sample=True, top_k=0, temperature=1.5, use_cache=use_cache))
        assert torch.equal(*drawn)

    @pytest.mark.parametrize("name", EACH)
    def test_assisted(self, name):
        if name in SLIDING:
            skip_where_old("a rejected draft leaves a sliding window that is cut wrongly")
        house, other = house_of(name), house_of(name, seed=3)
        row = PROMPT[:1].repeat(1, 2)
        expected = expected_tokens(house, row)
        assert torch.equal(generated(house, row, assistant_model=copy.deepcopy(house)), expected)
        assert torch.equal(generated(house, row, assistant_model=other), expected)  # mostly rejected
        assert torch.equal(generated(house, row, prompt_lookup_num_tokens=3), expected)

    @pytest.mark.parametrize("name", EACH)
    def test_gone_on_with_the_cache_of_the_turn_before(self, name):
        house = house_of(name)
        for kind in ("dynamic", "static"):
            own = StaticCache(house.config, max_cache_len=30) if kind == "static" else None
            first = generated(house, past_key_values=own, return_dict_in_generate=True)
            turn = torch.cat([first.sequences, tokens(3, batch=2, seed=5)], dim=1)
            second = generated(house, turn, past_key_values=first.past_key_values, max_new_tokens=4)
            assert torch.equal(second, expected_tokens(house, turn, new=4)), kind

    @pytest.mark.parametrize("name", EACH)
    def test_embeddings_for_a_prompt(self, name):
        house = house_of(name)
        embedded = house.get_input_embeddings()(PROMPT)
        assert torch.equal(logits(house, None, inputs_embeds=embedded), logits(house))
        expected = continuation(name)[:, PROMPT.shape[1] :]
        assert torch.equal(generated(house, None, inputs_embeds=embedded), expected)

    @pytest.mark.parametrize("cache", [QUANTO, EIGHT_BITS], ids=lambda cache: cache["backend"])
    @pytest.mark.parametrize("name", FEW_FULL)
    def test_quantised_caches(self, name, cache):
        pytest.importorskip("optimum.quanto")
        if cache is EIGHT_BITS:
            skip_where_old("there is no fp8 cache")
        house = house_of(name, hidden_size=64)
        options = {"return_dict_in_generate": True, "output_logits": True, **quantised(cache)}
        found = generated(house, **options)
        used = sum(layer.is_initialized for layer in found.past_key_values.layers)
        assert used == len(house.config.schedule.slots)
        with_both = logits(house, found.sequences[:, :-1])
        assert not torch.allclose(found.logits[-1], with_both[:, -1], atol=1e-4)  # it was quantised
        if name in PLAIN:
            for more in ({}, {"num_beams": 3}):
                expected = generated(unrolled_llama(house), **options | more)
                found = generated(house, **options | more)
                assert torch.equal(found.sequences, expected.sequences)
                torch.testing.assert_close(found.logits, expected.logits, atol=CLOSE, rtol=0)

    @pytest.mark.parametrize("name", FEW_FULL)
    def test_a_quantised_cache_that_loses_nothing(self, name, monkeypatch):
        """The places of what is quantised, of the latest that is not, and of estimates of what is to come."""
        pytest.importorskip("optimum.quanto")
        monkeypatch.setattr(QuantoQuantizedLayer, "_quantize", lambda layer, tensor, axis: tensor)
        monkeypatch.setattr(QuantoQuantizedLayer, "_dequantize", lambda layer, tensor: tensor)
        house = house_of(name)
        options = quantised(QUANTO | {"q_group_size": 8})
        assert torch.equal(generated(house, **options), continuation(name))
        assert torch.equal(generated(house, prefill_chunk_size=2, **options), continuation(name))
        skip_where_old("beams break quantised caches")
        beams = generated(house, num_beams=3, use_cache=False)
        assert torch.equal(generated(house, num_beams=3, **options), beams)

    @pytest.mark.parametrize("name", SLIDING)
    def test_windows_are_not_quantised(self, name):
        skip_where_old("it does not tell")
        with pytest.raises(ValueError, match="only full attention"):
            generated(house_of(name), **quantised(QUANTO))


class TestForward:
    @pytest.mark.parametrize("name", PLAIN)
    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    def test_all_that_it_gives_equals_llamas(self, name, attention):
        house = house_of(name, attention=attention)
        llama = unrolled_llama(house, attention)
        asked = {"output_hidden_states": True, "output_attentions": attention == "eager"}
        with torch.no_grad():
            ours, theirs = (model(PROMPT, labels=PROMPT, **asked) for model in (house, llama))
            assert torch.equal(ours.loss, theirs.loss)
            assert torch.equal(ours.logits, theirs.logits)
            assert len(ours.hidden_states) == len(theirs.hidden_states) == len(house.config.whole_plan) + 1
            assert all(map(torch.equal, ours.hidden_states, theirs.hidden_states))
            if attention == "eager":
                assert len(ours.attentions) == len(theirs.attentions)
                assert all(map(torch.equal, ours.attentions, theirs.attentions))
            as_tuples = [model(PROMPT, return_dict=False) for model in (house, llama)]
            assert [type(each) for each in as_tuples[0]] == [type(each) for each in as_tuples[1]]
            assert torch.equal(as_tuples[0][0], ours.logits)
            labels = PROMPT.masked_fill(PROMPT < 20, -100)
            counted = {"labels": labels, "num_items_in_batch": torch.tensor(5)}
            assert torch.equal(house(PROMPT, **counted).loss, llama(PROMPT, **counted).loss)

    @pytest.mark.parametrize("name", PLANS)
    def test_one_state_and_one_attention_a_visit(self, name):
        house = house_of(name)
        visits = house.config.whole_plan.visits
        with torch.no_grad():
            output = house(PROMPT, output_hidden_states=True, output_attentions=True)
        assert len(output.hidden_states) == len(visits) + 1
        assert torch.equal(house.lm_head(output.hidden_states[-1]), output.logits)
        assert len(output.attentions) == len(visits)
        for step, weights in zip(house.config.schedule.steps, output.attentions, strict=True):
            assert (weights is None) == (step.damp == 0)
            if weights is not None:
                assert weights.shape[:3] == (*PROMPT.shape[:1], 4, PROMPT.shape[1])

    @pytest.mark.parametrize("name", PLANS)
    def test_arguments_that_change_nothing(self, name):
        house = house_of(name)
        expected = logits(house)
        positions = torch.arange(PROMPT.shape[1])[None]
        for options in (
            {"position_ids": positions},
            {"attention_mask": torch.ones_like(PROMPT)},
            {"use_cache": False},
            {"position_ids": positions.expand(2, -1), "attention_mask": torch.ones_like(PROMPT)},
        ):
            torch.testing.assert_close(logits(house, **options), expected, atol=CLOSE, rtol=0)
        assert torch.equal(logits(house, logits_to_keep=2), expected[:, -2:])
        assert torch.equal(logits(house, logits_to_keep=torch.tensor([0, 3])), expected[:, [0, 3]])
        assert house(PROMPT, use_cache=False).past_key_values is None
        assert len(house(PROMPT).past_key_values) == len(house.config.schedule.slots)

    @pytest.mark.parametrize("name", PLANS)
    def test_another_plan_given_to_the_config_runs_at_the_next_forward(self, name):
        house = house_of(name)
        logits(house)
        house.config.sliding_window = 4
        house.config.plan = "2,1;kv=0s_1" if name in PLAIN else "1x2;kv=0x2"
        assert house.config.kv_map == ("0s_1" if name in PLAIN else "0_0")
        if house.model.layers[1].has_kv:
            torch.testing.assert_close(logits(house).double(), expected_logits(house), atol=CLOSE, rtol=0)
            assert torch.equal(generated(house), expected_tokens(house))


class TestAsAModule:
    @pytest.mark.parametrize("name", EACH)
    def test_copies(self, name):
        house = house_of(name)
        expected = logits(house)
        for other in (copy.deepcopy(house), pickle.loads(pickle.dumps(house))):
            assert torch.equal(logits(other), expected)
            assert other.config == house.config
            with torch.no_grad():
                other.model.layers[0].mlp.up_proj.weight.zero_()
            assert not torch.equal(logits(other), expected)
        assert torch.equal(logits(house), expected)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("name", EACH)
    def test_half_precision(self, name, dtype):
        house = house_of(name, initializer_range=0.05)
        expected = logits(house)
        house = house.to(dtype)
        for attention in ("eager", "sdpa"):
            house.set_attn_implementation(attention)
            found = logits(house)
            assert found.dtype == dtype
            torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0)
            assert generated(house).shape == (2, PROMPT.shape[1] + NEW)
            assert generated(house, cache_implementation="static").shape == (2, PROMPT.shape[1] + NEW)

    @pytest.mark.parametrize("name", EACH)
    def test_parameters_are_counted_once(self, name):
        house = house_of(name)
        stored = {parameter.data_ptr(): parameter.numel() for parameter in house.parameters()}
        assert house.num_parameters() == sum(stored.values())
        assert house.num_parameters() == sum(tensor.numel() for tensor in house.state_dict().values())

    @pytest.mark.parametrize("tied", [False, True])
    def test_a_resized_vocabulary(self, tied):
        house = house_of("repeated", tie_word_embeddings=tied)
        expected = logits(house)
        house.resize_token_embeddings(60, mean_resizing=False)
        assert house.config.vocab_size == house.lm_head.out_features == 60
        assert (house.lm_head.weight is house.model.embed_tokens.weight) == tied
        torch.testing.assert_close(logits(house)[..., :50], expected)
