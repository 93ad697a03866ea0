"""The folder of a corpus: whose it is, what was begun in it, and files in it that are whole or absent."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hf_recipes.core.errors import UserError
from hf_recipes.core.files import is_empty, locked, write_json
from hf_recipes.core.ledger import LEDGER
from hf_recipes.data.pretraining.corpora import SHARDS

_SHARD = re.compile(rf"part-\d+\.(jsonl\.zst|npy|ends\.npy)|{re.escape(SHARDS)}")


@contextlib.contextmanager
def entered(out: Path, work: Path, state: dict, overwrite: bool) -> Iterator[None]:
    """The folder is this run's: locked, and with no other run's work in it."""
    known = work / "state.json"
    if out.exists() and not out.is_dir():
        raise UserError(f"--output_dir {out}: this is a file")
    if out.is_dir() and not is_empty(out) and not _is_ours(work):
        raise UserError(f"--output_dir {out}: the folder is not empty and holds no corpus; name another")
    busy = f"--output_dir {out}: another process is at work on it; wait for it or end it"
    with locked(work / "lock", busy):
        before = json.loads(known.read_text(encoding="utf-8")) if known.exists() else None
        if before is not None and overwrite:
            former = _former(out, before["sources"])
            for path in former:
                path.unlink()
            for folder in {path.parent for path in former} - {out}:
                folder.rmdir()
        if before is not None and not overwrite:
            _compare(out, before, state)
        else:
            clear(work)
            write_json(known, {**state, "sources": []}, indent=1)
        yield


def _is_ours(work: Path) -> bool:
    """Whether a run began here: one that was killed before it wrote its state has left the lock alone."""
    if work.is_symlink() or not work.is_dir():
        return False
    return (work / "state.json").is_file() or {path.name for path in work.iterdir()} <= {"lock"}


def _former(out: Path, sources: list[str]) -> list[Path]:
    """The files of a former corpus.

    Raises:
        UserError: a link, or something else that no corpus has, is where they would be deleted.
    """
    found = [path for name in (LEDGER, "run_config.yaml") if os.path.lexists(path := out / name)]
    found += [path for name in sources if (out / name).is_dir() for path in sorted((out / name).iterdir())]
    for path in [*found, *(out / name for name in sources)]:
        if path.is_symlink():
            raise UserError(f"{path}: a link, and what it leads to is not deleted; remove it to start over")
    for path in found:
        if path.parent != out and not _SHARD.fullmatch(path.name):
            raise UserError(f"{path}: not of the corpus that was made here; move it away to start over")
    return found


def _compare(out: Path, before: dict, now: dict) -> None:
    changed = [
        f"--{name} {now['settings'].get(name)!r}, was {value!r}"
        for name, value in before["settings"].items()
        if now["settings"].get(name) != value
    ]
    paths = {**before["inputs"], **now["inputs"]}
    for path in paths:
        known = now["inputs"].get(path)
        if before["inputs"].get(path) != known:
            # See `glance_at`.
            changed.append(f"{path} {'was written or touched' if known and '-' in known.split()[0] else 'changed'}")
    if changed:
        raise UserError(
            f"--output_dir {out}: begun with other settings or files ({'; '.join(changed[:3])}); give those, name "
            "another folder, or start over with --overwrite_output_dir"
        )


def once(path: Path, make: Callable[[], Any]) -> Any:
    """The JSON value in `path`, which `make` gives the first time."""
    if not path.exists():
        write_json(path, make(), indent=1)
    return json.loads(path.read_text(encoding="utf-8"))


def clear(work: Path) -> None:
    """Leave of the work what tells whose the folder is."""
    for path in work.iterdir():
        if path.name not in ("lock", "state.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
