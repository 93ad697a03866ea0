"""The rules for the comments of a Bilibili crawl, and the chains of replies that they are in."""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from hf_recipes.importers.arguments import BilibiliArguments
from hf_recipes.importers.bilibili.mediacrawler import (
    ELSEWHERE,
    MISSING,
    TOP_LEVEL,
    Comment,
    Video,
    find_loops,
    find_parents,
)
from hf_recipes.importers.duplicates import exact_duplicates, near_duplicates

PREFIX = re.compile(r"回复\s*@([^:：\n]{1,40}?)\s*[:：]\s*")
_EMOTE = re.compile(r"\[[^\[\]\s]{1,20}\]|[0-9#*]\ufe0f?\u20e3|[\u203c\u2049]\ufe0f?")
_SYMBOLS = frozenset(("So", "Sk", "Cf", "Mn", "Me", "Zs", "Cc"))


def without_prefix(text: str) -> str:
    while match := PREFIX.match(text):
        text = text[match.end() :]
    return text


def is_emoji_only(text: str) -> bool:
    """Whether there is nothing but emoji, Bilibili's ``[doge]`` and blanks; punctuation says something."""
    return all(unicodedata.category(sign) in _SYMBOLS for sign in _EMOTE.sub("", text))


class Crawl:
    """The comments of a crawl, and what the rules make of each.

    `texts` are what the comments say in an example, `dropped` why they are in none.
    """

    def __init__(self, args: BilibiliArguments, videos: Mapping[str, Video], comments: Sequence[Comment], work: Path):
        self.args, self.videos, self.comments = args, videos, comments
        self.texts = [comment.text for comment in comments]
        self.dropped: list[str | None] = [None] * len(comments)
        self.parents = find_parents(comments)
        self._loops = find_loops(self.parents)
        self._judge_places()
        self._judge_texts()
        if args.exact_dedup:
            for location in self._repeated(exact_duplicates):
                self.dropped[location] = "exact duplicate"
        if args.near_dedup:
            for location in self._repeated(lambda texts: near_duplicates(texts, work)):
                self.dropped[location] = "near duplicate"

    def _judge_places(self) -> None:
        args, dropped = self.args, self.dropped
        for index in self._loops:
            self.parents[index] = TOP_LEVEL
            if args.reply_loops == "drop":
                dropped[index] = "in a loop of replies"
        for index, (comment, parent) in enumerate(zip(self.comments, self.parents, strict=True)):
            if args.missing_video == "drop" and comment.video not in self.videos:
                dropped[index] = "its video is not in the contents"
            elif args.missing_parent == "drop" and parent == MISSING:
                dropped[index] = "its parent is not in the comments"
            elif args.missing_parent == "drop" and parent == ELSEWHERE:
                dropped[index] = "its parent is under another video"

    def _judge_texts(self) -> None:
        for index, text in enumerate(self.texts):
            body = without_prefix(text)
            if self.args.reply_prefix == "strip":
                self.texts[index] = body
            if not body:
                self.dropped[index] = "empty"
            elif self.args.emoji_only == "drop" and is_emoji_only(body):
                self.dropped[index] = "nothing but emoji"

    def _repeated(self, find) -> list[int]:
        least = self.args.dedup_min_chars
        locations = [
            index
            for index, (text, reason) in enumerate(zip(self.texts, self.dropped, strict=True))
            if reason is None and len(text) >= least and len(without_prefix(text)) >= least
        ]
        bodies = (without_prefix(self.texts[index]) for index in locations)
        return [
            locations[found]
            for found in find(tqdm(bodies, "duplicates", len(locations), unit_scale=True, disable=None))
        ]

    def answers(self) -> list[int]:
        """The comments that each end an example."""
        usable = [index for index, reason in enumerate(self.dropped) if reason is None]
        if not self.args.thread:
            return usable
        answered = {self.parents[index] for index in usable}
        return [index for index in usable if index not in answered]

    def chain(self, answer: int) -> list[int]:
        """The comments of the example that `answer` ends, the first one first."""
        chain = [answer]
        while self.args.thread and len(chain) < self.args.max_turns:
            parent = self.parents[chain[-1]]
            if parent < 0 or self.dropped[parent]:
                break
            chain.append(parent)
        return chain[::-1]

    def repairs(self, location: int) -> Iterator[str]:
        """What was changed of a comment, or of what it answers."""
        comment, parent = self.comments[location], self.parents[location]
        if comment.video not in self.videos:
            yield "the video is None, not being in the contents"
        if parent == MISSING:
            yield "the parent is None, not being in the comments"
        if parent == ELSEWHERE:
            yield "the parent is None, being under another video"
        if location in self._loops:
            yield "the parent is None, being in a loop of replies"
        if self.args.reply_prefix != "keep" and PREFIX.match(comment.text):
            yield f"回复 @name : {'taken out' if self.args.reply_prefix == 'strip' else 'anonymised'}"
