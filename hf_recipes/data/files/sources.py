"""Where data comes from: files, folders, globs and data sets of hubs, with their digests and encodings."""

import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path
from zlib import crc32

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.ledger import LEDGER
from hf_recipes.data.files.dataset_info import resolve
from hf_recipes.data.files.encodings import known_encoding
from hf_recipes.data.files.file_io import (
    CHUNK,
    digest_and_encoding,
    is_text,
    open_binary,
    sniff_file,
    uncompressed_name,
)
from hf_recipes.data.files.hub_data import load_hub
from hf_recipes.data.files.records import note_of, read_records
from hf_recipes.data.files.source import Draw, Source
from hf_recipes.data.files.specs import KNOWN, SUFFIXES, Spec, matches, parse_spec
from hf_recipes.data.files.text_rows import ENTRY

SEED = 42  # transformers' default

# The word of a name, between marks or numbers, that says which split a file is.
_SPLIT = re.compile(
    r"(?:^|[\W_])(train|training|dev|devel|valid|validation|val|eval|evaluation|test|testing)(?=$|[\W_])", re.IGNORECASE
)
_CARDS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", LEDGER)


def find_sources(
    specs: Sequence[str],
    split: str = "train",
    cache_dir: str | None = None,
    sniff: bool = False,
    txt: str | None = "lines",
    encoding: str | None = None,
    all_splits: bool = False,
    seed: int = SEED,
) -> list[Source]:
    """Expand files, globs, folders (recursively, in sorted order) and data sets of hubs; see `parse_spec`.

    A file that is reached twice is read once. In a folder with files of several splits (``train.jsonl``,
    ``dev.jsonl``), only those of `split` are read.

    Args:
        split: the one to read of a data set on a hub that names none itself.
        sniff: digest and encoding are those of the beginning of a file, which is not read to its end.
        txt: what a row of a .txt file is: one of the ``"lines"``, what is between lines that are ``"blank"``, or an
            ``"entry"``, which begins with a line ``词条：…``; None for what the beginning of the file looks like.
        encoding: of text files; None for the one that fits.
        all_splits: read all files of a folder.
        seed: by which rows are sampled.
    """
    sources: list[Source] = []
    known: dict[tuple, Spec] = {}
    encoding = known_encoding(encoding) if encoding else None
    parsed = [parse_spec(spec) for spec in specs]
    for name, (spec, layout) in zip(_distinct_names(parsed), map(resolve, parsed), strict=True):
        if spec.hub:
            of_spec = [_hub_source(spec.path, spec.split or split, cache_dir)]
        else:
            paths = _paths(spec.path, spec.split or split, all_splits)
            of_spec = [_file_source(path, sniff, txt, encoding) for path in paths]
        new = []
        for source in of_spec:
            other = known.setdefault((os.path.realpath(source.path), source.split, layout), spec)
            if other is not spec and (spec.amount, other.amount) != (None, None):
                raise UserError(f"{spec.text}: {source.path} is read by {other.text} already; name it once")
            if other is spec:
                digest = f"{source.digest} {layout.digest}" if layout else source.digest
                new.append(replace(source, name=name, layout=layout, digest=digest))
        sources += new if spec.amount is None else _drawn(spec, new, seed)
    return sources


def _paths(path: str, split: str, all_splits: bool) -> list[str]:
    if os.path.isdir(path):
        paths = _files_in(path)
        if not paths:
            raise UserError(f"{path}: no data file in this folder (looked for {KNOWN})")
        return paths if all_splits else _of_split(path, paths, split)
    paths = [path] if os.path.isfile(path) else matches(path)
    unique: dict[str, str] = {}
    for each in paths:
        unique.setdefault(os.path.realpath(each), each)
    return list(unique.values())


def _drawn(spec: Spec, sources: list[Source], seed: int) -> list[Source]:
    """The sources with the rows that `Spec.amount` draws of all of them together."""
    sizes = [sum(1 for _ in read_records(source)) for source in sources]
    rows = sum(sizes)
    count = spec.amount if isinstance(spec.amount, int) else round(spec.amount * rows)
    if not count:
        raise UserError(f"{spec.text}: that is none of its {rows:,} rows; name more, or leave it out")
    key = seed << 32 | crc32(sources[0].name.encode())  # files of one size have other rows each
    draws = [Draw(key, rows, count, sum(sizes[:index]), size) for index, size in enumerate(sizes)]
    return [
        replace(source, draw=draw, digest=f"{source.digest} {' '.join(map(str, astuple(draw)))}")
        for source, draw in zip(sources, draws, strict=True)
        if draw.sampled
    ]


def source_names(specs: Sequence[str]) -> list[str]:
    """The names of the sources that are found for these."""
    return _distinct_names([parse_spec(spec) for spec in specs])


def _distinct_names(specs: Sequence[Spec]) -> list[str]:
    """The names of sources, with the folder before those that several have."""
    counts = Counter(spec.name for spec in specs)
    names = [
        spec.name if counts[spec.name] == 1 else f"{os.path.basename(os.path.dirname(spec.path))}/{spec.name}"
        for spec in specs
    ]
    return names if len(set(names)) == len(names) else [spec.text for spec in specs]


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


def _hub_source(path: str, split: str, cache_dir: str | None) -> Source:
    return Source(path, load_hub(path, split, cache_dir)._fingerprint, split=split, cache_dir=cache_dir)


def _file_source(path: str, sniff: bool, txt: str | None, encoding: str | None) -> Source:
    if not path.lower().endswith(SUFFIXES):
        hint = "; save its sheet as csv (UTF-8)" if path.lower().endswith((".xlsx", ".xls")) else ""
        raise UserError(f"{path}: unknown file type{hint}; known are {KNOWN}")
    if not is_text(path):
        raise UserError(
            f"{path}: its name is not {sys.getfilesystemencoding()} text; rename it, or run with PYTHONUTF8=1"
        )
    if os.path.getsize(path) == 0:
        raise UserError(f"{path}: the file is empty")
    digest, detected = sniff_file(path) if sniff else digest_and_encoding(path, encoding)
    source = Source(path, digest, encoding or detected, txt=txt or _txt_rows(path, encoding or detected))
    return replace(source, note=note_of(source))


def _txt_rows(path: str, encoding: str) -> str:
    """What the rows of a .txt file are, by its first MiB."""
    if not uncompressed_name(path).endswith(".txt"):
        return "lines"
    with open_binary(path) as file:
        text = file.read(CHUNK).decode(encoding, "replace").removeprefix("\ufeff").strip()
    if ENTRY.match(text):
        return "entry"
    return "blank" if re.search(r"\n[ \t\r\u3000]*\n", text) else "lines"
