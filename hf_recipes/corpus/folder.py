"""The folder of a corpus: its lock, and the settings and files of the run that began in it."""

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
def corpus_folder(out: Path, work: Path, state: dict, overwrite: bool) -> Iterator[None]:
    """Lock the folder; it must be new, or of a run of the same `state` (settings, inputs), or overwritten."""
    state_file = work / "state.json"
    if out.exists() and not out.is_dir():
        raise UserError(f"--output_dir {out}: this is a file")
    if out.is_dir() and not is_empty(out) and not _is_corpus(work):
        raise UserError(f"--output_dir {out}: the folder is not empty and holds no corpus; name another")
    busy = f"--output_dir {out}: another process is writing it; wait for it or end it"
    with locked(work / "lock", busy):
        before = json.loads(state_file.read_text(encoding="utf-8")) if state_file.exists() else None
        if before is not None and not overwrite:
            _compare(out, before, state)
        else:
            old_files = _old_files(out, before["sources"]) if before is not None else []
            for path in old_files:
                path.unlink()
            for folder in {path.parent for path in old_files} - {out}:
                folder.rmdir()
            clear_work(work)
            write_json(state_file, {**state, "sources": []}, indent=1)
        yield


def _is_corpus(work: Path) -> bool:
    """Whether a run began here; one that was killed before it wrote its state has left only the lock."""
    if work.is_symlink() or not work.is_dir():
        return False
    return (work / "state.json").is_file() or {path.name for path in work.iterdir()} <= {"lock"}


def _old_files(out: Path, sources: list[str]) -> list[Path]:
    """The files of an earlier corpus; a link or a file that no corpus has is an error."""
    files = [path for name in (LEDGER, "run_config.yaml") if os.path.lexists(path := out / name)]
    files += [path for name in sources if (out / name).is_dir() for path in sorted((out / name).iterdir())]
    for path in [*files, *(out / name for name in sources)]:
        if path.is_symlink():
            raise UserError(f"{path}: a link, and what it leads to is not deleted; remove it to start over")
    for path in files:
        if path.parent != out and not _SHARD.fullmatch(path.name):
            raise UserError(f"{path}: not of the corpus that was made here; move it away to start over")
    return files


def _compare(out: Path, before: dict, now: dict) -> None:
    changed = [
        f"--{name} {now['settings'].get(name)!r}, was {value!r}"
        for name, value in before["settings"].items()
        if now["settings"].get(name) != value
    ]
    for path in {**before["inputs"], **now["inputs"]}:
        digest = now["inputs"].get(path)
        if before["inputs"].get(path) != digest:
            by_date = digest and "-" in digest.split()[0]  # see `sniff_file`
            changed.append(f"{path} {'was written or touched' if by_date else 'changed'}")
    if changed:
        raise UserError(
            f"--output_dir {out}: begun with other settings or files ({'; '.join(changed[:3])}); give those, name "
            "another folder, or start over with --overwrite_output_dir"
        )


def cached_json(path: Path, make: Callable[[], Any]) -> Any:
    """The JSON value in `path`, written from `make()` the first time."""
    if not path.exists():
        write_json(path, make(), indent=1)
    return json.loads(path.read_text(encoding="utf-8"))


def clear_work(work: Path) -> None:
    """Delete everything but the lock and the state."""
    for path in work.iterdir():
        if path.name not in ("lock", "state.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
