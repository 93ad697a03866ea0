"""What a visitor sees of the commands: their files, read anew at each look, as panels."""

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from hf_recipes.apps.access import is_loopback
from hf_recipes.apps.jobs.jobs import TRAINED, Job, read_json, read_lines
from hf_recipes.apps.jobs.visitors import Visitor
from hf_recipes.apps.ports import LOCAL, in_url
from hf_recipes.apps.studio import views
from hf_recipes.apps.studio.commands import COLUMNS, FORMS, PLAN
from hf_recipes.apps.studio.texts import Texts
from hf_recipes.core.arguments.flags import output_dir
from hf_recipes.core.errors import UserError
from hf_recipes.core.files import folder_bytes, in_units
from hf_recipes.core.language import VARIABLE
from hf_recipes.data.examples import column_names
from hf_recipes.evaluation.reports.phrases import translated

if TYPE_CHECKING:
    from hf_recipes.apps.studio.page import Page

WORST = 6  # rows of an evaluation
QUIET = 1.2  # seconds without a change of the settings before they are tried
# By the folder that they write to in the run's.
TRACKERS = {"swanlog": ("swanlab", "watch"), "tensorboard": ("tensorboard", "--logdir")}


class Panels:
    """Of one look at one tab."""

    def __init__(self, page: "Page", visitor: Visitor, tab: str, host: str):
        self.page, self.visitor, self.tab, self.host = page, visitor, tab, host
        self.texts, self.roots = Texts(visitor.form["language"]), page.roots
        self.names = page.jobs.run_names()

    def job(self, kind: str | None) -> Job | None:
        return self.page.jobs.get(self.visitor.jobs.get(kind))

    @property
    def run(self) -> Path | None:
        name = self.visitor.form.get("run")
        return self.roots.home / name if name in self.names else None

    def panels(self, budget: float, compare_with: Sequence[str]) -> dict[str, str]:
        """The panels of the tab by name."""
        given = {"data": (budget,), "watch": (compare_with,)}.get(self.tab, ())
        return getattr(self, f"_{self.tab}")(*given)

    def _waiting(self, kind: str, running: str, empty: str = "") -> str | None:
        """The panel of a job without a result; None where it has one."""
        job = self.job(kind)
        if job is None:
            return f"<p class='empty'>{escape(empty)}</p>" if empty else ""
        return None if job.status == "finished" else views.job_state(job, self.texts, running)

    def _model(self) -> dict[str, str]:
        texts, job = self.texts, self.job("model")
        parts = [self._waiting("model", "", texts("model empty"))] if job is None else []
        if job is not None:
            results = [(form, job.result(index)) for index, form in enumerate(FORMS)]
            known = [(form, plan) for form, plan in results if plan.get("memory")]
            parts += self._about(known) if known else []
            parts.append(views.card(texts("needs"), views.job_state(job, texts, texts("checking model"))))
        if download := self.job("download"):
            folder = self.roots.home / output_dir(download.commands[0])
            fetched = folder_bytes(folder) + folder_bytes(f"{folder}.partial")
            running = views.job_state(download, texts, in_units(fetched))
            parts.append(views.card(texts("download"), running, *map(views.note, download.log()[-1:])))
        return {"model": "".join(parts)}

    def _about(self, known: list[tuple[str, Mapping[str, Any]]]) -> list[str]:
        texts, about, full = self.texts, known[0][1]["model"], known[-1][1]["memory"]
        thinking = about["thinking"][0] if about["thinking"] else None
        pairs = [(texts("size"), f"{full['total'] / 1e9:.2f} B" if full["total"] >= 1e8 else f"{full['total']:,}")]
        pairs += [(texts("type"), about["type"]), (texts("context"), f"{about['context'] or 0:,}")]
        template, thinks = "yes" if about["chat_template"] else "no", f"thinks {thinking}" if thinking else "no"
        pairs += [(texts("template"), texts(template)), (texts("thinking"), texts(thinks))]
        sizes = [(form, one["memory"]["peak"], one["free_memory"]) for form, one in known]
        rows = [[texts(form), *map(in_units, (need, free)), "✓" if need <= free else "✗"] for form, need, free in sizes]
        header = [texts("form"), texts("needs"), texts("free"), texts("verdict")]
        tones = ["better" if row[-1] == "✓" else "worse" for row in rows]
        return [views.card(texts("about model"), views.facts(pairs), views.table(header, rows, tones))]

    @cached_property
    def inspection(self) -> dict[str, Any]:
        job = self.job("inspect")
        return job.result() if job else {}

    @cached_property
    def histogram(self) -> dict[str, Any]:
        """Of whole rows, which come last, of the training rows, which come first."""
        sections = (views.blocks_of({"sections": [one]}, "histogram") for one in self.inspection.get("sections", ()))
        return next((blocks[-1] for blocks in sections if blocks), {})

    @property
    def longest(self) -> int:
        return self.histogram["edges"][-1] - 1 if self.tab == "data" and self.histogram else 0

    def _data(self, budget: float) -> dict[str, str]:
        texts, inspection = self.texts, self.inspection
        waiting = self._waiting("inspect", texts("running"), texts("data empty"))
        panels = {"convert": "", "inspect": waiting or "", "lengths": "", "rows": ""}
        if job := self.job("convert"):
            panels["convert"] = views.card(texts("convert"), views.job_state(job, texts), _log(job))
        if inspection and waiting is None:
            schemas = [line for line in self.job("inspect").log() if ": schema " in line]
            head = views.command(self.job("inspect").command_lines(), texts)
            panels["inspect"] = "".join(views.note(texts.schema(line)) for line in schemas)
            panels["inspect"] += views.report(inspection, texts) + head
            if self.histogram:
                panels["lengths"] = views.lengths(self.histogram, int(budget), texts)
            for examples in views.blocks_of(inspection, "examples"):
                rows = [(row["location"], row["turns"]) for row in examples["rows"] if row["turns"]]
                panels["rows"] = views.conversations(texts("rows"), rows) + views.tokens(examples, texts)
        return panels

    def columns(self) -> dict[str, list[str]]:
        """The choices of the fields that name columns of the first file."""
        try:
            specs = self.page.commands.data(self.visitor.form) if self.tab == "data" else ()
        except UserError:
            return {}
        return {name: column_names(spec, self.roots.home) for spec in specs[:1] for name in COLUMNS}

    def arrived(self) -> list:
        """Updates of the fields of the model and the data, once, when a download or an import has ended."""
        kind, visitor, skip = {"model": "download", "data": "convert"}.get(self.tab), self.visitor, gr.skip()
        job = self.job(kind)
        if not job or job.status != "finished" or visitor.form.get(f"ended {kind}") == job.id:
            return [skip] * 2
        visitor.jobs.pop("inspect", None)  # of other data, or with another tokenizer
        visitor.save(**{f"ended {kind}": job.id})
        folder = output_dir(job.commands[0])
        return [folder, skip] if kind == "download" else [skip, f"{folder}/train.jsonl"]

    def _train(self) -> dict[str, str]:
        texts, visitor = self.texts, self.visitor
        if not visitor.form.get("model") or not visitor.form.get("data"):
            return {"plan": f"<p class='empty'>{escape(texts('train empty'))}</p>"}
        try:
            argv = self.page.commands.training(self.page.filled(visitor), *PLAN)
        except UserError as error:
            return {"plan": views.card(texts("before"), views.note(translated(error.args[0], texts.language), "bad"))}
        job = self.job("plan")
        if (job is None or job.commands != [argv]) and time.time() - visitor.changed > QUIET:
            job = self.page.begin(visitor, "plan", argv, env={VARIABLE: texts.language})
        if job is None or job.commands != [argv] or job.is_live:
            plan = views.note(texts("dry run"))
        else:
            plan = (views.plan(job.result(), texts) if job.status == "finished" else "") + views.job_state(job, texts)
        return {"plan": views.card(texts("before"), plan)}

    def _watch(self, compare_with: Sequence[str]) -> dict[str, str]:
        texts, panels = self.texts, dict.fromkeys(("runs", "watch", "curves", "samples", "log"), "")
        jobs = self.page.jobs.of_runs()
        states = {self.roots.relative(job.run): job.status for job in jobs}
        items = (
            f"<li class='{states.get(name, 'finished')}'><b>{escape(name)}</b>"
            f"<span>{texts(states.get(name, 'finished'))}</span></li>"
            for name in self.names
        )
        panels["runs"] = views.card(texts("runs"), f"<ul class='runs'>{''.join(items)}</ul>") if self.names else ""
        if self.run is None:
            return {**panels, "watch": f"<p class='empty'>{escape(texts('watch empty'))}</p>"}
        chosen = self.visitor.form["run"]
        shown = [name for name in dict.fromkeys([chosen, *compare_with]) if name in self.names]
        logs = {name: read_lines(self.roots.home / name / "log.jsonl") for name in shown}
        job = next((job for job in jobs if job.run == self.run), None)
        panels["watch"] = self._state(job, logs[chosen])
        panels["curves"] = views.curves(logs, texts)
        steps = {int(path.stem.split("-")[1]): path for path in self.run.glob("predictions/**/step-*.jsonl")}
        panels["samples"] = views.samples({step: read_lines(path)[:3] for step, path in steps.items()}, texts)
        panels["log"] = views.card(texts("log"), _log(job)) if job else ""
        records = read_json(self.run / "trackers.json").values()
        parts = [views.links((one["url"],) * 2 for one in records if one.get("url", "").startswith("https://"))]
        for job in filter(None, map(self.job, TRACKERS)):
            parts += [views.links([(job.address, f"{job.commands[0][0]} {job.address}")])] if job.address else []
            parts += [views.job_state(job, texts)] if job.is_live or job.status == "failed" else []
        panels["log"] += views.card(texts("trackers"), *parts) if any(parts) else ""
        return panels

    def _state(self, job: Job | None, log: list[Mapping[str, Any]]) -> str:
        texts = self.texts
        last = {name: value for entry in log for name, value in entry.items()}
        show = {"loss": "{:.4g}", "eval_loss": "{:.4g}", "learning_rate": "{:.3g}", "tokens_per_second": "{:,.0f}"}
        pairs = [(texts("steps"), f"{last['step']:,}")] if "step" in last else []
        pairs += [(texts(name), form.format(last[name])) for name, form in show.items() if last.get(name) is not None]
        pairs += [(texts("memory"), in_units(last["memory"]))] if last.get("memory") else []
        if job is not None and job.status == "running" and "seconds_left" in last:
            pairs.append((texts("left"), timedelta(seconds=last["seconds_left"])))
        state = views.job_state(job, texts) if job else ""
        is_live = job is not None and job.is_live
        done = views.note(texts("finished"), "good") if (self.run / TRAINED).is_file() and not is_live else ""
        return views.card(self.visitor.form["run"], done, views.facts(pairs), state)

    def _judge(self) -> dict[str, str]:
        texts, job = self.texts, self.job("judge")
        waiting = self._waiting("judge", texts("judging"), texts("judge empty"))
        if waiting is not None:
            panel = views.card(texts("judge"), waiting) if job else waiting
        else:
            report = job.result().get("report", {"sections": ()})
            worst = [row for block in views.blocks_of(report, "answers") for row in block["rows"][:WORST]]
            worst = [(f"{row['location']} {row['status']}", row["texts"]) for row in worst]
            panel = views.report(report, texts) + views.conversations(texts("worst"), worst)
            panel += views.command(job.command_lines(), texts)
        return {"judge": panel, "chat": self._chat()}

    def _chat(self) -> str:
        job, texts = self.job("chat"), self.texts
        if job is None or not (job.is_live or job.status == "failed"):
            return ""
        if job.is_live and any(line.startswith("chat at ") for line in job.log()):
            port = next(item.partition("=")[2] for item in job.commands[0] if item.startswith("--port="))
            url = f"http://{in_url(LOCAL if is_loopback(self.host) else self.host)}:{port}/"  # as on_load_chat says
            frame = f"<iframe src='{url}' title='chat'></iframe>" if is_loopback(self.host) else ""
            link = f"<p><a href='{url}' target='_blank' rel='noopener'>{escape(texts('open chat'))}</a></p>"
            return views.card(texts("load chat"), frame, link, views.command(job.command_lines(), texts))
        return views.card(texts("load chat"), views.job_state(job, texts, texts("loading")))

    def _take(self) -> dict[str, str]:
        texts = self.texts
        if self.run is None:
            return {"files": "", "take": f"<p class='empty'>{escape(texts('take empty'))}</p>"}
        files = [self.page.downloads / f"{self.run.name}{ending}" for ending in (".zip", ".yaml", ".sh")]
        parts = [views.downloads(path for path in files if path.is_file())]
        for name, paths in self.page.jobs.made(self.visitor.form["run"]).items():
            parts += [views.note(name), views.downloads(paths)]
        files = views.card(texts("files"), *parts) if any(parts) else ""
        jobs = [job for kind in ("merge", "export", "push") if (job := self.job(kind))]
        cards = (views.card(texts(job.kind), views.job_state(job, texts), _log(job)) for job in jobs)
        return {"files": files, "take": "".join(cards)}


def _log(job: Job) -> str:
    lines = job.log()[-1000 if job.kind == "push" else -14 :]  # a dry run of a push begins with the files
    return f"<pre class='log'>{escape(chr(10).join(lines))}</pre>" if lines else ""
