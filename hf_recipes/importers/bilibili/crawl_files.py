"""The files of a Bilibili crawl by MediaCrawler (https://github.com/NanmiCoder/MediaCrawler), of any age.

Contents: video_id, title, desc, nickname, user_id or creator_hash. Comments: comment_id, parent_comment_id, video_id,
content, like_count, nickname, user_id or creator_hash. Both as .json, .jsonl or .csv with "contents" or "comments" in
the file's name, or as the tables of a SQLite file, or the sheets of an Excel file. In a folder files of other
platforms are passed over.
"""

import contextlib
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tqdm import tqdm

from hf_recipes.core.errors import UserError, say
from hf_recipes.data.files.records import read_records
from hf_recipes.data.files.source import Record, Source
from hf_recipes.data.files.sources import find_sources, is_data

VIDEOS, COMMENTS = "videos", "comments"
# By a word in the file's name; csv files are called videos.
_KINDS = {"comment": COMMENTS, "content": VIDEOS, "video": VIDEOS}
_TABLES = {VIDEOS: "bilibili_video", COMMENTS: "bilibili_video_comment"}
_NEEDED = {VIDEOS: ("video_id", "title"), COMMENTS: ("comment_id", "video_id", "content")}
_SHEETS = {VIDEOS: "Contents", COMMENTS: "Comments"}
_SQLITE = (".db", ".sqlite", ".sqlite3")
# Columns that only crawls of other platforms have.
_OTHER_PLATFORMS = {
    "aweme_id": "Douyin",
    "note_id": "Xiaohongshu, Weibo or Tieba",
    "content_id": "Zhihu",
    "article_id": "Bilibili's articles",
    "viewd_count": "Kuaishou",
}
# MediaCrawler's folders of other platforms.
_FOLDERS = {"xhs", "dy", "douyin", "ks", "kuaishou", "wb", "weibo", "tieba", "zhihu"}
_VIDEO_ID = re.compile(r"\d{1,18}|[Bb][Vv]\w{10}")


@dataclass(frozen=True)
class _Part:
    """A part of a file that has several, by its name."""

    path: str
    name: str

    @property
    def location(self) -> str:
        return f"{self.path}/{self.name}"


class Table(_Part):
    """A table of a SQLite file."""

    def read(self) -> Iterator[Record]:
        with _sqlite(self.path) as connection:
            rows = connection.execute(f"SELECT rowid, * FROM {self.name}")
            columns = [column[0] for column in rows.description[1:]]
            for number, *values in rows:
                yield Record(f"{self.location}:{number}", dict(zip(columns, values, strict=True)))


@contextlib.contextmanager
def _sqlite(path: str) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(f"file:{quote(os.path.abspath(path))}?mode=ro", uri=True)
    try:
        yield connection
    except sqlite3.Error as error:
        raise UserError(f"{path}: cannot be read as SQLite ({error}); copy it again") from None
    finally:
        connection.close()


class Sheet(_Part):
    """A sheet of an Excel file. A text that begins with = is stored as a formula, and read as the text."""

    def read(self) -> Iterator[Record]:
        with _workbook(self.path) as book:
            rows = book[self.name].iter_rows(values_only=True)
            header = next(rows, ())
            for number, values in enumerate(rows, 2):
                if any(value is not None for value in values):
                    named = zip(header, values, strict=False)
                    row = {str(name): value for name, value in named if name is not None}
                    yield Record(f"{self.location}:{number}", row)


def _workbook(path: str) -> contextlib.closing:
    try:
        import openpyxl
    except ImportError:
        raise UserError(f"{path}: Excel files need openpyxl: pip install -e '.[excel]'") from None
    try:
        return contextlib.closing(openpyxl.load_workbook(path, read_only=True))
    except Exception as error:  # a damaged archive, or XML, in many kinds
        raise UserError(f"{path}: cannot be read as an Excel file ({str(error)[:200]}); copy it again") from None


CrawlFile = Source | Table | Sheet


def find_crawl(specs: Sequence[str]) -> dict[str, list[CrawlFile]]:
    """The files (or tables) of videos and of comments among files and folders, which are searched recursively."""
    files: dict[str, list[CrawlFile]] = {VIDEOS: [], COMMENTS: []}
    ignored, others = [], set()
    for spec in specs:
        if not os.path.exists(spec):
            raise UserError(f"--input_dir {spec}: no such folder or file")
        for path in [Path(spec)] if os.path.isfile(spec) else sorted(Path(spec).rglob("*")):
            kind = next((kind for word, kind in _KINDS.items() if word in path.name.lower()), None)
            below = {part.lower() for part in path.relative_to(spec).parts[:-1]}
            if below & _FOLDERS:
                others |= below & _FOLDERS
            elif "words" in below:
                if is_data(path):
                    ignored.append(path.name)
            elif path.suffix == ".xlsx" and not path.name.startswith(("~$", ".")):  # Excel's locks, macOS's twins
                sheets = dict(_sheets(str(path)))
                first = next((record.value for sheet in sheets.values() for record in sheet.read()), {})
                if path != Path(spec) and (platform := _other_platform(first)):
                    others.add(f"{path.name} ({platform})")
                else:
                    for kind, sheet in sheets.items():
                        files[kind].append(sheet)
                    ignored += [] if sheets else [path.name]
            elif path.suffix in _SQLITE and _is_sqlite(path):
                for kind, table in _tables(str(path)):
                    files[kind].append(table)
            elif is_data(path) and kind:
                [source] = find_sources([str(path)])
                first = next((record.value for record in read_records(source) if record.value is not None), {})
                if path != Path(spec) and (platform := _other_platform(first)):
                    others.add(f"{path.name} ({platform})")
                else:
                    files[kind].append(source)
            elif is_data(path):
                ignored.append(path.name)
    if ignored:
        say(f"ignored, since they hold neither comments nor contents: {', '.join(ignored[:10])}")
    if others:
        say(f"ignored, since they are of other platforms: {', '.join(sorted(others))}")
    where = " ".join(specs)
    if not files[VIDEOS] and not files[COMMENTS]:
        raise UserError(
            f"--input_dir {where}: no file of MediaCrawler here (*comments* and *contents* as .json, .jsonl or .csv, "
            "its Excel file, or its SQLite file)"
        )
    for kind, name in ((COMMENTS, "*comments*"), (VIDEOS, "*contents* (or *videos*)")):
        if not files[kind]:
            raise UserError(f"--input_dir {where}: there is no {name} file; it is the other half of a crawl")
    return files


def _is_sqlite(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def _tables(path: str) -> Iterator[tuple[str, Table]]:
    with _sqlite(path) as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    for kind, name in _TABLES.items():
        if name not in names:
            raise UserError(f"{path}: no table {name}; it is not the database of a Bilibili crawl")
        yield kind, Table(path, name)


def _sheets(path: str) -> Iterator[tuple[str, Sheet]]:
    with _workbook(path) as book:
        names = book.sheetnames
    for kind, name in _SHEETS.items():
        if name in names:
            yield kind, Sheet(path, name)


def rows_of(files: Sequence[CrawlFile], kind: str) -> Iterator[tuple[int, Record]]:
    """The rows of all files, each with the index of its file."""
    with tqdm(desc=kind, unit=" rows", unit_scale=True, disable=None) as bar:
        for index, file in enumerate(files):
            is_checked = False
            for record in read_records(file) if isinstance(file, Source) else file.read():
                if not is_checked and record.value is not None:
                    _check_platform(file.path, record.value, kind)
                    is_checked = True
                yield index, record
                bar.update()


def _other_platform(row: Mapping[str, Any]) -> str | None:
    """The platform that a row is of where it is not Bilibili."""
    if (video := id_of(row.get("video_id"))) and not _VIDEO_ID.fullmatch(video):
        return "its video_id is not one of Bilibili"
    return next(
        (f"its column {name} is of {platform}" for name, platform in _OTHER_PLATFORMS.items() if name in row), None
    )


def _check_platform(path: str, row: Mapping[str, Any], kind: str) -> None:
    if platform := _other_platform(row):
        raise UserError(f"{path}: {platform}; remove this file from --input_dir")
    for column in _NEEDED[kind]:
        if column not in row:
            raise UserError(f"{path}: no column {column!r} among {', '.join(row)}; not the {kind} of a Bilibili crawl")


def text_of(value: Any) -> str:
    return "" if value is None else str(value).strip()


def id_of(value: Any) -> str:
    """An id as text, also one that pandas has turned into a float."""
    return text_of(value).removesuffix(".0")
