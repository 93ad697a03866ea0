"""An output folder that one process at a time writes to, with a record of the files that its writer made."""

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from hf_recipes.core.errors import UserError
from hf_recipes.core.files import is_empty, lock_of, locked, write_json, writing

RECORD, LOCK = ".run", ".lock"


@contextlib.contextmanager
def held(folder: str | os.PathLike, wait: float = 0.0) -> Iterator[None]:
    """Create `folder` and lock it, waiting up to `wait` seconds; a new folder that stays empty is removed."""
    folder = Path(folder)
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir {folder}: cannot be written to ({error.strerror})") from None
    busy = f"--output_dir {folder}: another process is writing to this folder; wait for its end, or name another folder"
    with locked(folder / LOCK, busy, wait):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink()  # a process that waits for this file notices, and creates another
                if is_new:
                    folder.rmdir()  # fails unless empty


@contextlib.contextmanager
def reserved(path: str | os.PathLike) -> Iterator[Path]:
    """Hold a folder that is to be new: absent or empty, and no other process's while this lasts."""
    target = Path(path)
    busy = f"--output_dir {target}: another process is writing to this folder; wait for its end, or name another folder"
    with locked(lock_of(target), busy), writing(f"--output_dir {target}"):
        if target.exists() and not (target.is_dir() and is_empty(target)):
            raise UserError(f"--output_dir {target}: there is something already; nothing is overwritten: name another")
        yield target


class OutputFolder:
    """The files of a folder, and those of them that an earlier writer of the same `kind` made.

    A file in the folder records `files` that the writer made, and `claims`: patterns of files that a writer may make.
    Claims are recorded before anything is written, so that the files of a killed process are known too; `settle`
    replaces them by the files that exist. Names are relative, with slashes; patterns are regular expressions of full
    names.

    Args:
        kind: of writer; a record of another kind counts as none.
        former: the claims of a writer whose record is lost; see `adopt`.
    """

    def __init__(self, path: str | os.PathLike, kind: str, former: Iterable[str] = ()):
        self.path, self.kind, self.former = Path(path), kind, list(former)
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--output_dir {path}: this is a file")
        self.record = self._read()

    def _read(self) -> dict[str, Any] | None:
        path = self.path / RECORD
        if path.is_symlink() or not path.is_file():
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if not all(isinstance(record[name], list) for name in ("files", "claims")):
                raise ValueError("files and claims are no lists")
            return {name: record[name] for name in ("kind", "launch", "files", "claims")}
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise UserError(
                f"--output_dir {self.path}: {RECORD} in it is no record of whose the files are "
                f"({type(error).__name__}: {error}); choose another folder, or move that file away"
            ) from None

    @property
    def is_mine(self) -> bool:
        """Whether there is a record of this kind of writer."""
        return self.record is not None and self.record["kind"] == self.kind

    def names(self) -> list[str]:
        """All files and links (which are not followed), without the record and the lock."""
        names: list[str] = []
        for folder, folders, files in os.walk(self.path):
            links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
            names += [Path(folder, name).relative_to(self.path).as_posix() for name in (*files, *links)]
        return sorted(n for n in names if n not in (RECORD, LOCK) and not n.startswith(f"{RECORD}.partial-"))

    @property
    def is_empty(self) -> bool:
        return not self.names() and not any(path.is_dir() for path in self.path.glob("*"))

    def recorded_files(self) -> list[str]:
        """The existing files that the writer made, by the record."""
        if not self.is_mine:
            return []
        files = set(self.record["files"])
        return [name for name in self.names() if name in files or _matches(self.record["claims"], name)]

    def others(self, claims: Iterable[str]) -> list[str]:
        """The files that the writer did not make, but that these `claims` match."""
        recorded, claims = set(self.recorded_files()), list(claims)
        return [name for name in self.names() if name not in recorded and self._is_claimed(claims, name)]

    def _is_claimed(self, claims: list[str], name: str) -> bool:
        if (self.path / name).is_symlink():  # a claim may match files behind a link to a folder
            claims, name = [claim.split("/")[0] for claim in claims], name.split("/")[0]
        return _matches(claims, name)

    def claim(self, claims: Iterable[str], launch: str | None = None) -> None:
        """Add patterns of files that are going to be written to the record."""
        former = self.record if self.is_mine else {"files": [], "claims": [], "launch": None}
        names = list(dict.fromkeys([*former["claims"], *claims]))
        launch = launch or former["launch"]
        self._write({"kind": self.kind, "launch": launch, "files": former["files"], "claims": names})

    def settle(self) -> None:
        """Replace the claims by the files that exist, so that files added later are not the writer's."""
        self._write({**self.record, "files": self.recorded_files(), "claims": []})

    def _write(self, record: dict[str, Any]) -> None:
        write_json(self.path / RECORD, record, indent=1)
        self.record = record

    def adopt(self) -> None:
        """Record the files that the `former` claims match as the writer's."""
        self.record = {"kind": self.kind, "launch": None, "files": [], "claims": self.former}

    def check_links(self) -> None:
        """Raise UserError for a link in place of a file or folder that a writer makes or has made."""
        if not self.is_mine:
            return
        files, claims = self.record["files"], [*self.record["claims"], *self.former]
        for name in self.names():
            is_claimed = self._is_claimed(claims, name) or any(f"{file}/".startswith(f"{name}/") for file in files)
            if is_claimed and (self.path / name).is_symlink():
                raise UserError(f"--output_dir {self.path}: {name} is a link, which is not followed; remove the link")

    def clear(self, keep: Iterable[str] = ()) -> None:
        """Delete the files of the earlier writer but `keep`, and folders that are then empty, after `check_links`."""
        if not self.is_mine:
            return
        self.check_links()
        names = [name for name in self.recorded_files() if name not in set(keep)]
        for name in names:
            (self.path / name).unlink()
        parents = {parent for name in names for parent in PurePosixPath(name).parents if parent.name}
        for parent in sorted(parents, key=lambda path: -len(path.parts)):
            with contextlib.suppress(OSError):
                (self.path / parent).rmdir()
        self._write({**self.record, "files": [], "claims": []})


def _matches(patterns: Iterable[str], name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)
