"""Decoding over static caches says what decoding over dynamic ones says, compiled too."""

from contextlib import contextmanager

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import CompileConfig
from transformers.cache_utils import DynamicCache, StaticCache

from restack import quantize, recipes, view
from restack.runtime import Sampling, generate, generate_all, static_cache
from restack.runtime.decoding import decode
from restack.runtime.prompt_cache import PromptCache
from restack.views.empty_slot import EmptySlot
from tests.llama.tiny import model as house
from tests.runtime.decoding.test_decode import FAMILIES, MAPS, PLANS, PROMPT, made
from tests.views.architectures import BY_NAME

GREEDY = Sampling(temperature=0, max_tokens=24)
OTHERS = ["gemma2", "gemma3", "gpt2", "gpt_neox", "qwen2_moe", "deepseek_v3", "falcon"]


@pytest.fixture(autouse=True)
def no_kernel(monkeypatch):
    """As on a GPU."""
    monkeypatch.setattr("restack.runtime.decoding.loop.quiet_kernel", lambda: None)
    monkeypatch.setattr("restack.runtime.packed.linear.kernel", lambda: None)


@pytest.fixture
def taken(monkeypatch):
    """The caches that texts were written into."""
    found, fill = [], static_cache.in_static_memory

    @contextmanager
    def watched(*args):
        with fill(*args) as used:
            found.append(used)
            yield used

    monkeypatch.setattr("restack.runtime.decoding.loop.in_static_memory", watched)
    return found


def both(model, tokens, mask=None, **options):
    """What the model says over a dynamic cache, and over a static one."""
    tokens = tokens % model.config.get_text_config().vocab_size
    options = {"max_new_tokens": 24, "do_sample": False} | options
    options["attention_mask"] = torch.ones_like(tokens) if mask is None else mask
    theirs = model.generate(tokens, **options)
    model.generation_config.cache_implementation = "static"
    return theirs, model.generate(tokens, **options, custom_generate=decode, cache_implementation=None)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_says_the_same(taken, name):
    theirs, ours = both(made(name), PROMPT)
    assert torch.equal(ours, theirs) and isinstance(taken[0], StaticCache)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_so_does_a_view(taken, name, plan):
    theirs, ours = both(view(made(name), plan), PROMPT)
    assert torch.equal(ours, theirs) and isinstance(taken[0], StaticCache)


@pytest.mark.parametrize("kv_map", MAPS)
def test_so_does_the_house_model(taken, kv_map):
    theirs, ours = both(house(kv_map, initializer_range=0.3), PROMPT)
    assert torch.equal(ours, theirs) and isinstance(taken[0], StaticCache)


@pytest.mark.parametrize("name", OTHERS)
def test_so_do_other_architectures(name):
    model = BY_NAME[name].model()
    theirs, ours = both(view(model, "0:3,1:4"), PROMPT)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["mamba", "jamba", "bamba", "lfm2"])
def test_states_that_are_no_keys_and_values_are_left_where_they_are(taken, name):
    theirs, ours = both(BY_NAME[name].model(), PROMPT)
    assert torch.equal(ours, theirs) and not isinstance(taken[0], StaticCache)


def test_a_batch_with_padding(taken):
    model = made("mistral")
    rows = [PROMPT[0, :length].tolist() for length in (13, 4, 1, 9)]
    tokens = torch.tensor([[0] * (13 - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (13 - len(row)) + [1] * len(row) for row in rows])
    theirs, ours = both(model, tokens, mask)
    assert torch.equal(ours, theirs) and isinstance(taken[0], StaticCache)


@pytest.fixture(scope="module")
def words():
    return recipes.open_tokenizer("demo")


@pytest.fixture
def said(words):
    return lambda model, prompt, **options: generate(model, words, prompt, GREEDY, **options)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2 with windows"])
@pytest.mark.parametrize("plan", ["0:4", "0:4;kv=0_1_0_1"])
def test_turns_of_a_chat(taken, said, name, plan):
    """Each goes on from what the prompt cache has of those before."""
    model = view(made(name), plan)
    kept, reused, texts = {"dynamic": PromptCache(), "static": PromptCache()}, [], []
    for kind in kept:
        model.generation_config.cache_implementation = kind
        tokens = PROMPT
        for _ in range(3):
            found = said(model, tokens, prompt_cache=kept[kind])
            reused.append(found.reused)
            tokens = torch.cat([tokens, torch.tensor([found.tokens]), PROMPT[:, :2]], dim=1)
        texts.append(tokens)
    assert torch.equal(*texts)
    assert reused[:3] == reused[3:] == [0, 36, 62]
    assert [type(each) for each in taken] == [DynamicCache] * 3 + [StaticCache] * 3
    assert len({id(each) for each in taken[3:]}) == 1
    ours, theirs = kept["static"].cache, kept["dynamic"].cache
    assert type(ours) is DynamicCache
    for slot, expected in zip(ours.layers, theirs.layers, strict=True):
        if not isinstance(expected, EmptySlot):
            assert slot.get_seq_length() == expected.get_seq_length()
            torch.testing.assert_close(slot.keys, expected.keys, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(slot.values, expected.values, rtol=1e-4, atol=1e-4)


def test_a_longer_text_gets_more_room_and_texts_at_once_a_cache_each(monkeypatch):
    model = made("llama", max_position_embeddings=4096)
    model.generation_config.cache_implementation = "static"
    monkeypatch.setattr(static_cache, "LEAST", 32)

    def cache(texts, tokens):
        return static_cache.in_static_memory(model, DynamicCache(config=model.config), texts, tokens)

    with cache(1, 30) as one, cache(1, 30) as other:
        assert one is not other and one.get_max_length() == other.get_max_length() == 32
    with cache(1, 100) as large:
        assert large.get_max_length() == 128
    with cache(1, 20) as again:
        assert again in (one, other)
    with cache(2, 20) as several:
        assert several not in (one, other, large)


def test_prompts_at_once_and_beams(taken, words, said):
    model = made("llama")
    prompts = [PROMPT, PROMPT[:, :4]]
    options = {"num_beams": 2}
    theirs = [
        generate_all(model, words, prompts, GREEDY),
        said(model, PROMPT, prompt_cache=PromptCache()).text,
    ]
    beams = model.generate(PROMPT, max_new_tokens=24, do_sample=False, **options)
    model.generation_config.cache_implementation = "static"
    ours = [generate_all(model, words, prompts, GREEDY), said(model, PROMPT, prompt_cache=PromptCache()).text]
    assert ours == theirs and [type(each) for each in taken] == [DynamicCache] * 2 + [StaticCache] * 2
    assert torch.equal(model.generate(PROMPT, max_new_tokens=24, do_sample=False, **options), beams)


@pytest.mark.parametrize(
    ("plan", "format"), [("0:3,1:4", None), ("0:2,1@0.5,2;kv=0_0_2_2", None), ("0:3,1:4", "int8")]
)
def test_steps_are_compiled_once_for_all_texts(taken, said, plan, format):
    """On a GPU, transformers compiles into CUDA graphs; here it is asked to trace, as it is there."""
    base = made("llama", max_position_embeddings=4096)
    model = view(base if format is None else quantize(base, format), plan)
    expected = [said(model, PROMPT[:, :length]).tokens for length in (13, 5)]
    model.generation_config.cache_implementation = "static"
    settings = CompileConfig(backend="aot_eager", mode=None)
    settings._compile_all_devices = True
    model.generation_config.compile_config = settings
    torch._dynamo.reset()
    counters.clear()
    found, graphs = [], []
    for length in (13, 5):
        kept = PromptCache()
        first = said(model, PROMPT[:, :length], prompt_cache=kept)
        found.append(first.tokens)
        further = torch.cat([PROMPT[:, :length], torch.tensor([first.tokens]), PROMPT[:, :2]], dim=1)
        assert said(model, further, prompt_cache=kept).reused == length + 23
        graphs.append(counters["stats"]["unique_graphs"])
    assert found == expected
    assert graphs[0] > 0 and graphs[1] == graphs[0]
