"""Who takes part in `restack cobblers`: from --expert NAME=MODEL, or from a YAML file."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restack.cli.options import checked_model
from restack.cli.text_input import check_argument
from restack.cli.traits import KINDS, Traits, traits
from restack.cli.yaml_file import known, read_yaml
from restack.errors import UsageError

KEYS = ("router", "experts", "fallback", "confidence")
ROUTER_KEYS = ("model", "prompt", "system", "ai-prefix")


@dataclass(frozen=True, slots=True)
class Expert:
    """A name, a model, and what else is given of it."""

    name: str
    model: str
    traits: Traits = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cast:
    """A router, its experts and how it chooses; None where that is not said."""

    experts: tuple[Expert, ...]
    router: Expert | None = None
    prompt: str | None = None
    fallback: str | None = None
    confidence: float | None = None


def expert_of(text: str) -> Expert:
    """What NAME=MODEL[@SPEC] says.

    Raises:
        UsageError, ModelError: it is not of this form, or names no model.
    """
    check_argument(text, "--expert")
    name, equals, model = text.partition("=")
    if not equals or not name.strip():
        raise UsageError(f"--expert {text!r} is not NAME=MODEL; write it as in --expert Maths=demo@0:8,4:12")
    return Expert(name.strip(), checked_model(model))


def read_cast(path: Path) -> Cast:
    """Who takes part, as a file says.

    Raises:
        UsageError, ModelError: it cannot be read, has keys that are not known, or names no model.
    """
    values = read_yaml(path, KEYS)
    experts = values.get("experts")
    if not isinstance(experts, list):
        raise UsageError(f"{path}: experts is no list; write - name: ... and model: ... for each")
    read = [_expert(value, f"{path}, expert {number}") for number, value in enumerate(experts, start=1)]
    router, prompt = _router(values.get("router"), f"{path}, router")
    fallback, confidence = values.get("fallback"), values.get("confidence")
    if fallback is not None and not isinstance(fallback, str):
        raise UsageError(f"{path}: fallback is {fallback!r:.80}; write the name of an expert")
    if confidence is not None and (isinstance(confidence, bool) or not isinstance(confidence, int | float)):
        raise UsageError(f"{path}: confidence is {confidence!r:.80}; write a probability from 0 to 1")
    return Cast(tuple(read), router, prompt, fallback, confidence)


def _expert(value: object, where: str) -> Expert:
    keys = ("name", "model", *KINDS)
    given = known(value, keys, where)
    name, model = _text(given, "name", where), _text(given, "model", where)
    return Expert(name, checked_model(model), traits(given, where))


def _router(value: Any, where: str) -> tuple[Expert | None, str | None]:
    if value is None:
        return None, None
    given = {"model": value} if isinstance(value, str) else known(value, ROUTER_KEYS, where)
    model = _text(given, "model", where)
    prompt = _text(given, "prompt", where) if "prompt" in given else None
    return Expert("router", checked_model(model), traits(given, where)), prompt


def _text(given: dict[str, Any], key: str, where: str) -> str:
    """Take a text out of what is given."""
    value = given.pop(key, None)
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{where}: {key} is {value!r:.80}; write a text")
    return value


def names_of(experts: Sequence[Expert]) -> list[str]:
    """Of all experts."""
    return [expert.name for expert in experts]
