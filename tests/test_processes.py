"""What a process does before it trains with others."""

import os
import time

from hf_recipes.processes import mind_unfinished_builds


def test_locks_of_killed_compilers_are_named_and_old_ones_removed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    locks = {}
    for name, age in (("new", 0), ("recent", 60), ("old", 3600)):
        (tmp_path / name).mkdir()
        locks[name] = tmp_path / name / "lock"
        locks[name].touch()
        os.utime(locks[name], (time.time() - age,) * 2)
    mind_unfinished_builds()
    assert [name for name, lock in locks.items() if lock.exists()] == ["new", "recent"]
    assert capsys.readouterr().out.splitlines() == [
        f"waiting for a compiler that has {locks['recent']}; if none is running, delete that file"
    ]
