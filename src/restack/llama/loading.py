"""Weights into the model: what a checkpoint must hold, and what it may hold besides."""

from dataclasses import fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError

from restack.errors import ModelError
from restack.llama.config import RestackLlamaConfig
from restack.llama.meta import read_settings, read_weights
from restack.llama.meta_layout import is_meta_folder

SETTINGS = {field.name for field in fields(RestackLlamaConfig)} | {
    "kv_map"
}  # what can be given beside a name
SHOWN = 3  # names in an error


def unneeded(config: RestackLlamaConfig) -> set[str]:
    """Patterns of the tensors that a checkpoint may hold though the model has none.

    Checkpoints that were made with all keys and values have weights for those that nobody reads here; old
    ones have the frequencies of the rotary embedding.
    """
    without = set(range(config.num_hidden_layers)) - config.schedule.layers_with_kv
    layers = "|".join(map(str, sorted(without)))
    readers = {rf"layers\.({layers})\.self_attn\.(k|v)_(proj|norm)\."} if without else set()
    return {r"rotary_emb\.inv_freq$"} | readers


def load(
    load_as_transformers: Any, config_class: Any, name: Any, *args: Any, **kwargs: Any
) -> tuple[Any, Any]:
    """A model and what transformers tells of its loading.

    Args:
        load_as_transformers: `from_pretrained` of `PreTrainedModel`, bound to the class.
        config_class: of the model.
        name: a folder or a repository; also a folder in Meta's layout.
        args, kwargs: as `from_pretrained` has them, and settings of the config.

    Raises:
        ModelError: a tensor is missing, is not the model's, or has another shape; or a file is damaged.
    """
    beside = sorted(SETTINGS & kwargs.keys() - {"dtype"})
    if kwargs.get("config") is not None and beside:
        raise ModelError(f"{beside[0]} is given beside a config; set it in the config")
    shapes_may_differ = kwargs.pop("ignore_mismatched_sizes", False)
    source = name
    if name is not None and "state_dict" not in kwargs and is_meta_folder(folder := Path(name)):
        if kwargs.get("config") is None:
            own = {key: kwargs.pop(key) for key in (SETTINGS - {"dtype"}) & kwargs.keys()}
            kwargs["config"] = config_class.from_pretrained(folder, **own)
        kwargs["state_dict"], source = read_weights(folder, read_settings(folder)), None
    options = {"output_loading_info": True, "ignore_mismatched_sizes": True, **kwargs}
    try:
        model, told = load_as_transformers(source, *args, **options)
    except (SafetensorError, FileNotFoundError, EOFError, UnpicklingError, RuntimeError) as error:
        if type(error) is RuntimeError and "PytorchStreamReader" not in str(error):
            raise
        raise ModelError(f"the weights of {name} cannot be read ({error}); get them again") from error
    if source is None and name is not None:
        model.config.name_or_path = model.name_or_path = str(name)
    if not shapes_may_differ:
        for tensor, stored, needed in sorted(told["mismatched_keys"]):
            raise ModelError(f"{tensor} of {name} is {list(stored)}, and the config says {list(needed)}")
    if missing := sorted(told["missing_keys"]):
        raise ModelError(f"{name} lacks {_names(missing)}, which its config asks for")
    extra = [key for key in told["unexpected_keys"] if hasattr(model, "lm_head") or key != "lm_head.weight"]
    if extra:
        raise ModelError(f"{name} holds {_names(sorted(extra))}, for which its config has no place")
    return model, told


def _names(tensors: list[str]) -> str:
    more = f" and {len(tensors) - SHOWN} more" if len(tensors) > SHOWN else ""
    return ", ".join(tensors[:SHOWN]) + more
