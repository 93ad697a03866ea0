"""Comments under Bilibili's videos → conversations: the video and the parent comment ask, a comment answers."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.ledger import LEDGER, UNUSABLE, row_status, write_ledgers
from hf_recipes.importers.arguments import BilibiliArguments
from hf_recipes.importers.bilibili.comment_rules import PREFIX, Crawl
from hf_recipes.importers.bilibili.mediacrawler import (
    COMMENTS,
    VIDEOS,
    Comment,
    Video,
    find_crawl,
    place_of,
    read_comments,
    read_videos,
)
from hf_recipes.importers.output import SIDES, WORK, Writer
from hf_recipes.importers.train_test_split import HELD_OUT, NOT_DRAWN, TEST, TRAIN, draw
from hf_recipes.privacy.redactor import Redactor, mentioned


def prepare_bilibili(args: BilibiliArguments, folder: Path) -> dict[str, int]:
    """Write the examples of a crawl and their ledger into `folder`.

    Returns:
        How many examples are in ``train.jsonl`` and in ``test.jsonl``.

    Raises:
        UserError: files that cannot be read, of another platform, or of which nothing is left.
    """
    parts = find_crawl(args.input_dir)
    videos, video_places, video_ledger = read_videos(parts[VIDEOS])
    comments, ledger = read_comments(parts[COMMENTS], args.duplicate_ids == "last")
    if not comments and not ledger.totals["read"]:
        raise UserError(f"--input_dir {' '.join(args.input_dir)}: there is no comment in its files")
    crawl = Crawl(args, videos, comments, folder / WORK)
    answers = crawl.answers()
    numbers = {video: number for number, video in enumerate(dict.fromkeys(comment.video for comment in comments))}
    groups = [numbers[comments[answer].video] for answer in answers]
    sides = draw(groups, args.total, args.test_size, args.seed, "video") if answers else b""
    _drop_undrawn(crawl, answers, sides)
    drawn = sorted(
        (group, answer, SIDES[side == TEST])
        for group, answer, side in zip(groups, answers, sides, strict=True)
        if side in (TRAIN, TEST)
    )
    hidden, counts = _write(crawl, drawn, folder)
    for video, index in video_places.items():
        video_ledger.add(index, *_personal(hidden.get(video, ())))
    for index, (comment, reason) in enumerate(zip(comments, crawl.dropped, strict=True)):
        repairs = [row_status("repaired", what) for what in crawl.repairs(index)] + _personal(hidden.get(index, ()))
        ledger.add(place_of(comment, parts[COMMENTS]), *([row_status("dropped", reason)] if reason else repairs))
    for each in (video_ledger, ledger):
        say(each.table())
        each.check(args.max_drop_ratio, UNUSABLE)
    if not answers:
        raise UserError(
            f"--input_dir {' '.join(args.input_dir)}: no comment is left of {ledger.totals['read']:,}; the reasons are "
            "above, and --missing_video, --missing_parent, --reply_loops, --emoji_only and --exact_dedup weaken them"
        )
    write_ledgers(folder / LEDGER, videos=video_ledger, comments=ledger)
    return counts


def _drop_undrawn(crawl: Crawl, answers: Sequence[int], sides: Sequence[int]) -> None:
    """Note why usable comments are in no example."""
    reasons = {NOT_DRAWN: "not drawn for --total", HELD_OUT: "its video is one to test on, and --test_size is reached"}
    found: list[str | None] = ["earlier in its chain than --max_turns"] * len(crawl.comments)
    for is_drawn in (False, True):
        for answer, side in zip(answers, sides, strict=True):
            if is_drawn == (side in (TRAIN, TEST)):
                for index in crawl.chain(answer):
                    found[index] = reasons.get(side)
    for index, reason in enumerate(found):
        crawl.dropped[index] = crawl.dropped[index] or reason


def _write(
    crawl: Crawl, drawn: Sequence[tuple[int, int, str]], folder: Path
) -> tuple[dict[int | str, set[str]], dict[str, int]]:
    """Write the examples, video after video.

    Returns:
        The kinds of personal data that were in a comment (by its place) or a video (by its id), and the number of
        examples of each side.
    """
    args, hidden = crawl.args, {}
    under: dict[str, list[Comment]] = defaultdict(list)
    if args.privacy or args.reply_prefix == "anonymise":
        for comment in crawl.comments:
            under[comment.video].append(comment)
    group = page = None
    with Writer(folder) as writer:
        for own, answer, side in tqdm(drawn, "examples", unit_scale=True, disable=None):
            comment = crawl.comments[answer]
            if own != group:
                group, page = own, Page(crawl, comment.video, under[comment.video], hidden)
            columns = {"video_id": comment.video, "like_count": comment.likes}
            columns |= {} if args.privacy else {"comment_id": str(comment.id)}  # it leads to the writer
            writer.write(side, page.messages(crawl.chain(answer)), **columns)
        return hidden, writer.counts


def _personal(kinds: Iterable[str]) -> list[str]:
    return [row_status("repaired", f"personal data ({kind})") for kind in sorted(kinds)]


class Page:
    """A video and the comments under it, as examples show them.

    Args:
        hidden: gets the kinds of personal data that were taken out, by the comment's place or the video's id.
    """

    def __init__(self, crawl: Crawl, video_id: str, comments: Sequence[Comment], hidden: dict[int | str, set[str]]):
        self._crawl, self._hidden = crawl, hidden
        args, video = crawl.args, crawl.videos.get(video_id)
        self._names_go = args.reply_prefix == "anonymise" or args.privacy
        people = people_of(video, comments) if self._names_go else {}
        self._numbers: dict[str, int] = {}
        for number, (user, names) in enumerate(people.items(), 1):
            for name in (user, *names):
                self._numbers.setdefault(name, number)
        self._redactor = Redactor(people) if args.privacy else None
        title, description = (
            (self._shown(text, video_id) for text in (video.title, video.description)) if video else ("", "")
        )
        self._heading = [(args.title_template, title), (args.description_template, description)]

    def messages(self, chain: Sequence[int]) -> Iterator[dict[str, str]]:
        """The turns of a chain; if the last could not be the assistant's, the first comment is the parent that asks."""
        crawl, parent = self._crawl, self._crawl.parents[chain[0]]
        above = self._shown(crawl.texts[parent]) if parent >= 0 else ""
        turns = [self._shown(crawl.texts[location], location) for location in chain]
        if len(turns) % 2 == 0:
            above, *turns = turns
        if crawl.args.system_prompt:
            yield {"role": "system", "content": crawl.args.system_prompt}
        lines = (*self._heading, (crawl.args.parent_template, above))
        prompt = "\n".join(template.replace("{}", text or "None") for template, text in lines if template)
        yield {"role": "user", "content": prompt}
        for number, turn in enumerate(turns):
            yield {"role": "user" if number % 2 else "assistant", "content": turn}

    def _shown(self, text: str, owner: int | str | None = None) -> str:
        head = ""
        if self._names_go:
            while match := PREFIX.match(text):
                head += f"回复 @用户{self._numbers.get(match[1], '')} :"
                text = text[match.end() :]
        if self._redactor:
            text, counts = self._redactor.redact(text)
            if (counts or head) and owner is not None:
                self._hidden.setdefault(owner, set()).update(counts, ["person"] if head else [])
        return head + text


def people_of(video: Video | None, comments: Iterable[Comment]) -> dict[str, list[str]]:
    """Who uploaded a video, commented on it or is mentioned under it: names by user id, or by name without one."""
    people: dict[str, list[str]] = {}
    known: set[str] = set()
    called: list[str] = []
    writers = [(video.user, video.nickname)] if video else []
    for comment in comments:
        writers.append((comment.user, comment.nickname))
        rest = comment.text
        while match := PREFIX.match(rest):
            called.append(match[1])
            rest = rest[match.end() :]
        called += mentioned(rest)
    for user, nickname in (*writers, *(("", name) for name in called)):
        if nickname and (user or nickname not in known):
            names = people.setdefault(user or nickname, [])
            if nickname not in names:
                names.append(nickname)
            known.add(nickname)
    return people
