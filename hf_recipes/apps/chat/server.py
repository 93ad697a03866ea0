"""Serves the page of the chat, with only those of Gradio's endpoints that the page uses."""

import os
import re
import secrets
import signal
import threading

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
LOCAL = ["127.0.0.1", "localhost"]


class Guard:
    """Passes the requests that the page needs, up to a size, and forbids browsers any request to other hosts."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        size = headers.get(b"content-length", b"" if b"transfer-encoding" in headers else b"0")
        if scope["type"] != "http" or not OPEN.fullmatch(scope["path"]):
            await PlainTextResponse("Not found", 404)(scope, receive, send)
        elif not size.isdigit() or int(size) > MAX_BYTES:
            await PlainTextResponse("Too large", 413)(scope, receive, send)
        else:

            async def send_guarded(message: Message) -> None:
                if message["type"] == "http.response.start":
                    added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                    message = {**message, "headers": [*message["headers"], *added]}
                await send(message)

            await self.app(scope, receive, send_guarded)


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
    middleware = [Middleware(Guard)]
    if host in LOCAL and not share:  # against DNS rebinding
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=LOCAL))
    page.blocks.queue(max_size=max_waiting, default_concurrency_limit=1, api_open=False)
    _, address, public = page.blocks.launch(
        server_name=host,
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
