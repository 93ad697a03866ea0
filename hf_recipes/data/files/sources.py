"""Where data comes from: files, folders, globs and Hub ids, with their digests and encodings."""

import difflib
import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_recipes.core.errors import UserError
from hf_recipes.core.files import disk_problem
from hf_recipes.core.ledger import LEDGER
from hf_recipes.data.files.file_io import CHUNK, COMPRESSED, TEXT_SUFFIXES, digest_and_encoding, open_binary, sniff_file

SUFFIXES = (*TEXT_SUFFIXES, *(s + z for s in TEXT_SUFFIXES for z in COMPRESSED), ".parquet")
ENDINGS = ("json", "jsonl", "csv", "tsv", "txt", "parquet", "gz", "zst", "zip", "xlsx")  # of paths, not of Hub ids


NAMES = {
    "gb18030": "GB18030",
    "cp932": "Shift-JIS (cp932)",
    "big5hkscs": "Big5",
    "euc_jis_2004": "EUC-JP",
    "cp949": "EUC-KR (cp949)",
    "utf-16": "UTF-16",
}


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
        return "" if self.encoding.startswith("utf-8") else f"{NAMES.get(self.encoding, self.encoding)} text"


def find_sources(
    specs: Sequence[str],
    split: str = "train",
    cache_dir: str | None = None,
    sniff: bool = False,
    txt: str | None = "lines",
) -> list[Source]:
    """Expand files, globs, folders (recursively, in sorted order) and Hub ids.

    Args:
        split: the one to read of a Hub id ``owner/name``; ``owner/name:split`` names it itself.
        sniff: digest and encoding are those of the beginning of a file, which is not read to its end.
        txt: what a row of a .txt file is: one of the ``"lines"``, what is between lines that are ``"blank"``, or an
            ``"entry"``, which begins with a line ``词条：…``; None for what the beginning of the file looks like.
    """
    sources = []
    for spec in specs:
        if os.path.isdir(spec):
            paths = sorted(str(path) for path in Path(spec).rglob("*") if is_data(path))
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
        sources += [_file_source(path, sniff, txt) for path in paths]
    return sources


def source_name(path: str) -> str:
    """The name of a file, folder or Hub id as a source: the end of its path, without the ending of a data file."""
    name = os.path.basename(os.path.normpath(path))
    ending = next((ending for ending in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(ending)), "")
    return name.removesuffix(ending) or name


def is_data(path: Path) -> bool:
    """Whether a file in a folder of data is data; the ledger of how the folder was made is not."""
    return path.name.endswith(SUFFIXES) and path.name != LEDGER and path.is_file()


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


def _file_source(path: str, sniff: bool, txt: str | None) -> Source:
    if not path.endswith(SUFFIXES):
        raise UserError(f"{path}: unknown file type; known are {', '.join(SUFFIXES)}")
    if os.path.getsize(path) == 0:
        raise UserError(f"{path}: the file is empty")
    digest, encoding = sniff_file(path) if sniff else digest_and_encoding(path)
    return Source(path, digest, encoding, txt=txt or _txt_rows(path, encoding))


ENTRY = re.compile(r"词条\s*[：:]")


def _txt_rows(path: str, encoding: str) -> str:
    """What the rows of a .txt file are, by its first MiB."""
    if not re.search(r"\.txt(\.gz|\.zst)?$", path):
        return "lines"
    with open_binary(path) as file:
        text = file.read(CHUNK).decode(encoding, "replace").removeprefix("\ufeff").strip()
    if ENTRY.match(text):
        return "entry"
    return "blank" if re.search(r"\n[ \t\r\u3000]*\n", text) else "lines"
