"""The configs of restack-llama and of LCKV's checkpoints, as vLLM knows models: `--config-format restack`."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from vllm.transformers_utils.config import register_config_parser
from vllm.transformers_utils.config_parser_base import ConfigParserBase

from restack.engines.vllm.arguments import CONFIG_FORMAT
from restack.llama.families import relative


@register_config_parser(CONFIG_FORMAT)
class RestackConfigParser(ConfigParserBase):  # type: ignore[misc]
    """Reads them as the config of the Hugging Face family that has the same layers."""

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
        config = relative(AutoConfig.from_pretrained(model, revision=revision))
        return config.to_dict(), config
