"""The tokenizer and the chat template, as transformers uses them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from restack.demo import corpus
from restack.demo.curriculum import TYPICAL


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Trained, saved and loaded again, as users get it."""
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    corpus.train_tokenizer(0, samples=2000).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_training_a_tokenizer_is_reproducible() -> None:
    one, two = (corpus.train_tokenizer(3, samples=500).backend_tokenizer.to_str() for _ in range(2))
    assert one == two


@pytest.mark.parametrize(
    "text", ["What is 348 + 275?", "Zoë naïve 東京 🙂\t\n  x", "", " ", "\x00\x7f", "if(a<=b){return 1;}"]
)
def test_any_text_survives(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_digits_are_tokens_of_their_own(tokenizer: Any) -> None:
    assert tokenizer.tokenize("348") == ["3", "4", "8"]


def test_the_chat_template_is_what_training_wrote(tokenizer: Any) -> None:
    for seed in range(40):
        system, turns = corpus.conversation(random.Random(seed), 3)
        messages = [{"role": "system", "content": system}] if system else []
        for turn in turns:
            messages += [
                {"role": "user", "content": turn.question},
                {"role": "assistant", "content": turn.answer},
            ]
        ids = tokenizer.apply_chat_template(messages, return_dict=False)
        assert ids == [
            i for text, _ in corpus.chat_spans(system, turns) for i in tokenizer(text)["input_ids"]
        ]


def test_generation_prompt_and_continued_answers(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "What is 348 + 275?"}]
    asked = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert asked == "<|bos|><|im_start|>user\nWhat is 348 + 275?<|im_end|>\n<|im_start|>assistant\n"
    for prefix in ("Let's think step by step.", "Let's think step by step.\n"):
        messages = [*messages[:1], {"role": "assistant", "content": prefix}]
        assert (
            tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True)
            == asked + prefix
        )


def test_special_tokens(tokenizer: Any) -> None:
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|bos|>",
        "<|im_end|>",
        "<|pad|>",
    )
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3


def test_rows_are_a_function_of_the_seed(tokenizer: Any) -> None:
    again = [
        corpus.batch(tokenizer, 0, step, part, TYPICAL) for step, part in ((5, 1), (5, 1), (6, 1), (5, 0))
    ]
    assert again[0] == again[1]
    assert again[0] != again[2]
    assert again[0] != again[3]
