"""The configs of restack-llama and of LCKV's checkpoints, as vLLM knows models: `--config-format restack`."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from vllm.transformers_utils.config import register_config_parser
from vllm.transformers_utils.config_parser_base import ConfigParserBase

from restack.engines.vllm.arguments import CONFIG_FORMAT
from restack.llama.families import relative
from restack.plans import own_plan


@register_config_parser(CONFIG_FORMAT)
class RestackConfigParser(ConfigParserBase):  # type: ignore[misc]
    """Reads them as the config of the Hugging Face family that has the same layers; others as they are."""

    def parse(
        self,
        model: str | Path,
        trust_remote_code: bool,
        revision: str | None = None,
        code_revision: str | None = None,
        **kwargs: Any,
    ) -> tuple[dict[str, Any], PreTrainedConfig]:
        """The config as a dictionary, and itself.

        Raises:
            ModelError: no family has such layers.
        """
        config = AutoConfig.from_pretrained(model, revision=revision, token=kwargs.get("token"))
        if own_plan(config) is not None:
            config = relative(config)
        return config.to_dict(), config
