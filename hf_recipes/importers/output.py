"""The folder that an importer writes: whole or absent."""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import is_empty, lock_of, locked, move_folder, temporary_folder, to_json
from hf_recipes.core.folders import RECORD
from hf_recipes.core.ledger import LEDGER

SIDES = ("train", "test")
# In the order in which they take their place: the ledger tells that the rest is there.
WRITTEN = (*(f"{side}.jsonl" for side in SIDES), "run_config.yaml", LEDGER)
WORK = "work"  # within the partial folder, for what is not kept


@contextlib.contextmanager
def output_folder(output_dir: str, overwrite: bool) -> Iterator[Path]:
    """A folder beside `output_dir` to write `WRITTEN` to, which becomes `output_dir` when nothing was raised.

    With `overwrite`, the files of an earlier run in
    `output_dir` are replaced, and others stay.

    Raises:
        UserError: a folder that is not empty, cannot be written to, or that another process is writing.
    """
    out = Path(output_dir).resolve()
    if out.exists() and not out.is_dir():
        raise UserError(f"--output_dir {output_dir}: this is a file")
    if out.is_dir() and not is_empty(out) and not overwrite:
        raise UserError(
            f"--output_dir {output_dir}: the folder is not empty; name another, or replace what an earlier run wrote "
            "with --overwrite_output_dir"
        )
    busy = f"--output_dir {output_dir}: another process is writing it; wait for it, or name another folder"
    try:
        for name in set(WRITTEN) - _former(out):
            if os.path.lexists(out / name):
                raise UserError(f"--output_dir {output_dir}: no earlier run wrote {name} there; name another folder")
        with locked(lock_of(out), busy), temporary_folder(out) as partial:
            (partial / WORK).mkdir()
            yield partial
            shutil.rmtree(partial / WORK)
            _put(partial, out)
    except OSError as error:
        raise UserError(f"{error.filename or output_dir}: {error.strerror}") from None


def _former(out: Path) -> set[str]:
    """What an earlier import into `out` wrote: its ledger says that there was one, its settings whether it tested."""
    if (out / RECORD).exists() or not (out / LEDGER).is_file():  # the first is a training run's
        return set()
    try:
        settings = yaml.safe_load((out / "run_config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        settings = None
    has_no_test = isinstance(settings, dict) and settings.get("test_size") == 0
    return set(WRITTEN) - ({"test.jsonl"} if has_no_test else set())


def _put(partial: Path, out: Path) -> None:
    if not out.exists() or is_empty(out):
        move_folder(partial, out)
        return
    for name in reversed(WRITTEN):
        (out / name).unlink(missing_ok=True)
    for name in WRITTEN:
        if (partial / name).exists():
            os.replace(partial / name, out / name)


class Writer:
    """Writes examples to ``train.jsonl`` and ``test.jsonl``; a file is there if it has an example."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._files: dict[str, Any] = {}
        self.counts = dict.fromkeys(SIDES, 0)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *error) -> None:
        for file in self._files.values():
            file.close()

    def write(self, side: str, messages: Iterable[Mapping[str, str]], **columns: Any) -> None:
        if side not in self._files:
            self._files[side] = open(self._folder / f"{side}.jsonl", "w", encoding="utf-8")  # noqa: SIM115
        self._files[side].write(to_json({"messages": list(messages), **columns}) + "\n")
        self.counts[side] += 1


def say_counts(output_dir: str, counts: Mapping[str, int]) -> None:
    for side, count in counts.items():
        if count:
            say(f"{os.path.join(output_dir, side)}.jsonl: {count:,} example{'s' * (count > 1)}")
