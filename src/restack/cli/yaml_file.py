"""Settings from a YAML file."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from restack.errors import UsageError


def read_yaml(path: Path, keys: Iterable[str]) -> dict[str, Any]:
    """The settings in a file, by key; keys with an underscore are those with a hyphen.

    Raises:
        UsageError: the file cannot be read, is no YAML, or has other keys than these.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}; name a YAML file") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 at byte {error.start}; convert it") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UsageError(f"{where}: no YAML: {problem:.120}; correct it") from None
    return known(values, keys, str(path))


def known(values: object, keys: Iterable[str], where: str) -> dict[str, Any]:
    """A mapping with no other keys than these.

    Raises:
        UsageError: it is none.
    """
    keys = tuple(keys)
    if not isinstance(values, dict):
        raise UsageError(f"{where} has no keys; it needs some of {', '.join(keys)}")
    result = {str(key).replace("_", "-"): value for key, value in values.items()}
    for key in result:
        if key not in keys:
            raise UsageError(f"{where}: there is no {key!r}; the keys are {', '.join(keys)}")
    return result
