"""A plan made a checkpoint of its own, a shard at a time: what a self-merge tool writes."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch

from restack import recipes
from restack.conversion.stored import Output, Weights
from restack.conversion.writing import LARGEST_SHARD, Checkpoint, Progress, write
from restack.plans import Plan, own_plan, plan
from restack.plans.value import Visit
from restack.recipes.location import Location
from restack.recipes.merges import Merge, lender_of_tokenizer
from restack.recipes.opening import build_empty, dtype_named
from restack.recipes.own_weights import DTYPES
from restack.views import scaling
from restack.views.anatomy import anatomy
from restack.views.donors import used_after_layers
from restack.views.guards import PLAN
from restack.views.merge import materialise
from restack.views.planned import runs_plans


def convert_full(
    reference: str,
    out: str | Path,
    *,
    dtype: str = "auto",
    largest: int = LARGEST_SHARD,
    progress: Progress | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Write the checkpoint of a view, with the weights of every visit, which loads without Restack.

    A shard at a time is in memory if the files name their tensors by layers as the loaded model does; else
    the model is loaded, and `restack.save(..., weights="full")` writes it.

    Args:
        reference: MODEL@SPEC, a recipe, or a mergekit config of passthrough merges.
        out: the folder, made anew; an interrupted conversion is gone on with.
        dtype: of the weights: "auto" (as stored; of a merge, what it says), "float32"...
        largest: bytes of a shard.
        progress: called with the bytes that are written, and of all.
        revision, trust_remote_code: as `restack.open` has them.

    Returns:
        The folder.

    Raises:
        PlanError, ViewError: the spec is not one for the model, or no weights could say what it asks for.
        ModelError: there is no such model, or its files are damaged.
        UsageError: the folder cannot be made, or is not empty.
    """
    parsed = recipes.parse_reference(reference)
    hub: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    checkpoint = _of_merge(parsed, dtype, hub) if parsed.is_merge else _of_model(parsed, dtype, hub)
    if checkpoint is None:
        model = recipes.open(reference, dtype=dtype, **hub)
        return recipes.save(model, out, weights="full", tokenizer=lender_of_tokenizer(parsed))
    job = {"convert": "full", "reference": reference, "dtype": dtype}
    write(checkpoint, Path(out), job, largest=largest, progress=progress)
    return Path(out)


@dataclass(frozen=True, slots=True)
class Donor:
    """A model that lends layers: itself without weights, and its weights in files.

    Attributes:
        prefix: of the names of a layer's tensors in the files, before the layer's number.
        by_layer: the rest of the names of each layer's tensors.
        around: the names of the tensors outside the layers.
    """

    model: Any
    weights: Weights
    prefix: str
    by_layer: dict[int, list[str]]
    around: list[str]

    @classmethod
    def of(cls, model: Any, weights: Weights) -> "Donor | None":
        """None if the files name the layers otherwise than the model does."""
        path = f"{anatomy(model).path}."
        for prefix in (path, path.removeprefix(f"{model.base_model_prefix}.")):  # or files of the base model
            by_layer = defaultdict(list)
            around = []
            for name in weights.tensors:
                number, _, rest = name.removeprefix(prefix).partition(".")
                if name.startswith(prefix) and number.isdecimal():
                    by_layer[int(number)].append(rest)
                else:
                    around.append(name)
            if by_layer.keys() >= set(range(len(anatomy(model).layers))):
                return cls(model, weights, prefix, dict(by_layer), around)
        return None

    @property
    def says_names(self) -> bool:
        """Whether the files name each tensor of a layer as the model does."""
        path, names = f"{anatomy(self.model).path}.", self.model.state_dict().keys()
        return all(
            f"{path}{layer}.{rest}" in names
            for layer in range(len(anatomy(self.model).layers))
            for rest in self.by_layer[layer]
        )


def _of_model(reference: recipes.Reference, dtype: str, hub: dict[str, Any]) -> Checkpoint | None:
    found = recipes.find_reference(replace(reference, spec=None), **hub)
    found = (found if reference.spec is None else found.then(reference.spec)).ready()
    if found.location.is_metas or found.adapter is not None:
        return None
    asked = dtype_named(dtype)
    model = build_empty(replace(found, plan=None), asked, trust_remote_code=hub["trust_remote_code"])
    whole = materialise(model, "all" if found.plan is None else found.plan)
    own = own_plan(model.config)
    visits = own or plan("all", model.config)
    if found.plan is not None:
        visits = visits.then(found.plan)
    donor = Donor.of(model, Weights.of(found.location))
    return None if donor is None else _checkpoint([donor], visits, whole, asked)


def _of_merge(reference: recipes.Reference, dtype: str, hub: dict[str, Any]) -> Checkpoint | None:
    merge = Merge.of(reference)
    tokenizer = Location(merge.tokenizer_of.location)
    asked = dtype_named(merge.dtype_for(dtype))
    models, donors = {}, []
    for name in merge.models:
        found = recipes.find_reference(name, **hub)
        models[name] = build_empty(found.ready(), asked, trust_remote_code=hub["trust_remote_code"])
        is_plain = found.plan is None and not found.location.is_metas
        donors.append(Donor.of(models[name], Weights.of(found.location)) if is_plain else None)
    merged = merge.view(lambda name: models[name])
    whole = materialise(merged, "all")
    plain = [donor for donor in donors if donor is not None]
    found_all = len(plain) == len(donors)
    checkpoint = _checkpoint(plain, vars(merged)[PLAN], whole, asked) if found_all else None
    return checkpoint and replace(checkpoint, tokenizer=tokenizer)


def _checkpoint(
    donors: Sequence[Donor], visits: Plan, whole: Any, dtype: torch.dtype | str
) -> Checkpoint | None:
    """The checkpoint of the model that is `whole`, by the files of the donors; None if they do not tell.

    Args:
        donors: in the order of the plan.
        visits: what runs, over the layers of the donors.
        whole: the same model without weights, and with a layer for each visit.
        dtype: of the result; "auto": as the files have it.
    """
    is_scaled = any(visit.scale for visit in visits.visits)
    if is_scaled and not all(donor.says_names for donor in donors):
        return None
    first, last = donors[visits.visits[0].donor], donors[visits.visits[-1].donor]
    path, shapes = anatomy(whole).path, {name: tensor.shape for name, tensor in whole.state_dict().items()}
    for name, tensor in first.model.state_dict().items():
        if not name.startswith(f"{path}.") and tensor.shape != shapes.get(name):
            return None  # a tensor for all layers at once, as Gemma 3n has
    outputs = dict(_around(first, last, dtype))
    for number, visit in enumerate(visits.visits):
        for rest, output in _of_visit(donors[visit.donor], visit, path, dtype):
            if not runs_plans(whole) or f"{path}.{number}.{rest}" in shapes:  # else nobody reads it
                outputs[f"{first.prefix}{number}.{rest}"] = output
    whole.config.architectures = [type(whole).__name__]
    return Checkpoint(whole.config, outputs, [donor.weights for donor in donors])


def _around(first: Donor, last: Donor, dtype: torch.dtype | str) -> Iterator[tuple[str, Output]]:
    """What is outside the layers: before them the first visit's donor's, after them the last visit's."""
    after = set()
    if first is not last:
        for where, names in used_after_layers(first.model).items():
            after |= {f"{where}.{name}" for name in names}
    base = "" if any(name in first.around for name in after) else f"{first.model.base_model_prefix}."
    for name in first.around:
        donor = last if f"{base}{name}" in after else first
        yield name, _read(donor, name, dtype)


def _of_visit(
    donor: Donor, visit: Visit, path: str, dtype: torch.dtype | str
) -> Iterator[tuple[str, Output]]:
    """The tensors of a visit, by the rest of their names."""
    for rest in donor.by_layer[visit.layer]:
        output = _read(donor, f"{donor.prefix}{visit.layer}.{rest}", dtype)
        factor = scaling.factor_of(f"{path}.*.{rest}", visit.scale)
        yield rest, output if factor == 1 else Output(output.size, partial(_times, output.make, factor))


def _read(donor: Donor, name: str, dtype: torch.dtype | str) -> Output:
    """A tensor in the dtype that is asked for, if it is one of floating-point numbers."""
    copy, stored = donor.weights.copy(name), donor.weights.tensors[name]
    if isinstance(dtype, str) or stored.dtype not in DTYPES:
        return copy
    return Output(prod(stored.shape) * dtype.itemsize, lambda: copy.make().to(dtype))


def _times(make: Callable[[], torch.Tensor], factor: float) -> torch.Tensor:
    return make() * factor
