"""A plan turned into a model of its own: what a self-merge tool would write to disk."""

import copy
from typing import Any, TypeVar

from torch import nn

from restack.views import view
from restack.views.anatomy import anatomy, decoder_config

Model = TypeVar("Model", bound=nn.Module)


def materialise(model: Model, plan: Any) -> Model:
    """A model that runs `plan` on its own copies of the weights: one copy a visit, nothing shared with `model`.

    It can be trained, changed and saved (`save_pretrained`) like any model, and takes the memory of all its visits.

    Args:
        model: a loaded decoder of transformers; it is not changed.
        plan: anything that `restack.plan` reads.

    Raises:
        PlanError, ViewError: as `restack.view` does.
    """
    shared = view(model, plan)
    layers = anatomy(shared).layers
    # Each visit is copied for itself: one deepcopy of the whole would keep repeated layers shared.
    own = nn.ModuleList()
    result = copy.deepcopy(shared, {id(layers): own})
    configs = {id(shared.config): result.config, id(decoder_config(shared)): decoder_config(result)}
    own.extend(copy.deepcopy(layer, dict(configs)) for layer in layers)
    own.training = layers.training
    del result.restack_plan
    return result
