"""The studio's page: fields, buttons that begin commands, and what these have reported so far."""

import secrets
import zipfile
from collections.abc import Callable, Mapping
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import yaml

from hf_recipes.apps.access import is_loopback
from hf_recipes.apps.jobs.jobs import FOLDER, TRAINED, Job, Jobs, file_name
from hf_recipes.apps.jobs.roots import Roots
from hf_recipes.apps.ports import free_port
from hf_recipes.apps.studio.arguments import StudioArguments
from hf_recipes.apps.studio.commands import (
    ELSEWHERE,
    MAIN,
    STAGES,
    Commands,
    Flags,
    as_text,
    main_settings,
    recipe_settings,
    recipes_of,
    run_settings,
    write_session,
)
from hf_recipes.apps.studio.found import Found
from hf_recipes.apps.studio.texts import LANGUAGES, Texts
from hf_recipes.apps.studio.visitors import COOKIE, Visitor
from hf_recipes.core.errors import UserError
from hf_recipes.core.files import new_file

PERIOD = 1.0  # seconds between two looks at what the commands have written
QUIET = 1.2  # seconds without a change of the settings before they are tried
TABS = ("model", "data", "train", "watch", "judge", "take")
OF_RUNS = TABS[3:]
MIRROR = {"HF_ENDPOINT": "https://hf-mirror.com"}
# Of the families in docs/en/families.md, small enough to begin with.
MODELS = ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B", "Qwen/Qwen3-4B", "Qwen/Qwen3-8B", "Qwen/Qwen2.5-0.5B-Instruct"]
MODELS += ["HuggingFaceTB/SmolLM2-135M-Instruct", "openbmb/MiniCPM3-4B", "THUDM/GLM-4-9B-0414", "google/gemma-3-1b-it"]
KEPT = ("convert", "download", *STAGES, "judge", "merge", "export", "push")  # kinds of jobs that repeat a session


def reported(handler: Callable) -> Callable:
    """`handler`, whose UserErrors are shown as a message."""

    @wraps(handler)
    def handle(self, *values, **more):
        try:
            handler(self, *values, **more)
        except UserError as error:
            gr.Warning(escape(str(error)))

    return handle


class Page:
    """The page's components, and what happens when they are used.

    Args:
        flags: see `commands.Flags`.
    """

    def __init__(self, arguments: StudioArguments, flags: Flags):
        self.arguments, self.flags = arguments, flags
        self.roots = Roots(arguments.root)
        self.jobs = Jobs(self.roots.home, arguments.trainings)
        self.commands = Commands(self.roots, flags, arguments.trust_remote_code)
        self.password = arguments.auth.partition(":")[2] if arguments.auth else secrets.token_urlsafe(6)
        self.downloads = self.roots.home / FOLDER / "downloads"
        self.downloads.mkdir(parents=True, exist_ok=True)
        self.labels: list[tuple[gr.blocks.Block, dict[str, str]]] = []
        self.form: dict[str, gr.components.Component] = {}
        self.panels: dict[str, gr.HTML] = {}
        self.runs: dict[str, gr.Dropdown] = {}
        self.buttons: dict[str, gr.Button] = {}
        self.blocks = gr.Blocks(title="工作台 · Studio", fill_width=True, analytics_enabled=False)
        with self.blocks:
            self._build()
            self._connect()

    # The layout.

    def _labelled(self, component, **texts: str):
        self.labels.append((component, texts))
        return component

    def _field(self, name: str, kind: type, *, text: str = "", info: str = "", **options):
        """A field of the form."""
        keys = {"label": text or name} | ({"info": info} if info else {})
        self.form[name] = self._labelled(kind(elem_id=name, **options), **keys)
        return self.form[name]

    def _button(self, name: str, variant: str = "secondary"):
        self.buttons[name] = self._labelled(gr.Button(variant=variant, elem_id=f"do_{name}"), value=name)

    def _panel(self, name: str) -> None:
        self.panels[name] = gr.HTML(elem_id=f"panel_{name}", padding=False)

    def _build(self) -> None:
        self.seen, self.active = gr.State({}), gr.State(TABS[0])
        self.timer = gr.Timer(PERIOD)
        with gr.Row(elem_id="head"):
            self.title = gr.HTML(padding=False)
            options = [(name, key) for key, name in LANGUAGES.items()]
            hidden = {"label": "语言 / Language", "show_label": False, "container": False}
            self.lang = gr.Radio(options, value="zh", elem_id="language", **hidden)
        with gr.Tabs(elem_id="tabs"):
            self.tabs = []
            for name in TABS:
                with self._labelled(gr.Tab(id=name, elem_id=f"tab_{name}"), label=f"tab {name}") as tab:
                    self.tabs.append(tab)
                    getattr(self, f"_build_{name}")()

    def _columns(self, fields: Callable[[], None], *panels: str) -> None:
        """Fields at the left, what is known at the right; one above the other on a telephone."""
        with gr.Row(elem_classes="columns"):
            with gr.Column(scale=2, min_width=300, elem_classes="fields"):
                fields()
            with gr.Column(scale=3, min_width=320):
                for name in panels:
                    self._panel(name)

    def _build_model(self) -> None:
        def fields() -> None:
            folders = sorted(self.roots.relative(path.parent) for path in self.roots.home.glob("models/*/config.json"))
            self._field("model", gr.Dropdown, info="model help", choices=folders + MODELS, allow_custom_value=True)
            self._field("source", gr.Radio, choices=["hf", "mirror", "modelscope"], value="hf")
            with gr.Row():
                self._button("check", "primary")
                self._button("download")

        self._columns(fields, "model")

    def _build_data(self) -> None:
        def fields() -> None:
            self.upload = self._labelled(gr.UploadButton(file_count="multiple", elem_id="upload"), label="upload")
            self._field("data", gr.Textbox, info="data help", lines=3, max_lines=8)
            self._field("trial", gr.Checkbox)
            self._field("import", gr.Radio, info="import help", choices=["no", "bilibili", "chat"], value="no")
            with gr.Group(visible=False) as self.importer:
                self._field("privacy", gr.Checkbox, value=True)
                self._field("me", gr.Textbox)
                self._button("convert")
            self._button("inspect", "primary")

        self._columns(fields, "convert", "inspect")
        self.budget = self._labelled(gr.Slider(1, 4096, 1024, step=1, visible=False, elem_id="budget"), label="budget")
        self._panel("lengths")
        self._panel("rows")

    def _build_train(self) -> None:
        def fields() -> None:
            self._field("stage", gr.Radio, choices=list(STAGES), value="sft")
            self.preset = self._labelled(gr.Dropdown(elem_id="preset"), label="preset")
            self.fields: dict[str, gr.components.Component] = {}
            with gr.Row(elem_classes="settings"):
                for name in MAIN:
                    flag = next(self.flags(stage)[name] for stage in STAGES if name in self.flags(stage))
                    kind, options = gr.Textbox, {}
                    if choices := flag.get("choices") or (["true", "false"] if flag.get("type") == "truth" else None):
                        kind, options = gr.Dropdown, {"choices": [("", ""), *((text, text) for text in choices)]}
                    field = kind(value="", label=name, min_width=220, elem_id=f"set_{name}", **options)
                    self.fields[name] = self.form[f"set_{name}"] = field
            with self._labelled(gr.Accordion(open=False, elem_id="more"), label="more"):
                self.key = self._labelled(gr.Dropdown(elem_id="key"), label="key")
                self._field("yaml", gr.Code, language="yaml", lines=5, max_lines=20)
            self._field("name", gr.Textbox)
            self._button("start", "primary")

        self._columns(fields, "plan")

    def _run_field(self, tab: str) -> None:
        self.runs[tab] = self._labelled(gr.Dropdown(elem_id=f"run_{tab}"), label="run")

    def _build_watch(self) -> None:
        def fields() -> None:
            self._run_field("watch")
            self.beside = self._labelled(gr.Dropdown(multiselect=True, elem_id="beside"), label="beside")
            with gr.Row():
                for name, variant in (("pause", "secondary"), ("resume", "secondary"), ("stop", "stop")):
                    self._button(name, variant)
            self.given = self._labelled(gr.Textbox(type="password", elem_id="password"), label="password")
            self._panel("runs")

        self._columns(fields, "watch", "curves", "samples", "log")

    def _build_judge(self) -> None:
        def fields() -> None:
            self._run_field("judge")
            self._field("held_out", gr.Textbox, text="held out", info="held out help")
            self._field("count", gr.Slider, minimum=1, maximum=1000, step=1, value=100)
            self._button("judge", "primary")
            with gr.Row():
                self._button("load chat")
                self._button("end chat")

        self._columns(fields, "judge", "chat")

    def _build_take(self) -> None:
        def fields() -> None:
            self._run_field("take")
            for names in (("zip", "session"), ("merge", "gguf", "ollama")):
                with gr.Row():
                    for name in names:
                        self._button(name, "primary" if name == "zip" else "secondary")
            self._field("hub_name", gr.Textbox, text="hub name")
            with gr.Row():
                self._button("push dry")
                self._button("push")

        self._columns(fields, "files", "take")

    # What happens.

    def _connect(self) -> None:
        at_once = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
        # Messages, such as those of `reported`, come by the queue alone.
        spoken = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
        ticking = [self.seen, self.active, self.budget, self.beside]
        live = [self.seen, *self.panels.values(), *self.runs.values(), self.beside, self.budget]
        live += [self.form[name] for name in ("data", "yaml", "held_out")]
        look = {"fn": self.on_tick, "inputs": ticking, "outputs": live, **at_once, "trigger_mode": "once"}
        self.timer.tick(**look)
        self.budget.change(**look)
        for run in (*self.runs.values(), self.beside):
            run.input(self.on_run, [run], [], **at_once).then(**look)
        for name, tab in zip(TABS, self.tabs, strict=True):
            tab.select(lambda name=name: name, [], [self.active], **at_once).then(**look)
        form = list(self.form.values())
        gr.on([field.change for field in form], self.on_form, form, [self.importer], **at_once)
        for name, button in self.buttons.items():
            handler = getattr(self, f"on_{name.replace(' ', '_')}")
            inputs = [self.given] if name in ("pause", "resume", "stop") else []
            saved = button.click(self.on_form, form, [self.importer], **at_once)
            saved.then(handler, inputs, [], **spoken).then(**look)
        self.upload.upload(self.on_upload, [self.upload], [self.form["data"], self.form["import"]], **spoken)
        settings = list(self.fields.values())
        of_stage = [*settings, self.preset, self.key]
        self.form["stage"].input(self.on_stage, [self.form["stage"], self.lang], of_stage, **at_once)
        self.preset.input(self.on_preset, [self.preset], [*settings, self.form["yaml"]], **at_once)
        self.key.input(
            self.on_key, [self.key, self.form["stage"], self.form["yaml"]], [self.key, self.form["yaml"]], **at_once
        )
        labelled = [self.title, *(component for component, _ in self.labels), *of_stage]
        self.lang.input(self.on_language, [self.lang, self.form["stage"]], [*labelled, self.seen], **at_once)
        self.blocks.load(self.on_load, [], [self.lang, *form, *labelled, self.seen], **at_once).then(**look)

    def visitor(self, request: gr.Request | None) -> Visitor:
        return Visitor(self.roots.home, request.cookies.get(COOKIE) if request else None)

    def on_load(self, request: gr.Request) -> list:
        visitor = self.visitor(request)
        if not visitor.path.is_file():
            preferred = (request.headers.get("accept-language") or "").lower()
            visitor.form["language"] = self.arguments.language or ("zh" if preferred.startswith("zh") else "en")
            visitor.form = {name: field.value for name, field in self.form.items()} | visitor.form
            visitor.save(name=self._free_name())
        language, values = visitor.form["language"], visitor.form
        form = [gr.update(value=values[name]) if name in values else gr.skip() for name in self.form]
        return [language, *form, *self._labels(language, values["stage"])]

    def on_language(self, language: str, stage: str, request: gr.Request) -> list:
        self.visitor(request).save(language=language)
        return self._labels(language, stage)

    def _labels(self, language: str, stage: str) -> list:
        texts = Texts(language)
        updates: list = [f"<h1>{texts('title')}</h1><p>{texts('lead')}</p>"]
        for component, keys in self.labels:
            values = {name: texts(key) for name, key in keys.items()}
            if component in (self.form["source"], self.form["stage"], self.form["import"]):
                values["choices"] = [(texts(key), key) for _, key in component.choices]
            updates.append(gr.update(**values))
        return [*updates, *self.on_stage(stage, language), {}]

    def on_stage(self, stage: str, language: str) -> list:
        texts, flags, chosen = Texts(language), self.flags(stage), main_settings(self.flags, stage)
        updates = []
        for name, field in self.fields.items():
            flag = flags.get(name, {})
            default = as_text(flag.get("default"))
            values = {"visible": name in chosen, "info": texts.of_setting(name, flag)}
            if isinstance(field, gr.Dropdown):
                values["choices"] = [(texts("default", value=default or "–"), ""), *field.choices[1:]]
            else:
                values["placeholder"] = default
            updates.append(gr.update(**values))
        names = sorted(set(flags) - ELSEWHERE - set(chosen))
        keys = [(f"{name} — {Texts('en').of_setting(name, flags[name])[:90]}", name) for name in names]
        updates.append(gr.update(choices=[("", ""), *((name, name) for name in recipes_of(stage))], value=""))
        return [*updates, gr.update(choices=keys, value=None, info=texts("key help", count=len(keys)))]

    def on_form(self, request: gr.Request, *values):
        visitor = self.visitor(request)
        form = dict(zip(self.form, values, strict=True))
        visitor.save(**form)
        return gr.update(visible=form["import"] != "no")

    def on_preset(self, name: str) -> list:
        settings = recipe_settings(name) if name else {}
        fields = [as_text(settings.pop(field, None)) for field in self.fields]
        return [*fields, yaml.safe_dump(settings, allow_unicode=True, sort_keys=False) if settings else ""]

    def on_key(self, name: str | None, stage: str, text: str | None) -> list:
        flag = self.flags(stage).get(name or "")
        if flag is None:
            return [None, gr.skip()]
        line = yaml.safe_dump({name: flag.get("default")}, allow_unicode=True).strip()
        return [None, f"{(text or '').rstrip()}\n{line}\n".lstrip()]

    def on_upload(self, files: list[str] | None, request: gr.Request) -> list:
        visitor, texts = self.visitor(request), []
        for path in files or ():
            try:
                saved = self.roots.save_upload(Path(path), self.arguments.max_upload_mb * 1_000_000)
                texts.append(self.roots.relative(saved))
            except UserError as error:
                gr.Warning(escape(str(error)))
        before = [line for line in (visitor.form.get("data") or "").splitlines() if line.strip()]
        raw = [text for text in texts if any(word in text.lower() for word in ("comments", "contents"))]
        kind = "bilibili" if raw else "chat" if any(text.endswith(".txt") for text in texts) else gr.skip()
        return ["\n".join(dict.fromkeys([*before, *texts])), kind]

    def _begin(self, request: gr.Request, kind: str, *commands: list[str], **options) -> Job:
        return self.begin(self.visitor(request), kind, *commands, **options)

    def begin(self, visitor: Visitor, kind: str, *commands: list[str], **options) -> Job:
        if kind not in KEPT:
            options["instead"] = visitor.jobs.get(kind)
        job = self.jobs.start(kind, commands, visitor.id, **options)
        visitor.jobs[kind] = job.id
        visitor.save()
        return job

    @reported
    def on_check(self, request: gr.Request) -> None:
        form = self.visitor(request).form
        self._begin(request, "model", *self.commands.model_check(form), env=self._env(form))

    def _env(self, form: Mapping[str, Any]) -> dict[str, str]:
        return MIRROR if form.get("source") == "mirror" else {}

    @reported
    def on_download(self, request: gr.Request) -> None:
        form = self.visitor(request).form
        source = "modelscope" if form.get("source") == "modelscope" else "hf"
        model = self.commands.model(form)
        argv = [
            "download",
            f"--model={model}",
            f"--source={source}",
            f"--output_dir=models/{file_name(model.split('/')[-1])}",
        ]
        self._begin(request, "download", argv, env=self._env(form))

    @reported
    def on_convert(self, request: gr.Request) -> None:
        form = self.visitor(request).form
        folder = self._free("data", form["import"])
        argv = self.commands.convert(form, form["import"], form.get("me") or "", bool(form.get("privacy")), folder)
        self._begin(request, "convert", argv, output_dir=folder)

    def _free(self, parent: str, name: str) -> str:
        """A folder that is not there yet."""
        names = (f"{parent}/{name}" + (f"-{number}" if number > 1 else "") for number in range(1, 10_000))
        taken = {job.about["output_dir"] for job in self.jobs.all()}
        return next(name for name in names if name not in taken and not (self.roots.home / name).exists())

    def _free_name(self) -> str:
        return self._free("runs", "first").removeprefix("runs/")

    @reported
    def on_inspect(self, request: gr.Request) -> None:
        self._begin(request, "inspect", self.commands.inspection(self.filled(self.visitor(request))))

    def filled(self, visitor: Visitor) -> dict[str, Any]:
        form = visitor.form
        return {**form, "fields": {name: form.get(f"set_{name}") or "" for name in self.fields}}

    @reported
    def on_start(self, request: gr.Request) -> None:
        form = self.filled(self.visitor(request))
        name = file_name(form.get("name") or "") or self._free_name()
        folder = f"runs/{name}"
        path = self.roots.inside(folder)
        if path.exists() and any(path.iterdir()):
            raise UserError(f"{folder}: there is a run of this name; go on with it under Watch, or choose another name")
        argv = self.commands.training(form, folder)
        self._begin(request, form["stage"], argv, output_dir=folder, waits=True, env=self._env(form))
        self.visitor(request).save(run=folder, form_name=name)
        gr.Info(Texts(form["language"])("begun", name=name))

    def on_run(self, run, request: gr.Request) -> None:
        if isinstance(run, str):
            self.visitor(request).save(run=run)

    def _chosen(self, request: gr.Request) -> tuple[Visitor, Path]:
        visitor = self.visitor(request)
        if not visitor.form.get("run"):
            raise UserError(Texts(visitor.form["language"])("no run"))
        return visitor, self.roots.inside(visitor.form["run"])

    def _controlled(self, request: gr.Request, given: str) -> Job:
        """The job of the chosen run, which the visitor began or has the password for."""
        visitor, run = self._chosen(request)
        job = next((job for job in self.jobs.of_runs() if job.run == run), None)
        texts = Texts(visitor.form["language"])
        if job is None:
            raise UserError(texts("not running"))
        is_owner = visitor.id and visitor.id == job.about["owner"]
        if not is_owner and not secrets.compare_digest((given or "").encode(), self.password.encode()):
            raise UserError(texts("not yours"))
        return job

    def _ended(self, request: gr.Request, given: str, end: Callable[[Job], None]) -> None:
        job = self._controlled(request, given)
        if not job.is_live:
            raise UserError(Texts(self.visitor(request).form["language"])("not running"))
        end(job)

    @reported
    def on_pause(self, given: str, request: gr.Request) -> None:
        self._ended(request, given, Job.pause)

    @reported
    def on_stop(self, given: str, request: gr.Request) -> None:
        self._ended(request, given, Job.stop)

    @reported
    def on_resume(self, given: str, request: gr.Request) -> None:
        job = self._controlled(request, given)
        again = "--resume_from_checkpoint=true"
        argv = [*(item for item in job.commands[0] if item != again), again]
        has_checkpoint = any(job.run.glob("checkpoint-*/trainer_state.json"))
        options = {"output_dir": job.about["output_dir"], "waits": True, "env": job.about["env"]}
        self._begin(request, job.kind, argv if has_checkpoint else job.commands[0], **options)

    def _trained(self, request: gr.Request) -> tuple[Visitor, Path, str]:
        visitor, run = self._chosen(request)
        if not (run / TRAINED).is_file():
            raise UserError(Texts(visitor.form["language"])("not trained"))
        return visitor, run, visitor.form["run"]

    @reported
    def on_judge(self, request: gr.Request) -> None:
        visitor, run, name = self._trained(request)
        form = visitor.form
        held_out = (form.get("held_out") or "").strip() or self.commands.held_out(run)
        if not held_out:
            raise UserError(Texts(form["language"])("no held out"))
        folder = f"{name}/evaluation"
        argv = self.commands.evaluation(run, held_out, int(form["count"]), form["language"], folder)
        self._begin(request, "judge", [*argv, "--overwrite_output_dir=true"], output_dir=folder)

    @reported
    def on_load_chat(self, request: gr.Request) -> None:
        visitor, run, _ = self._trained(request)
        arguments = self.arguments
        port = free_port(arguments.port + 1, arguments.host)
        model = [item for item in self.commands.of_run(run) if not item.startswith("--compare=")]
        more = ["--compare_with=base"] if (run / "adapter_config.json").is_file() else []
        if not is_loopback(arguments.host):
            path = self.roots.home / FOLDER / "chat.yaml"
            access = {"host": arguments.host, "auth": arguments.auth, "insecure": arguments.insecure}
            path.touch(mode=0o600)
            path.write_text(yaml.safe_dump(access), encoding="utf-8")
            more.append(f"--config={self.roots.relative(path)}")
        self._begin(
            request, "chat", ["chat", *model, f"--port={port}", f"--language={visitor.form['language']}", *more]
        )

    @reported
    def on_end_chat(self, request: gr.Request) -> None:
        if job := self.jobs.get(self.visitor(request).jobs.get("chat")):
            job.stop()

    @reported
    def on_merge(self, request: gr.Request) -> None:
        _visitor, run, name = self._trained(request)
        folder = self._free("models", run.name)
        base = run_settings(run).get("model_name_or_path")
        argv = ["merge", "--peft_path", name, f"--model_name_or_path={base}", f"--output_dir={folder}"]
        self._begin(request, "merge", argv, output_dir=folder)

    def _merged(self, request: gr.Request) -> tuple[str, str]:
        """The folder of a whole model of the chosen run, and the run's name."""
        visitor, run, name = self._trained(request)
        if not (run / "adapter_config.json").is_file():
            return name, run.name
        merges = [job for job in self.jobs.all() if job.kind == "merge" and name in job.commands[0]]
        if not merges or merges[-1].status != "finished":
            raise UserError(Texts(visitor.form["language"])("merge first"))
        return merges[-1].about["output_dir"], run.name

    def _export(self, request: gr.Request, form: str) -> None:
        model, name = self._merged(request)
        folder = self._free("models", f"{name}-{form}")
        argv = ["export", f"--format={form}", f"--model_name_or_path={model}", f"--output_dir={folder}"]
        self._begin(request, "export", argv, output_dir=folder)

    @reported
    def on_gguf(self, request: gr.Request) -> None:
        self._export(request, "gguf")

    @reported
    def on_ollama(self, request: gr.Request) -> None:
        self._export(request, "ollama")

    def _push(self, request: gr.Request, *more: str) -> None:
        visitor, _, name = self._trained(request)
        target = "modelscope" if visitor.form.get("source") == "modelscope" else "hf"
        hub_name = (visitor.form.get("hub_name") or "").strip()
        self._begin(
            request, "push", ["push", f"--folder={name}", f"--hub_model_id={hub_name}", f"--target={target}", *more]
        )

    @reported
    def on_push_dry(self, request: gr.Request) -> None:
        self._push(request, "--dry_run=true")

    @reported
    def on_push(self, request: gr.Request) -> None:
        self._push(request)

    @reported
    def on_zip(self, request: gr.Request) -> None:
        _, run, _ = self._trained(request)
        with new_file(self.downloads / f"{run.name}.zip") as path, zipfile.ZipFile(path, "w") as archive:
            for file in sorted(run.iterdir()):
                if file.is_file() and not file.is_symlink() and not file.name.startswith("."):
                    archive.write(file, f"{run.name}/{file.name}")

    @reported
    def on_session(self, request: gr.Request) -> None:
        visitor, run = self._chosen(request)
        name, lines = visitor.form["run"], []
        for job in self.jobs.all():
            is_of_run = any(name in item.split("=") for command in job.commands for item in command)
            is_before = job.kind in ("convert", "download") and job.about["owner"] == visitor.id
            if job.kind in KEPT and (is_of_run or is_before) and job.status == "finished":
                lines += job.command_lines()
        write_session(self.downloads, run, lines)

    def on_tick(self, request: gr.Request, seen: dict, tab: str, budget: float, beside: list | None) -> list:
        """What has changed of the tab that is looked at."""
        visitor = self.visitor(request)
        found = Found(self, visitor, tab, request.url.hostname or "127.0.0.1")
        values = found.panels(budget, beside or [])
        updates = []
        for name in self.panels:
            is_new = name in values and seen.get(name) != values[name]
            updates.append(values[name] if is_new else gr.skip())
            seen = {**seen, name: values[name]} if is_new else seen
        names, run = found.names, visitor.form.get("run")
        options = {"names": names, "run": run}
        is_new = seen.get(f"runs {tab}") != options and tab in OF_RUNS
        for name in self.runs:
            updates.append(gr.update(choices=names, value=run) if is_new and name == tab else gr.skip())
        updates.append(gr.update(choices=names) if is_new and tab == "watch" else gr.skip())
        seen = {**seen, f"runs {tab}": options} if is_new else seen
        longest = found.longest
        has_slider = tab == "data" and longest and seen.get("longest") != longest
        updates.append(
            gr.update(visible=True, maximum=max(2, longest), value=min(budget, longest)) if has_slider else gr.skip()
        )
        seen = {**seen, "longest": longest} if has_slider else seen
        return [seen, *updates, *found.imported()]
