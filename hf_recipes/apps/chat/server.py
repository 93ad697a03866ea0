"""Serves the page of the chat."""

import gradio as gr

from hf_recipes.apps.chat.page import Page
from hf_recipes.apps.chat.style import STYLE
from hf_recipes.apps.server import FONTS, LOCAL_PAGES, MONO_FONTS, Rules, serve_blocks, start_blocks

# A request is a question and a system prompt of 100,000 characters each, escaped. Pages of this machine, such as the
# studio, may show the chat within them.
RULES = Rules(max_bytes=2_000_000, policy=f"frame-ancestors 'self' {LOCAL_PAGES}")


def start(page: Page, **options) -> str:
    """Serve `page`, as `start_blocks` does."""
    theme = gr.themes.Default(font=FONTS, font_mono=MONO_FONTS)
    return start_blocks(page.blocks, RULES, theme=theme, head=STYLE, **options)


def serve(page: Page, **options) -> None:
    """`start`, and wait for Ctrl-C or SIGTERM."""
    serve_blocks(page.blocks, lambda: f"chat at {start(page, **options)} (Ctrl-C ends it)")
