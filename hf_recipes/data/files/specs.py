"""How data is named on a command line, in every stage and script."""

import difflib
import glob
import os
import re
from dataclasses import dataclass

from hf_recipes.core.errors import UserError
from hf_recipes.data.files.file_io import COMPRESSED, TEXT_SUFFIXES

SUFFIXES = (*TEXT_SUFFIXES, *(s + z for s in TEXT_SUFFIXES for z in COMPRESSED), ".parquet", ".arrow")
KNOWN = f"{', '.join((*TEXT_SUFFIXES, '.parquet', '.arrow'))}, those of text also with {', '.join(COMPRESSED)}"
# Endings of paths, not of ids on a hub.
ENDINGS = ("json", "jsonl", "ndjson", "csv", "tsv", "txt", "parquet", "arrow", "gz", "zst", "xz", "zip", "xlsx")
MODELSCOPE = "modelscope:"
DATA_HELP = "Files, globs, folders, or [modelscope:]owner/name[/subset][:split] on a hub"
_AMOUNT = re.compile(r"(.+?)(?:#(\d+)|\*(\d+(?:\.\d*)?|\.\d+))")
_HUB = re.compile(r"(\w[\w.-]*/[\w.-]+(?:/[\w.-]+)?)(?::([\w.-]+))?")


@dataclass(frozen=True)
class Spec:
    """What one argument names.

    Attributes:
        text: the argument.
        name: of the source that it is, in mixtures.
        path: of a file or folder, or a glob; of a data set on a hub its id and subset; of an `entry` the file that has
            it.
        amount: rows to draw, an int, or passes over all rows, a float; None for each row once.
        hub: whether `path` is on a hub, of which `split` is read where it is named.
        entry: a name in a ``dataset_info.json`` as LLaMA-Factory has it.
    """

    text: str
    name: str
    path: str
    amount: int | float | None = None
    hub: bool = False
    split: str | None = None
    entry: str | None = None


def parse_spec(text: str) -> Spec:
    """What an argument names: ``[name=]data[#rows | *passes]``.

    The data are a file, folder or glob; ``owner/name[/subset][:split]`` on the Hugging Face Hub, or on ModelScope with
    ``modelscope:`` in front; or ``folder/dataset_info.json:entry``. What exists under the whole argument is that.

    Raises:
        UserError: it names nothing of these.
    """
    if _exists(text):
        return Spec(text, source_name(text), text)
    data, amount = _with_amount(text)
    if _exists(data):
        return Spec(text, source_name(data), data, amount)
    name, sign, path = text.partition("=")
    if sign and name and path and not _is_hub(data):
        named = parse_spec(path)
        return Spec(text, name, named.path, named.amount, named.hub, named.split, named.entry)
    info = re.fullmatch(r"(.+\.json):([^:]+)", data)
    if info and os.path.isfile(info[1]):
        return Spec(text, info[2], info[1], amount, entry=info[2])
    if not _is_hub(data):
        raise UserError(f"{text}: no such file, folder or glob")
    path, split = _HUB.fullmatch(data.removeprefix(MODELSCOPE)).groups()
    prefix = MODELSCOPE if data.startswith(MODELSCOPE) else ""
    return Spec(text, path.split("/")[-1], prefix + path, amount, hub=True, split=split)


def entries_of(names: str, folder: str | None) -> list[str]:
    """The specs of entries, with commas between, of the ``dataset_info.json`` in a folder."""
    return [f"{os.path.join(folder or 'data', 'dataset_info.json')}:{name.strip()}" for name in names.split(",")]


def matches(pattern: str) -> list[str]:
    """The files that match a glob, sorted."""
    return sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))


def source_name(path: str) -> str:
    """The name of a file or folder as a source: the end of its path, without the ending of a data file."""
    name = os.path.basename(os.path.normpath(path))
    endings = sorted(SUFFIXES, key=len, reverse=True)
    ending = next((ending for ending in endings if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)] or name


def _exists(path: str) -> bool:
    return os.path.exists(path) or bool(glob.has_magic(path) and matches(path))


def _with_amount(text: str) -> tuple[str, int | float | None]:
    match = _AMOUNT.fullmatch(text)
    if not match:
        return text, None
    data, rows, passes = match.groups()
    return data, int(rows) if rows else float(passes)


def _is_hub(text: str) -> bool:
    """Whether `text` can only be an id on a hub: not in a folder that exists, and without (nearly) a file's ending."""
    if text.startswith(MODELSCOPE):
        return _HUB.fullmatch(text.removeprefix(MODELSCOPE)) is not None
    if not _HUB.fullmatch(text) or os.path.isdir(text.split("/")[0]):
        return False
    ending = os.path.splitext(text)[1].lower().lstrip(".")
    return not difflib.get_close_matches(ending, ENDINGS, cutoff=0.6)
