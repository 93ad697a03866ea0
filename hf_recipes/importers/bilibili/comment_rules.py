"""The rules for the comments of a Bilibili crawl, and the chains of replies that become examples."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from hf_recipes.importers.arguments import BilibiliArguments
from hf_recipes.importers.bilibili.crawl_rows import Comment, Video
from hf_recipes.importers.bilibili.replies import MISSING, OTHER_VIDEO, TOP_LEVEL, find_loops, find_parents
from hf_recipes.importers.duplicates import exact_duplicates, near_duplicates
from hf_recipes.importers.train_test_split import unused_reason

PREFIX = re.compile(r"回复\s*@([^:：\n]{1,40}?)\s*[:：]\s*")
_EMOTE = re.compile(r"\[[^\[\]\s]{1,20}\]|[0-9#*]\ufe0f?\u20e3|[\u203c\u2049]\ufe0f?")
_SYMBOLS = frozenset(("So", "Sk", "Cf", "Mn", "Me", "Zs", "Cc"))


def without_prefix(text: str) -> str:
    while match := PREFIX.match(text):
        text = text[match.end() :]
    return text


def is_emoji_only(text: str) -> bool:
    """Whether `text` is nothing but emoji, Bilibili's ``[doge]`` and blanks; punctuation counts as text."""
    return all(unicodedata.category(sign) in _SYMBOLS for sign in _EMOTE.sub("", text))


class CommentSet:
    """All comments of a crawl, their texts in examples, and the reason of each dropped one (else None)."""

    def __init__(self, args: BilibiliArguments, videos: Mapping[str, Video], comments: Sequence[Comment], work: Path):
        self.args, self.videos, self.comments = args, videos, comments
        self.texts = [comment.text for comment in comments]
        self.dropped: list[str | None] = [None] * len(comments)
        self.parents = find_parents(comments)
        self._loops = find_loops(self.parents)
        self._apply_reply_rules()
        self._apply_text_rules()
        if args.exact_dedup:
            self._drop_duplicates("exact duplicate", exact_duplicates)
        if args.near_dedup:
            self._drop_duplicates("near duplicate", lambda texts: near_duplicates(texts, work))

    def _apply_reply_rules(self) -> None:
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
            elif args.missing_parent == "drop" and parent == OTHER_VIDEO:
                dropped[index] = "its parent is under another video"

    def _apply_text_rules(self) -> None:
        for index, text in enumerate(self.texts):
            body = without_prefix(text)
            if self.args.reply_prefix == "strip":
                self.texts[index] = body
            if not body:
                self.dropped[index] = "empty"
            elif self.args.emoji_only == "drop" and is_emoji_only(body):
                self.dropped[index] = "nothing but emoji"

    def _drop_duplicates(self, reason: str, find: Callable[[Iterable[str]], Iterable[int]]) -> None:
        least = self.args.dedup_min_chars
        indices = [
            index
            for index, text in enumerate(self.texts)
            if self.dropped[index] is None and len(text) >= least and len(without_prefix(text)) >= least
        ]
        bodies = (without_prefix(self.texts[index]) for index in indices)
        for match in find(tqdm(bodies, "duplicates", len(indices), unit_scale=True, disable=None)):
            self.dropped[indices[match]] = reason

    def answers(self) -> list[int]:
        """Indices of the comments that each end an example."""
        usable = [index for index, reason in enumerate(self.dropped) if reason is None]
        if not self.args.thread:
            return usable
        answered = {self.parents[index] for index in usable}
        return [index for index in usable if index not in answered]

    def chain(self, answer: int) -> list[int]:
        """Indices of the comments of the example that `answer` ends, the first one first."""
        chain = [answer]
        while self.args.thread and len(chain) < self.args.max_turns:
            parent = self.parents[chain[-1]]
            if parent < 0 or self.dropped[parent]:
                break
            chain.append(parent)
        return chain[::-1]

    def drop_unused(self, answers: Sequence[int], splits: Sequence[int]) -> None:
        """Drop the comments that are in no example that was written."""
        is_used = bytearray(len(self.comments))
        reasons = ["earlier in its chain than --max_turns"] * len(self.comments)
        for answer, split in zip(answers, splits, strict=True):
            reason = unused_reason(split, "video")
            for index in self.chain(answer):
                if reason is None:
                    is_used[index] = True
                else:
                    reasons[index] = reason
        for index, reason in enumerate(reasons):
            if not is_used[index]:
                self.dropped[index] = self.dropped[index] or reason

    def repairs(self, index: int) -> Iterator[str]:
        """What was changed in a comment, or in its parent."""
        comment, parent = self.comments[index], self.parents[index]
        if comment.video not in self.videos:
            yield "the video is None, not being in the contents"
        if parent == MISSING:
            yield "the parent is None, not being in the comments"
        if parent == OTHER_VIDEO:
            yield "the parent is None, being under another video"
        if index in self._loops:
            yield "the parent is None, being in a loop of replies"
        if self.args.reply_prefix != "keep" and PREFIX.match(comment.text):
            yield f"回复 @name : {'removed' if self.args.reply_prefix == 'strip' else 'anonymised'}"
