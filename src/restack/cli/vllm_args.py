"""`restack vllm-args`: what vLLM is told so that it runs a view."""

import json
import shlex
from typing import Any

from restack.cli.loading import Source
from restack.engines.vllm import vllm_arguments


def run(source: Source, transformers_backend: bool, as_json: bool) -> None:
    """Print options of `vllm serve`, quoted as a shell and xargs read them, or keyword arguments in JSON."""
    arguments = vllm_arguments(
        source.reference,
        source.plan,
        transformers_backend=transformers_backend,
        revision=source.revision,
        trust_remote_code=source.trust_remote_code,
    )
    print(json.dumps(arguments, indent=2) if as_json else shlex.join(options(arguments)))


def options(arguments: dict[str, Any]) -> list[str]:
    """Keyword arguments of `vllm.LLM` as `vllm serve` takes them: the model first."""
    given = [arguments["model"]]
    for name, value in arguments.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            given.append(f"--{option}" if value else f"--no-{option}")
        elif name != "model":
            given += [f"--{option}", json.dumps(value) if isinstance(value, dict) else value]
    return given
