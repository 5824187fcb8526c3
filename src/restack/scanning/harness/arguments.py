"""What lm-eval hands to a model: its arguments, in a text or one by one."""

import inspect
import re
from collections.abc import Mapping
from typing import Any

from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped]
from lm_eval.utils import handle_arg_string  # type: ignore[import-untyped]

from restack.errors import UsageError

TEXTS = ("pretrained", "layers", "ratio", "kv", "revision", "tokenizer")  # even those that look like numbers
LOADING = (  # how HFLM loads a model; ours are loaded as `restack.open` does
    "backend", "subfolder", "use_fast_tokenizer", "parallelize", "max_memory_per_gpu", "max_cpu_memory",
    "offload_folder", "tp_plan", "peft", "delta", "autogptq", "gptqmodel", "gguf_file",
)  # fmt: skip
ARGUMENT = re.compile(r"\s*[A-Za-z_]\w*\s*=")


def read_arguments(text: str) -> dict[str, Any]:
    """The arguments in `name=value,name=value`, whose values may have commas.

    lm-eval's own reader ends a value at every comma. Here it ends at one that a name and = follow, outside
    quotes.

    Raises:
        UsageError: there is a value without a name.
    """
    found: dict[str, Any] = {}
    for piece in _pieces(text.strip().rstrip(",")):
        name, equals, value = (part.strip() for part in piece.partition("="))
        if not equals:
            raise UsageError(f"{piece!r} is no argument of a model; write name=value")
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            found[name] = value[1:-1]
        else:
            found[name] = value if name in TEXTS else handle_arg_string(value)
    return found


def _pieces(text: str) -> list[str]:
    """A text cut at the commas that an argument follows."""
    pieces, start, quote = [], 0, ""
    for place, sign in enumerate(text):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        elif sign == "," and ARGUMENT.match(text, place + 1):
            pieces.append(text[start:place])
            start = place + 1
    return [piece for piece in [*pieces, text[start:]] if piece.strip()]


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse what HFLM would not heed, or not for a model that is loaded already.

    Raises:
        UsageError: there is such an option.
    """
    known = inspect.signature(HFLM.__init__).parameters
    for name, value in options.items():
        if not name.isidentifier():
            raise UsageError(
                f"the model's arguments were cut at a comma, before {name}; quote what has commas, as in "
                "--model_args 'pretrained=demo,layers=\"0:8,4:12\"'"
            )
        if name not in known or known[name].kind is inspect.Parameter.VAR_KEYWORD:
            raise UsageError(f"the model restack has no option {name}; it has those of lm-eval's model hf")
        if name in LOADING and value != known[name].default:
            raise UsageError(
                f"the model restack has no option {name}: it opens models as restack.open does; load the "
                "model yourself, and give it as pretrained, in Python"
            )
