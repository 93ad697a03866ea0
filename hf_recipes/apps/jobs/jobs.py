"""Commands that run in processes of their own, which neither the page nor its server ends.

A job is a folder: ``job.json`` is what was asked for, ``worker.json`` and ``process.json`` name the processes by number
and start, ``end.json`` has the exit code. All that is known of a job is read from there, so that a server that is
started again knows as much as the one before.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

from hf_recipes.apps.ports import LOCAL, free_port
from hf_recipes.core.arguments.flags import output_dir
from hf_recipes.core.errors import UserError
from hf_recipes.core.files import read_mapping, visible_files, write_json
from hf_recipes.evaluation.reports.phrases import Phrase

FOLDER = Path(".hf_recipes", "studio")
LIVE = ("waiting", "running")
LAST_BYTES = 20_000  # of a log that are looked at
TRAINED = "metrics.json"  # which a training writes at its end
PROGRAMS = ("tensorboard", "swanlab")  # which jobs may run beside our commands


@dataclass(frozen=True)
class Job:
    """A job by its folder; what does not change is in `about`."""

    folder: Path
    about: Mapping[str, Any]

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def kind(self) -> str:
        return self.about["kind"]

    @property
    def commands(self) -> list[list[str]]:
        return self.about["commands"]

    @property
    def is_training(self) -> bool:
        return self.about["waits"]

    @property
    def run(self) -> Path | None:
        """The folder that the commands write to."""
        return Path(self.about["cwd"], self.about["output_dir"]) if self.about["output_dir"] else None

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of the job; empty while it is not there."""
        return read_json(self.folder / name)

    @property
    def status(self) -> str:
        """``waiting``, ``running``, ``paused``, ``finished``, ``failed`` or ``stopped``."""
        end, wish = self.read("end.json"), self.read("wish.json").get("wish")
        if is_alive(self.read("process.json")) and not end:
            return "running"
        if not end and is_alive(self.read("worker.json")):
            return "waiting" if self.is_training else "running"
        if wish == "stop":
            return "stopped"
        if not end and not (self.folder / "process.json").exists():
            return "waiting" if self.is_training else "stopped"  # `Jobs.recover` starts it
        if self.is_training and (self.run / TRAINED).is_file():
            return "finished"
        if self.is_training and (end.get("code") == 0 or wish == "pause"):
            return "paused"
        return "finished" if end.get("code") == 0 else "failed"

    @property
    def is_live(self) -> bool:
        return self.status in LIVE

    def log(self) -> list[str]:
        """The last lines of what the commands printed, of a progress bar its last state."""
        with contextlib.suppress(OSError), open(self.folder / "log", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LAST_BYTES))
            lines = file.read().decode("utf-8", "replace").split("\n")
            return [line.rstrip("\r").rpartition("\r")[2] for line in lines if line.strip()]
        return []

    @property
    def error(self) -> str:
        """Why it failed: the line of the mistake with the indented ones below it, or the last line."""
        below: list[str] = []
        lines = self.log()
        for line in reversed(lines):
            if line.startswith("error"):
                return "\n".join([line, *below[::-1]])
            below = [*below, line] if line.startswith("  ") else []
        return "".join(lines[-1:])

    def result(self, index: int = 0) -> dict[str, Any]:
        """The document that a command printed to stdout."""
        return read_json(self.folder / f"stdout.{index}")

    @property
    def address(self) -> str | None:
        """The page of this machine that the commands serve, once they do."""
        match = re.search(r"http://(?:127\.0\.0\.1|localhost):\d+", "\n".join(self.log()))
        return match[0] if match and self.is_live else None

    def command_lines(self) -> list[str]:
        """What does the same in a terminal, in the first of the roots."""
        variables = "".join(f"{name}={shlex.quote(value)} " for name, value in self.about["env"].items())
        lines = (shlex.join(line if line[0] in PROGRAMS else ["hf-recipes", *line]) for line in self.commands)
        return [f"{variables}{line}" for line in lines]

    def pause(self) -> None:
        """SIGTERM: a training writes a checkpoint at the end of its step."""
        self._end("pause", lambda process: process.terminate())

    def stop(self) -> None:
        """End it, with all processes that it started, or take it out of those that wait."""
        self._end("stop", _kill_tree)

    def _end(self, wish: str, signal) -> None:
        write_json(self.folder / "wish.json", {"wish": wish})
        process = self.read("process.json")
        if is_alive(process):
            with contextlib.suppress(psutil.NoSuchProcess):
                signal(psutil.Process(process["pid"]))


class Jobs:
    """All jobs of a root folder.

    Args:
        trainings: how many of them run at the same time.
    """

    def __init__(self, root: Path, trainings: int = 1):
        self.root, self.trainings, self.folder = root, trainings, root / FOLDER / "jobs"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.recover()

    def all(self) -> list[Job]:
        """The oldest first."""
        return all_jobs(self.folder)

    def get(self, name: str | None) -> Job | None:
        return next((job for job in self.all() if job.id == name), None)

    def of_runs(self) -> list[Job]:
        """The last job of each folder that is trained into, the newest first."""
        latest = {job.run: job for job in self.all() if job.is_training}
        return sorted(latest.values(), key=lambda job: job.about["created"], reverse=True)

    def run_names(self) -> list[str]:
        """The folders of the runs: those that were begun here, and others in ``runs``."""
        begun = [os.path.relpath(job.run, self.root) for job in self.of_runs()]
        others = sorted(str(path.parent.relative_to(self.root)) for path in self.root.glob("runs/*/run_config.yaml"))
        return list(dict.fromkeys([*begun, *others]))

    def free_folder(self, parent: str, name: str) -> str:
        """One that is not there yet, and that no job is going to write to."""
        names = (f"{parent}/{name}" + (f"-{number}" if number > 1 else "") for number in range(1, 10_000))
        taken = {job.about["output_dir"] for job in self.all()}
        return next(name for name in names if name not in taken and not (self.root / name).exists())

    def port_flag(self, first: int, host: str = LOCAL) -> str:
        """``--port`` with one from `first` on that is free, and that no live job is going to listen on."""
        taken = {item for job in self.all() if job.is_live for line in job.commands for item in line}
        while (flag := f"--port={free_port(first, host)}") in taken:
            first += 1
        return flag

    def naming(self, name: str) -> list[Job]:
        """Those with a command that names a folder."""
        return [job for job in self.all() if any(name in item.split("=") for line in job.commands for item in line)]

    def written(self, name: str, *commands: str) -> list[str]:
        """The folders that `commands` write to which name a run, the last one last; none that its training outdated."""
        trained = self.root / name / TRAINED
        since = trained.stat().st_mtime if trained.is_file() else 0
        jobs = (job for job in self.naming(name) if job.about["created"] >= since)
        lines = (line for job in jobs for line in job.commands if line[0] in commands)
        return list(dict.fromkeys(filter(None, map(output_dir, lines))))

    def made(self, name: str) -> dict[str, list[Path]]:
        """The files of the models that were merged and exported of a run, by their folders."""
        folders = [folder for folder in self.written(name, "merge", "export") if (self.root / folder).is_dir()]
        return {folder: visible_files(self.root / folder) for folder in folders}

    def start(
        self,
        kind: str,
        commands: Sequence[Sequence[str]],
        owner: str,
        *,
        env: Mapping[str, str] | None = None,
        output_dir: str | None = None,
        waits: bool = False,
        instead: str | None = None,
    ) -> Job:
        """Begin `commands`, one after the other.

        Args:
            owner: the visitor.
            output_dir: what they write to, where it is known; a folder that another job writes to is a UserError.
            waits: for its turn among the trainings.
            instead: a job that nobody needs any more.
        """
        if old := self.get(instead):
            old.stop()
            shutil.rmtree(old.folder, ignore_errors=True)
        for job in self.all():
            if output_dir and job.about["output_dir"] == output_dir and job.is_live:
                raise UserError(
                    Phrase(
                        "{folder}: a job is writing to this folder; wait for its end, or name another",
                        folder=output_dir,
                    )
                )
        about = {"kind": kind, "commands": [list(map(str, command)) for command in commands], "owner": owner}
        about |= {"env": dict(env or {}), "output_dir": output_dir, "waits": waits, "trainings": self.trainings}
        about |= {"created": time.time(), "cwd": str(self.root)}
        folder = self.folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{kind}-{uuid4().hex[:6]}"
        folder.mkdir()
        write_json(folder / "job.json", about)
        return _start_worker(Job(folder, about))

    def recover(self) -> None:
        """Start what waited when the machine, or its worker, was ended."""
        for job in self.all():
            if job.status == "waiting" and not is_alive(job.read("worker.json")):
                _start_worker(job)


def all_jobs(folder: Path) -> list[Job]:
    jobs = [Job(path.parent, about) for path in folder.glob("*/job.json") if (about := read_json(path))]
    return sorted(jobs, key=lambda job: job.about["created"])


def _start_worker(job: Job) -> Job:
    command = [sys.executable, "-m", "hf_recipes.apps.jobs.worker", str(job.folder)]
    quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    process = subprocess.Popen(command, cwd=job.about["cwd"], start_new_session=True, **quiet)
    write_json(job.folder / "worker.json", identity(process.pid))
    return job


def identity(pid: int) -> dict[str, float]:
    """What tells a process from a later one of the same number."""
    try:
        return {"pid": pid, "started": psutil.Process(pid).create_time()}
    except psutil.NoSuchProcess:
        return {"pid": pid, "started": 0.0}


def settings_of_run(run: Path) -> dict[str, Any]:
    """What `run_config.yaml` in the folder of a run has; empty where there is none."""
    path = run / "run_config.yaml"
    return read_mapping(str(path), "--config", as_yaml=True, as_text=False) if path.is_file() else {}


def is_alive(identity: Mapping[str, float]) -> bool:
    try:
        process = psutil.Process(identity["pid"])
        is_same = abs(process.create_time() - identity["started"]) < 1
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, KeyError):
        return False


def _kill_tree(process: psutil.Process) -> None:
    for one in (*process.children(recursive=True), process):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()


def read_json(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    return {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file that may just be written to."""
    rows = []
    with contextlib.suppress(OSError), open(path, encoding="utf-8") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
    return rows


def file_name(text: str) -> str:
    """`text` as the name of a file or folder."""
    return re.sub(r"[^\w.-]+", "-", text).strip(".-")[:80]
