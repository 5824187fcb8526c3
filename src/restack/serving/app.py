"""The endpoints: OpenAI's chat and text completions, the models, and how the server is."""

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from restack.errors import RestackError
from restack.runtime import Generated
from restack.serving.answers import CHAT, COMPLETION, Answers, Shape
from restack.serving.bodies import Refused, said
from restack.serving.catalogue import Catalogue, NoSuchModel, Served
from restack.serving.measures import Measures
from restack.serving.playground import bases, described, page
from restack.serving.requests import ChatRequest, CompletionRequest
from restack.serving.scores import TokenScore
from restack.serving.tasks import Hear, chat_tasks, completion_tasks
from restack.serving.writing import Busy, Gone, Task, Writers

KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
POLL = 0.5  # seconds between looks at whether a client is still there
Event = tuple[int, str, list[TokenScore]] | tuple[int, Generated | BaseException]


def make_app(
    catalogue: Catalogue,
    writers: Writers,
    *,
    api_key: str | None = None,
    scan: Mapping[str, Any] | None = None,
) -> FastAPI:
    """The server.

    Args:
        catalogue: the models.
        writers: who write the answers.
        api_key: that requests under /v1 have to bring, if any.
        scan: that the playground opens with, as `restack.scanning.reporting.summary` has it.
    """
    server = _Server(catalogue, writers)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        writers.close()

    app = FastAPI(title="Restack", lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(HTTPException, _not_found)
    app.add_exception_handler(Exception, _failed)

    app.add_middleware(_Gate, measures=server.measures, api_key=api_key)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "running": writers.running, "waiting": writers.waiting}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(server.measures.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {
            "object": "list",
            "data": [server.described(catalogue.find(name)) for name in catalogue.names],
        }

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        return server.described(await server.found(name))

    @app.get("/v1/playground/plan")
    async def plan(model: str) -> dict[str, Any]:
        return await asyncio.to_thread(described, catalogue, await server.found(model))

    @app.get("/v1/playground/bases")
    def all_bases() -> list[dict[str, Any]]:
        return bases(catalogue)

    @app.get("/v1/playground/scan")
    async def opened_scan() -> JSONResponse:
        return JSONResponse(scan)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await server.answer(request, await said(request, ChatRequest), CHAT, chat_tasks)

    @app.post("/v1/completions")
    async def complete(request: Request) -> Response:
        return await server.answer(
            request, await said(request, CompletionRequest), COMPLETION, completion_tasks
        )

    app.include_router(page())
    return app


class _Gate:
    """Counts requests, and lets those for /v1 through that have the key.

    It is no `BaseHTTPMiddleware`: behind one of these, `request.is_disconnected` never finds that a client
    has gone away.
    """

    def __init__(self, app: ASGIApp, measures: Measures, api_key: str | None) -> None:
        self._app, self._measures, self._key = app, measures, api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # of what is sent, uvicorn leaves the body out

        def count(status: int) -> None:
            route = getattr(scope.get("route"), "path", "(none)")  # not the path: they are without end
            self._measures.requests.labels(route, status).inc()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                count(message["status"])
            await send(message)

        app = self._app
        if self._key is not None and scope["path"].startswith("/v1/") and not _has_key(scope, self._key):
            app = _error(Refused(401, "the API key is missing or wrong; send it as a Bearer token"))
        try:
            return await app(scope, receive, counted)
        except Exception:
            count(500)  # it is answered outside of here
            raise


class _Server:
    """What the endpoints share."""

    def __init__(self, catalogue: Catalogue, writers: Writers) -> None:
        self.catalogue, self.writers = catalogue, writers
        self.measures = Measures(writers)

    def described(self, served: Served) -> dict[str, Any]:
        return {
            "id": served.name,
            "object": "model",
            "created": self.catalogue.created,
            "owned_by": "restack",
            "plan": str(served.plan),
        }

    async def found(self, name: str) -> Served:
        try:
            return await asyncio.to_thread(self.catalogue.find, name)
        except NoSuchModel as error:
            raise Refused(404, str(error), "model") from None
        except RestackError as error:
            raise Refused(400, str(error), "model") from None

    async def answer(
        self,
        request: Request,
        asked: Any,
        shape: Shape,
        tasks_of: Callable[[Any, Served, Hear], Sequence[Task]],
    ) -> Response:
        """Write what is asked for, and send it at once or as it comes."""
        served = await self.found(asked.model)
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def hear(*event: Any) -> None:
            with suppress(RuntimeError):  # the loop is closed: the server has ended
                loop.call_soon_threadsafe(events.put_nowait, event)

        def hear_end(number: int, done: Future[Generated]) -> None:
            hear(number, Gone() if done.cancelled() else done.exception() or done.result())

        try:
            tasks = await asyncio.to_thread(tasks_of, asked, served, hear)
        except RestackError as error:
            raise Refused(400, str(error)) from None
        prompts = [len(task.prompt) for task in tasks[:: asked.n]]
        answers = Answers(shape, served.name, served.tokenizer, prompts, asked.n, asked.likeliest is not None)
        try:
            self.writers.admit(len(tasks))
        except Busy as error:
            raise Refused(429, str(error)) from None
        except RestackError as error:
            raise Refused(400, str(error)) from None
        for number, task in enumerate(tasks):
            self.writers.write(task).add_done_callback(partial(hear_end, number))
        chunks = self._chunks(answers, served, tasks, events)
        if asked.stream:
            sent = _stream(answers, chunks, asked.stream_options.include_usage)
            return _Stream(sent, lambda: self._give_up(tasks), headers={"cache-control": "no-cache"})
        try:
            return await self._whole(request, answers, chunks)
        finally:
            self._give_up(tasks)

    def _give_up(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            self.writers.give_up(task)

    async def _chunks(
        self, answers: Answers, served: Served, tasks: Sequence[Task], events: "asyncio.Queue[Event]"
    ) -> AsyncIterator[dict[str, Any]]:
        """The chunks of a stream."""
        left = len(tasks)
        while left:
            event = await events.get()
            if len(event) == 3:
                yield answers.add(*event)
                continue
            index, end = event
            if isinstance(end, Gone):
                raise Refused(503, "the server is ending")
            if isinstance(end, BaseException):
                raise end
            left -= 1
            name = served.name if served.name in self.catalogue.names else f"{self.catalogue.name}@"
            self.measures.note(name, end)
            yield answers.end(index, end)

    async def _whole(
        self, request: Request, answers: Answers, chunks: AsyncIterator[dict[str, Any]]
    ) -> Response:
        """All at once, unless the client goes away before."""

        async def written() -> None:
            async for _ in chunks:
                pass

        writing = asyncio.create_task(written())
        try:
            while not (await asyncio.wait([writing], timeout=POLL))[0]:
                if await request.is_disconnected():
                    return Response(status_code=499)  # nobody reads it
            await writing
        finally:
            writing.cancel()
        return JSONResponse(answers.whole)


async def _stream(
    answers: Answers, chunks: AsyncIterator[dict[str, Any]], with_usage: bool
) -> AsyncIterator[str]:
    """Server-sent events."""
    for opening in answers.openings():
        yield _event(opening)
    try:
        async for chunk in chunks:
            yield _event(chunk)
    except Refused as error:  # it has begun, so the status cannot say so any more
        yield _event(_body(error))
    except Exception as error:
        yield _event(_body(Refused(500, _reason(error))))
    else:
        if with_usage:
            yield _event(answers.usage_chunk())
    yield "data: [DONE]\n\n"


class _Stream(StreamingResponse):
    """Calls something at its end, also where nothing of it was ever sent."""

    def __init__(self, events: AsyncIterator[str], at_end: Callable[[], None], **options: Any) -> None:
        super().__init__(events, media_type="text/event-stream", **options)
        self._at_end = at_end

    async def __call__(self, *args: Any) -> None:
        try:
            await super().__call__(*args)
        finally:
            self._at_end()


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _has_key(scope: Scope, key: str) -> bool:
    scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), key.encode())


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, RestackError) else f"{type(error).__name__}: {error}"


def _body(refused: Refused) -> dict[str, Any]:
    kind = KINDS.get(refused.status, "server_error" if refused.status >= 500 else "invalid_request_error")
    return {"error": {"message": refused.message, "type": kind, "param": refused.param, "code": None}}


def _error(refused: Refused, headers: Mapping[str, str] | None = None) -> JSONResponse:
    headers = headers or {401: {"www-authenticate": "Bearer"}, 429: {"retry-after": "1"}}.get(refused.status)
    return JSONResponse(_body(refused), refused.status, headers)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return _error(error)


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = f"{request.method} {request.url.path}: {error.detail}"
    return _error(Refused(error.status_code, told), error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    return _error(Refused(500, _reason(error)))
