"""The HTTP side of the server: addresses, keys, sizes, errors, and clients that leave."""

import asyncio
import contextlib
import json
import secrets
import threading
import time
from collections.abc import AsyncIterator, Mapping

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from hf_recipes.apps.access import is_loopback
from hf_recipes.apps.chat.engine import Engine
from hf_recipes.apps.ports import in_url
from hf_recipes.apps.serve.arguments import ServeArguments
from hf_recipes.apps.serve.reply import SHUT_DOWN, Choice, Reply
from hf_recipes.apps.serve.request import ChatRequest, RequestError, ServedModel, read_request
from hf_recipes.apps.waiting import until_stopped
from hf_recipes.core.errors import UserError, say

MAX_BYTES = 8_000_000  # of a request; a million tokens are fewer
GRACE = 2  # seconds for answers that run to end in, once the server ends


class Guard:
    """Passes requests by a name of this machine, where only it is served, and those with the key, where there is one.

    Without the first, a web page could reach the server by a name of its own (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, is_local: bool, key: str | None):
        self.app, self.is_local, self.key = app, is_local, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error, request = None, Request(scope) if scope["type"] == "http" else None
        if request and self.is_local and not is_loopback(request.url.hostname or ""):
            error = RequestError("the Host of the request is no name of this machine")
        elif request and self.key and request.url.path != "/health" and not self._has_key(request):
            error = RequestError("the API key is missing or wrong", status=401, code="invalid_api_key")
        await (error_response(error) if error else self.app)(scope, receive, send)

    def _has_key(self, request: Request) -> bool:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        is_key = secrets.compare_digest(given.strip().encode(), self.key.encode())
        return is_key and scheme.lower() == "bearer"


def error_response(error: RequestError) -> Response:
    return JSONResponse(error.body, error.status)


class Server:
    """Answers requests with the models of an engine.

    Args:
        models: by the names that requests may give.
    """

    def __init__(self, engine: Engine, models: Mapping[str, ServedModel], arguments: ServeArguments):
        self.engine, self.models, self.arguments = engine, models, arguments
        self.created = int(time.time())

    def app(self) -> Starlette:
        middleware = [Middleware(Guard, is_local=is_loopback(self.arguments.host), key=self.arguments.key)]
        if self.arguments.allow_origin:
            allowed = {"allow_origins": self.arguments.allow_origin, "allow_headers": ["*"]}
            middleware.insert(0, Middleware(CORSMiddleware, allow_methods=["GET", "POST"], **allowed))
        routes = [
            Route("/health", lambda request: JSONResponse({"status": "ok"})),
            Route("/v1/models", self.list_models),
            Route("/v1/models/{name:path}", self.show_model),
            Route("/v1/chat/completions", self.complete, methods=["POST"]),
        ]
        handlers = {HTTPException: _not_served}
        return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)

    async def list_models(self, request: Request) -> Response:
        shown = dict.fromkeys(model.name for model in self.models.values())
        return JSONResponse({"object": "list", "data": list(map(self._model, shown))})

    async def show_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self.models:
            return error_response(RequestError(f"the model {name!r} does not exist", "model", 404, "model_not_found"))
        return JSONResponse(self._model(name))

    def _model(self, name: str) -> dict:
        model = {"id": name, "object": "model", "created": self.created, "owned_by": "hf_recipes"}
        return model | ({"max_model_len": self.engine.context} if self.engine.context else {})

    async def complete(self, request: Request) -> Response:
        try:
            body = await _body(request)
            read = await run_in_threadpool(read_request, body, self.models, self.engine.context)
            reply, changed = self._reply(read)
            changes = self._changes(reply, changed, request)
            if read.stream:
                headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
                return StreamingResponse(_events(reply, changes), media_type="text/event-stream", headers=headers)
            async for _ in changes:
                pass
            return JSONResponse(reply.whole())
        except ClientDisconnect:
            return Response(status_code=499)  # which nobody reads
        except Exception as error:
            return error_response(_as_request_error(error))

    def _reply(self, read: ChatRequest) -> tuple[Reply, asyncio.Event]:
        """What is to be replied, and the event that is set whenever it has grown."""
        if self.engine.waiting + read.n > self.arguments.max_waiting:
            raise RequestError(f"{self.engine.waiting} answers wait already; try again later", status=503)
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def put() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(changed.set)

        return Reply(read, [Choice(read, index, put) for index in range(read.n)]), changed

    async def _changes(self, reply: Reply, changed: asyncio.Event, request: Request) -> AsyncIterator[None]:
        """Generates the choices, and yields whenever one has grown, until all are over or the client leaves."""

        async def leave() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        gone = asyncio.ensure_future(leave())
        try:
            if not self.engine.submit(*(choice.generation for choice in reply.choices)):
                raise SHUT_DOWN
            while not reply.is_over:
                waiting = asyncio.ensure_future(changed.wait())
                await asyncio.wait([waiting, gone], return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if gone.done():
                    raise ClientDisconnect
                changed.clear()
                for choice in reply.choices:
                    choice.look()
                yield
        finally:
            gone.cancel()
            for choice in reply.choices:
                choice.generation.is_cancelled = True


async def _body(request: Request) -> object:
    content, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= MAX_BYTES:
            content += chunk
        elif size > 10 * MAX_BYTES:  # up to there it is read, so that the client comes to read the reply
            break
    if size > MAX_BYTES:
        raise RequestError(f"the request has more than {MAX_BYTES} bytes", status=413)
    try:
        body = json.loads(bytes(content))
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise RequestError("the body has a half of a surrogate pair, which is no character") from None
    except (ValueError, RecursionError):
        raise RequestError("the body is not JSON") from None
    return body


async def _events(reply: Reply, changes: AsyncIterator[None]) -> AsyncIterator[str]:
    """Server-sent events."""
    async with contextlib.aclosing(changes):
        try:
            async for _ in changes:
                for chunk in reply.chunks():
                    yield _event(chunk)
            yield "data: [DONE]\n\n"
        except ClientDisconnect:
            return
        except Exception as error:
            yield _event(_as_request_error(error).body)


def _event(value: dict) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _as_request_error(error: Exception) -> RequestError:
    if isinstance(error, RequestError):
        return error
    import torch

    say(f"a request that cannot be answered ({type(error).__name__}: {' '.join(str(error).split())[:300]})")
    if isinstance(error, torch.OutOfMemoryError):
        return RequestError("out of memory on the device; a shorter prompt may go", status=500)
    return RequestError(str(error) if isinstance(error, UserError) else "an error of the server", status=500)


async def _not_served(request: Request, error: HTTPException) -> Response:
    path = request.url.path
    message = f"{request.method} {path} is not served; POST /v1/chat/completions and GET /v1/models are"
    return error_response(RequestError(message, status=error.status_code))


def serve(server: Server) -> None:
    """Serve until Ctrl-C or SIGTERM; answers that run then end within seconds."""
    host, port = server.arguments.host, server.arguments.port
    config = uvicorn.Config(
        server.app(), host, port, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=GRACE
    )
    web = uvicorn.Server(config)
    thread = threading.Thread(target=web.run, daemon=True, name="server")

    def begin() -> str:
        thread.start()
        while not web.started and thread.is_alive():
            time.sleep(0.01)
        if not web.started:
            raise UserError(f"--host {host}: the server does not start")
        names = ", ".join(dict.fromkeys(model.name for model in server.models.values()))
        return f"{names} at http://{in_url(host)}:{port}/v1 (Ctrl-C ends it)"

    try:
        until_stopped(begin)
    finally:
        server.engine.close(0)
        web.should_exit = True
        thread.join(2 * GRACE)
