"""What a process does before it trains with others."""

import multiprocessing
import os
import threading
import time

import pytest

from hf_recipes.core.distributed import compile_kernels, forking, private_shared_memory
from hf_recipes.core.errors import UserError
from hf_recipes.core.files import locked


@pytest.fixture
def locks(tmp_path, monkeypatch):
    """Locks of torch's, as compilers have left them so many seconds ago."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    found = {}
    for name, age in (("new", 0), ("recent", 60), ("old", 3600)):
        (tmp_path / name).mkdir()
        found[name] = tmp_path / name / "lock"
        found[name].touch()
        os.utime(found[name], (time.time() - age,) * 2)
    return found


def test_locks_of_other_programs_are_named_and_old_ones_removed(locks, capsys):
    compile_kernels([])
    assert [name for name, lock in locks.items() if lock.exists()] == ["new", "recent"]
    assert capsys.readouterr().out.splitlines() == [
        f"waiting for a compiler that has {locks['recent']}; if none is running, delete that file"
    ]


def test_locks_of_a_run_that_was_killed_while_it_compiled_are_removed(locks, tmp_path, capsys):
    (tmp_path / "hf_recipes.compiling").touch()
    compile_kernels([])
    assert not any(lock.exists() for lock in locks.values()) and capsys.readouterr().out == ""
    assert not (tmp_path / "hf_recipes.compiling").exists()


def test_environments_do_not_compile_each_others_kernels_anew(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.utils.cpp_extension.get_default_build_root", lambda: str(tmp_path))
    folders = set()
    for prefix in ("/one/.venv", "/two/.venv", "/one/.venv"):
        monkeypatch.setattr("sys.prefix", prefix)
        monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
        compile_kernels([])
        folders.add(os.environ["TORCH_EXTENSIONS_DIR"])
    assert folders == {str(path) for path in tmp_path.iterdir()} and len(folders) == 2


def test_kernels_are_compiled_by_one_process_at_a_time(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    with locked(tmp_path / ".hf_recipes.lock", ""):
        waits = threading.Thread(target=compile_kernels, args=([],))
        waits.start()
        out = ""
        while "waiting for another process" not in out:
            waits.join(0.02)
            out += capsys.readouterr().out
            assert waits.is_alive()
    waits.join(60)
    assert not waits.is_alive()


def test_what_a_killed_run_left_in_shared_memory_is_not_taken_for_ones_own(monkeypatch):
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", f"test{os.getpid()}"), ("RANK", "3")):
        monkeypatch.setenv(name, value)
    path = f"/dev/shm/deepspeed_allreduce_buffer_{os.getuid()}_127.0.0.1_test{os.getpid()}_3"
    with open(path, "w"):
        pass
    with private_shared_memory():
        assert not os.path.exists(path)


def test_several_processes_where_the_system_has_no_fork(monkeypatch):
    assert forking("--workers").get_start_method() == "fork"
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(UserError, match=r"--workers: several processes need fork, which this system lacks .* give 1"):
        forking("--workers")
