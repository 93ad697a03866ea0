"""Runs the commands of one job: ``python -m hf_recipes.apps.jobs.worker FOLDER``.

It outlives the server that started it, and waits for its turn among the trainings by itself.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from hf_recipes.apps.jobs.jobs import PROGRAMS, Job, all_jobs, identity, read_json
from hf_recipes.core.files import locked, write_json

POLL = 0.5  # seconds


def work(folder: Path) -> None:
    job = Job(folder, read_json(folder / "job.json"))
    code = None
    if not job.is_training or _wait_for_turn(job):
        for index, command in enumerate(job.commands):
            code = _run(job, index, command)
            if code:
                break
    write_json(folder / "end.json", {"code": code, "ended": time.time()})


def _run(job: Job, index: int, command: list[str]) -> int:
    if job.read("wish.json"):
        return 1
    unbuffered = {"PYTHONUNBUFFERED": "1"}
    program = [sys.executable, "-m", "hf_recipes"]
    if command[0] in PROGRAMS:
        path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
        program, command = [shutil.which(command[0], path=path) or command[0]], command[1:]
    with open(job.folder / f"stdout.{index}", "wb") as out, open(job.folder / "log", "ab") as log:
        process = subprocess.Popen(
            [*program, *command],
            stdin=subprocess.DEVNULL,
            stdout=out if "--json" in command else log,
            stderr=log,
            cwd=job.about["cwd"],
            env={**os.environ, **job.about["env"], **unbuffered},
            start_new_session=True,
        )
        write_json(job.folder / "process.json", identity(process.pid))
        return process.wait()


def _wait_for_turn(job: Job) -> bool:
    """Until fewer trainings run than may, and none waits that came before; False where it was taken out."""
    while not job.read("wish.json"):
        with locked(job.folder.parent / "turn.lock", "another job is looking", wait=-1):
            others = [other for other in all_jobs(job.folder.parent) if other.is_training and other.id != job.id]
            running = [other for other in others if other.status == "running"]
            before = [other for other in others if other.status == "waiting" and _is_before(other, job)]
            if len(running) + len(before) < job.about["trainings"]:
                write_json(job.folder / "process.json", identity(os.getpid()))  # the turn is taken
                return True
        time.sleep(POLL)
    return False


def _is_before(one: Job, other: Job) -> bool:
    return (one.about["created"], one.id) < (other.about["created"], other.id)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
