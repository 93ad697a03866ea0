"""The studio's page: what its buttons begin. `Panels` has what the commands have reported so far."""

import secrets
import zipfile
from collections.abc import Callable, Mapping
from copy import deepcopy
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import yaml

from hf_recipes.apps.access import is_loopback
from hf_recipes.apps.jobs.jobs import FOLDER, TRAINED, Job, Jobs, file_name, settings_of_run
from hf_recipes.apps.jobs.roots import Roots
from hf_recipes.apps.jobs.session import AGAIN, DRY_RUN, write_session
from hf_recipes.apps.jobs.visitors import COOKIE, Visitor
from hf_recipes.apps.labelled_page import AT_ONCE, preferred_language
from hf_recipes.apps.studio import commands
from hf_recipes.apps.studio.arguments import StudioArguments
from hf_recipes.apps.studio.layout import OF_RUNS, TABS, Layout
from hf_recipes.apps.studio.panels import TRACKERS, Panels
from hf_recipes.apps.studio.texts import Texts
from hf_recipes.core.arguments.flags import as_flags, as_text
from hf_recipes.core.errors import UserError
from hf_recipes.core.files import new_file, visible_files
from hf_recipes.evaluation.reports.phrases import Phrase, translated

MIRROR = {"HF_ENDPOINT": "https://hf-mirror.com"}
BEFORE = ("convert", "download")  # jobs that a run can need
KEPT = (*BEFORE, *commands.STAGES, "judge", "merge", "export", "push")  # jobs that repeat a session


def pressed(handler: Callable) -> Callable:
    """What a button does: `handler` gets the visitor, and its UserErrors are shown as a message."""

    def handle(self, request: gr.Request, *values):
        visitor = self.visitor(request)
        try:
            handler(self, visitor, *values)
        except UserError as error:
            gr.Warning(escape(translated(error.args[0], visitor.form["language"])))

    return handle


class Page(Layout):
    """What happens when the page's components are used.

    Args:
        flags: see `commands.Flags`.
    """

    def __init__(self, arguments: StudioArguments, flags: commands.Flags):
        super().__init__()
        self.arguments, self.flags = arguments, flags
        self.roots = Roots(arguments.root)
        self.jobs = Jobs(self.roots.home, arguments.trainings)
        self.commands = commands.Commands(self.roots, flags, arguments.trust_remote_code)
        self.password = arguments.auth.partition(":")[2] if arguments.auth else secrets.token_urlsafe(6)
        self.downloads = self.roots.home / FOLDER / "downloads"
        self.downloads.mkdir(parents=True, exist_ok=True)
        with self.blocks:
            self.build()
            self._connect()

    def _connect(self) -> None:
        # Messages, such as those of `pressed`, come by the queue alone.
        queued = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
        live = [self.seen, *self.panels.values(), *self.runs.values(), self.compare_with, self.budget]
        live += [self.form[name] for name in (*commands.COLUMNS, "model", "data")]
        looked_at = [self.seen, self.active, self.budget, self.compare_with]
        refresh = {"fn": self.on_tick, "inputs": looked_at, "outputs": live, **AT_ONCE, "trigger_mode": "once"}
        gr.on([self.timer.tick, self.budget.change, self.compare_with.input], **refresh)
        for run in self.runs.values():
            run.input(self.on_run, [run], [], **AT_ONCE).then(**refresh)
        for name, tab in zip(TABS, self.tabs, strict=True):
            tab.select(lambda name=name: name, [], [self.active], **AT_ONCE).then(**refresh)
        form, settings = list(self.form.values()), list(self.fields.values())
        gr.on([field.change for field in form], self.on_form, form, [self.importer], **AT_ONCE)
        for name, button in self.buttons.items():
            inputs = [self.password_field] if name in ("pause", "resume", "stop") else []
            saved = button.click(self.on_form, form, [self.importer], **AT_ONCE)
            saved.then(getattr(self, f"on_{name.replace(' ', '_')}"), inputs, [], **queued).then(**refresh)
        editor, stage = self.form["yaml"], self.form["stage"]
        of_stage = [*settings, self.preset, self.key]
        labelled = [self.title, *(component for component, _ in self.labels), *of_stage, self.seen]
        self.upload.upload(self.on_upload, [self.upload], [self.form["data"], self.form["import"]], **queued)
        stage.input(self.on_stage, [stage, self.lang], of_stage, **AT_ONCE)
        self.preset.input(self.on_preset, [self.preset], [*settings, editor], **AT_ONCE)
        self.key.input(self.on_key, [self.key, stage, editor], [self.key, editor], **AT_ONCE)
        self.lang.input(self.on_language, [self.lang, stage], labelled, **AT_ONCE)
        self.blocks.load(self.on_load, [], [self.lang, *form, *labelled], **AT_ONCE).then(**refresh)

    def visitor(self, request: gr.Request) -> Visitor:
        return Visitor(self.roots.home, request.cookies.get(COOKIE))

    def on_load(self, request: gr.Request) -> list:
        visitor = self.visitor(request)
        if not visitor.path.is_file():
            visitor.form["language"] = self.arguments.language or preferred_language(request)
            visitor.form = {name: field.value for name, field in self.form.items()} | visitor.form
            visitor.save(name=Path(self.jobs.free_folder("runs", "first")).name)
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
            # Of the learning rate an adapter has another default.
            default = "" if name == "learning_rate" else as_text(flag.get("default"))
            values = {"visible": name in chosen, "info": texts.of_setting(name, flag), "placeholder": default}
            if isinstance(field, gr.Dropdown):
                values["choices"] = [(texts("default", value=values.pop("placeholder") or "–"), ""), *field.choices[1:]]
            updates.append(gr.update(**values))
        refused = {name for name, flag in flags.items() if flag["help"].startswith("Refused: ")}
        names = sorted(set(flags) - commands.ELSEWHERE - commands.REFUSED - set(chosen) - refused)
        keys = [(f"{name} — {Texts('en').of_setting(name, flags[name])[:90]}", name) for name in names]
        updates.append(gr.update(choices=[("–", ""), *((name, name) for name in commands.recipes_of(stage))], value=""))
        return [*updates, gr.update(choices=keys, value=None, info=texts("key help", count=len(keys)))]

    def on_form(self, request: gr.Request, *values):
        form = dict(zip(self.form, values, strict=True))
        self.visitor(request).save(**form)
        return gr.update(visible=form["import"] != "no")

    def on_preset(self, name: str) -> list:
        settings = commands.recipe_settings(name) if name else {}
        fields = [as_text(settings.pop(field, None)) for field in self.fields]
        return [*fields, yaml.safe_dump(settings, allow_unicode=True, sort_keys=False) if settings else ""]

    def on_key(self, name: str | None, stage: str, text: str | None) -> list:
        line = yaml.safe_dump({name: self.flags(stage)[name].get("default")}, allow_unicode=True) if name else ""
        return [None, f"{(text or '').rstrip()}\n{line}".lstrip()]

    def on_upload(self, request: gr.Request, files: list[str] | None) -> list:
        visitor = self.visitor(request)
        names = [line for line in (visitor.form.get("data") or "").splitlines() if line.strip()]
        kind = gr.skip()
        for path in map(Path, files or ()):
            try:
                saved = self.roots.save_upload(path, self.arguments.max_upload_mb * 1_000_000)
            except UserError as error:
                gr.Warning(escape(translated(error.args[0], visitor.form["language"])))
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
        return {**visitor.form, "fields": {name: visitor.form.get(f"set_{name}") or "" for name in self.fields}}

    def _env(self, form: Mapping[str, Any]) -> dict[str, str]:
        return MIRROR if form.get("source") == "mirror" else {}

    @pressed
    def on_check(self, visitor: Visitor) -> None:
        self.begin(visitor, "model", *self.commands.model_check(visitor.form), env=self._env(visitor.form))

    @pressed
    def on_download(self, visitor: Visitor) -> None:
        source = "modelscope" if visitor.form["source"] == "modelscope" else "hf"
        model = self.commands.model(visitor.form)
        argv = ["download", f"--model={model}", f"--source={source}"]
        argv.append(f"--output_dir=models/{file_name(model.split('/')[-1])}")
        self.begin(visitor, "download", argv, env=self._env(visitor.form))

    @pressed
    def on_convert(self, visitor: Visitor) -> None:
        folder = self.jobs.free_folder("data", file_name(visitor.form["import"]))
        self.begin(visitor, "convert", self.commands.convert(visitor.form, folder), output_dir=folder)

    @pressed
    def on_inspect(self, visitor: Visitor) -> None:
        self.begin(visitor, "inspect", self.commands.inspection(self.filled(visitor)))

    @pressed
    def on_start(self, visitor: Visitor) -> None:
        form = self.filled(visitor)
        name = file_name(form.get("name") or "") or Path(self.jobs.free_folder("runs", "first")).name
        folder = f"runs/{name}"
        if (path := self.roots.inside(folder)).exists() and any(path.iterdir()):
            problem = "{folder}: there is a run of this name; go on with it under Watch, or choose another name"
            raise UserError(Phrase(problem, folder=folder))
        plan = self.jobs.get(visitor.jobs.get("plan"))
        if plan and plan.status == "failed" and plan.commands == [self.commands.training(form, *commands.PLAN)]:
            raise UserError(Texts(form["language"]).failure("plan", plan.error))
        argv = self.commands.training(form, folder)
        self.begin(visitor, form["stage"], argv, output_dir=folder, waits=True, env=self._env(form))
        visitor.save(run=folder)
        gr.Info(Texts(form["language"])("begun", name=name))

    def on_run(self, request: gr.Request, run: str) -> None:
        self.visitor(request).save(run=run)

    def _chosen(self, visitor: Visitor, trained: bool = True) -> tuple[Path, str]:
        """The run that is looked at, and its name."""
        texts, name = Texts(visitor.form["language"]), visitor.form.get("run")
        if not name:
            raise UserError(texts("no run"))
        run = self.roots.inside(name)
        if trained and not (run / TRAINED).is_file():
            raise UserError(texts("not trained"))
        return run, name

    def _controlled(self, visitor: Visitor, given: str, live: bool = True) -> Job:
        """The job of the run, which the visitor began or has the password for."""
        run, _ = self._chosen(visitor, trained=False)
        texts = Texts(visitor.form["language"])
        job = next((job for job in self.jobs.of_runs() if job.run == run), None)
        if job is None or job.is_live != live:
            raise UserError(texts("not running" if live else "is running"))
        is_owner = visitor.id and visitor.id == job.about["owner"]
        if not is_owner and not secrets.compare_digest((given or "").encode(), self.password.encode()):
            raise UserError(texts("not yours"))
        return job

    @pressed
    def on_pause(self, visitor: Visitor, given: str) -> None:
        self._controlled(visitor, given).pause()

    @pressed
    def on_stop(self, visitor: Visitor, given: str) -> None:
        self._controlled(visitor, given).stop()

    @pressed
    def on_resume(self, visitor: Visitor, given: str) -> None:
        job = self._controlled(visitor, given, live=False)
        argv = [item for item in job.commands[0] if item != AGAIN]
        if any(job.run.glob("checkpoint-*/trainer_state.json")):
            argv.append(AGAIN)
        self.begin(visitor, job.kind, argv, output_dir=job.about["output_dir"], waits=True, env=job.about["env"])

    @pressed
    def on_trackers(self, visitor: Visitor) -> None:
        """Open or close the pages of the trackers that wrote files for the run."""
        run, name = self._chosen(visitor, trained=False)
        kinds = [kind for kind in TRACKERS if (run / kind).is_dir()]
        live = [job for kind in TRACKERS if (job := self.jobs.get(visitor.jobs.get(kind))) and job.is_live]
        if not kinds:
            raise UserError(Texts(visitor.form["language"])("no trackers"))
        for job in live:
            job.stop()
        for kind in kinds if not live else ():
            argv = [*TRACKERS[kind], f"{name}/{kind}", "--host=127.0.0.1", self.jobs.port_flag(6006)]
            self.begin(visitor, kind, argv)

    @pressed
    def on_judge(self, visitor: Visitor) -> None:
        run, name = self._chosen(visitor)
        held_out = (visitor.form.get("held_out") or "").strip()
        if not held_out and not commands.SPLITS & {key for key, value in settings_of_run(run).items() if value}:
            raise UserError(Texts(visitor.form["language"])("no held out"))
        folder = f"{name}/evaluation"
        self.begin(visitor, "judge", self.commands.evaluation(run, held_out, visitor.form, folder), output_dir=folder)

    @pressed
    def on_load_chat(self, visitor: Visitor) -> None:
        run, _ = self._chosen(visitor)
        arguments, argv = self.arguments, ["chat", *self.commands.chat_models(run)]
        argv += [self.jobs.port_flag(arguments.port + 1, arguments.host), f"--language={visitor.form['language']}"]
        if not is_loopback(arguments.host):  # the password is not for the list of processes
            path = self.roots.home / FOLDER / "chat.yaml"
            path.touch(mode=0o600)
            access = {name: getattr(arguments, name) for name in ("host", "auth", "insecure")}
            path.write_text(yaml.safe_dump(access), encoding="utf-8")
            argv.append(f"--config={self.roots.relative(path)}")
        self.begin(visitor, "chat", argv)

    @pressed
    def on_end_chat(self, visitor: Visitor) -> None:
        if job := self.jobs.get(visitor.jobs.get("chat")):
            job.stop()

    @pressed
    def on_merge(self, visitor: Visitor) -> None:
        merge, folder = self._merge(visitor)
        self.begin(visitor, "merge", merge, output_dir=folder)

    def _merge(self, visitor: Visitor) -> tuple[list[str], str]:
        """The command that merges the run, which changes nothing where it is done already, and its folder."""
        run, name = self._chosen(visitor)
        folder = (self.jobs.written(name, "merge") or [self.jobs.free_folder("models", run.name)])[-1]
        base = settings_of_run(run).get("model_name_or_path")
        return ["merge", "--peft_path", name, f"--model_name_or_path={base}", f"--output_dir={folder}"], folder

    def _export(self, visitor: Visitor, form: str) -> None:
        """Of a run of all weights the model itself, of an adapter after it is merged."""
        run, model = self._chosen(visitor)
        lines, folder = [], self.jobs.free_folder("models", f"{run.name}-{form}")
        if (run / "adapter_config.json").is_file():
            merge, model = self._merge(visitor)
            lines.append(merge)
        argv = ["export", f"--format={form}", f"--model_name_or_path={model}", f"--output_dir={folder}"]
        argv += as_flags({"outtype": visitor.form.get("outtype") or None})
        self.begin(visitor, "export", *lines, argv, output_dir=folder)

    on_gguf = pressed(lambda self, visitor: self._export(visitor, "gguf"))
    on_ollama = pressed(lambda self, visitor: self._export(visitor, "ollama"))

    def _push(self, visitor: Visitor, *more: str) -> None:
        _, name = self._chosen(visitor)
        target = "modelscope" if visitor.form["source"] == "modelscope" else "hf"
        hub_name = (visitor.form.get("hub_name") or "").strip()
        argv = ["push", f"--folder={name}", f"--hub_model_id={hub_name}", f"--target={target}", *more]
        self.begin(visitor, "push", argv)

    on_push_dry = pressed(lambda self, visitor: self._push(visitor, DRY_RUN))
    on_push = pressed(_push)

    @pressed
    def on_zip(self, visitor: Visitor) -> None:
        run, _ = self._chosen(visitor)
        with new_file(self.downloads / f"{run.name}.zip") as path, zipfile.ZipFile(path, "w") as archive:
            for file in visible_files(run):
                archive.write(file, f"{run.name}/{file.name}")

    @pressed
    def on_session(self, visitor: Visitor) -> None:
        """What repeats a session without the page: its settings as YAML, and its commands as a shell file."""
        run, name = self._chosen(visitor, trained=False)
        before = [job for job in self.jobs.all() if job.kind in BEFORE and job.about["owner"] == visitor.id]
        jobs = [job for job in [*before, *self.jobs.naming(name)] if job.kind in KEPT and job.status == "finished"]
        write_session(jobs, self.downloads / run.name)

    def on_tick(self, request: gr.Request, seen: dict, tab: str, budget: float, compare_with: list | None) -> list:
        """What has changed of the tab that is looked at."""
        shown = Panels(self, self.visitor(request), tab, request.url.hostname or "127.0.0.1")
        values: dict[str, Any] = shown.panels(budget, compare_with or [])
        longest, names = shown.longest, shown.names
        runs = gr.update(choices=names, value=shown.visitor.form.get("run"))
        values |= {f"run {tab}": runs, "compare_with": gr.update(choices=names)} if tab in OF_RUNS else {}
        slider = {"visible": True, "maximum": max(2, longest), "value": min(1024, longest)}
        values |= {"budget": gr.update(**slider)} if longest else {}
        values |= {name: gr.update(choices=choices) for name, choices in shown.columns().items()}
        new = {name: value for name, value in values.items() if seen.get(name) != value}
        order = [*self.panels, *(f"run {name}" for name in self.runs), "compare_with", "budget", *commands.COLUMNS]
        kept = {**seen, **deepcopy(new)}  # Gradio takes the updates of components apart
        return [kept, *(new.get(name, gr.skip()) for name in order), *shown.arrived()]
