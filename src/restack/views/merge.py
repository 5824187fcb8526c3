"""A plan turned into a model of its own: what a self-merge tool would write to disk."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from torch import nn

from restack import plans
from restack.errors import ViewError
from restack.views import scaling
from restack.views.arranging import arranged_copy, plan_after, refuse_saving, runnable
from restack.views.donors import one_model
from restack.views.frozen_config import UNSAVED
from restack.views.guards import PLAN, difference_when_loaded
from restack.views.planned import runs_plans, visit_count

Model = TypeVar("Model", bound=nn.Module)


def materialise(model: Model | Sequence[Model] | Mapping[str, Model], plan: Any) -> Model:
    """A model that runs `plan` on its own copies of the weights: one copy a visit, none shared.

    Where the plan scales tensors, the copies are multiplied. It can be trained, changed and saved
    (`save_pretrained`) like any model, and takes the memory of all its visits. Some architectures make a
    layer by a rule from its number or the depth ("every second layer has experts"): a model whose layers are
    not those its config makes runs, but cannot be saved.

    Args:
        model: a loaded decoder of transformers; or several, as `restack.view` takes them. Not changed.
        plan: anything that `restack.plan` reads.

    Raises:
        PlanError, ViewError: as `restack.view` does; and where no weights could say what the plan asks for:
            damping, shared keys and values.
    """
    base, plan = one_model(model, plan)
    plan = plans.plan(plan, visit_count(base))
    if not runs_plans(base):  # those that do say all but the weights in their config
        _refuse_what_weights_cannot_say(plan_after(base, runnable(plan)))
    result: Model = arranged_copy(base, plan, share_tensors=False)
    del vars(result)[PLAN]
    scaling.bake(result)
    if runs_plans(result):
        cast(Any, result).drop_unread()
    _refuse_saving_of_another_model(result)
    return result


def _refuse_what_weights_cannot_say(plan: plans.Plan) -> None:
    for number, visit in enumerate(plan.visits):
        if visit.damp != 1:
            raise ViewError(
                f"visit {number} is damped, and no weights say that: the MLP reads what the attention added; "
                "use a view, or scale o_proj and down_proj, which is not the same"
            )
        if visit.kv is not None or visit.sliding:
            raise ViewError(f"visit {number} reads keys and values as no plain checkpoint can; use a view")


def _refuse_saving_of_another_model(model: nn.Module) -> None:
    """Mark the config if a model built by it has other layers than this one: loading would build that one."""
    config: Any = model.config
    vars(config).pop(UNSAVED, None)
    if getattr(config, "quantization_config", None) is not None:  # its layers are replaced when it is loaded
        return
    difference = difference_when_loaded(model)
    if difference is not None:
        told = f"a {type(model).__name__} loaded by its config would not be this model: {difference}"
        refuse_saving(config, told)
