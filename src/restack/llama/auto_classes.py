"""restack-llama and LCKV's checkpoints, made known to transformers' Auto classes.

The models stand in by name until one is made: transformers' Auto module is imported in the middle of what
their own module needs.
"""

from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from restack.llama.config import LCKVLlamaConfig, RestackLlamaConfig
from restack.llama.meta_layout import is_meta_folder

MODELS = {
    "AutoModel": {RestackLlamaConfig: "RestackLlamaModel", LCKVLlamaConfig: "LCKVLlamaModel"},
    "AutoModelForCausalLM": {
        RestackLlamaConfig: "RestackLlamaForCausalLM",
        LCKVLlamaConfig: "LCKVLlamaForCausalLM",
    },
}


class Later:
    """Stands for a model class that is not imported yet."""

    config_class: Any

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As the model class has it."""
        return cls._real().from_pretrained(*args, **kwargs)

    @classmethod
    def _from_config(cls, *args: Any, **kwargs: Any) -> Any:
        return cls._real()._from_config(*args, **kwargs)

    @classmethod
    def _real(cls) -> Any:
        return getattr(import_module("restack.llama.model"), cls.__name__)


class HouseTokenizer:
    """Stands for the tokenizer of a model that does not name its class: Meta's folders do not."""

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> Any:
        """The tokenizer in a folder or a repository."""
        from transformers import PreTrainedTokenizerFast

        from restack.llama.meta_tokenizer import read_tokenizer

        if is_meta_folder(Path(name)):
            return read_tokenizer(Path(name))
        return PreTrainedTokenizerFast.from_pretrained(name, *args, **kwargs)


def register_configs() -> None:
    """Make `AutoConfig` know them, in Meta's folders and under a KV map given beside a Llama's name too."""
    from transformers.models.auto.configuration_auto import AutoConfig

    _teach_config_dict()
    for config in (RestackLlamaConfig, LCKVLlamaConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)


def _teach_config_dict() -> None:
    """Have what `AutoConfig` reads be a restack-llama's where the files are Meta's, or a KV map is given."""
    read: Any = PreTrainedConfig.get_config_dict.__func__
    if getattr(read, "_knows_restack", False):
        return

    @wraps(read)
    def get_config_dict(cls: Any, name: Any, **kwargs: Any) -> Any:
        if cls is PreTrainedConfig and _is_ours(read, name, kwargs):
            return RestackLlamaConfig.get_config_dict(name, **kwargs)
        return read(cls, name, **kwargs)

    vars(get_config_dict)["_knows_restack"] = True
    PreTrainedConfig.get_config_dict = classmethod(get_config_dict)  # type: ignore[arg-type]


def _is_ours(read: Any, name: Any, kwargs: dict[str, Any]) -> bool:
    if is_meta_folder(Path(name)) and not (Path(name) / "config.json").is_file():
        return True
    if kwargs.get("kv_map") is None:
        return False
    from restack.llama.families import FAMILIES  # transformers is there by now

    return read(PreTrainedConfig, name, **kwargs)[0].get("model_type") in FAMILIES


def register_models() -> None:
    """Make `AutoModel` and `AutoModelForCausalLM` know them."""
    from transformers.models.auto import modeling_auto

    for auto, models in MODELS.items():
        for config, name in models.items():
            stands_in = type(name, (Later,), {"config_class": config})
            getattr(modeling_auto, auto).register(config, stands_in, exist_ok=True)


def register_tokenizers() -> None:
    """Make `AutoTokenizer` know what to do where no class of a tokenizer is named."""
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    AutoTokenizer.register(RestackLlamaConfig, tokenizer_class=HouseTokenizer, exist_ok=True)
