"""A file of results that grows row by row, and that a later run with the same settings continues."""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import lock_of, locked, to_json, write_json, writing

SIDECAR = "generation_config.json"
OWNER = "output_file"  # key of the sidecar that names the file that it is about


class Results:
    """The rows of a jsonl file, appended and flushed after those that an earlier run with equal settings wrote.

    `settings` and `notes` are in `generation_config.json` next to the file (``NAME.generation_config.json`` if another
    file's has that name). A context manager; `count` is the number of rows that are there.

    Args:
        settings: plain values that the rows depend on. A file with other settings, or without any, is a UserError.
        notes: other entries of the sidecar.
        overwrite: start over.
        flags: of the path and of `overwrite`, for messages.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        settings: Mapping[str, Any],
        notes: Mapping[str, Any],
        overwrite: bool = False,
        flags: tuple[str, str] = ("--output_file", "--overwrite_output"),
    ):
        self.path, self.count, self._flags = Path(path), 0, flags
        if self.path.is_dir():
            raise UserError(f"{flags[0]} {path}: this is a folder; name a file in it")
        self.sidecar = _sidecar_of(self.path)
        settings = json.loads(to_json(settings))
        busy = f"{flags[0]} {path}: another process is writing it; wait for its end"
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._writing())
            stack.enter_context(locked(lock_of(self.path), busy))
            self._file = stack.enter_context(open(self.path, "r+b" if self.path.exists() else "w+b"))
            size = os.fstat(self._file.fileno()).st_size
            if size and not self.sidecar.is_file():
                raise UserError(
                    f"{flags[0]} {path}: it is there, with no {SIDECAR} that tells its settings, so it is not an "
                    f"earlier run's, and is left as it is; choose another {flags[0]}"
                )
            if overwrite:
                self._file.truncate(0)
            elif size:
                self._check(settings)
                self._find_end()
            write_json(self.sidecar, {OWNER: self.path.name, **settings, **notes})
            self._stack = stack.pop_all()

    def __enter__(self) -> "Results":
        return self

    def __exit__(self, *unused) -> None:
        with contextlib.suppress(OSError):  # which `append` has raised already
            self._stack.close()

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return writing(f"{self._flags[0]} {self.path}")

    def _check(self, settings: Mapping[str, Any]) -> None:
        other = f"choose another {self._flags[0]}, or start over with {self._flags[1]}"
        known = json.loads(self.sidecar.read_text(encoding="utf-8"))
        changed = [
            f"{key} {json.dumps(known.get(key), ensure_ascii=False)}, now {json.dumps(value, ensure_ascii=False)}"
            for key, value in settings.items()
            if known.get(key) != value
        ]
        if changed:
            raise UserError(f"{self._flags[0]} {self.path}: it was begun with {'; '.join(changed)}: {other}")

    def _find_end(self) -> None:
        """Count the rows up to the first line that is cut or no JSON object, and remove all from there on."""
        end = 0
        for line in self._file:
            try:
                if not line.endswith(b"\n") or not isinstance(json.loads(line), dict):
                    break
            except ValueError:
                break
            end, self.count = end + len(line), self.count + 1
        if end < os.fstat(self._file.fileno()).st_size:
            say(f"{self.path}:{self.count + 1}: this line was cut short; it is written again")
            self._file.truncate(end)
        self._file.seek(end)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        lines = (to_json(row, default=str) + "\n" for row in rows)
        with self._writing():
            self._file.write("".join(lines).encode())
            self._file.flush()
        self.count += len(rows)


def recorded_settings(path: str | os.PathLike) -> dict[str, Any]:
    """The settings and notes next to the results at `path`; empty where there are none."""
    try:
        recorded = json.loads(_sidecar_of(Path(path)).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return recorded if isinstance(recorded, dict) and recorded.get(OWNER) == Path(path).name else {}


def _sidecar_of(path: Path) -> Path:
    common, separate = path.with_name(SIDECAR), path.with_name(f"{path.name}.{SIDECAR}")
    if separate.is_file() or not common.is_file():
        return separate if separate.is_file() else common
    try:
        owner = json.loads(common.read_text(encoding="utf-8")).get(OWNER)
    except (ValueError, AttributeError):
        owner = None
    return common if owner == path.name else separate
