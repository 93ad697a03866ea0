"""What the studio's page is made of: fields, buttons and panels, in six tabs."""

from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from hf_recipes.apps.jobs.roots import Roots
from hf_recipes.apps.labelled_page import LabelledPage, language_radio
from hf_recipes.apps.studio import commands

PERIOD = 1.0  # seconds between two looks at what the commands have written
TABS = ("model", "data", "train", "watch", "judge", "take")
OF_RUNS = TABS[3:]
WIDE = {"data": ("lengths", "rows"), "judge": ("chat",)}  # panels below the columns
# Of the families in docs/en/families.md, small enough to begin with.
MODELS = ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B", "Qwen/Qwen3-4B", "Qwen/Qwen3-8B", "Qwen/Qwen2.5-0.5B-Instruct"]
MODELS += ["HuggingFaceTB/SmolLM2-135M-Instruct", "openbmb/MiniCPM3-4B", "THUDM/GLM-4-9B-0414", "google/gemma-3-1b-it"]


class Layout(LabelledPage):
    """The page's components, most of them by name.

    Attributes:
        form: what is kept of a visitor, and in it the `fields` of settings.
        runs: by tab the choice of the run that is looked at.
    """

    roots: Roots
    flags: commands.Flags

    def __init__(self):
        super().__init__("工作台 · Studio")
        self.form: dict[str, gr.components.Component] = {}
        self.fields: dict[str, gr.components.Component] = {}
        self.panels: dict[str, gr.HTML] = {}
        self.runs: dict[str, gr.Dropdown] = {}
        self.buttons: dict[str, gr.Button] = {}
        self.tabs: list[gr.Tab] = []

    def _field(self, name: str, kind: type, label: str = "", info: str = "", **options) -> None:
        keys = {"label": label or name, **({"info": info} if info else {})}
        self.form[name] = self.labelled(kind(elem_id=name, **options), **keys)

    def _buttons(self, *names: str, primary: str = "") -> None:
        with gr.Row():
            for name in names:
                variant = "primary" if name == primary else "stop" if name == "stop" else "secondary"
                button = gr.Button(variant=variant, elem_id=f"do_{name.replace(' ', '_')}")
                self.buttons[name] = self.labelled(button, value=name)

    def _panels(self, *names: str) -> None:
        self.panels |= {name: gr.HTML(elem_id=f"panel_{name}", padding=False) for name in names}

    @contextmanager
    def _tab(self, name: str, *panels: str) -> Iterator[None]:
        """A tab with fields at the left and panels at the right; one above the other on a telephone."""
        tab = self.labelled(gr.Tab(id=name, elem_id=f"tab_{name}"), label=f"tab {name}")
        self.tabs.append(tab)
        with tab:
            with gr.Row(elem_classes="columns"):
                with gr.Column(scale=2, min_width=300, elem_classes="fields"):
                    if name in OF_RUNS:
                        self.runs[name] = self.labelled(gr.Dropdown(elem_id=f"run_{name}"), label="run")
                    yield
                with gr.Column(scale=3, min_width=320):
                    self._panels(*panels)
            if name == "data":
                slider = gr.Slider(1, 4096, 1024, step=1, visible=False, elem_id="budget")
                self.budget = self.labelled(slider, label="budget")
            self._panels(*WIDE.get(name, ()))

    def build(self) -> None:
        self.seen, self.active, self.timer = gr.State({}), gr.State(TABS[0]), gr.Timer(PERIOD)
        with gr.Row(elem_id="head"):
            self.title = gr.HTML(padding=False)
            self.lang = language_radio()
        with gr.Tabs(elem_id="tabs"):
            with self._tab("model", "model"):
                models = [*self.roots.models(), *MODELS]
                options = {"choices": models, "value": models[0], "allow_custom_value": True}
                self._field("model", gr.Dropdown, info="model help", **options)
                self._field("source", gr.Radio, choices=["hf", "mirror", "modelscope"], value="hf")
                self._buttons("check", "download", primary="check")
            with self._tab("data", "convert", "inspect"):
                self.upload = self.labelled(gr.UploadButton(file_count="multiple", elem_id="upload"), label="upload")
                self._field("data", gr.Textbox, info="data help", lines=3, max_lines=8)
                self._field("trial", gr.Checkbox)
                with self.labelled(gr.Accordion(open=False, elem_id="columns"), label="columns"):
                    for name in commands.COLUMNS:
                        several = {"multiselect": name == "ignore_columns"}
                        self._field(name, gr.Dropdown, choices=[], allow_custom_value=True, **several)
                self._field("import", gr.Radio, info="import help", choices=["no", "bilibili", "chat"], value="no")
                with gr.Column(visible=False) as self.importer:
                    self._field("privacy", gr.Checkbox, value=True)
                    self._field("me", gr.Textbox)
                    self._buttons("convert")
                self._buttons("inspect", primary="inspect")
            with self._tab("train", "plan"):
                self._build_settings()
            with self._tab("watch", "watch", "curves", "samples", "log"):
                compare_with = gr.Dropdown(multiselect=True, elem_id="compare_with")
                self.compare_with = self.labelled(compare_with, label="compare with")
                self._buttons("pause", "resume", "stop")
                self._buttons("trackers")
                self.password_field = self.labelled(gr.Textbox(type="password", elem_id="password"), label="password")
                self._panels("runs")
            with self._tab("judge", "judge"):
                self._field("held_out", gr.Textbox, "held out", info="held out help")
                self._field("count", gr.Slider, minimum=1, maximum=1000, step=1, value=100)
                self._buttons("judge", primary="judge")
                self._buttons("load chat", "end chat")
            with self._tab("take", "files", "take"):
                self._buttons("zip", "session", primary="zip")
                outtypes = [("–", ""), *((name, name) for name in self.flags("export")["outtype"]["choices"])]
                self._field("outtype", gr.Dropdown, info="outtype help", choices=outtypes, value="")
                self._buttons("merge", "gguf", "ollama")
                self._field("hub_name", gr.Textbox, "hub name")
                self._buttons("push dry", "push")

    def _build_settings(self) -> None:
        self._field("stage", gr.Radio, choices=list(commands.STAGES), value="sft")
        self.preset = self.labelled(gr.Dropdown(elem_id="preset"), label="preset")
        with gr.Row(elem_classes="settings"):
            for name in commands.MAIN:
                flag = next(self.flags(stage)[name] for stage in commands.STAGES if name in self.flags(stage))
                options = {"value": "", "label": name, "min_width": 120, "elem_id": f"set_{name}"}
                if choices := flag.get("choices") or (["true", "false"] if flag.get("type") == "truth" else None):
                    field = gr.Dropdown([("", ""), *((text, text) for text in choices)], **options)
                else:
                    field = gr.Textbox(**options)
                self.fields[name] = self.form[f"set_{name}"] = field
        with self.labelled(gr.Accordion(open=False, elem_id="more"), label="more"):
            self.key = self.labelled(gr.Dropdown(elem_id="key"), label="key")
            self._field("yaml", gr.Code, language="yaml", lines=5, max_lines=20)
        self._field("name", gr.Textbox)
        self._buttons("start", primary="start")
