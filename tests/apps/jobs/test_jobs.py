"""Commands in processes of their own: how they stand is known from their folders alone."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from hf_recipes.apps.jobs import jobs as module
from hf_recipes.apps.jobs import worker
from hf_recipes.apps.jobs.jobs import Job, Jobs, file_name, identity
from hf_recipes.apps.jobs.visitors import Visitor
from hf_recipes.core.errors import UserError
from hf_recipes.core.files import write_json

DEAD = {"pid": 2**22 + 1, "started": 1.0}


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """Jobs whose workers are not started."""
    monkeypatch.setattr(module, "_start_worker", lambda job: job)
    return Jobs(tmp_path)


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def training(jobs: Jobs, name: str, **files) -> Job:
    job = jobs.start("sft", [["sft", f"--output_dir=runs/{name}"]], "me", output_dir=f"runs/{name}", waits=True)
    for file, value in files.items():
        write_json(job.folder / f"{file}.json", value)
    return job


def test_a_command_runs_without_its_server(tmp_path):
    """What it prints to stdout with --json is its result, all else its log; a mistake is its error."""
    jobs = Jobs(tmp_path)
    good = jobs.start("list", [["recipes"], ["--version"]], "me", env={"SOME": "a b"})
    bad = jobs.start("bad", [["nonsense"], ["--version"]], "me")
    end = time.monotonic() + 60
    while any(job.is_live for job in Jobs(tmp_path).all()):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert [job.status for job in Jobs(tmp_path).all()] == ["finished", "failed"]
    assert any(line.startswith("sft_lora ") for line in good.log()) and good.read("end.json")["code"] == 0
    assert good.command_lines() == ["SOME='a b' hf-recipes recipes", "SOME='a b' hf-recipes --version"]
    assert bad.error.startswith("error: unknown command nonsense") and not (bad.folder / "stdout.1").exists()


@pytest.mark.parametrize(
    "files, trained, status",
    [
        ({"worker": "me"}, False, "waiting"),
        ({"worker": DEAD}, False, "waiting"),  # which `recover` starts
        ({"worker": "me", "process": "me"}, False, "running"),
        ({"worker": DEAD, "process": "me"}, False, "running"),
        ({"process": {"pid": os.getpid(), "started": 1.0}}, False, "failed"),  # the number is another process's by now
        ({"process": DEAD, "end": {"code": 0}}, True, "finished"),
        ({"process": DEAD}, True, "finished"),
        ({"process": DEAD, "end": {"code": 0}}, False, "paused"),
        ({"process": DEAD, "end": {"code": 1}}, False, "failed"),
        ({"process": DEAD, "end": {"code": -9}, "wish": {"wish": "stop"}}, False, "stopped"),
        ({"end": {"code": None}, "wish": {"wish": "stop"}}, False, "stopped"),
    ],
)
def test_how_a_training_stands(jobs, files, trained, status):
    me = identity(os.getpid())
    job = training(jobs, "a", **{name: me if value == "me" else value for name, value in files.items()})
    if trained:
        job.run.mkdir(parents=True)
        (job.run / "metrics.json").write_text("{}")
    assert Jobs(jobs.root).get(job.id).status == status


def test_what_waited_is_started_again(jobs, monkeypatch):
    waits, done = training(jobs, "a", worker=DEAD), training(jobs, "b", worker=DEAD, end={"code": 0}, process=DEAD)
    started = []
    monkeypatch.setattr(module, "_start_worker", started.append)
    Jobs(jobs.root)
    assert [job.id for job in started] == [waits.id] and done.status == "paused"


def test_one_training_at_a_time_in_the_order_of_their_start(jobs, sleeper, monkeypatch):
    monkeypatch.setattr(worker, "POLL", 0.01)
    me = identity(os.getpid())
    first = training(jobs, "first", worker=me, process=identity(sleeper.pid))
    second, third = (training(jobs, name, worker=me) for name in ("second", "third"))
    turns = []
    threads = [
        threading.Thread(target=lambda job=job: turns.append((job.id, worker._wait_for_turn(job))))
        for job in (third, second)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    assert not turns and [job.status for job in (first, second, third)] == ["running", "waiting", "waiting"]
    write_json(first.folder / "end.json", {"code": 0})
    threads[1].join(10)
    assert turns == [(second.id, True)] and third.status == "waiting"
    third.stop()  # taken out of those that wait
    threads[0].join(10)
    assert turns == [(second.id, True), (third.id, False)]


def test_two_at_a_time_where_that_is_allowed(jobs, sleeper):
    jobs.trainings = 2
    me = identity(os.getpid())
    training(jobs, "first", worker=me, process=identity(sleeper.pid))
    assert worker._wait_for_turn(training(jobs, "second", worker=me))


def test_stopping_ends_all_processes_and_pausing_asks(jobs):
    code = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    parent = subprocess.Popen([sys.executable, "-c", f"{code}; print(1, flush=True); time.sleep(600)"], stdout=-1)
    parent.stdout.readline()
    [child] = module.psutil.Process(parent.pid).children()
    training(jobs, "a", process=identity(parent.pid)).stop()
    assert parent.wait(10) == -9 and module.psutil.wait_procs([child], timeout=10)[0] == [child]
    parent.stdout.close()
    asked = "import signal, time; signal.signal(15, lambda *_: exit(3)); print(1, flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", asked], stdout=-1)
    process.stdout.readline()
    training(jobs, "b", process=identity(process.pid)).pause()
    assert process.wait(10) == 3
    process.stdout.close()


def test_a_folder_has_one_writer(jobs, sleeper):
    training(jobs, "a", process=identity(sleeper.pid))
    with pytest.raises(UserError, match=r"^runs/a: a job is writing to this folder"):
        training(jobs, "a")


def test_a_job_in_place_of_another(jobs):
    old = jobs.start("plan", [["sft"]], "me")
    new = jobs.start("plan", [["sft"]], "me", instead=old.id)
    assert [job.id for job in jobs.all()] == [new.id] and not old.folder.exists()


def test_a_progress_bar_is_its_last_state(jobs):
    job = training(jobs, "a")
    (job.folder / "log").write_bytes("一\n\r 1%\r 50%\r100%\nlast\n\n".encode())
    assert job.log() == ["一", "100%", "last"]
    (job.folder / "job.json").write_text("{")  # as of a machine that stopped while it was written
    assert jobs.all() == [] and json.loads("{}") == {}


def test_names_of_files():
    assert [file_name(text) for text in ("a b/..c", "../..", "我的 模型.v1", "x" * 99)] == [
        "a-b-..c",
        "",
        "我的-模型.v1",
        "x" * 80,
    ]


def test_requests_that_come_together_keep_each_others_changes(tmp_path):
    first = Visitor(tmp_path, "me")
    first.jobs["inspect"] = "a"
    first.save(data="rows.jsonl", model="tiny")
    one, other, third = (Visitor(tmp_path, "me") for _ in range(3))
    one.save(data="more.jsonl", model="tiny")
    other.jobs["judge"] = "b"
    other.save()
    third.jobs.pop("inspect")
    third.save(run="runs/first")
    kept = Visitor(tmp_path, "me")
    assert kept.jobs == {"judge": "b"} == third.jobs and kept.changed == third.changed
    assert {name: kept.form[name] for name in ("data", "model", "run", "stage")} == {
        "data": "more.jsonl",
        "model": "tiny",
        "run": "runs/first",
        "stage": "sft",
    }
