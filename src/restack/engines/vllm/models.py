"""A class for each architecture of vLLM that runs a plan, made when it is first asked for."""

from collections.abc import Iterable
from typing import Any

import torch

from restack.engines.vllm.arguments import PREFIX
from restack.engines.vllm.stack import Stack


class Planned:
    """What is put before a class of vLLM, so that its layers are the visits of the config's plan."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        stack = Stack(vllm_config)
        with stack.building():
            super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        stack.finish(self)  # type: ignore[arg-type]
        self.restack_stack = stack

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Any:
        """Load a checkpoint of the base: names to tensors."""
        return super().load_weights(self.restack_stack.renamed(weights))  # type: ignore[misc]


def __getattr__(name: str) -> type:
    from vllm.model_executor.models import ModelRegistry

    base = ModelRegistry.models.get(name.removeprefix(PREFIX))
    if not name.startswith(PREFIX) or base is None:
        raise AttributeError(f"module {__name__} has no attribute {name!r}")
    original = base.load_model_cls()
    # By its name vLLM knows whether a class is of its transformers backend.
    globals()[name] = made = type(original.__name__, (Planned, original), {"__module__": __name__})
    return made
