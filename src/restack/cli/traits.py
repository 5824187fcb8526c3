"""What an agent is given beside its model, as KEY=VALUE or in YAML."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from restack.cli.options import unescaped
from restack.cli.text_input import check_argument
from restack.cli.yaml_file import read_yaml
from restack.errors import UsageError

SAMPLING = {
    "temperature": float,
    "top-p": float,
    "top-k": int,
    "repetition-penalty": float,
    "max-tokens": int,
}
KINDS: dict[str, type] = {"system": str, "ai-prefix": str, **SAMPLING}
TOLD = {int: "a whole number", float: "a number", str: "a text"}

Traits = dict[str, Any]  # by the keys of KINDS, and others that a program knows


def traits(given: Mapping[str, object], where: str, *, more: Iterable[str] = ()) -> Traits:
    """What was given, each value of its kind; keys with an underscore are those with a hyphen.

    Args:
        given: values as YAML reads them, or texts.
        where: how errors name the place.
        more: keys that are known here too; texts.

    Raises:
        UsageError: there is no such key, or a value is of another kind.
    """
    kinds = KINDS | dict.fromkeys(more, str)
    result: Traits = {}
    for name, value in given.items():
        key = name.replace("_", "-") if isinstance(name, str) else name
        if key not in kinds:
            raise UsageError(f"{where}: there is no {name!r}; the keys are {', '.join(kinds)}")
        result[key] = _read(value, kinds[key], f"{where}: {key}")
    if "ai-prefix" in result:
        result["ai-prefix"] = unescaped(result["ai-prefix"])
    return result


def pairs(texts: Iterable[str] | None, option: str, *, more: Iterable[str] = ()) -> Traits:
    """What KEY=VALUE, several times, gives.

    Raises:
        UsageError: one is not of this form, or a key is given twice; or as `traits` does.
    """
    given: dict[str, object] = {}
    for text in texts or ():
        check_argument(text, option)
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(
                f"{option} {text!r} is not KEY=VALUE; write for example {option} temperature=0.7"
            )
        if key in given:
            raise UsageError(f"{option} gives {key} twice; give it once")
        given[key] = value
    return traits(given, option, more=more)


def _read(value: object, kind: type, what: str) -> Any:
    if kind is str:
        if isinstance(value, str):
            return value
    elif isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = kind(value)
        except (ValueError, OverflowError):
            pass
        else:
            if not isinstance(value, float) or number == value or number != number:
                return number
    raise UsageError(f"{what} is {value!r:.80}; write {TOLD[kind]}")


def common(
    system: str | None,
    ai_prefix: str | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    repetition_penalty: float | None,
    max_tokens: int | None,
) -> Traits:
    """What the options of a command give all its agents; those without a value are left out."""
    values = {
        "system": system,
        "ai-prefix": unescaped(ai_prefix) if ai_prefix else None,
        "temperature": temperature,
        "top-p": top_p,
        "top-k": top_k,
        "repetition-penalty": repetition_penalty,
        "max-tokens": max_tokens,
    }
    return {key: value for key, value in values.items() if value is not None}


def prompts(file: Path | None, **options: str | None) -> dict[str, str]:
    """The words of `restack think`: those of a file, and over them those of options, where \\n is a newline.

    Raises:
        UsageError: the file cannot be read, or one of its values is no text.
    """
    words = read_yaml(file.expanduser(), options) if file else {}
    for key, value in words.items():
        if not isinstance(value, str):
            raise UsageError(f"{file}: {key} is {value!r:.80}; write a text")
    return words | {key: unescaped(text) for key, text in options.items() if text is not None}
