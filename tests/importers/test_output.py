"""The output folder: whole or absent."""

import os
import subprocess
import sys

import pytest

from hf_recipes.core.errors import UserError
from hf_recipes.importers.output import output_folder


def write(out, rows=1, overwrite=False, test_rows=0):
    with output_folder(str(out), overwrite) as folder:
        for name, count in (("train", rows), ("test", test_rows)):
            if count:
                (folder / f"{name}.jsonl").write_text("{}\n" * count)
        (folder / "data_ledger.json").write_text("{}")


def names(folder):
    """What is in a folder, but for the lock that stays."""
    return sorted(name for name in os.listdir(folder) if name != ".out.lock")


def test_files_take_their_place_at_the_end(tmp_path):
    out = tmp_path / "a" / "out"
    with output_folder(str(out), False) as folder:
        assert not out.exists() and folder.parent == tmp_path / "a"
        (folder / "train.jsonl").write_text("{}\n")
    assert [path.name for path in out.iterdir()] == ["train.jsonl"] and names(tmp_path / "a") == ["out"]


def test_nothing_is_left_of_a_failure(tmp_path):
    with pytest.raises(ZeroDivisionError), output_folder(str(tmp_path / "out"), False) as folder:
        (folder / "train.jsonl").write_text("{}\n")
        raise ZeroDivisionError
    assert names(tmp_path) == []


def test_overwriting_replaces_what_the_script_writes_and_nothing_else(tmp_path):
    out = tmp_path / "out"
    write(out, 3, test_rows=1)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="the folder is not empty"):
        write(out)
    write(out, 2, overwrite=True)
    assert sorted(os.listdir(out)) == ["data_ledger.json", "notes.txt", "train.jsonl"]
    assert len((out / "train.jsonl").read_text().splitlines()) == 2


def test_two_processes_on_one_folder(tmp_path):
    out = tmp_path / "out"
    code = f"""
from hf_recipes.importers.output import output_folder
with output_folder({str(out)!r}, False):
    print("in", flush=True)
    input()
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "in\n"
        with pytest.raises(UserError, match="another process is writing it"):
            write(out)
        first.kill()
    [left] = names(tmp_path)
    assert left.startswith("out.partial-")
    write(out)  # what the killed one left is no hindrance
    assert names(tmp_path) == ["out"]


def test_folders_that_are_not_ours(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="this is a file"):
        write(tmp_path / "file")
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine.txt").touch()
    write(tmp_path / "out")
    assert os.listdir(tmp_path / "out.partial") == ["mine.txt"]
    with pytest.raises(UserError, match=r"file/\.below\.lock: cannot be locked"):
        write(tmp_path / "file" / "below")
