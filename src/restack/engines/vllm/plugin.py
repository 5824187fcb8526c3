"""The entry point of the group `vllm.general_plugins`, which vLLM calls in each of its processes."""

from restack.engines.vllm.arguments import PREFIX
from restack.engines.vllm.versions import unsupported


def register() -> None:
    """Tell vLLM of a class for each of its architectures, which runs a plan; may be called again.

    Classes are made when they are asked for. With a version of vLLM that is not supported there are none,
    and its log says why: everything else must go on.
    """
    import vllm
    from vllm.logger import init_logger
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    if wrong := unsupported(vllm.__version__):
        init_logger(__name__).error("%s", wrong)
        return
    from restack.engines.vllm import configuration  # noqa: F401  # its parser is registered

    for name in [name for name in ModelRegistry.models if not name.startswith(PREFIX)]:
        planned = PREFIX + name
        ModelRegistry.register_model(planned, f"restack.engines.vllm.models:{planned}")
        if name in MODELS_CONFIG_MAP:
            MODELS_CONFIG_MAP[planned] = MODELS_CONFIG_MAP[name]
