"""Tiny checkpoints in the layout of Meta's downloads, and Meta's model, both written down anew from its code.

Nothing here is shared with the reader under test. Weights carry Meta's names; hidden states are
(tokens, dim), heads are (tokens, heads, size).
"""

import base64
import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = dict[str, Tensor]

ROWS = ("wq", "wk", "wv", "w1", "w3", "output")  # split over the shards by rows
COLUMNS = ("wo", "w2")  # split by columns
# The text that tiny tokenizers are trained on.
SENTENCES = [
    "The llama walks over the hill and the hill walks over nobody.",
    "A layer that runs twice is still one layer, and it has one set of weights.",
    "Whoever counts layers counts 12, 13, 14, 15 and then 16 again!",
    "[INST] What is a llama? [/INST] A llama is an animal of the Andes.",
] * 3


def params(**changes) -> dict:
    """A params.json like that of Llama 2, tiny."""
    values = {"dim": 64, "multiple_of": 16, "n_heads": 8, "n_layers": 2, "norm_eps": 1e-5, "vocab_size": 96}
    return values | changes


def width(values: dict) -> int:
    """The width of the feed-forward layers, as in Meta's FeedForward."""
    hidden = int(2 * (4 * values["dim"]) / 3)
    if values.get("ffn_dim_multiplier") is not None:
        hidden = int(values["ffn_dim_multiplier"] * hidden)
    multiple = values["multiple_of"]
    return multiple * ((hidden + multiple - 1) // multiple)


def random_weights(values: dict, vocabulary: int = 96, seed: int = 0) -> Weights:
    """The weights of a whole model."""
    draw = torch.Generator().manual_seed(seed)
    dim, hidden = values["dim"], width(values)
    keys = dim // values["n_heads"] * (values.get("n_kv_heads") or values["n_heads"])
    shapes = {"tok_embeddings": (vocabulary, dim), "norm": (dim,), "output": (vocabulary, dim)}
    for layer in range(values["n_layers"]):
        shapes |= {
            f"layers.{layer}.attention.wq": (dim, dim),
            f"layers.{layer}.attention.wk": (keys, dim),
            f"layers.{layer}.attention.wv": (keys, dim),
            f"layers.{layer}.attention.wo": (dim, dim),
            f"layers.{layer}.feed_forward.w1": (hidden, dim),
            f"layers.{layer}.feed_forward.w2": (dim, hidden),
            f"layers.{layer}.feed_forward.w3": (hidden, dim),
            f"layers.{layer}.attention_norm": (dim,),
            f"layers.{layer}.ffn_norm": (dim,),
        }
    return {
        f"{name}.weight": 1 + 0.3 * torch.randn(shape, generator=draw)
        if len(shape) == 1
        else torch.randn(shape, generator=draw) * (2 / shape[1]) ** 0.5
        for name, shape in shapes.items()
    }


def split(weights: Weights, shards: int, embedding_dimension: int = 1) -> list[Weights]:
    """The shards of a model as Meta's ColumnParallelLinear, RowParallelLinear and embeddings hold it."""
    parts: list[Weights] = [{} for _ in range(shards)]
    for name, weight in weights.items():
        kind = name.split(".")[-2]
        if kind == "tok_embeddings":
            pieces = weight.chunk(shards, embedding_dimension)
        elif kind in ROWS:
            pieces = weight.chunk(shards, 0)
        elif kind in COLUMNS:
            pieces = weight.chunk(shards, 1)
        else:
            pieces = (weight,) * shards
        for part, piece in zip(parts, pieces, strict=True):
            part[name] = piece.clone()
    return parts


def write(folder: Path, values: dict, shards: list[Weights]) -> Path:
    """A folder of Meta's; the tables of its rotary embedding are in it as Llama 1 and 2 have them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(values))
    (folder / "checklist.chk").write_text("0123  consolidated.00.pth\n")
    for number, tensors in enumerate(shards):
        tables = {"rope.freqs": torch.ones(4)}
        tables |= {f"layers.{n}.attention.inner_attention.rope.freqs": torch.ones(4) for n in range(2)}
        torch.save(tensors | tables, folder / f"consolidated.{number:02d}.pth")
    return folder


def logits(values: dict, weights: Weights, tokens: Tensor, factor: float = 8.0) -> Tensor:
    """What Meta's Transformer says of tokens `(T,)`: logits `(T, vocabulary)`, computed in float64."""
    w = {name: weight.double() for name, weight in weights.items()}
    heads, eps = values["n_heads"], values["norm_eps"]
    kv_heads = values.get("n_kv_heads") or heads
    size = values["dim"] // heads
    turns = _turns(len(tokens), size, values, factor)
    above = torch.full((len(tokens), len(tokens)), float("-inf")).triu(1).double()
    h = w["tok_embeddings.weight"][tokens]
    for layer in range(values["n_layers"]):
        at = f"layers.{layer}"
        x = _norm(h, w[f"{at}.attention_norm.weight"], eps)
        q, k, v = (x @ w[f"{at}.attention.w{name}.weight"].T for name in "qkv")
        q = _rotated(q.view(-1, heads, size), turns)
        k = _rotated(k.view(-1, kv_heads, size), turns).repeat_interleave(heads // kv_heads, 1)
        v = v.view(-1, kv_heads, size).repeat_interleave(heads // kv_heads, 1)
        scores = torch.einsum("thd,shd->hts", q, k) / size**0.5 + above
        mixed = torch.einsum("hts,shd->thd", scores.softmax(-1), v).flatten(1)
        h = h + mixed @ w[f"{at}.attention.wo.weight"].T
        x = _norm(h, w[f"{at}.ffn_norm.weight"], eps)
        gate = F.silu(x @ w[f"{at}.feed_forward.w1.weight"].T)
        h = h + (gate * (x @ w[f"{at}.feed_forward.w3.weight"].T)) @ w[f"{at}.feed_forward.w2.weight"].T
    return _norm(h, w["norm.weight"], eps) @ w["output.weight"].T


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def _turns(length: int, size: int, values: dict, factor: float) -> Tensor:
    """Complex numbers `(T, size / 2)` that turn the pairs of a head at each position."""
    theta = values.get("rope_theta", 10000.0)
    frequencies = [theta ** -(2 * i / size) for i in range(size // 2)]
    if values.get("use_scaled_rope"):
        frequencies = [_scaled(frequency, factor) for frequency in frequencies]
    angles = torch.outer(torch.arange(length).double(), torch.tensor(frequencies).double())
    return torch.polar(torch.ones_like(angles), angles)


def _scaled(frequency: float, factor: float) -> float:
    """Llama 3.1: slow pairs are slowed by the factor, fast ones are not, and between them it is blended."""
    wave = 2 * torch.pi / frequency
    if wave < 8192 / 4:
        return frequency
    if wave > 8192:
        return frequency / factor
    smooth = (8192 / wave - 1) / (4 - 1)
    return (1 - smooth) * frequency / factor + smooth * frequency


def _rotated(x: Tensor, turns: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns[:, None]).flatten(-2)


def write_pieces(file: Path) -> None:
    """A tokenizer.model like that of Llama 1 and 2, with 345 pieces, 256 of them bytes."""
    import sentencepiece

    text = file.with_name("text.txt")
    text.write_text("\n".join(SENTENCES))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(file.with_suffix("")),
        vocab_size=345,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        allow_whitespace_only_pieces=True,
        character_coverage=0.99995,
        num_threads=1,
        minloglevel=2,
    )
    text.unlink()
    file.with_suffix(".vocab").unlink()


def ranks() -> dict[bytes, int]:
    """All bytes, and a few longer tokens that merge from them."""
    longer = [
        b" l",
        b"am",
        b"ll",
        b"he",
        b" th",
        b" t",
        b"la",
        b"ay",
        b"er",
        b" lay",
        b" the",
        b"\n\n",
        b"  ",
    ]
    longer += [b"\xc3\xa9", b" llama", b"us", b"user", b"ser"]
    return {token: rank for rank, token in enumerate([bytes([n]) for n in range(256)] + longer)}


def write_ranks(file: Path) -> None:
    """A tokenizer.model like that of Llama 3."""
    lines = [f"{base64.b64encode(token).decode()} {rank}" for token, rank in ranks().items()]
    file.write_text("\n".join(lines) + "\n")
