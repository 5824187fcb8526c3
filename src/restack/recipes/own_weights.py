"""Whether the weights in memory are still those in the files they were loaded from."""

from typing import Any

import torch

from restack.plans import Plan
from restack.recipes.fingerprint import SAMPLE, spread, stored_tensors
from restack.recipes.location import Location

MOST_COMPARED = 1024  # tensors
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def changed_weight(model: Any, plan: Plan, location: Location) -> str | None:
    """The name of a tensor that is not as in the files; None if there is none.

    If there is one, the model was trained or filled anew since it was loaded, or is another. A few numbers of
    each tensor are compared. Models with tensors that transformers converts when it loads them, and quantised
    ones, are not: they give None.
    """
    from transformers.core_model_loading import WeightRenaming

    converted = getattr(model, "_weight_conversions", None) or ()
    if getattr(model.config, "quantization_config", None) is not None:
        return None
    if not all(isinstance(conversion, WeightRenaming) for conversion in converted):
        return None
    held = _by_name_in_base(model, plan, location)
    if location.is_metas:
        return _changed_from_metas(held, location)
    stored = {name: tensor for name, tensor in stored_tensors(location).items() if tensor.dtype in DTYPES}
    for name in spread(sorted(held.keys() & stored.keys()), MOST_COMPARED):
        ours, theirs = held[name], stored[name]
        if ours.is_meta or not ours.is_floating_point():  # offloaded; or packed by a quantiser
            continue
        if tuple(ours.shape) == theirs.shape:
            start, sample = theirs.sample(SAMPLE)
            expected = torch.frombuffer(bytearray(sample), dtype=DTYPES[theirs.dtype]).to(ours.dtype)
            actual = ours.detach().reshape(-1)[start : start + len(expected)].cpu()
            if torch.equal(actual.nan_to_num(), expected.nan_to_num()):
                continue
        return name
    return None


def _changed_from_metas(held: dict[str, torch.Tensor], location: Location) -> str | None:
    """The same of a model in Meta's own files, which have other names, and rows in another order."""
    from restack.llama.meta import first_rows, read_settings

    rows = first_rows(location.folder, read_settings(location.folder))
    for name in spread(sorted(held.keys() & rows.keys()), MOST_COMPARED):
        ours, expected = held[name], rows[name][:SAMPLE].to(held[name].dtype)
        if ours.is_meta:  # offloaded
            continue
        actual = ours.detach().reshape(-1)[: len(expected)].cpu()
        if not torch.equal(actual.nan_to_num(), expected.nan_to_num()):
            return name
    return None


def _by_name_in_base(model: Any, plan: Plan, location: Location) -> dict[str, torch.Tensor]:
    """The parameters of a view by the names they have in its base."""
    from restack.views.anatomy import anatomy
    from restack.views.planned import runs_plans

    path = f"{anatomy(model).path}."
    held = {}
    if runs_plans(model):
        if not _runs_each_once(model.config):  # they are stored once, under their names
            return dict(model.named_parameters())
        plan = _over_layers(plan, location)
    for name, tensor in model.named_parameters(remove_duplicate=False):
        if name.startswith(path):
            visit, _, rest = name.removeprefix(path).partition(".")
            name = f"{path}{plan.visits[int(visit)].layer}.{rest}"
        held[name] = tensor
    return held


def _runs_each_once(config: Any) -> bool:
    """Whether each visit of a model that runs plans has a layer of its own, as in an unrolled copy."""
    return bool(config.whole_plan.order == tuple(range(config.num_hidden_layers)))


def _over_layers(plan: Plan, location: Location) -> Plan:
    """A plan over the visits of a stored model that runs plans, as one over its layers."""
    from restack.plans import own_plan
    from restack.recipes.following import find

    own = own_plan(find(location).config)
    return plan if own is None else own.then(plan)
