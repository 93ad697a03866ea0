"""Bilibili videos and comments → conversations: video and parent comment are the prompt, a comment is the answer."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import row_status
from hf_recipes.importers.arguments import BilibiliArguments
from hf_recipes.importers.bilibili.comment_rules import PREFIX, CommentSet
from hf_recipes.importers.bilibili.crawl_files import COMMENTS, VIDEOS, find_crawl
from hf_recipes.importers.bilibili.crawl_rows import Comment, Video, location_of, read_comments, read_videos
from hf_recipes.importers.output import WORK, finish_ledgers, write_examples
from hf_recipes.privacy.redactor import Redactor, mentioned

Personal = dict[int | str, set[str]]  # kinds of personal data that were replaced, by a comment's index or a video's id


def prepare_bilibili(args: BilibiliArguments, folder: Path) -> bytearray:
    """Write the examples of a crawl and their ledger into `folder`; returns the split of each example."""
    where = " ".join(args.input_dir)
    files = find_crawl(args.input_dir)
    videos, video_locations, video_ledger = read_videos(files[VIDEOS])
    comments, ledger = read_comments(files[COMMENTS], args.duplicate_ids == "last")
    if not comments and not ledger.totals["read"]:
        raise UserError(f"--input_dir {where}: there is no comment in its files")
    comment_set = CommentSet(args, videos, comments, folder / WORK)
    answers = comment_set.answers()
    numbers = {video: number for number, video in enumerate(dict.fromkeys(comment.video for comment in comments))}
    groups = [numbers[comments[answer].video] for answer in answers]
    under_video: dict[str, list[Comment]] = defaultdict(list)
    if args.privacy or args.reply_prefix == "anonymise":
        for comment in comments:
            under_video[comment.video].append(comment)
    personal: Personal = {}

    @lru_cache(maxsize=1)  # examples are written video after video
    def prompt_of(video: str) -> VideoPrompt:
        return VideoPrompt(comment_set, video, under_video.get(video, ()), personal)

    def to_row(answer: int) -> dict[str, Any]:
        comment = comments[answer]
        messages = list(prompt_of(comment.video).messages(comment_set.chain(answer)))
        row = {"messages": messages, "video_id": comment.video, "like_count": comment.likes}
        return row if args.privacy else {**row, "comment_id": str(comment.id)}  # the id leads to its writer

    splits = write_examples(folder, args, answers, groups, "video", to_row)
    comment_set.drop_unused(answers, splits)
    for video, location in video_locations.items():
        video_ledger.add(location, *_personal_statuses(personal.get(video, ())))
    for index, (comment, reason) in enumerate(zip(comments, comment_set.dropped, strict=True)):
        repairs = [row_status("repaired", repair) for repair in comment_set.repairs(index)]
        repairs += _personal_statuses(personal.get(index, ()))
        ledger.add(location_of(comment, files[COMMENTS]), *([row_status("dropped", reason)] if reason else repairs))
    nothing_left = None
    if not answers:
        nothing_left = (
            f"--input_dir {where}: no comment is left of {ledger.totals['read']:,}; the reasons are above, and "
            "--missing_video, --missing_parent, --reply_loops, --emoji_only and --exact_dedup weaken them"
        )
    finish_ledgers(folder, args, nothing_left, videos=video_ledger, comments=ledger)
    return splits


def _personal_statuses(kinds: Iterable[str]) -> list[str]:
    return [row_status("repaired", f"personal data ({kind})") for kind in sorted(kinds)]


class VideoPrompt:
    """The prompt of a video, and the conversations of the comments under it; what is replaced goes into `personal`."""

    def __init__(self, comment_set: CommentSet, video_id: str, comments: Sequence[Comment], personal: Personal):
        self._comment_set, self._personal = comment_set, personal
        args, video = comment_set.args, comment_set.videos.get(video_id)
        self._hides_names = args.reply_prefix == "anonymise" or args.privacy
        people = people_of(video, comments) if self._hides_names else {}
        self._numbers: dict[str, int] = {}
        for number, (user, names) in enumerate(people.items(), 1):
            for name in (user, *names):
                self._numbers.setdefault(name, number)
        self._redactor = Redactor(people) if args.privacy else None
        texts = (video.title, video.description) if video else ("", "")
        title, description = (self._redacted(text, video_id) for text in texts)
        self._heading = [(args.title_template, title), (args.description_template, description)]

    def messages(self, chain: Sequence[int]) -> Iterator[dict[str, str]]:
        """The conversation of a chain of comments, whose last one is an answer of the assistant.

        With an even number of comments, the first one goes into the prompt, as the parent of the second.
        """
        comments = self._comment_set
        parent = comments.parents[chain[0]]
        parent_text = self._redacted(comments.texts[parent]) if parent >= 0 else ""
        turns = [self._redacted(comments.texts[index], index) for index in chain]
        if len(turns) % 2 == 0:
            parent_text, *turns = turns
        if comments.args.system_prompt:
            yield {"role": "system", "content": comments.args.system_prompt}
        lines = (*self._heading, (comments.args.parent_template, parent_text))
        prompt = "\n".join(template.replace("{}", text or "None") for template, text in lines if template)
        yield {"role": "user", "content": prompt}
        for number, turn in enumerate(turns):
            yield {"role": "user" if number % 2 else "assistant", "content": turn}

    def _redacted(self, text: str, key: int | str | None = None) -> str:
        """`text` without names and personal data; what was replaced is recorded under `key`."""
        prefix = ""
        if self._hides_names:
            while match := PREFIX.match(text):
                prefix += f"回复 @用户{self._numbers.get(match[1], '')} :"
                text = text[match.end() :]
        if self._redactor:
            text, counts = self._redactor.redact(text)
            if key is not None and (counts or prefix):
                self._personal.setdefault(key, set()).update(counts, ["person"] if prefix else [])
        return prefix + text


def people_of(video: Video | None, comments: Iterable[Comment]) -> dict[str, list[str]]:
    """The uploader, the commenters and who is mentioned: names by user id, or by name where there is no id."""
    people: dict[str, list[str]] = {}
    known: set[str] = set()
    mentions: list[str] = []
    writers = [(video.user, video.nickname)] if video else []
    for comment in comments:
        writers.append((comment.user, comment.nickname))
        rest = comment.text
        while match := PREFIX.match(rest):
            mentions.append(match[1])
            rest = rest[match.end() :]
        mentions += mentioned(rest)
    for user, nickname in (*writers, *(("", name) for name in mentions)):
        if nickname and (user or nickname not in known):
            names = people.setdefault(user or nickname, [])
            if nickname not in names:
                names.append(nickname)
            known.add(nickname)
    return people
