"""A folder's lock, and the record of whose files are in it."""

import os
import signal
import time

import pytest

from hf_recipes.core.errors import UserError
from hf_recipes.core.folders import OutputFolder, held

NO_LISTS = '{"kind": "run", "launch": null, "files": 1, "claims": "x"}'
FORMER = [r"old\.json"]
CLAIMS = [r"metrics\.json", r"checkpoint-\d+/.*", r"samples/step-\d+\.jsonl"]


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def names(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_record_names_what_its_writer_made_and_nothing_that_came_later(tmp_path):
    folder = OutputFolder(tmp_path, "run")
    assert folder.is_empty and not folder.is_mine and folder.recorded_files() == []
    put(tmp_path, "notes.txt")
    folder.claim(CLAIMS, "launch")
    put(tmp_path, "metrics.json", "checkpoint-3/a/b", "samples/step-1.jsonl", "samples/mine.jsonl")
    own = ["checkpoint-3/a/b", "metrics.json", "samples/step-1.jsonl"]
    killed = OutputFolder(tmp_path, "run")  # its writer has not come to `settle`
    assert (
        killed.is_mine
        and killed.record["launch"] == "launch"
        and killed.recorded_files() == own
        and killed.others(CLAIMS) == []
    )

    folder.settle()
    put(tmp_path, "samples/step-2.jsonl", "checkpoint-4/b", "checkpoint-3/mine")
    later = OutputFolder(tmp_path, "run")
    assert later.recorded_files() == own
    assert later.others(CLAIMS) == ["checkpoint-3/mine", "checkpoint-4/b", "samples/step-2.jsonl"]
    assert not OutputFolder(tmp_path, "evaluation").is_mine

    later.clear()
    kept = {"notes.txt", "samples/mine.jsonl", "samples/step-2.jsonl", "checkpoint-4/b", "checkpoint-3/mine", ".run"}
    assert names(tmp_path) == kept and not (tmp_path / "checkpoint-3/a").exists()
    assert OutputFolder(tmp_path, "run").recorded_files() == []


@pytest.mark.parametrize("is_settled", [True, False])
@pytest.mark.parametrize("link", ["checkpoint-3", "samples", "metrics.json", "checkpoint-3/a"])
def test_a_link_where_something_would_be_deleted_is_refused_first(tmp_path, link, is_settled):
    mine, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    folder = OutputFolder(mine, "run")
    mine.mkdir()
    folder.claim(CLAIMS)
    put(mine, "metrics.json", "checkpoint-3/a/b", "samples/step-1.jsonl", "free/x")
    if is_settled:
        folder.settle()
    (mine / link).rename(elsewhere)
    (mine / link).symlink_to(elsewhere)
    (mine / "free/link").symlink_to(elsewhere)  # in nobody's way
    (mine / "loose").symlink_to(elsewhere)
    before, there = names(mine), elsewhere.read_text() if elsewhere.is_file() else names(elsewhere)
    with pytest.raises(UserError, match=f"{link} is a link, which is not followed; remove the link"):
        OutputFolder(mine, "run").clear()
    assert names(mine) == before
    assert (elsewhere.read_text() if elsewhere.is_file() else names(elsewhere)) == there


def test_a_link_where_something_would_be_written_is_someone_elses(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint-9").symlink_to(tmp_path / "elsewhere")
    assert OutputFolder(tmp_path / "run", "run").others(CLAIMS) == ["checkpoint-9"]


def test_a_record_reaches_nothing_outside_its_folder(tmp_path):
    put(tmp_path, "secret", "run/metrics.json")
    folder = OutputFolder(tmp_path / "run", "run")
    folder.claim([r".*secret"])
    folder._write({**folder.record, "files": ["../secret", str(tmp_path / "secret"), "metrics.json"]})
    OutputFolder(tmp_path / "run", "run").clear()
    assert names(tmp_path) == {"secret", "run/.run"}


@pytest.mark.parametrize(
    "text", ["host:123", "", '{"kind": "run"}', "[]", NO_LISTS, '"kind launch files claims"', "\xff"]
)
def test_a_file_of_the_records_name_that_is_none_is_refused(tmp_path, text):
    put(tmp_path, "old.json")
    (tmp_path / ".run").write_text(text, encoding="latin-1")
    for kind, former in (("run", FORMER), ("evaluation", ())):
        with pytest.raises(
            UserError, match=rf"--output_dir {tmp_path}: \.run in it is no record of whose the files are"
        ):
            OutputFolder(tmp_path, kind, former)
    assert names(tmp_path) == {"old.json", ".run"}


def test_no_record(tmp_path):
    put(tmp_path, "old.json", "else.json", "record")
    (tmp_path / ".run").symlink_to(tmp_path / "record")
    folder = OutputFolder(tmp_path, "run", FORMER)
    assert not folder.is_mine and folder.recorded_files() == []
    folder.adopt()
    assert folder.recorded_files() == ["old.json"]


def test_a_folder_is_held_by_one_and_left_as_it_was(tmp_path):
    run = tmp_path / "a" / "run"
    with held(run):
        assert OutputFolder(run, "run").is_empty  # a lock is nothing
        with (
            pytest.raises(UserError, match=rf"--output_dir {run}: another process is writing to this folder; wait"),
            held(run),
        ):
            pass
    assert not run.exists()
    with held(run):
        put(run, "x")
    assert names(run) == {"x"}
    with held(run):
        pass
    assert names(run) == {"x"}
    with pytest.raises(UserError, match="x: this is a file"):
        OutputFolder(run / "x", "run")
    with pytest.raises(UserError, match=r"x/y: cannot be written to \(.+\)"), held(run / "x" / "y"):
        pass


def test_a_killed_process_lets_go_at_once_even_where_its_child_lives_on(tmp_path):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        with held(tmp_path):
            if os.fork() == 0:
                time.sleep(5)
                os._exit(0)
            os.write(writer, b"1")
            time.sleep(60)
    os.read(reader, 1)
    with pytest.raises(UserError, match="another process"), held(tmp_path):
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert (tmp_path / ".lock").exists() and OutputFolder(tmp_path, "run").is_empty
    with held(tmp_path):
        pass
