"""The videos and comments of a Bilibili crawl, from the rows of its files."""

from collections.abc import Mapping, Sequence
from sys import intern
from typing import Any, NamedTuple

from hf_recipes.core.ledger import UNUSABLE, Ledger, row_status
from hf_recipes.data.conversations.conversation import RowProblem
from hf_recipes.data.files.source import Source
from hf_recipes.importers.bilibili.crawl_files import COMMENTS, VIDEOS, CrawlFile, id_of, rows_of, text_of

NO_PARENT = 0  # parent_comment_id of a top-level comment


def _integer(value: Any) -> int | None:
    text = id_of(value)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


class Video(NamedTuple):
    """A video; `user` is the uploader's id, or "" where the crawl has none."""

    title: str
    description: str
    user: str
    nickname: str


def read_videos(files: Sequence[CrawlFile]) -> tuple[dict[str, Video], dict[str, str], Ledger]:
    """The videos and their locations, both by the video's id, and a ledger of the rows that are not used."""
    videos: dict[str, Video] = {}
    locations: dict[str, str] = {}
    ledger = Ledger()
    for _, record in rows_of(files, VIDEOS):
        row, problem = record.value, record.problem
        video_id = id_of(row.get("video_id")) if row else ""
        if not video_id:
            ledger.add(record.location, row_status("dropped", f"{UNUSABLE}{problem or 'no video_id'}"))
            continue
        if video_id in locations:
            ledger.add(locations[video_id], row_status("dropped", "crawled again later"))
        description, user = text_of(row.get("desc")), id_of(row.get("user_id") or row.get("creator_hash"))
        description = "" if description == "-" else description  # Bilibili's empty description
        videos[video_id] = Video(text_of(row.get("title")), description, user, text_of(row.get("nickname")))
        locations[video_id] = record.location
    return videos, locations, ledger


class Comment(NamedTuple):
    """A comment; `parent` is an id or `NO_PARENT`; `likes` is None in older crawls."""

    id: int
    parent: int
    video: str
    text: str
    likes: int | None
    user: str
    nickname: str
    location: tuple[int, int]  # index of the file, and line or row in it


def _comment(row: Mapping[str, Any], location: tuple[int, int]) -> Comment:
    number, parent = _integer(row.get("comment_id")), row.get("parent_comment_id")
    parent = NO_PARENT if parent in (None, "") else _integer(parent)
    video, text = id_of(row.get("video_id")), row.get("content")
    if number is None:
        raise RowProblem("no 'comment_id', or one that is no whole number")
    if parent is None:
        raise RowProblem("'parent_comment_id' is no whole number")
    if not video:
        raise RowProblem("no 'video_id'")
    if text is not None and not isinstance(text, str):
        raise RowProblem(f"'content' is a {type(text).__name__}, not text")
    user, nickname = id_of(row.get("user_id") or row.get("creator_hash")), text_of(row.get("nickname"))
    likes = _integer(row.get("like_count"))
    return Comment(number, parent, intern(video), (text or "").strip(), likes, intern(user), intern(nickname), location)


def read_comments(files: Sequence[CrawlFile], keep_last: bool) -> tuple[list[Comment], Ledger]:
    """The comments, and a ledger of the rows that are not used.

    Args:
        keep_last: of the rows with one comment_id, use the last; else the first.
    """
    comments: list[Comment] = []
    indices: dict[int, int] = {}  # by comment_id
    ledger = Ledger()
    for file, record in rows_of(files, COMMENTS):
        try:
            if record.value is None:
                raise RowProblem(record.problem)
            comment = _comment(record.value, (file, int(record.location.rpartition(":")[2])))
        except RowProblem as error:
            ledger.add(record.location, row_status("dropped", f"{UNUSABLE}{error.reason}"))
            continue
        index = indices.setdefault(comment.id, len(comments))
        if index == len(comments):
            comments.append(comment)
            continue
        if keep_last:
            comments[index], comment = comment, comments[index]
        ledger.add(location_of(comment, files), row_status("dropped", "another row has the same comment_id"))
    return comments, ledger


def location_of(comment: Comment, files: Sequence[CrawlFile]) -> str:
    index, line = comment.location
    file = files[index]
    return f"{file.path if isinstance(file, Source) else file.location}:{line}"
