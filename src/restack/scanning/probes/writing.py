"""What a model writes after many prompts."""

from collections.abc import Sequence
from typing import Any

import torch

from restack.runtime import Sampling, generate_all

BATCH = 32  # prompts


def answers(model: Any, tokenizer: Any, prompts: Sequence[tuple[str, bool]], max_tokens: int) -> list[str]:
    """The greedy answer to each prompt, in batches of prompts of about one length.

    Args:
        model: a loaded model or view.
        tokenizer: of the model.
        prompts: texts, and whether the tokenizer is to put its special tokens before each.
        max_tokens: of an answer.
    """
    tokens = [
        torch.tensor(
            [tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]], device=model.device
        )
        for text, special in prompts
    ]
    order = sorted(range(len(tokens)), key=lambda number: (tokens[number].shape[1], number))
    written = [""] * len(tokens)
    greedy = Sampling(temperature=0, repetition_penalty=1.0, max_tokens=max_tokens)
    plain: dict[str, Any] = {
        "no_repeat_ngram_size": 0,
        "num_beams": 1,
    }  # whatever the model's generation config says
    for start in range(0, len(order), BATCH):
        some = order[start : start + BATCH]
        texts = generate_all(model, tokenizer, [tokens[number] for number in some], greedy, **plain)
        for number, text in zip(some, texts, strict=True):
            written[number] = text
    return written
