"""Serves a page of Gradio's, with only those of its endpoints that the page uses."""

import os
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from http.cookies import SimpleCookie
from urllib.parse import urlsplit

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hf_recipes.apps.access import is_loopback
from hf_recipes.apps.ports import check_port, in_url
from hf_recipes.apps.waiting import until_stopped
from hf_recipes.core.errors import UserError, say

# Not open: upload, files, proxy, calls by name, monitoring. /run/predict takes only events that are not queued.
OPEN = (
    r"/|/login/?|/logout|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt|/(?:assets|static|svelte)/.*|"
    r"/gradio_api/(?:startup-events|heartbeat/\w+|queue/(?:join|data)|run/predict|cancel|reset/?|login_check/?|user/?|"
    r"app_id/?)"
)
# The browser must not fetch a picture of another host that an answer names.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; form-action 'self'"
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
# What answers without a login.
BEFORE_LOGIN = re.compile(r"(?!/gradio_api/).*|/gradio_api/(?:startup-events|login_check/?|user/?|app_id/?)")
# Fonts of the reader's machine.
FONTS = ("system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif")
MONO_FONTS = ("ui-monospace", "Consolas", "monospace")
LOCAL_PAGES = "http://127.0.0.1:* http://localhost:*"


@dataclass(frozen=True)
class Rules:
    """What a page lets through.

    Attributes:
        max_bytes: of a request.
        opened: a pattern of paths in addition to `OPEN`, with a limit of its own on their bytes.
        policy: what follows `POLICY`.
        cookie: a cookie of this name gets every browser, to know it again.
    """

    max_bytes: int
    opened: str = "(?!)"
    max_bytes_opened: int = 0
    policy: str = "frame-ancestors 'self'"
    cookie: str | None = None


class Guard:
    """Passes the requests that the page needs, up to a size, and forbids browsers any request to other hosts.

    Args:
        is_local: refuse requests by any name of a host but this machine's, against DNS rebinding.
    """

    def __init__(self, app: ASGIApp, is_local: bool, rules: Rules):
        self.app, self.is_local, self.rules = app, is_local, rules
        self._open, self._opened = re.compile(OPEN), re.compile(rules.opened)
        self._headers = {**HEADERS, "Content-Security-Policy": f"{POLICY}; {rules.policy}"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page opens no web socket
            await send({"type": "websocket.close"})
            return
        headers, request, path = dict(scope["headers"]), Request(scope), scope["path"]
        size = headers.get(b"content-length", b"" if b"transfer-encoding" in headers else b"0")
        is_opened = self._opened.fullmatch(path) is not None
        limit = self.rules.max_bytes_opened if is_opened else self.rules.max_bytes
        if not (is_opened or self._open.fullmatch(path)):
            await PlainTextResponse("Not found", 404)(scope, receive, send)
        elif self.is_local and not is_loopback(request.url.hostname or ""):
            await PlainTextResponse("Invalid host", 400)(scope, receive, send)
        elif not _is_of_the_page(request):
            await PlainTextResponse("Invalid origin", 403)(scope, receive, send)
        elif not BEFORE_LOGIN.fullmatch(path) and not _is_logged_in(request):
            await PlainTextResponse("Not authenticated", 401)(scope, receive, send)
        elif not _is_known(request):
            await PlainTextResponse("No such session", 404)(scope, receive, send)
        elif not size.isdigit() or int(size) > limit:
            await PlainTextResponse("Too large", 413)(scope, receive, send)
        else:
            await self._pass(request, scope, receive, send)

    async def _pass(self, request: Request, scope: Scope, receive: Receive, send: Send) -> None:
        has_started = False
        headers = dict(self._headers)
        if self.rules.cookie and request.url.path == "/" and self.rules.cookie not in request.cookies:
            headers["Set-Cookie"] = _cookie(self.rules.cookie)

        async def send_guarded(message: Message) -> None:
            nonlocal has_started
            has_started = True
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        try:
            await self.app(scope, receive, send_guarded)
        except Exception as error:  # of Gradio, at a request that no page sends; the server would print its stack
            say(f"{scope['path']}: a request that cannot be answered ({type(error).__name__})")
            if has_started:
                await send({"type": "http.response.body", "body": b""})
            else:
                await PlainTextResponse("Bad request", 400)(scope, receive, send)


def _is_of_the_page(request: Request) -> bool:
    """Whether the request is of the page itself, as far as a browser says: another site's pages may not send any."""
    origin = request.headers.get("origin")
    return request.method in ("GET", "HEAD") or not origin or urlsplit(origin).netloc == request.headers.get("host")


def _cookie(name: str) -> str:
    cookie = SimpleCookie({name: secrets.token_urlsafe(16)})
    cookie[name] |= {"path": "/", "max-age": 31_536_000, "httponly": True, "samesite": "Lax"}
    return cookie[name].OutputString()


def _is_logged_in(request: Request) -> bool:
    app = request.app
    names = (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}")
    return app.auth is None or any(request.cookies.get(name) in app.tokens for name in names)


def _is_known(request: Request) -> bool:
    """Whether the stream that is requested, if one is, is of a session that has asked: for others Gradio fails."""
    sessions = request.app.get_blocks()._queue.pending_messages_per_session
    return not request.url.path.endswith("/queue/data") or request.query_params.get("session_hash") in sessions


def password_check(auth: str):
    """A check against `auth` (``user:password``), with a delay of a second after a wrong one."""
    import asyncio

    async def check(user: str, password: str) -> bool:
        if secrets.compare_digest(f"{user}:{password}".encode(), auth.encode()):
            return True
        await asyncio.sleep(1)
        return False

    return check


def start_blocks(
    blocks: gr.Blocks,
    rules: Rules,
    *,
    port: int,
    host: str = "127.0.0.1",
    share: bool = False,
    auth: str | None = None,
    max_waiting: int = 16,
    **options,
) -> str:
    """Serve `blocks` from threads of this process until they are closed, and return their address."""
    check_port(port, host)
    middleware = [Middleware(Guard, is_local=is_loopback(host) and not share, rules=rules)]
    blocks.queue(max_size=max_waiting, default_concurrency_limit=1, api_open=False)
    _, address, public = blocks.launch(
        server_name=in_url(host),
        server_port=port,
        share=share,
        auth=password_check(auth) if auth else None,
        app_kwargs={"middleware": middleware, "docs_url": None, "redoc_url": None, "openapi_url": None},
        state_session_capacity=1000,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        inline=False,
        quiet=True,
        prevent_thread_lock=True,
        **options,
    )
    if share and not public:
        blocks.close(verbose=False)
        raise UserError("--share: Gradio gave no public link (see above); omit the flag, or use --host")
    return public or address


def serve_blocks(blocks: gr.Blocks, begin: Callable[[], str]) -> None:
    """`until_stopped`, and close the page."""
    try:
        until_stopped(begin)
    finally:
        blocks.close(verbose=False)
