"""What transformers' Auto classes find for a recipe: a config, a model and a tokenizer, those of its view."""

from dataclasses import fields
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from restack.llama.auto_classes import register_configs as register_house_configs
from restack.llama.auto_classes import register_models as register_house_models
from restack.llama.auto_classes import register_tokenizers as register_house_tokenizers
from restack.recipes.location import Location
from restack.recipes.recipe import MODEL_TYPE, Recipe

# Settings that name code or classes: the base's are the base's own affair, and never looked up in a recipe.
NEVER_THE_BASES = {"auto_map", "custom_pipelines", "model_name", "quantization_config"}


class RestackConfig(PreTrainedConfig):  # type: ignore[misc]
    """The config of a recipe. What it says of layers, heads and widths is what its view's config says.

    The base's config is read when first asked for. What is set on it is set on the view's config, too.
    """

    model_type = MODEL_TYPE
    tokenizer_class = None

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As `PreTrainedConfig.from_dict`; settings of the view are left to the view's config."""
        returns_unused = kwargs.pop("return_unused_kwargs", False)
        name = kwargs.pop("name_or_path", None) or config_dict.get("_name_or_path", "")
        _drop_passing(kwargs)
        recipe = Recipe.from_json(config_dict, name or "this config")
        config: Any = cls(name_or_path=name)
        config._view_config, config._overrides = None, {}
        config._location = Location(str(name), config_dict.get("_commit_hash"))
        config._recipe = recipe  # from now on it knows what it is of
        if returns_unused:
            return config, kwargs
        for setting, value in kwargs.items():
            if setting not in HUB_OPTIONS:
                setattr(config, setting, value)
        return config

    @property
    def recipe(self) -> Recipe:
        """The recipe itself."""
        recipe: Recipe = vars(self)["_recipe"]
        return recipe

    @property
    def overrides(self) -> dict[str, Any]:
        """What was set on this config after it was read."""
        overrides: dict[str, Any] = vars(self)["_overrides"]
        return overrides

    def get_text_config(self, *args: Any, **kwargs: Any) -> Any:
        """The config of the view's decoder."""
        if "_recipe" not in vars(self):  # asked for while it is made
            return self
        return self.view_config().get_text_config(*args, **kwargs)

    def view_config(self) -> Any:
        """The config of the view: of the base's class, with as many layers as the plan has visits."""
        if vars(self)["_view_config"] is None:
            from restack.recipes.following import config_of_view, find

            config = config_of_view(find(vars(self)["_location"]))
            for name, value in self.overrides.items():
                setattr(config, name, value)
            self._view_config = config
        return vars(self)["_view_config"]

    def to_dict(self) -> dict[str, Any]:
        """The recipe, as `config.json` says it."""
        return self.recipe.to_json() if "_recipe" in vars(self) else super().to_dict()  # type: ignore[no-any-return]

    def to_diff_dict(self) -> dict[str, Any]:
        """The same: a recipe has no defaults to leave out."""
        return self.to_dict()

    def __getattr__(self, name: str) -> Any:
        """What the view's config says of the model, for what this one does not know itself."""
        if not name.startswith("_") and "_recipe" in vars(self) and name not in NEVER_THE_BASES:
            config = self.view_config()
            ours = {field.name for field in fields(PreTrainedConfig)}
            described = {field.name for field in fields(type(config))} | set(config.attribute_map)
            if name in described - ours or name == "num_hidden_layers":
                return getattr(config, name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and "_recipe" in vars(self):
            self.overrides[name] = value
            if vars(self)["_view_config"] is not None:
                setattr(vars(self)["_view_config"], name, value)
        super().__setattr__(name, value)


HUB_OPTIONS = {"cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token"}


class RestackForCausalLM:
    """Stands for the view of a recipe: makes it, and is never one itself."""

    config_class = RestackConfig

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, config: RestackConfig, **kwargs: Any) -> Any:
        """The view, of the base's own class, over weights loaded as `from_pretrained` is told to.

        Raises:
            ModelError: the base is not there, or is another than the recipe's.
        """
        from restack.recipes.opening import load_view

        location, hub = _location(name, kwargs)
        return load_view(location, *args, hub=hub, **{**config.overrides, **kwargs})

    @classmethod
    def _from_config(cls, config: RestackConfig, **kwargs: Any) -> Any:
        """The view over a base with random weights."""
        from restack.recipes.opening import build_view

        return build_view(vars(config)["_location"], config.overrides, **kwargs)


class RestackTokenizer:
    """Stands for the tokenizer of a recipe's base: loads it, and is never one itself."""

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> Any:
        """The tokenizer of the base, without code that comes with it: `recipes.open_tokenizer` can run that.

        Raises:
            ModelError: the base is not there, or is another than the recipe's.
        """
        from restack.recipes.opening import load_tokenizer

        _drop_passing(kwargs)
        location, hub = _location(name, kwargs)
        return load_tokenizer(location, *args, hub=hub, **kwargs)


def _drop_passing(kwargs: dict[str, Any]) -> None:
    """Take out what transformers' classes tell each other."""
    for name in ("_from_auto", "_from_pipeline", "_commit_hash"):
        kwargs.pop(name, None)


def _location(name: Any, kwargs: dict[str, Any]) -> tuple[Location, dict[str, Any]]:
    """Where a recipe is, and how to reach the hub; what says so is taken out of the keywords."""
    options = {option: kwargs.pop(option) for option in HUB_OPTIONS & kwargs.keys()}
    return Location(str(name), options.pop("revision", None), options.pop("subfolder", "")), options


def register_config() -> None:
    """Make `AutoConfig` know recipes and the house models."""
    from transformers.models.auto.configuration_auto import AutoConfig

    AutoConfig.register(MODEL_TYPE, RestackConfig, exist_ok=True)
    register_house_configs()


def register_model() -> None:
    """Make `AutoModelForCausalLM` know recipes and the house models."""
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    AutoModelForCausalLM.register(RestackConfig, RestackForCausalLM, exist_ok=True)
    register_house_models()


def register_tokenizer() -> None:
    """Make `AutoTokenizer` know recipes and the house models."""
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    AutoTokenizer.register(RestackConfig, tokenizer_class=RestackTokenizer, exist_ok=True)
    register_house_tokenizers()
