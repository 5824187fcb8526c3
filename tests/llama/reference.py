"""An independent, slow and plain Llama decoder with cross-layer KV sharing, to test the real one against.

A forward pass is a list of visits: each runs one layer's weights and attends to the keys and values of one
visit, its own or another's, below or above it. Two ways to compute it are written down here: strictly one
token after another, which is what the model means, and the parallel passes in which such a model is trained.
Hidden states are (..., hidden), heads are (..., heads, head_dim); weights carry transformers' names.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = dict[str, Tensor]
KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Visit:
    """One run of `layer` in the forward pass, attending to the keys and values of the visit `owner`."""

    layer: int
    owner: int
    sliding: bool = False
    damp: float = 1.0


@dataclass(frozen=True)
class Settings:
    """The shape of the model and the order of its visits."""

    heads: int
    kv_heads: int
    head_dim: int
    visits: tuple[Visit, ...]
    theta: float = 10000.0
    eps: float = 1e-6
    window: int | None = None
    force_nodiag: bool = False

    def is_owner(self, index: int) -> bool:
        """Whether any visit reads this one; if none does, its layer may have no k/v weights."""
        return any(visit.owner == index for visit in self.visits)

    def visible(self, index: int, t: int) -> range:
        """The key positions that the query at position t sees in this visit."""
        visit = self.visits[index]
        # An owner above the reader has not run for token t yet.
        end = t if visit.owner > index or self.force_nodiag else t + 1
        start = max(0, t - self.window + 1) if visit.sliding else 0
        return range(start, end)


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def rms_norm(weights: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weights[f"{name}.weight"]


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Turn each pair (i, i + half) of x's last dimension by its position's angle; angles are float64."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half)
    angles = positions[..., None, None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    left, right = x[..., :half], x[..., half:]
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


def project(weights: Weights, settings: Settings, layer: int, kind: str, x: Tensor) -> Tensor:
    """The heads of one projection (q, k or v) of normed hidden states, normed once more where Qwen3 does."""
    name = f"model.layers.{layer}.self_attn.{kind}"
    heads = linear(weights, f"{name}_proj", x).unflatten(-1, (-1, settings.head_dim))
    if f"{name}_norm.weight" in weights:
        heads = rms_norm(weights, f"{name}_norm", heads, settings.eps)
    return heads


def queries(weights: Weights, settings: Settings, layer: int, h: Tensor, positions: Tensor) -> Tensor:
    x = rms_norm(weights, f"model.layers.{layer}.input_layernorm", h, settings.eps)
    return rotate(project(weights, settings, layer, "q", x), positions, settings.theta)


def keys_values(weights: Weights, settings: Settings, layer: int, h: Tensor, positions: Tensor) -> KeysValues:
    x = rms_norm(weights, f"model.layers.{layer}.input_layernorm", h, settings.eps)
    keys = rotate(project(weights, settings, layer, "k", x), positions, settings.theta)
    return keys, project(weights, settings, layer, "v", x)


def finish(weights: Weights, settings: Settings, visit: Visit, h: Tensor, mixed: Tensor) -> Tensor:
    """What a visit makes of its input h once its heads have attended: the rest of the layer, damped."""
    name = f"model.layers.{visit.layer}"
    attended = h + linear(weights, f"{name}.self_attn.o_proj", mixed.flatten(-2))
    x = rms_norm(weights, f"{name}.post_attention_layernorm", attended, settings.eps)
    gated = F.silu(linear(weights, f"{name}.mlp.gate_proj", x)) * linear(weights, f"{name}.mlp.up_proj", x)
    output = attended + linear(weights, f"{name}.mlp.down_proj", gated)
    return h + visit.damp * (output - h)


def to_logits(weights: Weights, settings: Settings, h: Tensor) -> Tensor:
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return F.linear(rms_norm(weights, "model.norm", h, settings.eps), head)


def attend_one(settings: Settings, query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """One token's heads (heads, head_dim) over a list of visible keys and values (kv_heads, head_dim)."""
    mixed = torch.zeros_like(query)
    if not keys:
        return mixed
    for head in range(settings.heads):
        shared = head // (settings.heads // settings.kv_heads)
        scores = torch.stack([query[head] @ key[shared] for key in keys]) * settings.head_dim**-0.5
        shares = scores.softmax(dim=0)
        mixed[head] = sum(share * value[shared] for share, value in zip(shares, values, strict=True))
    return mixed


def token_by_token(weights: Weights, settings: Settings, tokens: Tensor) -> Tensor:
    """What the model means: all visits for one token, then the next. (T,) tokens give (T, vocab) float64."""
    weights = {name: weight.double() for name, weight in weights.items()}
    keys: list[list[Tensor]] = [[] for _ in settings.visits]
    values: list[list[Tensor]] = [[] for _ in settings.visits]
    logits = []
    for t, token in enumerate(tokens):
        h = weights["model.embed_tokens.weight"][token]
        position = torch.tensor(t, dtype=torch.float64, device=h.device)
        for index, visit in enumerate(settings.visits):
            if settings.is_owner(index):
                key, value = keys_values(weights, settings, visit.layer, h, position)
                keys[index].append(key)
                values[index].append(value)
            query = queries(weights, settings, visit.layer, h, position)
            # A position not written yet would be an IndexError here, never a silent miss.
            seen = settings.visible(index, t)
            seen_keys = [keys[visit.owner][s] for s in seen]
            seen_values = [values[visit.owner][s] for s in seen]
            h = finish(weights, settings, visit, h, attend_one(settings, query, seen_keys, seen_values))
        logits.append(to_logits(weights, settings, h))
    return torch.stack(logits)


def attend_all(settings: Settings, index: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """All tokens' heads (B, T, heads, head_dim) over all keys and values (B, T, kv_heads, head_dim)."""
    length = query.shape[1]
    visible = torch.zeros(length, length, dtype=torch.bool, device=query.device)
    for t in range(length):
        visible[t, list(settings.visible(index, t))] = True
    repeats = settings.heads // settings.kv_heads
    keys, values = keys.repeat_interleave(repeats, dim=2), values.repeat_interleave(repeats, dim=2)
    scores = torch.einsum("bthd,bshd->bhts", query, keys) * settings.head_dim**-0.5
    # A finite fill and a second mask: a row that sees nothing is exact zeros, and its gradient no NaN.
    shares = scores.masked_fill(~visible, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return torch.einsum("bhts,bshd->bthd", shares.masked_fill(~visible, 0.0), values)


def run_visits(
    weights: Weights, settings: Settings, span: range, h: Tensor, cache: dict[int, KeysValues]
) -> Tensor:
    """One pass of all tokens through the visits of `span`; the cache keeps each owner's latest k/v.

    An owner above its reader is overwritten only after it was read, so that reader gets the previous pass's.
    """
    positions = torch.arange(h.shape[1], dtype=torch.float64, device=h.device)
    for index in span:
        visit = settings.visits[index]
        if settings.is_owner(index):
            cache[index] = keys_values(weights, settings, visit.layer, h, positions)
        query = queries(weights, settings, visit.layer, h, positions)
        h = finish(weights, settings, visit, h, attend_all(settings, index, query, *cache[visit.owner]))
    return h


def group_from(settings: Settings, start: int) -> range:
    """The visits that must be iterated together from `start` on; a single one if it reads nothing above."""
    top = start
    while (reach := max(visit.owner for visit in settings.visits[start : top + 1])) > top:
        top = reach
    return range(start, top + 1)


def unrolled(
    weights: Weights, settings: Settings, tokens: Tensor, forward_passes: int, backward_passes: int
) -> Tensor:
    """The parallel training computation: cyclic groups of visits are iterated, the last passes with gradient.

    (B, T) tokens give (B, T, vocab) in the weights' dtype.
    """
    backward = min(backward_passes, tokens.shape[1])
    forward = min(forward_passes, tokens.shape[1] - backward)
    h = weights["model.embed_tokens.weight"][tokens]
    nothing = h.new_zeros(*tokens.shape, settings.kv_heads, settings.head_dim)
    cache: dict[int, KeysValues] = {}
    start = 0
    while start < len(settings.visits):
        span, group_input = group_from(settings, start), h
        if len(span) == 1:
            h = run_visits(weights, settings, span, group_input, cache)
        else:
            cache.update(dict.fromkeys(span, (nothing, nothing)))
            for number in range(forward + backward):
                with torch.set_grad_enabled(torch.is_grad_enabled() and number >= forward):
                    h = run_visits(weights, settings, span, group_input, cache)
        start = span.stop
    return to_logits(weights, settings, h)
