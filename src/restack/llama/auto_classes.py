"""restack-llama and LCKV's checkpoints, made known to transformers' Auto classes.

The models stand in by name until one is made: transformers' Auto module is imported in the middle of what
their own module needs.
"""

from importlib import import_module
from typing import Any

from restack.llama.config import LCKVLlamaConfig, RestackLlamaConfig

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


def register_configs() -> None:
    """Make `AutoConfig` know them."""
    from transformers.models.auto.configuration_auto import AutoConfig

    for config in (RestackLlamaConfig, LCKVLlamaConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)


def register_models() -> None:
    """Make `AutoModel` and `AutoModelForCausalLM` know them."""
    from transformers.models.auto import modeling_auto

    for auto, models in MODELS.items():
        for config, name in models.items():
            stands_in = type(name, (Later,), {"config_class": config})
            getattr(modeling_auto, auto).register(config, stands_in, exist_ok=True)
