"""Text out of tokens: what was heard, put together, is what the tokenizer makes of all of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import Metaspace
from transformers import PreTrainedTokenizerFast

from restack import recipes
from restack.runtime.streaming import TextStream

DEMO = recipes.open_tokenizer("demo")


def streamed(tokenizer, tokens, **options):
    heard = []
    stream = TextStream(tokenizer, heard.append, **options)
    stream.put(torch.tensor([[1, 2]]))  # the prompt
    for token in tokens:
        stream.put(torch.tensor([token]))
    stream.end()
    assert stream.text == "".join(heard) and stream.tokens == list(tokens)
    return heard


@given(st.text(max_size=40))
def test_any_text_comes_through(text):
    tokens = DEMO(text, add_special_tokens=False)["input_ids"]
    assert "".join(streamed(DEMO, tokens)) == DEMO.decode(tokens, skip_special_tokens=True)


@settings(max_examples=200)
@given(st.lists(st.integers(0, DEMO.vocab_size - 1), max_size=20))
def test_any_tokens_come_through(tokens):
    text = DEMO.decode(tokens, skip_special_tokens=True)
    whole = text.rstrip("\ufffd")
    assert "".join(streamed(DEMO, tokens)) == (whole if len(text) - len(whole) <= 3 else text)


def test_a_piece_comes_with_its_token():
    tokens = DEMO("Once upon a time", add_special_tokens=False)["input_ids"]
    assert len(streamed(DEMO, tokens)) == len(tokens)  # not only when the word is over


def test_a_character_comes_when_it_is_whole():
    tokens = DEMO("a 🪁 b", add_special_tokens=False)["input_ids"]
    heard = streamed(DEMO, tokens)
    assert "".join(heard) == "a 🪁 b"
    assert not any("\ufffd" in piece for piece in heard)


@pytest.fixture
def sentencepiece():
    """Llama 2's kind in short: a blank is part of the word after it, and left out before the first."""
    words = {"<unk>": 0, "▁Hello": 1, "▁my": 2, "▁friend": 3, "s": 4, "<s>": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>")


def test_the_first_blank_counts_within_a_sentence(sentencepiece):
    assert sentencepiece.decode([2, 3]) == "my friend"
    assert streamed(sentencepiece, [2, 3, 4]) == ["my", " friend", "s"]
    assert streamed(sentencepiece, [2, 3], before=[5, 1]) == [" my", " friend"]


def test_special_tokens_are_left_out_but_for_those_that_are_text():
    bos, eos = DEMO.bos_token_id, DEMO.eos_token_id
    tokens = [bos, *DEMO("Hi!", add_special_tokens=False)["input_ids"], eos]
    assert "".join(streamed(DEMO, tokens)) == "Hi!"
    assert "".join(streamed(DEMO, tokens, shown={eos})) == "Hi!" + DEMO.eos_token


def test_it_ends_before_the_stop_string():
    tokens = DEMO("Hello!\n\nUser: Hi", add_special_tokens=False)["input_ids"]
    assert "".join(streamed(DEMO, tokens, stop=["\nUser:", "\n\nUser:"])) == "Hello!"
