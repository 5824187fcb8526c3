"""A conversation in a file: its text and settings, and if asked the keys and values of what was read.

The file is JSON; with keys and values it is a safetensors file, whose header holds the same JSON.
"""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from restack.chat.conversation import Conversation
from restack.chat.messages import Message, Piece
from restack.chat.thoughts import Tags
from restack.errors import UsageError
from restack.plans import Plan
from restack.runtime import Sampling
from restack.views.cost import running
from restack.views.planned import visit_count

FORMAT = "restack_session"  # the key of the version
VERSION = 1
SAMPLE = 16  # numbers from the middle of each tensor, which tell a model from its fine-tunes


def save_session(talk: Conversation, path: str | Path, *, with_cache: bool = False) -> Path:
    """Write a conversation into a file; one that is there is replaced if it is a session.

    Args:
        talk: the conversation.
        path: of the file.
        with_cache: also what the model has read, so that nothing has to be read again.

    Raises:
        UsageError: another file is there, it cannot be written, or what the model has read cannot be stored.
    """
    path = Path(path).expanduser()
    text = json.dumps(_written(talk), ensure_ascii=False, indent=1)
    if path.exists():
        with suppress(UnicodeDecodeError):
            _read(path)  # or it is no session, and not ours to replace
    unfinished = path.with_name(f".{path.name[:100]}.{uuid4().hex[:8]}.part")
    try:
        if with_cache:
            save_file(talk.cache.stored(), unfinished, {FORMAT: text})
        else:
            unfinished.write_text(text + "\n", encoding="utf-8")
        os.replace(unfinished, path)  # noqa: PTH105  (one step: it is the whole file, or what was there)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"the session cannot be written to {path}: {reason}; name another file") from None
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
    return path


def load_session(path: str | Path, model: Any, tokenizer: Any) -> Conversation:
    """The conversation of a file, as `save_session` wrote it, with the model that it was had with.

    Raises:
        UsageError: it cannot be read, is no session, or broken, or of a newer version; or it was had with
            another model, plan or dtype.
    """
    path = Path(path).expanduser()
    session, tensors = _read(path)
    try:
        _refuse_other(session["model"], described(model), path)
        talk = Conversation(
            model,
            tokenizer,
            system=session["system"],
            ai_prefix=session["ai_prefix"],
            sampling=Sampling(**session["sampling"]),
            speaks=session["speaks"],
            tags=Tags(**session["tags"]),
            overflow=session["overflow"],
        )
        talk.messages = [
            Message(each["role"], tuple(Piece(**piece) for piece in each["pieces"]), each["finish"])
            for each in session["messages"]
        ]
        if tensors:
            talk.cache.restore(model, tensors)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UsageError(f"{path} is a broken session: {type(error).__name__} {error}") from None
    return talk


def described(model: Any) -> dict[str, Any]:
    """What tells a loaded model from others: its kind, what it runs, its dtype and its weights."""
    config = model.config.get_text_config(decoder=True)
    visits = visit_count(model)
    digest = hashlib.sha256()
    for tensor in model.parameters():
        numbers = tensor.detach().reshape(-1)
        first = max(0, (len(numbers) - SAMPLE) // 2)
        digest.update(numbers[first : first + SAMPLE].float().cpu().numpy().tobytes())
    return {
        "kind": f"{config.model_type}, {config.hidden_size} wide, {config.vocab_size} tokens",
        "plan": str(running(model, Plan.of(range(visits), visits))),
        "dtype": str(model.dtype).removeprefix("torch."),
        "weights": digest.hexdigest()[:16],
    }


def _written(talk: Conversation) -> dict[str, Any]:
    return {
        FORMAT: VERSION,
        "model": described(talk.model),
        "system": talk.system,
        "ai_prefix": talk.ai_prefix,
        "sampling": asdict(talk.sampling),
        "speaks": talk.speaks,
        "tags": asdict(talk.tags),
        "overflow": talk.window.overflow,
        "messages": [asdict(message) for message in talk.messages],
    }


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What is in a session's file.

    Raises:
        UsageError: there is none, or it cannot be read here.
    """
    tensors: dict[str, torch.Tensor] = {}
    try:
        with path.open("rb") as file:
            is_text = file.read(1) == b"{"
        if is_text:
            session = json.loads(path.read_text(encoding="utf-8"))
        else:
            with safe_open(path, framework="pt") as stored:
                session = json.loads((stored.metadata() or {})[FORMAT])
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        version = session[FORMAT]
    except OSError as error:
        raise UsageError(f"the session {path} cannot be read: {error.strerror or error}") from None
    except (SafetensorError, ValueError, KeyError, TypeError):
        raise UsageError(f"{path} is no session of Restack, or it is cut short; name another file") from None
    if version != VERSION:
        raise UsageError(
            f"{path} is a session of version {version}, and this Restack reads version {VERSION}; "
            "update Restack"
        )
    return session, tensors


def _refuse_other(had: dict[str, str], have: dict[str, str], path: Path) -> None:
    """Refuse a model that a session was not had with, naming what is different."""
    remedies = {
        "kind": "open it with that model",
        "plan": f"open it with --layers {had['plan']!r}",
        "dtype": f"open it with --dtype {had['dtype']}",
        "weights": "open it with the model it was had with",
    }
    for name, remedy in remedies.items():
        if had[name] != have[name]:
            what = "other weights" if name == "weights" else f"{name} {had[name]}"
            instead = "" if name == "weights" else f", and this model's is {have[name]}"
            raise UsageError(f"{path} is a session of a model with {what}{instead}; {remedy}")
