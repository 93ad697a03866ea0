import errno
import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from hf_recipes.core import files
from hf_recipes.core.errors import UserError

HOLD = """
import os, sys, time
from hf_recipes.core.files import locked
with locked(sys.argv[1], "busy"):
    if os.fork() == 0:  # as a loader of data, which outlives it for a moment
        time.sleep(90)
        os._exit(0)
    print("held", flush=True)
    time.sleep(30)
"""


def test_a_lock_is_refused_to_a_second_process_and_free_as_soon_as_the_first_is_killed(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "lock"], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=r"^busy$"), files.locked(tmp_path / "lock", "busy"):
            pass
        holder.kill()
        holder.wait()
        with files.locked(tmp_path / "lock", "busy", wait=20):  # less than its child sleeps
            pass
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.stdout.close()


def test_lock_files_do_not_make_a_folder_one_in_use(tmp_path, capsys):
    out = tmp_path / "out"
    lock = files.lock_of(out / "a.jsonl")
    assert lock == out / ".a.jsonl.lock"
    with files.locked(lock, ""), files.locked(files.lock_of(out), ""):
        pass
    assert files.is_empty(out) and sorted(os.listdir(tmp_path)) == [".out.lock", "out"]
    with files.new_folder(out) as partial:
        (partial / "x").touch()
    assert os.listdir(out) == ["x"] and not files.is_empty(out)


def test_whoever_waits_for_a_lock_says_so(tmp_path, capsys):
    with files.locked(tmp_path / "lock", ""):
        second = threading.Thread(target=lambda: files.locked(tmp_path / "lock", "busy", wait=-1).__enter__())
        second.start()
        out = ""
        while out != "busy\n":
            second.join(0.02)
            out += capsys.readouterr().out
            assert second.is_alive() and "busy\n".startswith(out)
    second.join(60)
    assert not second.is_alive()


def test_a_lock_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/lock: cannot be locked"), files.locked(tmp_path / "file/lock", ""):
        pass


def test_a_file_is_replaced_whole_or_stays(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"一": 1})
    assert path.read_text(encoding="utf-8") == '{\n  "一": 1\n}\n'
    with pytest.raises(RuntimeError), files.new_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text(encoding="utf-8")) == {"一": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), files.new_folder(tmp_path / "b/out") as partial:
        (partial / "x").touch()
        raise RuntimeError
    assert os.listdir(tmp_path / "b") == []
    with files.new_folder(tmp_path / "b/out") as partial:
        (partial / "x").touch()
    assert os.listdir(tmp_path / "b") == ["out"] and os.listdir(tmp_path / "b/out") == ["x"]
    with pytest.raises(OSError), files.new_folder(tmp_path / "b/out") as partial:
        (partial / "y").touch()
    assert os.listdir(tmp_path / "b") == ["out"] and os.listdir(tmp_path / "b/out") == ["x"]


def test_weights_have_the_mode_of_other_files(tmp_path):
    from safetensors.numpy import save_file

    with files.new_folder(tmp_path / "out") as partial:
        (partial / "config.json").touch()
        (partial / "sub").mkdir()
        for name in ("a.safetensors", "sub/b.safetensors"):
            save_file({}, partial / name)
    usual = (tmp_path / "out/config.json").stat().st_mode
    assert sorted(os.listdir(tmp_path / "out")) == ["a.safetensors", "config.json", "sub"]
    assert all(path.stat().st_mode == usual for path in (tmp_path / "out").rglob("*.safetensors"))


def test_what_a_killed_writer_left_is_removed_and_that_of_a_living_one_stays(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = files.socket.gethostname()
    abandoned = tmp_path / f"o*ut.partial-{host}-{dead.pid}-0a"
    abandoned.mkdir()
    kept = [f"o*ut.partial-{host}-{os.getpid()}-0a", f"o*ut.partial-elsewhere-{dead.pid}-0a", f"other-{dead.pid}"]
    for name in kept:
        (tmp_path / name).mkdir()
    files.write_text(tmp_path / "o*ut", "")
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "o*ut"])


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_no_json_holds_what_is_not_json(number, tmp_path):
    files.write_json(tmp_path / "a", {"loss": [number, 1.5], "步": {1: number}})
    files.write_jsonl(tmp_path / "b", [{"loss": number}, {"loss": 2}])

    def refuse(name):
        raise AssertionError(name)

    value = json.loads((tmp_path / "a").read_text(encoding="utf-8"), parse_constant=refuse)
    assert value == {"loss": [None, 1.5], "步": {"1": None}}
    assert (tmp_path / "b").read_text(encoding="utf-8") == '{"loss": null}\n{"loss": 2}\n'


def test_a_full_disk_is_known_by_whatever_names_it():
    def chain(outer, inner):
        outer.__context__ = inner
        return outer

    full = OSError(errno.ENOSPC, "No space left on device")
    torch_says = "[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0"
    for error in (
        full,
        RuntimeError(torch_says),
        RuntimeError("basic_ios::clear: iostream error"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        chain(RuntimeError("something of a library"), full),
        chain(ValueError("x"), chain(RuntimeError("y"), RuntimeError(torch_says))),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "run/metrics.json"),  # the folder was deleted
    ):
        assert files.disk_problem(error)
    unknown = FileNotFoundError("Couldn't find 'nobody/none' on the Hub")  # as clients of a hub say it
    for error in (ValueError("x"), chain(KeyError("a"), FileNotFoundError()), ConnectionError("refused"), unknown):
        assert files.disk_problem(error) is None


def test_a_disk_that_cannot_be_written_is_one_sentence():
    sentence = r"^--cache_dir x: cannot be written \(Read-only file system: x/a\); make room"
    with pytest.raises(UserError, match=sentence), files.writing("--cache_dir x"):
        raise OSError(errno.EROFS, "Read-only file system", "x/a")
    with pytest.raises(ZeroDivisionError), files.writing("--cache_dir x"):
        raise ZeroDivisionError
    with pytest.raises(UserError, match=r"^mine$"), files.writing("--cache_dir x"):
        raise UserError("mine")


def test_what_is_no_text_is_written_as_escapes(tmp_path):
    value = {"path": "\udcca\udcfd.jsonl"}  # a file name in GBK
    files.write_json(tmp_path / "a.json", value)
    files.write_jsonl(tmp_path / "a.jsonl", [value])
    for name in ("a.json", "a.jsonl"):
        assert json.loads((tmp_path / name).read_text(encoding="utf-8")) == value
