"""The model, the view and the tokenizer that lm-eval's arguments name."""

from dataclasses import dataclass
from typing import Any

import torch

from restack import plans, recipes, views
from restack.errors import UsageError
from restack.plans import Plan, depth_ranges


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be run, but for the model. The attributes are arguments of `RestackLM`."""

    layers: Any
    ratio: str | None
    kv: str | None

    def __post_init__(self) -> None:
        if isinstance(self.kv, int | float):  # 0_0_2_2 is 22 in Python
            raise UsageError(
                f"kv was read as the number {self.kv}; quote it, as in --model_args 'kv=\"0_0_2_2\"'"
            )

    def plan(self, model: Any, spec: str | None = None) -> Plan:
        """The plan for a model or its config; without any, every layer once.

        Raises:
            UsageError: layers are asked for in two ways.
            PlanError: it is not one for this model.
        """
        layers = str(self.layers) if isinstance(self.layers, int) else self.layers
        asked = [notation for notation in (spec, layers, self.ratio) if notation is not None]
        if len(asked) > 1:
            raise UsageError("the layers are given twice; use one of MODEL@SPEC, layers and ratio")
        if self.ratio is not None:
            return plans.plan(None, model, ratio_repeat=depth_ranges.parse(self.ratio), kv=self.kv)
        return plans.plan(asked[0] if asked else "all", model, kv=self.kv)

    @property
    def is_nothing(self) -> bool:
        return self.layers is self.ratio is self.kv is None


@dataclass(frozen=True, slots=True)
class Opened:
    """What was opened.

    Attributes:
        model: or a view.
        tokenizer: of the model.
        plan: what is run of the base; None if a model was given and no plan for it.
        hub_id: of the base; None if it is on this machine.
    """

    model: Any
    tokenizer: Any
    plan: Plan | None
    hub_id: str | None = None


def opened(
    name: str,
    wanted: Wanted,
    tokenizer: Any,
    *,
    dtype: Any,
    device: str | None,
    revision: str | None,
    trust_remote_code: bool,
) -> Opened:
    """The model that MODEL[@SPEC] names, and the view of it that is wanted.

    Raises:
        UsageError, ModelError, PlanError, ViewError: it cannot be opened, or cannot run the plan.
    """
    asked = recipes.parse_reference(name)
    base = recipes.Reference(asked.model)
    recipes.check_location(base)
    config = recipes.open_config(base, revision=revision, trust_remote_code=trust_remote_code)
    plan = wanted.plan(config, asked.spec)
    if tokenizer is None:
        tokenizer = recipes.open_tokenizer(base, revision=revision, trust_remote_code=trust_remote_code)
    elif isinstance(tokenizer, str):
        tokenizer = recipes.open_tokenizer(tokenizer, trust_remote_code=trust_remote_code)
    model = recipes.open(
        base,
        dtype=_name_of(dtype or "auto"),
        device=_place(device),
        revision=revision,
        trust_remote_code=trust_remote_code,
        plan=plan,
    )
    view = model if plan.is_identity else views.view(model, plan)
    return Opened(view, tokenizer, plan, None if base.is_local else base.model)


def taken(model: Any, wanted: Wanted, tokenizer: Any, *, dtype: Any, device: str | None) -> Opened:
    """A model that is loaded already, or the view of it that is wanted.

    Raises:
        UsageError: it is no model, it is asked for in another dtype or on another device than it has, or it
            does not say where its tokenizer is.
        PlanError, ViewError: it cannot run the plan.
    """
    if not isinstance(model, torch.nn.Module):
        raise UsageError(f"pretrained is a {type(model).__name__}; give a model, or the name of one")
    has: Any = model
    if dtype is not None and _name_of(dtype) not in ("auto", _name_of(has.dtype)):
        raise UsageError(f"the model is loaded, in {_name_of(has.dtype)}; load it in {_name_of(dtype)}")
    if device is not None and torch.device(_place(device)).type != has.device.type:
        raise UsageError(f"the model is loaded, on {has.device}; move it to {device} yourself")
    if tokenizer is None or isinstance(tokenizer, str):
        name = tokenizer or getattr(model, "name_or_path", "")
        if not name:
            raise UsageError("the model does not say where it is from; give its tokenizer too")
        tokenizer = recipes.open_tokenizer(name)
    if wanted.is_nothing:
        return Opened(model, tokenizer, None)
    plan = wanted.plan(model)
    return Opened(views.view(has, plan), tokenizer, plan)


def _name_of(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _place(device: str | None) -> str:
    """The device; as for lm-eval's own models, cuda means cpu where there is no GPU."""
    has_gpu = torch.cuda.is_available()
    if device is None:
        return "cuda" if has_gpu else "cpu"
    return device if has_gpu or not device.startswith("cuda") else "cpu"
