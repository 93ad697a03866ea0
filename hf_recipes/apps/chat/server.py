"""Serves the page of the chat, with only those of Gradio's endpoints that the page uses."""

import os
import re
import secrets
import signal
import threading

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hf_recipes.apps.chat.arguments import is_loopback
from hf_recipes.apps.chat.page import Page
from hf_recipes.apps.chat.style import FONTS, STYLE
from hf_recipes.apps.ports import check_port
from hf_recipes.core.errors import UserError, say

# Not open: upload, files, proxy, calls by name, monitoring. /run/predict takes only events that are not queued.
OPEN = re.compile(
    r"/|/login/?|/logout|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt|/(?:assets|static|svelte)/.*|"
    r"/gradio_api/(?:startup-events|heartbeat/\w+|queue/(?:join|data)|run/predict|cancel|reset/?|login_check/?|user/?|"
    r"app_id/?)"
)
MAX_BYTES = 2_000_000  # of a request: a question and a system prompt of 100,000 characters each, escaped
# The browser must not fetch a picture of another host that an answer names.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; form-action 'self'"
HEADERS = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
# What answers without a login.
BEFORE_LOGIN = re.compile(r"(?!/gradio_api/).*|/gradio_api/(?:startup-events|login_check/?|user/?|app_id/?)")


class Guard:
    """Passes the requests that the page needs, up to a size, and forbids browsers any request to other hosts.

    Args:
        is_local: refuse requests by any name of a host but this machine's, against DNS rebinding.
    """

    def __init__(self, app: ASGIApp, is_local: bool):
        self.app, self.is_local = app, is_local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers, request = dict(scope["headers"]), Request(scope)
        size = headers.get(b"content-length", b"" if b"transfer-encoding" in headers else b"0")
        if scope["type"] != "http" or not OPEN.fullmatch(scope["path"]):
            await PlainTextResponse("Not found", 404)(scope, receive, send)
        elif self.is_local and not is_loopback(request.url.hostname or ""):
            await PlainTextResponse("Invalid host", 400)(scope, receive, send)
        elif not BEFORE_LOGIN.fullmatch(scope["path"]) and not _is_logged_in(request):
            await PlainTextResponse("Not authenticated", 401)(scope, receive, send)
        elif not _is_known(request):
            await PlainTextResponse("No such session", 404)(scope, receive, send)
        elif not size.isdigit() or int(size) > MAX_BYTES:
            await PlainTextResponse("Too large", 413)(scope, receive, send)
        else:
            has_started = False

            async def send_guarded(message: Message) -> None:
                nonlocal has_started
                has_started = True
                if message["type"] == "http.response.start":
                    added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
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


def start(
    page: Page,
    *,
    port: int,
    host: str = "127.0.0.1",
    share: bool = False,
    auth: str | None = None,
    max_waiting: int = 16,
) -> str:
    """Serve `page` from threads of this process until its blocks are closed, and return its address."""
    check_port(port, host)
    middleware = [Middleware(Guard, is_local=is_loopback(host) and not share)]
    page.blocks.queue(max_size=max_waiting, default_concurrency_limit=1, api_open=False)
    _, address, public = page.blocks.launch(
        server_name=f"[{host}]" if ":" in host else host,
        server_port=port,
        share=share,
        auth=password_check(auth) if auth else None,
        theme=gr.themes.Default(font=FONTS, font_mono=("ui-monospace", "Consolas", "monospace")),
        head=STYLE,
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
    )
    if share and not public:
        page.blocks.close(verbose=False)
        raise UserError("--share: Gradio gave no public link (see above); omit the flag, or use --host")
    return public or address


def serve(page: Page, **options) -> None:
    """`start`, and wait for Ctrl-C or SIGTERM."""
    ended = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: ended.set())
    try:
        say(f"chat at {start(page, **options)} (Ctrl-C ends it)")
        ended.wait()
    except KeyboardInterrupt:
        say("")
    finally:
        signal.signal(signal.SIGTERM, before)
        page.blocks.close(verbose=False)
