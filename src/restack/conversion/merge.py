"""A plan turned into a model of its own: what a self-merge tool would write to disk."""

from typing import Any, TypeVar

from torch import nn

from restack.views.build import PLAN, arranged_copy

Model = TypeVar("Model", bound=nn.Module)


def materialise(model: Model, plan: Any) -> Model:
    """A model that runs `plan` on its own copies of the weights: one copy a visit, none shared.

    It can be trained, changed and saved (`save_pretrained`) like any model, and takes the memory of all its
    visits.

    Args:
        model: a loaded decoder of transformers; it is not changed.
        plan: anything that `restack.plan` reads.

    Raises:
        PlanError, ViewError: as `restack.view` does.
    """
    result = arranged_copy(model, plan, share_tensors=False)
    del vars(result)[PLAN]
    return result
