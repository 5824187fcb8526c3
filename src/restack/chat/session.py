"""A conversation in a file: its text and settings, and if asked the keys and values of what was read.

The file is JSON; with keys and values it is a safetensors file, whose header holds the same JSON.
"""

import json
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from restack.chat.conversation import Conversation
from restack.chat.messages import Message, Piece
from restack.chat.thoughts import Tags
from restack.chat.window import Window
from restack.errors import RestackError, UsageError
from restack.recipes.description import described
from restack.runtime import Sampling

FORMAT = "restack_session"  # the key of the version
VERSION = 1


def save_session(talk: Conversation, path: str | Path, *, with_cache: bool = False) -> Path:
    """Write a conversation into a file; one that is there is replaced if it is a session.

    Args:
        talk: the conversation.
        path: of the file.
        with_cache: also what the model has read, so that nothing has to be read again.

    Raises:
        UsageError: another file is there, it cannot be written, or what the model has read cannot be stored.
    """
    text = json.dumps(_written(talk), ensure_ascii=False, indent=1)
    tensors = talk.cache.stored() if with_cache else None
    unfinished = None
    try:
        path = Path(path).expanduser()
        if path.exists() and not path.is_file():
            raise UsageError(f"the session cannot be written to {path}: it is no file; name another")
        if path.exists():
            _read(path)  # or it is no session, and not ours to replace
        unfinished = path.with_name(f".{path.name[:100]}.{uuid4().hex[:8]}.part")
        if tensors is None:
            unfinished.write_text(text + "\n", encoding="utf-8")
        else:
            save_file(tensors, unfinished, {FORMAT: text})
        os.replace(unfinished, path)  # noqa: PTH105  (one step: it is the whole file, or what was there)
    except UsageError:
        raise
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:  # the last two: of the name
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"the session cannot be written to {path}: {reason}; name another file") from None
    finally:
        if unfinished is not None:
            with suppress(OSError, ValueError):
                unfinished.unlink(missing_ok=True)
    return path


def load_session(path: str | Path, model: Any, tokenizer: Any) -> Conversation:
    """The conversation of a file, as `save_session` wrote it, with the model that it was had with.

    Raises:
        UsageError: it cannot be read, is no session, or broken, or of a newer version; or it was had with
            another model, plan or dtype.
    """
    session = _read(path)
    try:
        had = {name: str(session["model"][name]) for name in ("kind", "plan", "dtype", "weights")}
        talk = _made(session, model, tokenizer)
    except (RestackError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{path} is a broken session: {type(error).__name__} {error}") from None
    _refuse_other(had, described(model), path)
    try:
        if not _is_text(path):
            talk.cache.restore(model, load_file(Path(path).expanduser()))
    except (OSError, SafetensorError, KeyError, ValueError, IndexError) as error:
        raise UsageError(f"{path} is a broken session: {type(error).__name__} {error}") from None
    return talk


def _made(session: dict[str, Any], model: Any, tokenizer: Any) -> Conversation:
    """The conversation of a session, every value of it checked."""
    whole, number, text = (int, type(None)), (int, float, type(None)), (str, type(None))
    kinds = {"top_k": whole, "max_tokens": int, "temperature": number, "top_p": number}
    sampling = {name: _of(kinds.get(name, number), value) for name, value in session["sampling"].items()}
    talk = Conversation(
        model,
        tokenizer,
        system=_of(text, session["system"]),
        ai_prefix=_of(str, session["ai_prefix"]),
        sampling=Sampling(**sampling),
        speaks=_of(str, session["speaks"]),
        tags=Tags(**{name: _of(str, tag) for name, tag in session["tags"].items()}),
    )
    talk.window = Window(**session["window"])
    for count in (talk.window.dropped, talk.window.shifted):
        _of(int, count)
    talk.messages = [
        Message(
            _one_of(("system", "user", "assistant"), each["role"]),
            tuple(_piece(**piece) for piece in each["pieces"]),
            _one_of(("stop", "length", "context", "interrupted"), each["finish"]),
        )
        for each in session["messages"]
    ]
    return talk


def _piece(text: object, kind: object, given: object) -> Piece:
    return Piece(_of(str, text), _one_of(("answer", "thought", "tag"), kind), _of(bool, given))


def _of(kinds: Any, value: Any) -> Any:
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        raise TypeError(f"{value!r:.40} is of the wrong kind")
    return value


def _one_of(known: tuple[str, ...], value: Any) -> Any:
    if value not in known:
        raise ValueError(f"{value!r:.40} is none of {', '.join(known)}")
    return value


def _written(talk: Conversation) -> dict[str, Any]:
    return {
        FORMAT: VERSION,
        "model": described(talk.model),
        "system": talk.system,
        "ai_prefix": talk.ai_prefix,
        "sampling": asdict(talk.sampling),
        "speaks": talk.speaks,
        "tags": asdict(talk.tags),
        "window": asdict(talk.window),
        "messages": [asdict(message) for message in talk.messages],
    }


def _is_text(path: str | Path) -> bool:
    """Whether a session's file is JSON, without keys and values."""
    with Path(path).expanduser().open("rb") as file:
        return file.read(1) == b"{"


def _read(path: str | Path) -> dict[str, Any]:
    """What is in a session's file beside keys and values.

    Raises:
        UsageError: there is none, or it cannot be read here.
    """
    try:
        path = Path(path).expanduser()
        if _is_text(path):
            session: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        else:
            with safe_open(path, framework="pt") as stored:
                session = json.loads((stored.metadata() or {})[FORMAT])
        version = session[FORMAT]
    except OSError as error:
        raise UsageError(f"the session {path} cannot be read: {error.strerror or error}") from None
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError):  # the last: too deep; no such ~
        raise UsageError(f"{path} is no session of Restack, or it is cut short; name another file") from None
    if type(version) is not int or version != VERSION:
        raise UsageError(
            f"{path} is a session of version {version!r:.40}, and this Restack reads version {VERSION}; "
            "update Restack"
        )
    return session


def _refuse_other(had: dict[str, str], have: dict[str, str], path: str | Path) -> None:
    """Refuse a model that a session was not had with, naming what is different."""
    remedies = {
        "kind": "open it with that model",
        "plan": f"open it with --layers {had['plan']!r}, or in a chat after /layers {had['plan']}",
        "dtype": f"open it with --dtype {had['dtype']}",
        "weights": "open it with the model it was had with",
    }
    for name, remedy in remedies.items():
        if had[name] != have[name]:
            what = "other weights" if name == "weights" else f"{name} {had[name]}"
            instead = "" if name == "weights" else f", and this model's is {have[name]}"
            raise UsageError(f"{path} is a session of a model with {what}{instead}; {remedy}")
