"""What the pages of Gradio share: components whose texts are in the visitor's language."""

import gradio as gr

from hf_recipes.apps.languages import LANGUAGES

# Events that wait for no other, and have no endpoint that programs can call.
AT_ONCE = {"api_visibility": "private", "show_progress": "hidden", "queue": False}


class LabelledPage:
    """A page of Gradio's.

    Attributes:
        labels: components, and by property the keys of their texts.
    """

    def __init__(self, title: str):
        self.labels: list[tuple[gr.blocks.Block, dict[str, str]]] = []
        self.blocks = gr.Blocks(title=title, fill_width=True, analytics_enabled=False)

    def labelled(self, component, **texts: str):
        """`component`, whose properties get the texts of these keys."""
        self.labels.append((component, texts))
        return component


def language_radio(language: str = "zh") -> gr.Radio:
    options = [(name, key) for key, name in LANGUAGES.items()]
    hidden = {"label": "语言 / Language", "show_label": False, "container": False}
    return gr.Radio(options, value=language, elem_id="language", **hidden)


def preferred_language(request: gr.Request) -> str:
    """That of the visitor's browser."""
    preferred = (request.headers.get("accept-language") or "").lower()
    return "zh" if preferred.startswith("zh") else "en"
