"""Tiny random models, rows for them, and a loop of plain PyTorch that trains alike."""

import math

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from restack import recipes

VOCABULARY = 40
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
    "initializer_range": 0.1, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip


def llama(seed=0, **settings):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SIZES | settings)).eval()


def rows(count=12, length=8, seed=1, vocabulary=VOCABULARY):
    return torch.randint(vocabulary, (count, length), generator=torch.Generator().manual_seed(seed))


def demo_tokenizer():
    return recipes.open_tokenizer("demo")


def by_hand(model, batches, lr, steps, warmup, decay=0.0, clip=1.0, parameters=None):
    """The losses of AdamW with a line up and half a cosine down; norms do not decay."""
    model.train()
    named = [p for p in model.parameters() if p.requires_grad] if parameters is None else parameters
    groups = [
        {"params": [p for p in named if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in named if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr)
    rise, losses = math.ceil(warmup * steps), []
    for step in range(steps):
        share = (
            (step + 1) / rise
            if step < rise
            else 0.5 + 0.5 * math.cos(math.pi * (step - rise) / (steps - rise))
        )
        for group in optimizer.param_groups:
            group["lr"] = lr * share
        batch = batches[step % len(batches)]
        logits = model(batch).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(named, clip)
        optimizer.step()
        losses.append(loss.item())
    return losses
