"""Adapters of peft, a LoRA for each visit of a view: taken off it, kept beside a recipe, and put on again."""

import copy
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from math import sqrt
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from restack.errors import ModelError
from restack.plans import Plan
from restack.recipes.location import Location
from restack.recipes.telling import told_in_one_line
from restack.views import view
from restack.views.anatomy import anatomy
from restack.views.arranging import plan_after, sharing_memo
from restack.views.guards import PLAN
from restack.views.planned import runs_plans, unrolled, visit_count

MARKS = ("peft_config", "_hf_peft_config_loaded")
NAME = "default"  # of an adapter that is put on, as peft has it
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"  # as peft calls them
PREFIX = "base_model.model."  # of the names in peft's files
MERGE = "merge it into a model of its own: restack.materialise(model, 'all').merge_and_unload()"
SHARED = "weights='shared', which keeps it beside them"
REACHING = ("cache_dir", "force_download", "local_files_only", "token")  # the hub
MORE_THAN_LORA = (
    "modules_to_save", "trainable_token_indices", "target_parameters", "layer_replication", "megatron_config",
)  # fmt: skip
HARMLESS_INITS = (True, False, "gaussian")  # others change the weights of the base when they are loaded


@dataclass(frozen=True, slots=True)
class Adapted:
    """A view, or a model that is none, with a LoRA of peft."""

    view: Any  # a model of transformers, with one layer object a visit
    name: str  # of the adapter
    config: Any  # of the adapter
    layers: Mapping[str, Any]  # peft's layers, by their paths in the view

    @classmethod
    def of(cls, model: Any) -> "Adapted | None":
        """What is adapted of a model; None if nothing is.

        Args:
            model: a PeftModel around a view, a view of a PeftModel, or a view with an adapter put into it
                (`add_adapter`, `load_adapter`).

        Raises:
            ModelError: there are several adapters, or the one is no plain LoRA, merged or switched off.
        """
        configs: Mapping[str, Any] | None = getattr(model, "peft_config", None)
        if not configs:
            return None
        name, config = _only_lora(configs)
        whole = visits_apart(_inside(model))
        kind = _lora_layer()
        layers = {path: module for path, module in whole.named_modules() if isinstance(module, kind)}
        if not layers:  # it was merged and taken out
            return None
        _refuse_what_is_not_said(name, layers.values())
        return cls(whole, name, config, layers)

    def bare(self) -> Any:
        """A view of the view that has no adapter, over the same tensors."""
        result = _unmarked(self.view)
        for path in self.layers:
            result.set_submodule(path, result.get_submodule(path).get_base_layer())
        return result

    def write(self, folder: Path, base: str | None) -> None:
        """Write peft's files, with tensors named by visit, which `peft.PeftModel.from_pretrained` reads.

        Args:
            folder: not there yet.
            base: its id on the hub, if it has one.
        """
        folder.mkdir()
        found = peft_module().get_peft_model_state_dict(
            self.view, adapter_name=self.name, save_embedding_layers=False
        )
        # Visits of a view of a view may share an adapter; files do not store a tensor twice.
        tensors = {f"{PREFIX}{name}": tensor.detach().clone().contiguous() for name, tensor in found.items()}
        save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
        config = copy.deepcopy(self.config)
        config.base_model_name_or_path, config.revision = base, None
        config.inference_mode = True
        config.init_lora_weights = HARMLESS_INITS[0]
        if isinstance(config.target_modules, set):  # whose order is another one each time
            config.target_modules = sorted(config.target_modules)
        if not self._is_said_by(config):
            self._spell_out(config)
        config.save_pretrained(folder)

    def merge_into(self, whole: nn.Module) -> None:
        """Add each LoRA to the weight of its own visit, W + scaling * B A.

        Args:
            whole: the view materialised without its adapter.

        Raises:
            ModelError: a weight is quantised, or tied to another part of the model.
        """
        modules = dict(whole.named_modules())
        uses = Counter(id(module._parameters.get("weight")) for module in modules.values())
        for path, layer in self.layers.items():
            if path not in modules:  # it made keys and values that no visit reads
                continue
            weight: torch.Tensor = cast(Any, modules[path]).weight
            if not weight.is_floating_point():
                raise ModelError(f"{path} is quantised, so nothing can be added to it; save with {SHARED}")
            if uses[id(weight)] > 1:
                raise ModelError(f"the adapter of {path} would change what is tied to it; save with {SHARED}")
            delta = layer.get_delta_weight(self.name).to(weight.device)
            wide = torch.promote_types(weight.dtype, delta.dtype)
            with torch.no_grad():
                weight.copy_(weight.to(wide) + delta.to(wide))

    def _is_said_by(self, config: Any) -> bool:
        """Whether the config makes the LoRA that there are: it may be for layers in another order."""
        common = {(layer.r[self.name], self._alpha(layer)) for layer in self.layers.values()}
        if config.rank_pattern or config.alpha_pattern or common != {(config.r, config.lora_alpha)}:
            return False
        chosen = peft_module("tuners.tuners_utils").check_target_module_exists
        within = tuple(f"{path}." for path in self.layers)
        paths = [path for path, _ in self.view.named_modules() if not path.startswith(within)]
        return {path for path in paths if chosen(config, path)} == self.layers.keys()

    def _spell_out(self, config: Any) -> None:
        """Have the config name each module, and its rank and scaling where they are not the common ones."""
        ranks = {path: layer.r[self.name] for path, layer in self.layers.items()}
        alphas = {path: self._alpha(layer) for path, layer in self.layers.items()}
        config.target_modules = sorted(self.layers)
        config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
        config.rank_pattern = {path: rank for path, rank in ranks.items() if rank != config.r}
        config.alpha_pattern = {path: alpha for path, alpha in alphas.items() if alpha != config.lora_alpha}

    def _alpha(self, layer: Any) -> float:
        """The lora_alpha with which a layer made anew would scale its LoRA as this one does."""
        rank, alpha = layer.r[self.name], layer.lora_alpha[self.name]
        below: float = sqrt(rank) if self.config.use_rslora else rank
        scaling = layer.scaling[self.name]
        return float(alpha) if alpha / below == scaling else float(scaling * below)


def without_any(model: Any) -> Any:
    """A view of a model that has no adapter, without the marks of one: it may leave out those visits."""
    return _unmarked(_inside(model))


def _unmarked(model: Any) -> Any:
    visits = visit_count(model)
    result = view(model, Plan.of(range(visits), visits))
    for name in MARKS:
        vars(result).pop(name, None)
    return result


def visits_apart(model: Any) -> Any:
    """The view with one layer object for each visit, over the same tensors: an adapter can be one visit's.

    Views have that, but for those of models that run plans by themselves (restack-llama), which are copied.
    """
    if not runs_plans(model):
        return model
    visits = visit_count(model)
    return unrolled(model, Plan.of(range(visits), visits), sharing_memo(model))


def layers_shared(model: Any) -> Any:
    """The reverse of `visits_apart`: a restack-llama whose visits on the same tensors share a layer."""
    result = copy.deepcopy(model, sharing_memo(model))
    parts = anatomy(result)
    numbers: dict[tuple[int, ...], int] = {}
    kept = nn.ModuleList()
    for layer in parts.layers:
        tensors = tuple(map(id, layer.parameters()))
        if tensors not in numbers:
            numbers[tensors] = len(kept)
            kept.append(layer)
    number_of = [numbers[tuple(map(id, layer.parameters()))] for layer in parts.layers]
    visits = [replace(visit, layer=number_of[visit.layer]) for visit in result.config.whole_plan.visits]
    result.set_submodule(parts.path, kept)
    result.config.num_hidden_layers = len(kept)
    result.run(Plan(tuple(visits), (len(kept),)))
    return result


def put_on(model: Any, location: Location, recipe: str, hub: Mapping[str, Any] | None = None) -> Any:
    """Put a stored adapter into a view, in place, for inference: nothing of it is to be trained.

    It keeps the dtype that it is stored in.

    Args:
        model: a view whose visits the adapter is for.
        location: of peft's files.
        recipe: what errors call the recipe that they are of.
        hub: how to reach the hub: cache_dir, token...

    Returns:
        The view.

    Raises:
        ModelError: peft is not installed, or the files are not there, damaged, or for other visits.
    """
    peft = peft_module()
    with told_in_one_line(recipe, location.is_local, "adapter"):
        folder = adapter_folder(location, hub)
        tensors = {name.removeprefix(PREFIX): value for name, value in load_file(folder / TENSORS).items()}
        config = peft.PeftConfig.from_pretrained(str(folder))
        _only_lora({NAME: config})
        if (init := config.init_lora_weights) not in HARMLESS_INITS:
            raise ModelError(f"its init_lora_weights is {init!r}, which changes the base; save the view anew")
        model.add_adapter(config, NAME)
        tensors = _without_unread(tensors, model)
        wanted = {
            name.replace(f".{NAME}", ""): parameter
            for name, parameter in model.named_parameters()
            if "lora_" in name
        }
        if odd := sorted(wanted.keys() ^ tensors.keys()):
            of = "lacks" if odd[0] in wanted else "is also for"
            raise ModelError(f"it {of} {odd[0]}; get the recipe again, or save the view anew")
        for name, parameter in wanted.items():
            parameter.data = parameter.data.to(tensors[name].dtype)
        peft.set_peft_model_state_dict(model, tensors, adapter_name=NAME)
    for parameter in wanted.values():
        parameter.requires_grad_(False)
    return model.eval()


def _without_unread(tensors: dict[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """The tensors but for those of keys and values that no visit reads, which a restack-llama lacks."""
    if not runs_plans(model):
        return tensors
    there = {path for path, _ in model.named_modules()}
    paths = {name: name.partition(".lora_")[0] for name in tensors}
    unread = {name for name, path in paths.items() if path not in there and path.rpartition(".")[0] in there}
    return {name: tensor for name, tensor in tensors.items() if name not in unread}


def adapter_folder(location: Location, hub: Mapping[str, Any] | None = None) -> Path:
    """The folder with peft's files, fetched from the hub if the recipe is there.

    Raises:
        ModelError: it is not there.
    """
    if location.is_local:
        missing = [name for name in (CONFIG, TENSORS) if location.file(name) is None]
        if missing:
            raise ModelError(f"there is no {location.folder / missing[0]}; get the recipe again")
        return location.folder
    from huggingface_hub import hf_hub_download

    reach = {name: value for name, value in (hub or {}).items() if name in REACHING}
    options: dict[str, Any] = {"subfolder": location.subfolder, "revision": location.revision, **reach}
    files = [hf_hub_download(location.name, name, **options) for name in (CONFIG, TENSORS)]
    return Path(files[0]).parent


def peft_module(name: str = "") -> Any:
    """peft, or a module of it.

    Raises:
        ModelError: it is not installed.
    """
    try:
        return import_module(f"peft.{name}" if name else "peft")
    except ImportError:
        remedy = "install it: pip install 'restack[train]'"
        raise ModelError(f"adapters (LoRA) need peft, and it is not there; {remedy}") from None


def _inside(model: Any) -> Any:
    """The model of transformers in a PeftModel, knowing the plan of both; any other model as it is."""
    if not hasattr(model, "get_base_model"):
        return model
    inside = copy.copy(model.get_base_model())
    if PLAN in vars(model):
        vars(inside)[PLAN] = plan_after(inside, vars(model)[PLAN])
    return inside


def _only_lora(configs: Mapping[str, Any]) -> tuple[str, Any]:
    """The one adapter there is, and its config."""
    if len(configs) > 1:
        raise ModelError(
            f"the model has {len(configs)} adapters ({', '.join(configs)}), and a recipe keeps one; delete "
            f"the others: model.delete_adapter({[*configs][-1]!r})"
        )
    [(name, config)] = configs.items()
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind != "LORA":
        raise ModelError(f"the adapter {name} is of the type {kind}, and a recipe keeps LORA; {MERGE}")
    more = [option for option in MORE_THAN_LORA if getattr(config, option, None)]
    if more or config.bias != "none":
        option = next(iter(more), "bias")
        raise ModelError(
            f"the adapter {name} is more than LoRA ({option}), which a recipe cannot keep; {MERGE}"
        )
    return name, config


def _refuse_what_is_not_said(name: str, layers: Iterable[Any]) -> None:
    """Refuse adapters that compute otherwise than their matrices say, or not at all."""
    for layer in layers:
        if layer.lora_variant.get(name) or layer.lora_bias.get(name):
            raise ModelError(f"the adapter {name} is more than W + BA (DoRA, a bias...); {MERGE}")
        if layer.merged:
            raise ModelError(f"the adapter {name} is merged into the weights; take it out: unmerge_adapter()")
        if layer.disable_adapters or list(layer.active_adapters) != [name]:
            raise ModelError(
                f"the adapter {name} is switched off; switch it on, or delete it: delete_adapter"
            )


def _lora_layer() -> Any:
    return peft_module("tuners.lora").LoraLayer
