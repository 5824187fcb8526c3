"""A plan over a loaded model, or several: a new model object that runs it on their own weights."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from restack.views.arranging import arranged_copy
from restack.views.donors import one_model
from restack.views.guards import guarded

Model = TypeVar("Model", bound=nn.Module)


def view(model: Model | Sequence[Model] | Mapping[str, Model], plan: Any) -> Model:
    """A new model of the same class that runs `plan` on weights it shares with `model`.

    Every parameter and buffer of the view *is* the base's; the config, the layer list and every module
    object are the view's own, so any number of views can be used at once, in any number of threads. Each
    visit has its own slot in the KV cache. Costs a millisecond and 30 kB a visit. The plan is kept as
    `restack_plan`; a view of a view keeps the whole plan, over the layers of the first base.

    Several models of one kind lend each other layers (Goliath): the embeddings, and all that is not said
    otherwise, are those of the first visit's donor; the final norm and the head those of the last visit's,
    as in mergekit, but a head that is tied to the embedding stays so. Where the two differ, one token is run
    through the first model to see what comes after its layers.

    `view.to(...)` and the like give the view weights of its own if they change any, with a warning;
    `view.resize_token_embeddings` gives it an embedding and a head of its own. `view.save_pretrained` writes
    all visits: a self-merge that loads without Restack.

    Args:
        model: a loaded decoder of transformers; or several, in the order of the plan's donors or by the names
            that it gives them. They are not changed.
        plan: a `Plan`, or any notation that `restack.plan` reads: `"0:8,4:12"`, `[0, 1, 1, 2]`,
            `"goliath.yaml"`...

    Raises:
        PlanError: the plan is not one for this model's layers.
        ViewError: the model's layers, or what the plan asks of them, cannot be arranged this way; or the
            models are not alike.
    """
    base, plan = one_model(model, plan)
    result: Model = arranged_copy(base, plan, share_tensors=True)
    return guarded(result)
