"""The body of a request, and what is wrong with it."""

import asyncio
import json
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

LARGEST = 10 * 10**6  # bytes
PATIENCE = 30.0  # seconds that a body may take

Said = TypeVar("Said", bound=BaseModel)


class Refused(Exception):
    """A request that is answered with an error.

    Attributes:
        status: of HTTP.
        message: what is wrong, the limit, what to do.
        param: the field of the body that is wrong, if one is.
    """

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param


async def said(request: Request, kind: type[Said]) -> Said:
    """The body of a request, checked.

    Raises:
        Refused: it is too long, too slow, no JSON, or not what is expected.
    """
    try:
        async with asyncio.timeout(PATIENCE):
            body = await _read(request)
    except ClientDisconnect:
        raise Refused(400, "the body was cut off") from None
    except TimeoutError:
        raise Refused(408, f"the body took more than {PATIENCE:.0f} seconds; send it at once") from None
    try:
        return kind.model_validate(_parsed(body))
    except ValidationError as error:
        raise _told(error) from None


async def _read(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LARGEST:
            raise Refused(413, f"the body has more than {LARGEST // 10**6} MB; send less")
    return bytes(body)


def _parsed(body: bytes) -> Any:
    try:
        found = json.loads(body.decode("utf-8"), parse_constant=_not_finite)
    except UnicodeDecodeError as error:
        raise Refused(400, f"the body is not UTF-8 (byte {error.start}); write JSON in UTF-8") from None
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Refused(400, f"the body is no JSON: {reason:.200}") from None
    if not isinstance(found, dict):
        raise Refused(400, "the body is JSON, but no object; send one")
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Refused(400, "the body has half a surrogate pair in a string; take it out") from None
    return found


def _not_finite(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _told(error: ValidationError) -> Refused:
    """The first thing that is wrong, in a line."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"] if not _is_of_a_union(part))
    if first["type"] == "extra_forbidden":
        return Refused(400, f"{place} is not supported; leave it out", place)
    if first["type"] == "missing":
        return Refused(400, f"{place} is missing", place)
    reason = first["msg"].removeprefix("Value error, ")
    return Refused(400, f"{place}: {reason}" if place else reason, place or None)


def _is_of_a_union(part: int | str) -> bool:
    """Whether part of a place only says which of several types was tried."""
    return isinstance(part, str) and (part in ("str", "int") or "[" in part)
