"""What is kept of a prompt, below the level of text."""

import pytest
import torch

import restack
from restack import recipes
from restack.runtime import PromptCache, Sampling, generate
from tests.chat.test_reuse import tiny

SAMPLING = Sampling(temperature=0, max_tokens=6)


@pytest.fixture(scope="module")
def tokenizer():
    return recipes.open_tokenizer("demo")


def prompt(length, seed=0):
    return torch.randint(1000, (1, length), generator=torch.Generator().manual_seed(seed))


def gone_on(model, tokenizer, cache, first, more):
    """What comes of a first prompt, and of one that goes on where it ended."""
    one = generate(model, tokenizer, first, SAMPLING, prompt_cache=cache)
    longer = torch.cat([first, torch.tensor([one.tokens]), more], 1)
    return longer, generate(model, tokenizer, longer, SAMPLING, prompt_cache=cache)


@pytest.mark.parametrize(
    "kind", ["llama", "gpt2", "sliding", "hybrid", "house", "house shared", "house cyclic"]
)
def test_a_text_that_goes_on_is_read_on(tokenizer, kind):
    model, cache = tiny(kind), PromptCache()
    longer, made = gone_on(model, tokenizer, cache, prompt(30), prompt(5, 1))
    assert (made.reused, made.read, made.reason) == (35, 6, "")
    assert made.tokens == generate(model, tokenizer, longer, SAMPLING).tokens
    assert cache.tokens == [*longer[0].tolist(), *made.tokens[:-1]]


@pytest.mark.parametrize("plan", ["0:4;kv=0_0_2_2", "0:2,1:4;kv=0_0_2_2_4", "0:3,1:4@0.5"])
def test_a_view_reads_on_from_where_texts_part(tokenizer, plan):
    model, cache = restack.view(tiny("llama"), plan), PromptCache()
    generate(model, tokenizer, prompt(30), SAMPLING, prompt_cache=cache)
    other = torch.cat([prompt(30)[:, :20], prompt(5, 1)], 1)
    made = generate(model, tokenizer, other, SAMPLING, prompt_cache=cache)
    assert (made.reused, made.reason) == (20, "")
    assert made.tokens == generate(model, tokenizer, other, SAMPLING).tokens


@pytest.mark.parametrize("kind", ["llama", "sliding", "house shared"])
def test_what_is_stored_is_what_is_restored(tokenizer, kind):
    model, cache = tiny(kind), PromptCache()
    gone_on(model, tokenizer, cache, prompt(30), prompt(5, 1))
    other = PromptCache()
    other.restore(model, cache.stored())
    assert (other.tokens, other.bytes) == (cache.tokens, cache.bytes)
    more = torch.cat([torch.tensor([cache.tokens]), prompt(3, 2)], 1)
    one, two = (generate(model, tokenizer, more, SAMPLING, prompt_cache=c) for c in (cache, other))
    assert one.tokens == two.tokens and one.reused == two.reused == 46


def test_nothing_is_kept_of_what_went_wrong(tokenizer):
    model, cache = tiny("llama"), PromptCache()
    generate(model, tokenizer, prompt(8), SAMPLING, prompt_cache=cache)

    def fail(*arguments):
        raise RuntimeError("out of memory")

    handle = model.model.layers[2].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError):
        generate(model, tokenizer, prompt(8, 1), SAMPLING, prompt_cache=cache)
    handle.remove()
    assert cache.tokens == [] and cache.bytes == 0


def test_the_whole_prompt_may_be_known(tokenizer):
    model, cache = tiny("llama"), PromptCache()
    first = generate(model, tokenizer, prompt(8), SAMPLING, prompt_cache=cache)
    again = generate(model, tokenizer, prompt(8), SAMPLING, prompt_cache=cache)
    assert again.tokens == first.tokens and (again.read, again.reused) == (1, 7)


def test_a_fork_is_not_touched_by_what_the_other_reads(tokenizer):
    for kind in ("llama", "hybrid"):
        model, cache = tiny(kind), PromptCache()
        first = generate(model, tokenizer, prompt(8), SAMPLING, prompt_cache=cache)
        fork = cache.fork()
        for seed, each in ((1, cache), (2, fork)):
            longer = torch.cat([prompt(8), torch.tensor([first.tokens]), prompt(4, seed)], 1)
            made = generate(model, tokenizer, longer, SAMPLING, prompt_cache=each)
            assert made.reused == 13
            assert made.tokens == generate(model, tokenizer, longer, SAMPLING).tokens
