"""Where data comes from: files, folders, globs and Hub ids, with their digests and encodings."""

import difflib
import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import disk_problem
from hf_recipes.core.ledger import LEDGER
from hf_recipes.data.files.encodings import encoding_name, known_encoding
from hf_recipes.data.files.file_io import CHUNK, COMPRESSED, TEXT_SUFFIXES, digest_and_encoding, open_binary, sniff_file

SUFFIXES = (*TEXT_SUFFIXES, *(s + z for s in TEXT_SUFFIXES for z in COMPRESSED), ".parquet", ".arrow")
ENDINGS = (
    "json",
    "jsonl",
    "ndjson",
    "csv",
    "tsv",
    "txt",
    "parquet",
    "arrow",
    "gz",
    "zst",
    "zip",
    "xlsx",
)  # of paths, not of Hub ids


# The word of a name, between marks or numbers, that says which split a file is.
_SPLIT = re.compile(
    r"(?:^|[\W_])(train|training|dev|devel|valid|validation|val|eval|evaluation|test|testing)(?=$|[\W_])", re.IGNORECASE
)
_CARDS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", LEDGER)


@dataclass(frozen=True)
class Source:
    """A file, or a split of a Hub data set, with the digest of its content (so that no cache can go stale)."""

    path: str
    digest: str
    encoding: str = "utf-8"
    split: str | None = None
    cache_dir: str | None = None
    txt: str = "lines"

    @property
    def encoding_text(self) -> str:
        """The encoding in words; empty for UTF-8."""
        return "" if self.encoding.startswith("utf-8") else f"{encoding_name(self.encoding)} text"


def find_sources(
    specs: Sequence[str],
    split: str = "train",
    cache_dir: str | None = None,
    sniff: bool = False,
    txt: str | None = "lines",
    encoding: str | None = None,
    all_splits: bool = False,
) -> list[Source]:
    """Expand files, globs, folders (recursively, in sorted order) and Hub ids.

    A file that is reached twice is read once. In a folder with files of several splits (``train.jsonl``,
    ``dev.jsonl``), only those of `split` are read.

    Args:
        split: the one to read of a Hub id ``owner/name``; ``owner/name:split`` names it itself.
        sniff: digest and encoding are those of the beginning of a file, which is not read to its end.
        txt: what a row of a .txt file is: one of the ``"lines"``, what is between lines that are ``"blank"``, or an
            ``"entry"``, which begins with a line ``词条：…``; None for what the beginning of the file looks like.
        encoding: of text files; None for the one that fits.
        all_splits: read all files of a folder.
    """
    sources: list[Source] = []
    known: set[str] = set()
    encoding = known_encoding(encoding) if encoding else None
    for spec in specs:
        if os.path.isdir(spec):
            paths = _files_in(spec)
            paths = paths if all_splits else _of_split(spec, paths, split)
            if not paths:
                raise UserError(f"{spec}: no data file in this folder (looked for {', '.join(SUFFIXES)})")
        elif os.path.isfile(spec):
            paths = [spec]
        else:
            paths = sorted(path for path in glob.glob(spec, recursive=True) if os.path.isfile(path))
        if not paths:
            if not _names_hub_data(spec):
                raise UserError(f"{spec}: no such file, folder or glob")
            sources.append(_hub_source(spec, split, cache_dir))
        paths = [path for path in paths if os.path.realpath(path) not in known]
        known.update(map(os.path.realpath, paths))
        sources += [_file_source(path, sniff, txt, encoding) for path in paths]
    return sources


def source_name(path: str) -> str:
    """The name of a file, folder or Hub id as a source: the end of its path, without the ending of a data file."""
    name = os.path.basename(os.path.normpath(path))
    endings = sorted(SUFFIXES, key=len, reverse=True)
    ending = next((ending for ending in endings if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)] or name


def is_data(path: Path) -> bool:
    """Whether a file in a folder is data, not a program's own, hidden, or a description of the folder."""
    name = path.name
    is_own = name.startswith((".", "~$")) or name in _CARDS
    return name.lower().endswith(SUFFIXES) and not is_own and path.is_file()


def _files_in(folder: str) -> list[str]:
    """The data files in a folder and in those in it, linked ones too, in sorted order; each once."""
    paths, folders, files = [], set(), set()
    for parent, names, entries in os.walk(folder, followlinks=True):
        folders.add(os.path.realpath(parent))
        names[:] = sorted(
            name
            for name in names
            if not name.startswith(".") and os.path.realpath(os.path.join(parent, name)) not in folders
        )
        paths += [os.path.join(parent, name) for name in entries if is_data(Path(parent, name))]
    # Of two names of one file, that which is no link.
    by_name = sorted(paths, key=lambda path: (os.path.islink(path), path))
    unique = [path for path in by_name if (real := os.path.realpath(path)) not in files and not files.add(real)]
    return sorted(unique)


def _of_split(folder: str, paths: list[str], split: str) -> list[str]:
    """The files of a split, and those of none, where the names say that there are several splits."""
    splits = {path: _split_of(os.path.relpath(path, folder)) for path in paths}
    if "train" not in splits.values() or set(splits.values()) <= {"train", None}:
        return paths
    chosen = [path for path in paths if splits[path] in ((split, None) if split == "train" else (split,))]
    left_out = [os.path.relpath(path, folder) for path in paths if path not in chosen]
    if not chosen:
        return paths
    hint = "; --validation_file names one" if split == "train" and "validation" in splits.values() else ""
    say(f"{folder}: read for {split}; not read: {', '.join(left_out)}{hint}")
    return chosen


def _split_of(path: str) -> str | None:
    words = _SPLIT.findall(re.sub(r"\.\w+$", "", path))
    word = words[-1].lower() if words else ""
    return {"t": "train" if word.startswith("tr") else "test", "": None}.get(word[:1], "validation")


def _names_hub_data(spec: str) -> bool:
    """Whether `spec` can only be a Hub id: not in a folder that exists, and without (nearly) a data file's ending."""
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+(:\w+)?", spec) or os.path.isdir(spec.split("/")[0]):
        return False
    ending = os.path.splitext(spec)[1].lower().lstrip(".")
    return not difflib.get_close_matches(ending, ENDINGS, cutoff=0.6)


def _hub_source(spec: str, split: str, cache_dir: str | None) -> Source:
    name, _, named_split = spec.partition(":")
    split = named_split or split
    return Source(name, load_hub(name, split, cache_dir)._fingerprint, split=split, cache_dir=cache_dir)


def load_hub(name: str, split: str, cache_dir: str | None):
    from datasets import get_dataset_split_names, load_dataset

    try:
        splits = get_dataset_split_names(name)
        if split in splits:
            return load_dataset(name, split=split, cache_dir=cache_dir)
    except Exception as error:  # the Hub client raises a dozen kinds; all mean the same to the user
        if problem := disk_problem(error):
            raise UserError(f"{name}: cannot be kept in the cache ({problem}); see to --cache_dir") from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{name}: neither a local file or folder, nor to be had from the Hub ({reason})") from None
    raise UserError(f"{name}: it has no split {split!r}; there are {', '.join(splits)}: name one as {name}:{splits[0]}")


def _file_source(path: str, sniff: bool, txt: str | None, encoding: str | None) -> Source:
    if not path.lower().endswith(SUFFIXES):
        hint = "; save its sheet as csv (UTF-8)" if path.lower().endswith((".xlsx", ".xls")) else ""
        raise UserError(f"{path}: unknown file type{hint}; known are {', '.join(SUFFIXES)}")
    if os.path.getsize(path) == 0:
        raise UserError(f"{path}: the file is empty")
    digest, detected = sniff_file(path) if sniff else digest_and_encoding(path, encoding)
    encoding = encoding or detected
    return Source(path, digest, encoding, txt=txt or _txt_rows(path, encoding))


ENTRY = re.compile(r"词条\s*[：:]")


def _txt_rows(path: str, encoding: str) -> str:
    """What the rows of a .txt file are, by its first MiB."""
    if not re.search(r"\.txt(\.gz|\.zst)?$", path.lower()):
        return "lines"
    with open_binary(path) as file:
        text = file.read(CHUNK).decode(encoding, "replace").removeprefix("\ufeff").strip()
    if ENTRY.match(text):
        return "entry"
    return "blank" if re.search(r"\n[ \t\r\u3000]*\n", text) else "lines"
