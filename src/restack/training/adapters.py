"""Low-rank adapters of the visits of a model (Hu et al. 2021, LoRA), each visit with its own.

Visits of a view are layer objects of their own over shared weights, so peft gives each an adapter. Models
that run plans by themselves (restack-llama) run one object several times; they are unrolled first.
"""

import warnings
from collections import Counter
from typing import Any

from torch import nn

from restack.errors import PlanError, UsageError
from restack.plans import Plan
from restack.plans import plan as read_plan
from restack.training.processes import check_extra
from restack.training.settings import Training


def adapted(model: Any, settings: Training) -> Any:
    """The model with what is to be trained in it: adapters that it has, new ones, or all weights.

    Args:
        model: a decoder or a view.
        settings: with the rank of new adapters, and which visits get them.

    Raises:
        UsageError: it has adapters and new ones are asked for, or there are no such visits.
    """
    if has_adapters(model):
        if settings.lora is not None:
            raise UsageError("the model has adapters already, and they are trained; leave out --lora")
        return with_trainable_adapters(model)
    return model if settings.lora is None else _with_new_adapters(model, settings)


def has_adapters(model: Any) -> bool:
    """Whether peft has put adapters into the model."""
    return any("lora_" in name for name, _ in model.named_parameters())


def with_trainable_adapters(model: Any) -> Any:
    """A model that was opened with its adapters, with them and nothing else to be trained."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "lora_" in name
    return model


def visits_of(model: Any) -> tuple[int, ...]:
    """Which layer each visit of a model runs."""
    from restack.recipes.saving import plan_of
    from restack.views.planned import runs_plans

    plan: Plan = model.config.whole_plan if runs_plans(model) else plan_of(model)
    return plan.order


def chosen_visits(wanted: str, order: tuple[int, ...]) -> tuple[int, ...]:
    """The visits that get adapters.

    Args:
        wanted: "repeated", "all", or a spec over the numbers of the visits.
        order: which layer each visit runs.

    Raises:
        UsageError: the spec is none for so many visits.
    """
    everything = tuple(range(len(order)))
    if wanted == "all":
        return everything
    if wanted == "repeated":
        runs = Counter(order)
        return tuple(visit for visit in everything if runs[order[visit]] > 1) or everything
    try:
        return tuple(sorted(set(read_plan(wanted, len(order)).order)))
    except PlanError as error:
        raise UsageError(
            f"--lora-visits takes repeated, all, or a spec over the {len(order)} visits:\n{error}"
        ) from None


def _with_new_adapters(model: Any, settings: Training) -> Any:
    check_extra("peft")
    import peft

    from restack.recipes.adapters import visits_apart
    from restack.views.anatomy import anatomy

    assert settings.lora is not None
    visits = chosen_visits(settings.lora_visits, visits_of(model))
    single = visits_apart(model)
    parts = anatomy(single)
    kinds = _linear_kinds()
    inside = [parts.layers[visit].named_modules() for visit in visits]
    linear = {name: type(part) for modules in inside for name, part in modules if isinstance(part, kinds)}
    if not linear:
        raise UsageError("the chosen visits have no linear layers to adapt; choose others with --lora-visits")
    alpha = 2 * settings.lora if settings.lora_alpha is None else settings.lora_alpha
    config = peft.LoraConfig(
        r=settings.lora,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=sorted(linear),
        layers_to_transform=list(visits),
        layers_pattern=parts.path.rpartition(".")[2],
        fan_in_fan_out=nn.Linear not in linear.values(),  # as GPT-2's own kind of layer has its weights
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():  # peft asks transformers by names that are going to be others
        warnings.simplefilter("ignore", FutureWarning)
        return peft.get_peft_model(single, config)


def _linear_kinds() -> tuple[type[nn.Module], ...]:
    from transformers.pytorch_utils import Conv1D

    return nn.Linear, Conv1D
