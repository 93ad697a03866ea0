"""The files of a Bilibili crawl by MediaCrawler (https://github.com/NanmiCoder/MediaCrawler), of any age.

Contents: video_id, title, desc, nickname, user_id or creator_hash. Comments: comment_id, parent_comment_id, video_id,
content, like_count, nickname, user_id or creator_hash. Both as .json, .jsonl or .csv, whose names say which they are,
or as the tables of a SQLite file.
"""

import os
import re
import sqlite3
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple
from urllib.parse import quote

from tqdm import tqdm

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.ledger import UNUSABLE, Ledger, row_status
from hf_recipes.data.files.records import Record, read_records
from hf_recipes.data.files.sources import Source, find_sources, is_data
from hf_recipes.data.schemas.conversation import RowProblem

VIDEOS, COMMENTS = "videos", "comments"
_KINDS = {"comment": COMMENTS, "content": VIDEOS, "video": VIDEOS}  # in a file's name; csv files say videos
_TABLES = {VIDEOS: "bilibili_video", COMMENTS: "bilibili_video_comment"}
_NEEDED = {VIDEOS: ("video_id", "title"), COMMENTS: ("comment_id", "video_id", "content")}
_SQLITE = (".db", ".sqlite", ".sqlite3")
# A column that only the crawls of another platform have.
_ELSEWHERE = {
    "aweme_id": "Douyin",
    "note_id": "Xiaohongshu, Weibo or Tieba",
    "content_id": "Zhihu",
    "article_id": "Bilibili's articles",
    "viewd_count": "Kuaishou",
}
_VIDEO_ID = re.compile(r"\d{1,18}|[Bb][Vv]\w{10}")
NO_PARENT = 0  # what Bilibili writes at the top level


class Table(NamedTuple):
    """A table of a SQLite file."""

    path: str
    name: str

    def read(self) -> Iterator[Record]:
        connection = _open(self.path)
        try:
            rows = connection.execute(f"SELECT rowid, * FROM {self.name}")
            columns = [column[0] for column in rows.description[1:]]
            for number, *values in rows:
                yield Record(f"{self.path}/{self.name}:{number}", dict(zip(columns, values, strict=True)))
        except sqlite3.Error as error:
            raise UserError(f"{self.path}: cannot be read as SQLite ({error}); copy it again") from None
        finally:
            connection.close()


def _open(path: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(os.path.abspath(path))}?mode=ro", uri=True)


Part = Source | Table


def find_crawl(specs: Sequence[str]) -> dict[str, list[Part]]:
    """The parts of a crawl that hold videos and comments, in folders (with all that is below them) and files.

    Raises:
        UserError: nothing there, or no comments or no contents.
    """
    found: dict[str, list[Part]] = {VIDEOS: [], COMMENTS: []}
    ignored = []
    for spec in specs:
        if not os.path.exists(spec):
            raise UserError(f"--input_dir {spec}: no such folder or file")
        named = [Path(spec)] if os.path.isfile(spec) else sorted(Path(spec).rglob("*"))
        for path in named:
            kind = next((kind for word, kind in _KINDS.items() if word in path.name.lower()), None)
            if path.suffix in _SQLITE and _is_sqlite(path):
                for kind, table in _tables(str(path)):
                    found[kind].append(table)
            elif is_data(path) and kind:
                found[kind] += find_sources([str(path)])
            elif is_data(path):
                ignored.append(path.name)
    if ignored:
        say(f"left out, since their names have neither comments nor contents: {', '.join(ignored[:10])}")
    where = " ".join(specs)
    if not found[VIDEOS] and not found[COMMENTS]:
        raise UserError(
            f"--input_dir {where}: no file of MediaCrawler's here (*comments* and *contents* as .json, .jsonl or .csv, "
            "or its SQLite file)"
        )
    for kind, name in ((COMMENTS, "*comments*"), (VIDEOS, "*contents* (or *videos*)")):
        if not found[kind]:
            raise UserError(f"--input_dir {where}: there is no {name} file; it is the other half of a crawl")
    return found


def _is_sqlite(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def _tables(path: str) -> Iterator[tuple[str, Table]]:
    connection = _open(path)
    try:
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error as error:
        raise UserError(f"{path}: cannot be read as SQLite ({error}); copy it again") from None
    finally:
        connection.close()
    for kind, name in _TABLES.items():
        if name not in names:
            raise UserError(f"{path}: no table {name}; it is not the database of a Bilibili crawl")
        yield kind, Table(path, name)


def _rows(parts: Sequence[Part], kind: str) -> Iterator[tuple[int, Record]]:
    """The rows of all parts, with the part's number."""
    with tqdm(desc=kind, unit=" rows", unit_scale=True, disable=None) as bar:
        for number, part in enumerate(parts):
            is_checked = False
            for record in part.read() if isinstance(part, Table) else read_records(part):
                if not is_checked and record.value is not None:
                    _check_platform(part.path, record.value, kind)
                    is_checked = True
                yield number, record
                bar.update()


def _check_platform(path: str, row: Mapping[str, Any], kind: str) -> None:
    for column, platform in _ELSEWHERE.items():
        if column in row:
            raise UserError(f"{path}: its column {column} is of {platform}; leave this file out of --input_dir")
    for column in _NEEDED[kind]:
        if column not in row:
            raise UserError(
                f"{path}: no column {column!r} among {', '.join(row)}; these are not the {kind} of a Bilibili crawl"
            )
    if (video := _id(row["video_id"])) and not _VIDEO_ID.fullmatch(video):
        raise UserError(f"{path}: its video_id is none of Bilibili's; leave this file out of --input_dir")


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _id(value: Any) -> str:
    """As text; what pandas made a float of is whole again."""
    return _text(value).removesuffix(".0")


def _integer(value: Any) -> int | None:
    text = _id(value)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


class Video(NamedTuple):
    """What is used of a video; `user` is the uploader's id, or "" where the crawl has none."""

    title: str
    description: str
    user: str
    nickname: str


def read_videos(parts: Sequence[Part]) -> tuple[dict[str, Video], dict[str, str], Ledger]:
    """The videos and their places by the video's id, and a ledger of the rows that are none, or crawled again later.

    Raises:
        UserError: a part that cannot be read, or that is of another platform.
    """
    videos: dict[str, Video] = {}
    locations: dict[str, str] = {}
    ledger = Ledger()
    for _, record in _rows(parts, VIDEOS):
        row, problem = record.value, record.problem
        number = _id(row.get("video_id")) if row else ""
        if not number:
            ledger.add(record.location, row_status("dropped", f"{UNUSABLE}{problem or 'no video_id'}"))
            continue
        if number in locations:
            ledger.add(locations[number], row_status("dropped", "crawled again later"))
        description, user = _text(row.get("desc")), _id(row.get("user_id") or row.get("creator_hash"))
        description = "" if description == "-" else description  # what Bilibili has for none
        videos[number] = Video(_text(row.get("title")), description, user, _text(row.get("nickname")))
        locations[number] = record.location
    return videos, locations, ledger


class Comment(NamedTuple):
    """What is used of a comment; `parent` is an id, `NO_PARENT` at the top level; `likes` is None in older crawls."""

    id: int
    parent: int
    video: str
    text: str
    likes: int | None
    user: str
    nickname: str
    location: tuple[int, int]  # the part of the crawl, and the line or row in it


def _comment(row: Mapping[str, Any], location: tuple[int, int]) -> Comment:
    number, parent = _integer(row.get("comment_id")), row.get("parent_comment_id")
    parent = NO_PARENT if parent in (None, "") else _integer(parent)
    video, text = _id(row.get("video_id")), row.get("content")
    if number is None:
        raise RowProblem("no 'comment_id', or one that is no whole number")
    if parent is None:
        raise RowProblem("'parent_comment_id' is no whole number")
    if not video:
        raise RowProblem("no 'video_id'")
    if text is not None and not isinstance(text, str):
        raise RowProblem(f"'content' is a {type(text).__name__}, not text")
    user, nickname = _id(row.get("user_id") or row.get("creator_hash")), _text(row.get("nickname"))
    likes = _integer(row.get("like_count"))
    return Comment(number, parent, intern(video), (text or "").strip(), likes, intern(user), intern(nickname), location)


def read_comments(parts: Sequence[Part], keep_last: bool) -> tuple[list[Comment], Ledger]:
    """The comments, and a ledger of the rows that are none, or the same again (with `keep_last`, the last counts).

    Raises:
        UserError: a part that cannot be read, or that is of another platform.
    """
    comments: list[Comment] = []
    found: dict[int, int] = {}
    ledger = Ledger()
    for part, record in _rows(parts, COMMENTS):
        try:
            if record.value is None:
                raise RowProblem(record.problem)
            comment = _comment(record.value, (part, int(record.location.rpartition(":")[2])))
        except RowProblem as error:
            ledger.add(record.location, row_status("dropped", f"{UNUSABLE}{error.reason}"))
            continue
        location = found.setdefault(comment.id, len(comments))
        if location == len(comments):
            comments.append(comment)
            continue
        if keep_last:
            comments[location], comment = comment, comments[location]
        ledger.add(place_of(comment, parts), row_status("dropped", "its comment_id is there twice"))
    return comments, ledger


def place_of(comment: Comment, parts: Sequence[Part]) -> str:
    """Where the comment stands, as the ledger says it."""
    part, line = comment.location
    own = parts[part]
    return f"{own.path}/{own.name}:{line}" if isinstance(own, Table) else f"{own.path}:{line}"


TOP_LEVEL, MISSING, ELSEWHERE = -1, -2, -3


def find_parents(comments: Sequence[Comment]) -> array:
    """Of each comment the place of its parent, or `TOP_LEVEL`, `MISSING`, or `ELSEWHERE` (under another video)."""
    found = {comment.id: index for index, comment in enumerate(comments)}
    parents = array("i")
    for comment in comments:
        index = TOP_LEVEL if comment.parent == NO_PARENT else found.get(comment.parent, MISSING)
        parents.append(ELSEWHERE if index >= 0 and comments[index].video != comment.video else index)
    return parents


def find_loops(parents: Sequence[int]) -> set[int]:
    """The comments that answer themselves, through whatever others."""
    loops: set[int] = set()
    seen = array("i", bytes(4 * len(parents)))  # by which walk
    for start in range(len(parents)):
        location = start
        while location >= 0 and not seen[location]:
            seen[location] = start + 1
            location = parents[location]
        if location >= 0 and seen[location] == start + 1 and location not in loops:
            while location not in loops:
                loops.add(location)
                location = parents[location]
    return loops
