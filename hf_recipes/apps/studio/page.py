"""The studio's page: fields, and buttons that begin commands. `Panels` has what these have reported so far."""

import secrets
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import yaml

from hf_recipes.apps.access import is_loopback
from hf_recipes.apps.jobs.jobs import FOLDER, TRAINED, Job, Jobs, file_name
from hf_recipes.apps.jobs.roots import Roots
from hf_recipes.apps.jobs.visitors import COOKIE, Visitor
from hf_recipes.apps.ports import free_port
from hf_recipes.apps.studio import commands
from hf_recipes.apps.studio.arguments import StudioArguments
from hf_recipes.apps.studio.panels import Panels
from hf_recipes.apps.studio.texts import LANGUAGES, Texts
from hf_recipes.core.errors import UserError
from hf_recipes.core.files import new_file, write_text
from hf_recipes.evaluation.held_out import held_out_file, settings_of_run

PERIOD = 1.0  # seconds between two looks at what the commands have written
TABS = ("model", "data", "train", "watch", "judge", "take")
OF_RUNS = TABS[3:]
WIDE = {"data": ("lengths", "rows"), "judge": ("chat",)}  # panels below the columns
MIRROR = {"HF_ENDPOINT": "https://hf-mirror.com"}
# Of the families in docs/en/families.md, small enough to begin with.
MODELS = ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B", "Qwen/Qwen3-4B", "Qwen/Qwen3-8B", "Qwen/Qwen2.5-0.5B-Instruct"]
MODELS += ["HuggingFaceTB/SmolLM2-135M-Instruct", "openbmb/MiniCPM3-4B", "THUDM/GLM-4-9B-0414", "google/gemma-3-1b-it"]
KEPT = ("convert", "download", *commands.STAGES, "judge", "merge", "export", "push")  # jobs that repeat a session
AGAIN = "--resume_from_checkpoint=true"


def reported(handler: Callable) -> Callable:
    """`handler`, whose UserErrors are shown as a message."""

    @wraps(handler)
    def handle(self, *values):
        try:
            handler(self, *values)
        except UserError as error:
            gr.Warning(escape(str(error)))

    return handle


class Page:
    """The page's components, and what happens when they are used.

    Args:
        flags: see `commands.Flags`.
    """

    def __init__(self, arguments: StudioArguments, flags: commands.Flags):
        self.arguments, self.flags = arguments, flags
        self.roots = Roots(arguments.root)
        self.jobs = Jobs(self.roots.home, arguments.trainings)
        self.commands = commands.Commands(self.roots, flags, arguments.trust_remote_code)
        self.password = arguments.auth.partition(":")[2] if arguments.auth else secrets.token_urlsafe(6)
        self.downloads = self.roots.home / FOLDER / "downloads"
        self.downloads.mkdir(parents=True, exist_ok=True)
        self.labels: list[tuple[gr.blocks.Block, dict[str, str]]] = []
        self.form: dict[str, gr.components.Component] = {}
        self.fields: dict[str, gr.components.Component] = {}
        self.panels: dict[str, gr.HTML] = {}
        self.runs: dict[str, gr.Dropdown] = {}
        self.buttons: dict[str, gr.Button] = {}
        self.tabs: list[gr.Tab] = []
        self.blocks = gr.Blocks(title="工作台 · Studio", fill_width=True, analytics_enabled=False)
        with self.blocks:
            self._build()
            self._connect()

    def _labelled(self, component, **texts: str):
        """`component`, whose properties get the texts of these keys, in the visitor's language."""
        self.labels.append((component, texts))
        return component

    def _field(self, name: str, kind: type, label: str = "", info: str = "", **options) -> None:
        keys = {"label": label or name, **({"info": info} if info else {})}
        self.form[name] = self._labelled(kind(elem_id=name, **options), **keys)

    def _buttons(self, *names: str, primary: str = "") -> None:
        with gr.Row():
            for name in names:
                variant = "primary" if name == primary else "stop" if name == "stop" else "secondary"
                button = gr.Button(variant=variant, elem_id=f"do_{name.replace(' ', '_')}")
                self.buttons[name] = self._labelled(button, value=name)

    def _panels(self, *names: str) -> None:
        self.panels |= {name: gr.HTML(elem_id=f"panel_{name}", padding=False) for name in names}

    @contextmanager
    def _tab(self, name: str, *panels: str) -> Iterator[None]:
        """A tab with fields at the left and panels at the right; one above the other on a telephone."""
        tab = self._labelled(gr.Tab(id=name, elem_id=f"tab_{name}"), label=f"tab {name}")
        self.tabs.append(tab)
        with tab:
            with gr.Row(elem_classes="columns"):
                with gr.Column(scale=2, min_width=300, elem_classes="fields"):
                    if name in OF_RUNS:
                        self.runs[name] = self._labelled(gr.Dropdown(elem_id=f"run_{name}"), label="run")
                    yield
                with gr.Column(scale=3, min_width=320):
                    self._panels(*panels)
            if name == "data":
                slider = gr.Slider(1, 4096, 1024, step=1, visible=False, elem_id="budget")
                self.budget = self._labelled(slider, label="budget")
            self._panels(*WIDE.get(name, ()))

    def _build(self) -> None:
        self.seen, self.active, self.timer = gr.State({}), gr.State(TABS[0]), gr.Timer(PERIOD)
        with gr.Row(elem_id="head"):
            self.title = gr.HTML(padding=False)
            options = [(name, key) for key, name in LANGUAGES.items()]
            hidden = {"label": "语言 / Language", "show_label": False, "container": False}
            self.lang = gr.Radio(options, value="zh", elem_id="language", **hidden)
        with gr.Tabs(elem_id="tabs"):
            with self._tab("model", "model"):
                folders = self.roots.home.glob("models/*/config.json")
                models = [*sorted(self.roots.relative(path.parent) for path in folders), *MODELS]
                options = {"choices": models, "value": models[0], "allow_custom_value": True}
                self._field("model", gr.Dropdown, info="model help", **options)
                self._field("source", gr.Radio, choices=["hf", "mirror", "modelscope"], value="hf")
                self._buttons("check", "download", primary="check")
            with self._tab("data", "convert", "inspect"):
                self.upload = self._labelled(gr.UploadButton(file_count="multiple", elem_id="upload"), label="upload")
                self._field("data", gr.Textbox, info="data help", lines=3, max_lines=8)
                self._field("trial", gr.Checkbox)
                self._field("import", gr.Radio, info="import help", choices=["no", "bilibili", "chat"], value="no")
                with gr.Column(visible=False) as self.importer:
                    self._field("privacy", gr.Checkbox, value=True)
                    self._field("me", gr.Textbox)
                    self._buttons("convert")
                self._buttons("inspect", primary="inspect")
            with self._tab("train", "plan"):
                self._build_settings()
            with self._tab("watch", "watch", "curves", "samples", "log"):
                self.beside = self._labelled(gr.Dropdown(multiselect=True, elem_id="beside"), label="beside")
                self._buttons("pause", "resume", "stop")
                self.given = self._labelled(gr.Textbox(type="password", elem_id="password"), label="password")
                self._panels("runs")
            with self._tab("judge", "judge"):
                self._field("held_out", gr.Textbox, "held out", info="held out help")
                self._field("count", gr.Slider, minimum=1, maximum=1000, step=1, value=100)
                self._buttons("judge", primary="judge")
                self._buttons("load chat", "end chat")
            with self._tab("take", "files", "take"):
                self._buttons("zip", "session", primary="zip")
                self._buttons("merge", "gguf", "ollama")
                self._field("hub_name", gr.Textbox, "hub name")
                self._buttons("push dry", "push")

    def _build_settings(self) -> None:
        self._field("stage", gr.Radio, choices=list(commands.STAGES), value="sft")
        self.preset = self._labelled(gr.Dropdown(elem_id="preset"), label="preset")
        with gr.Row(elem_classes="settings"):
            for name in commands.MAIN:
                flag = next(self.flags(stage)[name] for stage in commands.STAGES if name in self.flags(stage))
                options = {"value": "", "label": name, "min_width": 120, "elem_id": f"set_{name}"}
                if choices := flag.get("choices") or (["true", "false"] if flag.get("type") == "truth" else None):
                    field = gr.Dropdown([("", ""), *((text, text) for text in choices)], **options)
                else:
                    field = gr.Textbox(**options)
                self.fields[name] = self.form[f"set_{name}"] = field
        with self._labelled(gr.Accordion(open=False, elem_id="more"), label="more"):
            self.key = self._labelled(gr.Dropdown(elem_id="key"), label="key")
            self._field("yaml", gr.Code, language="yaml", lines=5, max_lines=20)
        self._field("name", gr.Textbox)
        self._buttons("start", primary="start")

    def _connect(self) -> None:
        at_once = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
        # Messages, such as those of `reported`, come by the queue alone.
        spoken = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
        live = [self.seen, *self.panels.values(), *self.runs.values(), self.beside, self.budget]
        live += [self.form[name] for name in ("data", "yaml", "held_out")]
        look = {"fn": self.on_tick, "inputs": [self.seen, self.active, self.budget, self.beside], "outputs": live}
        look |= {**at_once, "trigger_mode": "once"}
        gr.on([self.timer.tick, self.budget.change, self.beside.input], **look)
        for run in self.runs.values():
            run.input(self.on_run, [run], [], **at_once).then(**look)
        for name, tab in zip(TABS, self.tabs, strict=True):
            tab.select(lambda name=name: name, [], [self.active], **at_once).then(**look)
        form, settings = list(self.form.values()), list(self.fields.values())
        gr.on([field.change for field in form], self.on_form, form, [self.importer], **at_once)
        for name, button in self.buttons.items():
            inputs = [self.given] if name in ("pause", "resume", "stop") else []
            saved = button.click(self.on_form, form, [self.importer], **at_once)
            saved.then(getattr(self, f"on_{name.replace(' ', '_')}"), inputs, [], **spoken).then(**look)
        editor, stage = self.form["yaml"], self.form["stage"]
        of_stage = [*settings, self.preset, self.key]
        labelled = [self.title, *(component for component, _ in self.labels), *of_stage, self.seen]
        self.upload.upload(self.on_upload, [self.upload], [self.form["data"], self.form["import"]], **spoken)
        stage.input(self.on_stage, [stage, self.lang], of_stage, **at_once)
        self.preset.input(self.on_preset, [self.preset], [*settings, editor], **at_once)
        self.key.input(self.on_key, [self.key, stage, editor], [self.key, editor], **at_once)
        self.lang.input(self.on_language, [self.lang, stage], labelled, **at_once)
        self.blocks.load(self.on_load, [], [self.lang, *form, *labelled], **at_once).then(**look)

    def visitor(self, request: gr.Request) -> Visitor:
        return Visitor(self.roots.home, request.cookies.get(COOKIE))

    def on_load(self, request: gr.Request) -> list:
        visitor = self.visitor(request)
        if not visitor.path.is_file():
            preferred = (request.headers.get("accept-language") or "").lower()
            visitor.form["language"] = self.arguments.language or ("zh" if preferred.startswith("zh") else "en")
            visitor.form = {name: field.value for name, field in self.form.items()} | visitor.form
            visitor.save(name=Path(self._free("runs", "first")).name)
        form, language = visitor.form, visitor.form["language"]
        return [language, *map(form.get, self.form), *self._labels(language, form["stage"])]

    def on_language(self, request: gr.Request, language: str, stage: str) -> list:
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
        texts, flags = Texts(language), self.flags(stage)
        chosen, updates = commands.main_settings(self.flags, stage), []
        for name, field in self.fields.items():
            flag = flags.get(name, {})
            default = (
                "" if name == "learning_rate" else commands.as_text(flag.get("default"))
            )  # an adapter's is another
            values = {"visible": name in chosen, "info": texts.of_setting(name, flag), "placeholder": default}
            if isinstance(field, gr.Dropdown):
                values["choices"] = [(texts("default", value=values.pop("placeholder") or "–"), ""), *field.choices[1:]]
            updates.append(gr.update(**values))
        names = sorted(set(flags) - commands.ELSEWHERE - set(chosen))
        keys = [(f"{name} — {Texts('en').of_setting(name, flags[name])[:90]}", name) for name in names]
        updates.append(gr.update(choices=[("–", ""), *((name, name) for name in commands.recipes_of(stage))], value=""))
        return [*updates, gr.update(choices=keys, value=None, info=texts("key help", count=len(keys)))]

    def on_form(self, request: gr.Request, *values):
        form = dict(zip(self.form, values, strict=True))
        self.visitor(request).save(**form)
        return gr.update(visible=form["import"] != "no")

    def on_preset(self, name: str) -> list:
        settings = commands.recipe_settings(name) if name else {}
        fields = [commands.as_text(settings.pop(field, None)) for field in self.fields]
        return [*fields, yaml.safe_dump(settings, allow_unicode=True, sort_keys=False) if settings else ""]

    def on_key(self, name: str | None, stage: str, text: str | None) -> list:
        line = yaml.safe_dump({name: self.flags(stage)[name].get("default")}, allow_unicode=True) if name else ""
        return [None, f"{(text or '').rstrip()}\n{line}".lstrip()]

    def on_upload(self, request: gr.Request, files: list[str] | None) -> list:
        names = [line for line in (self.visitor(request).form.get("data") or "").splitlines() if line.strip()]
        kind = gr.skip()
        for path in map(Path, files or ()):
            try:
                saved = self.roots.save_upload(path, self.arguments.max_upload_mb * 1_000_000)
            except UserError as error:
                gr.Warning(escape(str(error)))
                continue
            names.append(self.roots.relative(saved))
            is_crawl = saved.suffix == ".json" and ("comments" in saved.name or "contents" in saved.name)
            kind = "bilibili" if is_crawl else "chat" if saved.suffix == ".txt" else kind
        return ["\n".join(dict.fromkeys(names)), kind]

    def begin(self, visitor: Visitor, kind: str, *lines: list[str], **options) -> Job:
        """Start a job, in place of the visitor's last one where nobody needs that any more."""
        instead = None if kind in KEPT else visitor.jobs.get(kind)
        job = self.jobs.start(kind, lines, visitor.id, instead=instead, **options)
        visitor.jobs[kind] = job.id
        visitor.save()
        return job

    def filled(self, visitor: Visitor) -> dict[str, Any]:
        fields = {name: visitor.form.get(f"set_{name}") or "" for name in self.fields}
        return {**visitor.form, "fields": fields}

    def _env(self, form: Mapping[str, Any]) -> dict[str, str]:
        return MIRROR if form.get("source") == "mirror" else {}

    def _free(self, parent: str, name: str) -> str:
        """A folder that is not there yet."""
        names = (f"{parent}/{name}" + (f"-{number}" if number > 1 else "") for number in range(1, 10_000))
        taken = {job.about["output_dir"] for job in self.jobs.all()}
        return next(name for name in names if name not in taken and not (self.roots.home / name).exists())

    @reported
    def on_check(self, request: gr.Request) -> None:
        visitor = self.visitor(request)
        self.begin(visitor, "model", *self.commands.model_check(visitor.form), env=self._env(visitor.form))

    @reported
    def on_download(self, request: gr.Request) -> None:
        visitor = self.visitor(request)
        source = "modelscope" if visitor.form["source"] == "modelscope" else "hf"
        model = self.commands.model(visitor.form)
        argv = ["download", f"--model={model}", f"--source={source}"]
        argv.append(f"--output_dir=models/{file_name(model.split('/')[-1])}")
        self.begin(visitor, "download", argv, env=self._env(visitor.form))

    @reported
    def on_convert(self, request: gr.Request) -> None:
        visitor = self.visitor(request)
        folder = self._free("data", file_name(visitor.form["import"]))
        self.begin(visitor, "convert", self.commands.convert(visitor.form, folder), output_dir=folder)

    @reported
    def on_inspect(self, request: gr.Request) -> None:
        visitor = self.visitor(request)
        self.begin(visitor, "inspect", self.commands.inspection(self.filled(visitor)))

    @reported
    def on_start(self, request: gr.Request) -> None:
        visitor = self.visitor(request)
        form = self.filled(visitor)
        name = file_name(form.get("name") or "") or Path(self._free("runs", "first")).name
        folder = f"runs/{name}"
        path = self.roots.inside(folder)
        if path.exists() and any(path.iterdir()):
            raise UserError(f"{folder}: there is a run of this name; go on with it under Watch, or choose another name")
        argv = self.commands.training(form, folder)
        self.begin(visitor, form["stage"], argv, output_dir=folder, waits=True, env=self._env(form))
        visitor.save(run=folder)
        gr.Info(Texts(form["language"])("begun", name=name))

    def on_run(self, request: gr.Request, run: str) -> None:
        self.visitor(request).save(run=run)

    def _chosen(self, request: gr.Request, trained: bool = True) -> tuple[Visitor, Path, str]:
        """The visitor, and the run that is looked at with its name."""
        visitor = self.visitor(request)
        texts, name = Texts(visitor.form["language"]), visitor.form.get("run")
        if not name:
            raise UserError(texts("no run"))
        run = self.roots.inside(name)
        if trained and not (run / TRAINED).is_file():
            raise UserError(texts("not trained"))
        return visitor, run, name

    def _controlled(self, request: gr.Request, given: str, live: bool = True) -> tuple[Visitor, Job]:
        """The job of the run, which the visitor began or has the password for."""
        visitor, run, _ = self._chosen(request, trained=False)
        texts = Texts(visitor.form["language"])
        job = next((job for job in self.jobs.of_runs() if job.run == run), None)
        if job is None or job.is_live != live:
            raise UserError(texts("not running" if live else "is running"))
        is_owner = visitor.id and visitor.id == job.about["owner"]
        if not is_owner and not secrets.compare_digest((given or "").encode(), self.password.encode()):
            raise UserError(texts("not yours"))
        return visitor, job

    @reported
    def on_pause(self, request: gr.Request, given: str) -> None:
        self._controlled(request, given)[1].pause()

    @reported
    def on_stop(self, request: gr.Request, given: str) -> None:
        self._controlled(request, given)[1].stop()

    @reported
    def on_resume(self, request: gr.Request, given: str) -> None:
        visitor, job = self._controlled(request, given, live=False)
        argv = [item for item in job.commands[0] if item != AGAIN]
        if any(job.run.glob("checkpoint-*/trainer_state.json")):
            argv.append(AGAIN)
        self.begin(visitor, job.kind, argv, output_dir=job.about["output_dir"], waits=True, env=job.about["env"])

    @reported
    def on_judge(self, request: gr.Request) -> None:
        visitor, run, name = self._chosen(request)
        held_out = (visitor.form.get("held_out") or "").strip() or held_out_file(run, self.roots.home)
        if not held_out:
            raise UserError(Texts(visitor.form["language"])("no held out"))
        held_out = self.roots.relative(self.roots.home / held_out)
        folder = f"{name}/evaluation"
        self.begin(visitor, "judge", self.commands.evaluation(run, held_out, visitor.form, folder), output_dir=folder)

    @reported
    def on_load_chat(self, request: gr.Request) -> None:
        visitor, run, _ = self._chosen(request)
        arguments, argv = self.arguments, ["chat", *self.commands.chat_models(run)]
        argv += [f"--port={free_port(arguments.port + 1, arguments.host)}", f"--language={visitor.form['language']}"]
        if not is_loopback(arguments.host):  # the password is not for the list of processes
            path = self.roots.home / FOLDER / "chat.yaml"
            path.touch(mode=0o600)
            access = {name: getattr(arguments, name) for name in ("host", "auth", "insecure")}
            path.write_text(yaml.safe_dump(access), encoding="utf-8")
            argv.append(f"--config={self.roots.relative(path)}")
        self.begin(visitor, "chat", argv)

    @reported
    def on_end_chat(self, request: gr.Request) -> None:
        if job := self.jobs.get(self.visitor(request).jobs.get("chat")):
            job.stop()

    @reported
    def on_merge(self, request: gr.Request) -> None:
        visitor, run, name = self._chosen(request)
        folder, base = self._free("models", run.name), settings_of_run(run).get("model_name_or_path")
        argv = ["merge", "--peft_path", name, f"--model_name_or_path={base}", f"--output_dir={folder}"]
        self.begin(visitor, "merge", argv, output_dir=folder)

    def _export(self, request: gr.Request, form: str) -> None:
        """Of a run of all weights the model itself, of an adapter the last merge."""
        visitor, run, model = self._chosen(request)
        if (run / "adapter_config.json").is_file():
            merges = [job for job in self.jobs.all() if job.kind == "merge" and model in job.commands[0]]
            if not merges or merges[-1].status != "finished":
                raise UserError(Texts(visitor.form["language"])("merge first"))
            model = merges[-1].about["output_dir"]
        folder = self._free("models", f"{run.name}-{form}")
        argv = ["export", f"--format={form}", f"--model_name_or_path={model}", f"--output_dir={folder}"]
        self.begin(visitor, "export", argv, output_dir=folder)

    @reported
    def on_gguf(self, request: gr.Request) -> None:
        self._export(request, "gguf")

    @reported
    def on_ollama(self, request: gr.Request) -> None:
        self._export(request, "ollama")

    @reported
    def on_push_dry(self, request: gr.Request) -> None:
        self._push(request, "--dry_run=true")

    @reported
    def on_push(self, request: gr.Request) -> None:
        self._push(request)

    def _push(self, request: gr.Request, *more: str) -> None:
        visitor, _, name = self._chosen(request)
        target = "modelscope" if visitor.form["source"] == "modelscope" else "hf"
        hub_name = (visitor.form.get("hub_name") or "").strip()
        argv = ["push", f"--folder={name}", f"--hub_model_id={hub_name}", f"--target={target}", *more]
        self.begin(visitor, "push", argv)

    @reported
    def on_zip(self, request: gr.Request) -> None:
        _, run, _ = self._chosen(request)
        with new_file(self.downloads / f"{run.name}.zip") as path, zipfile.ZipFile(path, "w") as archive:
            for file in sorted(run.iterdir()):
                if file.is_file() and not file.is_symlink() and not file.name.startswith("."):
                    archive.write(file, f"{run.name}/{file.name}")

    @reported
    def on_session(self, request: gr.Request) -> None:
        """What repeats a session without the page: its settings as YAML, and its commands as a shell file."""
        visitor, run, name = self._chosen(request, trained=False)
        chosen = []
        for job in self.jobs.all():
            is_of_run = any(name in item.split("=") for line in job.commands for item in line)
            is_before = job.kind in ("convert", "download") and job.about["owner"] == visitor.id
            chosen += [job] if job.kind in KEPT and (is_of_run or is_before) and job.status == "finished" else []
        settings = [commands.as_settings(line) for job in chosen for line in job.commands]
        lines = ["#!/bin/sh", "set -e", *(line for job in chosen for line in job.command_lines()), ""]
        write_text(self.downloads / f"{run.name}.yaml", yaml.safe_dump(settings, allow_unicode=True, sort_keys=False))
        write_text(self.downloads / f"{run.name}.sh", "\n".join(lines))

    def on_tick(self, request: gr.Request, seen: dict, tab: str, budget: float, beside: list | None) -> list:
        """What has changed of the tab that is looked at."""
        shown = Panels(self, self.visitor(request), tab, request.url.hostname or "127.0.0.1")
        values: dict[str, Any] = shown.panels(budget, beside or [])
        longest, names = shown.longest, shown.names
        runs = gr.update(choices=names, value=shown.visitor.form.get("run"))
        values |= {f"run {tab}": runs, "beside": gr.update(choices=names)} if tab in OF_RUNS else {}
        slider = {"visible": True, "maximum": max(2, longest), "value": min(1024, longest)}
        values |= {"budget": gr.update(**slider)} if longest else {}
        new = {name: value for name, value in values.items() if seen.get(name) != value}
        order = [*self.panels, *(f"run {name}" for name in self.runs), "beside", "budget"]
        return [{**seen, **new}, *(new.get(name, gr.skip()) for name in order), *shown.imported()]
