"""Running a model's visits from one on, over the hidden states that enter it in place of embedded tokens."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from restack.errors import ViewError
from restack.views.anatomy import anatomy
from restack.views.damping import OTHER_STREAMS
from restack.views.planned import runs_plans
from restack.views.recording import hooks_change, parameters_of, stream_of


def refuse_other_streams(model: nn.Module) -> None:
    """Refuse a model whose layers hand on more than hidden states: it cannot be entered midway.

    Raises:
        ViewError: so they do.
    """
    streams = [name for name in parameters_of(anatomy(model).layers[0]) if name in OTHER_STREAMS]
    if streams and not runs_plans(model):
        raise ViewError(f"layers hand on {streams[0]} beside the hidden states; read from the start")


@contextmanager
def entering(model: nn.Module, hidden: Any, tokens: torch.Tensor) -> Iterator[dict[str, Any]]:
    """Have the first visit of a model be given hidden states, whatever the embeddings of the tokens are.

    Args:
        model: the visits that are left, as a view.
        hidden: shape (B, T, C).
        tokens: shape (B, T), what the hidden states were made of.

    Yields:
        The keyword arguments to call the model with.
    """
    if runs_plans(model):
        yield {"inputs_embeds": hidden}
        return
    with hooks_change:
        hook = anatomy(model).layers[0].register_forward_pre_hook(_instead(hidden), with_kwargs=True)
    try:
        yield {"input_ids": tokens}
    finally:
        with hooks_change:
            hook.remove()


def _instead(hidden: Any) -> Any:
    """A hook by which a layer is given these hidden states, whatever else comes."""

    def give(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, stream_of(module): hidden}

    return give
