"""The folders that the page may use, and uploads into them."""

import glob
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hf_recipes.apps.jobs.jobs import file_name
from hf_recipes.core.arguments.commands import bundled
from hf_recipes.core.errors import UserError
from hf_recipes.data.files.specs import MODELSCOPE, SUFFIXES
from hf_recipes.evaluation.reports.phrases import Phrase
from hf_recipes.models.adapters.saved_adapter import MERGE_RECORD

UPLOADS = "uploads"
# Of a data set that names other files by their paths.
REFUSED_NAMES = ("dataset_info.json",)
_AMOUNT = re.compile(r"([#*][\d.]+|:[\w.-]+)$")


class Roots:
    """Folders, by their real paths; relative paths are in the first."""

    def __init__(self, folders: Sequence[str]):
        self.folders = [Path(folder).resolve() for folder in folders]
        self.home = self.folders[0]

    def __contains__(self, path: Path) -> bool:
        real = Path(os.path.realpath(path))
        return any(real == folder or folder in real.parents for folder in self.folders)

    def inside(self, text: str) -> Path:
        """The path that `text` names, where it is in one of the folders, with all links followed."""
        path = self.home / text
        if text.startswith("~") or "\0" in text or path not in self:
            raise UserError(
                Phrase(
                    "{text}: outside of the folders that this page may use ({names}); see --root",
                    text=text,
                    names=self.names,
                )
            )
        return path

    @property
    def names(self) -> str:
        return ", ".join(map(str, self.folders))

    def relative(self, path: Path) -> str:
        """`path` as a command in the first folder names it."""
        return os.path.relpath(path, self.home) if self.home in (path, *path.parents) else str(path)

    def models(self) -> list[str]:
        """The models in the folder ``models``, merged ones last."""
        paths = self.home.glob("models/*/config.json")
        known = sorted((path.with_name(MERGE_RECORD).exists(), self.relative(path.parent)) for path in paths)
        return [name for _, name in known]

    def check(self, value: Any) -> None:
        """Refuse a setting with a path that leaves the folders, wherever in it the path is."""
        for text in _texts(value):
            for name in _names(text):
                if not self._is_bundled(name) and self._is_path(name):
                    self._check_files(name)

    def _is_path(self, name: str) -> bool:
        is_elsewhere = name.startswith(("/", "~", "\\")) or ".." in Path(name).parts or Path(name).is_absolute()
        return is_elsewhere or os.path.lexists(self.home / name) or glob.has_magic(name)

    def _is_bundled(self, name: str) -> bool:
        return name.startswith("configs/") and ".." not in Path(name).parts and bundled(name).exists()

    def _check_files(self, name: str) -> None:
        if glob.has_magic(name) and not os.path.lexists(self.home / name):
            self.inside(re.split(r"[*?\[]", name)[0] or ".")
            for path in glob.glob(name, root_dir=self.home, recursive=True):
                self._check_files(path)
            return
        path = self.inside(name)
        if path.is_dir():
            for folder, folders, files in os.walk(path):
                for link in (Path(folder, item) for item in (*folders, *files)):
                    if link.is_symlink() and link not in self:
                        raise UserError(
                            Phrase(
                                "{name}: has a link, {link}, to outside of the folders that may be used",
                                name=name,
                                link=link.name,
                            )
                        )

    def save_upload(self, path: Path, max_bytes: int) -> Path:
        """Move an uploaded file of data to ``uploads``; one that is refused is deleted."""
        try:
            name = file_name(path.name)
            if not name.lower().endswith((*SUFFIXES, ".xlsx", ".zip")) or name.lower() in REFUSED_NAMES:
                kinds = ", ".join(dict.fromkeys(suffix.lstrip(".") for suffix in SUFFIXES if suffix.count(".") == 1))
                raise UserError(Phrase("{name}: not a file of data; {kinds} or zip are", name=path.name, kinds=kinds))
            if not path.stat().st_size:
                raise UserError(Phrase("{name}: the file is empty", name=path.name))
            if path.stat().st_size > max_bytes:
                limit = {"name": path.name, "limit": max_bytes // 1_000_000}
                raise UserError(Phrase("{name}: larger than {limit} MB; see --max_upload_mb", **limit))
            if name.lower().endswith((".json", ".jsonl", ".csv", ".tsv", ".txt")) and b"\0" in path.read_bytes()[:4096]:
                raise UserError(Phrase("{name}: not text, although its name says so", name=path.name))
            folder = self.inside(UPLOADS)
            folder.mkdir(exist_ok=True)
            target = next(one for one in _versions(folder / name) if not one.exists() or _same(one, path))
            shutil.move(path, target)
            return target
        finally:
            path.unlink(missing_ok=True)


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and one.stat().st_size == other.stat().st_size and one.read_bytes() == other.read_bytes()


def _versions(path: Path) -> Iterator[Path]:
    yield path
    number = 2
    while True:
        yield path.with_name(f"{path.name.split('.')[0]}-{number}.{path.name.partition('.')[2]}")
        number += 1


def _texts(value: Any) -> Iterator[str]:
    """The texts in a setting, also in JSON that is its text."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, str):
        try:
            inner = json.loads(value) if value.lstrip().startswith(("{", "[")) else None
        except ValueError:
            inner = None
        yield from (value,) if inner is None else _texts(inner)
    elif isinstance(value, Iterable):
        for item in value:
            yield from _texts(item)


def _names(text: str) -> list[str]:
    """What of an argument may be a path: all of it, what follows ``name=``, and both without what to read of it."""
    names = [text, *(part for part in [text.partition("=")[2]] if part)]
    names = [name.removeprefix(MODELSCOPE) for name in names]
    return list(dict.fromkeys([*names, *(_AMOUNT.sub("", name) for name in names)]))
