"""The folder of a corpus: whose it is, what was begun in it, and files in it that are whole or absent."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hf_recipes.core.files import locked, write_json
from hf_recipes.data.ledger import LEDGER
from hf_recipes.errors import UserError


@contextlib.contextmanager
def entered(out: Path, work: Path, state: dict, overwrite: bool) -> Iterator[None]:
    """The folder is this run's: locked, and with no other run's work in it."""
    known = work / "state.json"
    if out.exists() and not out.is_dir():
        raise UserError(f"--output_dir {out}: this is a file")
    if out.is_dir() and any(out.iterdir()) and not work.is_dir():
        raise UserError(f"--output_dir {out}: the folder is not empty and holds no corpus; name another")
    work.mkdir(parents=True, exist_ok=True)
    busy = f"--output_dir {out}: another process is at work on it; wait for it or end it"
    with locked(work / "lock", busy):
        before = json.loads(known.read_text(encoding="utf-8")) if known.exists() else None
        if before is not None and overwrite:
            for name in [*before["sources"], LEDGER, "run_config.yaml"]:
                path = out / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if before is not None and not overwrite:
            _compare(out, before, state)
        else:
            clear(work)
            write_json(known, {**state, "sources": []}, indent=1)
        yield


def _compare(out: Path, before: dict, now: dict) -> None:
    changed = [
        f"--{name} {now['settings'].get(name)!r}, was {value!r}"
        for name, value in before["settings"].items()
        if now["settings"].get(name) != value
    ]
    paths = {**before["inputs"], **now["inputs"]}
    changed += [f"{path} changed" for path in paths if before["inputs"].get(path) != now["inputs"].get(path)]
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
