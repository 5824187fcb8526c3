"""A base, a view of it and the twin that the view must equal, and how they are run."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

import restack
from tests.views.architectures import LLAMA, VOCABULARY, WINDOW, Architecture

ORDER = [0, 1, 2, 1, 2, 3, 3]
NEW_TOKENS = 12
# Longer than the window of sliding layers, so that it slides in prefill too.
PROMPT = torch.randint(3, VOCABULARY, (2, WINDOW + 3), generator=torch.Generator().manual_seed(8))


class Pair(NamedTuple):
    base: nn.Module
    view: nn.Module
    twin: nn.Module


def pair(
    architecture: Architecture = LLAMA,
    order: Sequence[int] = ORDER,
    *,
    attention: str = "eager",
    **settings: Any,
) -> Pair:
    """A random base, its view in `order`, and its twin; `settings` override the architecture's."""
    architecture = replace(architecture, own=architecture.own | settings)
    base = architecture.model()
    base.set_attn_implementation(attention)
    assert base.config._attn_implementation == attention
    return Pair(base, restack.view(base, list(order)), architecture.twin(base, order))


def greedy(model: nn.Module, ids: torch.Tensor = PROMPT, **options: Any) -> torch.Tensor:
    """The prompt (B, T) and the tokens that follow it (B, T + NEW_TOKENS)."""
    return model.generate(ids, **{"max_new_tokens": NEW_TOKENS, "do_sample": False, **options})


@torch.no_grad()
def logits(model: nn.Module, ids: torch.Tensor = PROMPT, **options: Any) -> torch.Tensor:
    """(B, T, V)"""
    return model(ids, **options).logits


def gradients(
    model: nn.Module, layers: str, order: Sequence[int], ids: torch.Tensor, **options: Any
) -> dict[str, torch.Tensor]:
    """Those of the loss on `ids`, without dropout, by the name in the base; of a twin's copies, the sums.

    Args:
        layers: the path of the layer list.
        order: the layer of the base that each of the model's is.
        options: of the forward.
    """
    model.zero_grad()
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model(ids, labels=ids, **options).loss.backward()
    summed: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(()))
    for name, parameter in model.named_parameters():
        if name.startswith(f"{layers}."):
            visit, _, rest = name.removeprefix(f"{layers}.").partition(".")
            name = f"{layers}.{order[int(visit)]}.{rest}"
        if parameter.grad is not None:
            summed[name] = summed[name] + parameter.grad
    return summed


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all tensors of a model, to tell later whether it was changed."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    """Whether the model's tensors are, by name, dtype and value, those of `before`."""
    now = model.state_dict()
    return now.keys() == before.keys() and all(
        now[name].dtype == tensor.dtype and torch.equal(now[name], tensor) for name, tensor in before.items()
    )
