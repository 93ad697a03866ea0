"""What the importers let a user set."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from hf_recipes.core.settings import PositiveInt, Share, at, check_limits, setting
from hf_recipes.importers.duplicates import check_near_duplicates

KeepOrDrop = Literal["keep", "drop"]


@dataclass
class ImportArguments:
    """How many examples come out, of what form, and where."""

    output_dir: str | None = setting("Folder of train.jsonl, test.jsonl and data_ledger.json.")
    system_prompt: str | None = setting("System turn of every example; none if empty.")
    max_turns: Annotated[int, at(ge=2)] = setting("At most so many turns in an example.", 20)
    total: PositiveInt | None = setting("At most so many examples, those to test on among them; all by default.")
    test_size: float = setting("So many examples (or, below 1, this share) go to test.jsonl.", 0)
    seed: int = setting("Of the examples drawn for --total and --test_size.", 42)
    privacy: bool = setting("Take personal data and the names of members out.", False)
    max_drop_ratio: Share = setting("Stop when more than this share of the rows cannot be read at all.", 0.01)
    overwrite_output_dir: bool = setting("Replace what an earlier run wrote.", False)

    def __post_init__(self):
        if not self.output_dir:
            raise ValueError("--output_dir is missing: where train.jsonl goes")
        check_limits(self)
        if self.test_size < 0 or (self.test_size >= 1 and self.test_size != int(self.test_size)):
            raise ValueError(f"--test_size {self.test_size:g}: expected a whole number, or a share below 1")


@dataclass
class BilibiliArguments(ImportArguments):
    """A crawl, what an example is made of, and the rules for comments."""

    input_dir: list[str] = field(
        default_factory=list, metadata={"help": "Folders or files of MediaCrawler's: *contents* and *comments*."}
    )
    system_prompt: str | None = setting("System turn of every example; none if empty.", "你是一个B站老玩家.")
    title_template: str = setting("Line of the video's title, {}; none if empty.", "视频标题：{}")
    description_template: str = setting("Line of the video's description, {}; none if empty.", "视频简介：{}")
    parent_template: str = setting("Line of the comment that is answered, {}; none if empty.", "父级评论内容：{}")
    thread: bool = setting("One example of several turns for each chain of replies.", False)
    missing_video: KeepOrDrop = setting("Comments whose video is not in the contents; kept, it is None.", "keep")
    missing_parent: KeepOrDrop = setting("Replies whose parent is not in the comments; kept, it is None.", "keep")
    reply_loops: KeepOrDrop = setting("Comments that are their own ancestors; kept, the parent is None.", "drop")
    duplicate_ids: Literal["first", "last"] = setting("Which of the rows with one comment_id counts.", "last")
    emoji_only: KeepOrDrop = setting("Comments of emoji and [emotes] alone.", "drop")
    reply_prefix: Literal["keep", "strip", "anonymise"] = setting("What is done with 回复 @name : in front.", "strip")
    exact_dedup: bool = setting("Drop comments that repeat an earlier one.", True)
    near_dedup: bool = setting("Drop comments that are nearly an earlier one (MinHash).", False)
    dedup_min_chars: int = setting("Shorter comments are no copies: people say the same.", 10)

    def __post_init__(self):
        super().__post_init__()
        if not self.input_dir:
            raise ValueError("--input_dir is missing: the folder of MediaCrawler's files")
        templates = ("title_template", "description_template", "parent_template")
        for name in templates:
            if getattr(self, name) and "{}" not in getattr(self, name):
                raise ValueError(f"--{name} {getattr(self, name)}: expected {{}} where the text goes, or nothing")
        if not any(getattr(self, name) for name in templates):
            raise ValueError("--title_template, --description_template, --parent_template: one of them is needed")
        if self.near_dedup:
            check_near_duplicates()


@dataclass
class QQArguments(ImportArguments):
    """Exported chats, whose side is learned, and the rules for messages."""

    input: list[str] = field(
        default_factory=list, metadata={"help": "QQ's or WeChatMsg's .txt, WeChatMsg's .csv, or folders of them."}
    )
    me: list[str] | None = setting("Your nickname or number (or several), the assistant in the examples.")
    session_gap: Annotated[float, at(gt=0, text="minutes above 0")] = setting(
        "Minutes of silence that end a session.", 60
    )
    speakers: Literal["auto", "always", "never"] = setting("Name： before what others say; auto: in groups.", "auto")
    system_notices: KeepOrDrop = setting("What the client itself says (系统消息).", "drop")
    recalled: KeepOrDrop = setting("…撤回了一条消息", "drop")
    media_marks: Literal["keep", "strip"] = setting("[图片], [表情], [语音] and the like.", "strip")
    cards: KeepOrDrop = setting("Forwarded cards, red packets, and what the client could not show.", "drop")
    mentions: Literal["keep", "strip"] = setting("@name of a member.", "keep")
    privacy: bool = setting("Take personal data and the names of members out.", True)

    def __post_init__(self):
        super().__post_init__()
        if not self.input:
            raise ValueError("--input is missing: the exported chats")
