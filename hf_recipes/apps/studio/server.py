"""Serves the studio's page."""

import os
import tempfile
from pathlib import Path

import gradio as gr

from hf_recipes.apps.jobs.visitors import COOKIE
from hf_recipes.apps.server import FONTS, LOCAL_PAGES, MONO_FONTS, Rules, serve_blocks, start_blocks
from hf_recipes.apps.studio.page import Page

FILES = r"/gradio_api/(?:upload|upload_progress|file=.*)"
STYLE = Path(__file__).with_name("page.html")  # the page's head: its style, and a script that copies command lines


def start(page: Page, **options) -> str:
    """Serve `page`, as `start_blocks` does; uploads lie in a temporary folder until they are looked at."""
    limit = page.arguments.max_upload_mb * 1_000_000
    policy = f"frame-ancestors 'self'; frame-src 'self' {LOCAL_PAGES}"
    rules = Rules(2_000_000, opened=FILES, max_bytes_opened=limit + 100_000, policy=policy, cookie=COOKIE)
    theme = gr.themes.Default(primary_hue="teal", neutral_hue="slate", font=FONTS, font_mono=MONO_FONTS)
    options |= {
        "allowed_paths": [str(page.downloads), str(page.roots.home / "models")],
        "max_file_size": limit,
        "theme": theme,
    }
    return start_blocks(page.blocks, rules, head=STYLE.read_text(encoding="utf-8"), **options)


def serve(page: Page, **options) -> None:
    """`start`, and wait for Ctrl-C or SIGTERM; what was begun on the page runs on."""

    def begin() -> str:
        address = start(page, **options)
        password = "" if page.arguments.auth else f"; the password for the runs of other visitors is {page.password}"
        return f"studio at {address} (Ctrl-C ends it, and no run){password}"

    with tempfile.TemporaryDirectory() as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        serve_blocks(page.blocks, begin)
