"""A stand-in for a model, that says what it is told to."""

from types import SimpleNamespace

import torch
from transformers import GenerationConfig


class Speaker:
    """Says a text token by token, as transformers' `generate` would stream it."""

    def __init__(self, tokenizer, text, context=None):
        self.tokenizer = tokenizer
        self.tokens = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        self.device = "cpu"
        self.prompt = None  # the last one, as text
        limit = {} if context is None else {"max_position_embeddings": context}
        self.config = SimpleNamespace(get_text_config=lambda decoder: SimpleNamespace(**limit))
        self.generation_config = GenerationConfig(use_cache=False)

    def forward(self, input_ids):  # takes no cache
        raise NotImplementedError

    def generate(self, prompt, streamer, max_new_tokens, **options):
        self.prompt = self.tokenizer.decode(prompt[0])
        tokens = self.tokens[:, :max_new_tokens]
        streamer.put(prompt)
        for token in tokens[0]:
            streamer.put(token[None])
        streamer.end()
        return torch.cat([prompt, tokens], 1)
