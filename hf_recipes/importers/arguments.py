"""Settings of the importers."""

from dataclasses import dataclass
from typing import Annotated, Literal

from hf_recipes.core.arguments.limits import PositiveInt, Share, at, check_limits
from hf_recipes.core.arguments.settings import setting
from hf_recipes.importers.duplicates import check_near_duplicates

KeepOrDrop = Literal["keep", "drop"]
ChatFormat = Literal[
    "auto",
    "qq-desktop",
    "qce-json",
    "qce-chunked",
    "qce-txt",
    "chatlog-csv",
    "chatlog-txt",
    "chatlog-json",
    "weflow-csv",
    "weflow-txt",
    "weflow-json",
    "weclone-csv",
    "pywxdump-csv",
    "pywxdump-json",
    "wechatmsg1-csv",
    "wechatmsg2-csv",
    "wechatmsg-txt",
    "chatlab-json",
    "chatlab-jsonl",
    "telegram",
    "telegram-full",
]


@dataclass
class ImportArguments:
    """Number, form and folder of the examples."""

    output_dir: str | None = setting("Folder of train.jsonl, test.jsonl and data_ledger.json.")
    system_prompt: str | None = setting("System turn of every example; none if empty.")
    max_turns: Annotated[int, at(ge=2)] = setting("Largest number of turns in an example.", 20)
    total: PositiveInt | None = setting("Largest number of examples, test examples included; all by default.")
    test_size: float = setting("Number of examples (or, below 1, share of them) for test.jsonl.", 0)
    seed: int = setting("Seed of the sampling for --total and --test_size.", 42)
    privacy: bool = setting("Replace personal data and the names of members by placeholders.", False)
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
    """The crawl, the templates of a prompt, and the rules for comments."""

    input_dir: list[str] | None = setting("Folders or files of MediaCrawler: *contents* and *comments*.")
    system_prompt: str | None = setting("System turn of every example; none if empty.", "你是一个B站老玩家.")
    title_template: str = setting("Line of the video's title, {}; none if empty.", "视频标题：{}")
    description_template: str = setting("Line of the video's description, {}; none if empty.", "视频简介：{}")
    parent_template: str = setting("Line of the parent comment, {}; none if empty.", "父级评论内容：{}")
    thread: bool = setting("Make one example of several turns of each chain of replies.", False)
    missing_video: KeepOrDrop = setting("Comments whose video is not in the contents; if kept, it is None.", "keep")
    missing_parent: KeepOrDrop = setting("Replies whose parent is not in the comments; if kept, it is None.", "keep")
    reply_loops: KeepOrDrop = setting("Comments that are their own ancestors; if kept, the parent is None.", "drop")
    duplicate_ids: Literal["first", "last"] = setting("Which of several rows with one comment_id to use.", "last")
    emoji_only: KeepOrDrop = setting("Comments of nothing but emoji and [emotes].", "drop")
    reply_prefix: Literal["keep", "strip", "anonymise"] = setting("What to do with the prefix 回复 @name :.", "strip")
    exact_dedup: bool = setting("Drop comments that repeat an earlier one.", True)
    near_dedup: bool = setting("Drop comments that are nearly an earlier one (MinHash).", False)
    dedup_min_chars: int = setting("Shorter comments are never duplicates: people write the same few words.", 10)

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
    """Exported chats, the member who is the assistant, and the rules for messages."""

    input: list[str] | None = setting("Exports of chats (.txt, .csv, .json, .jsonl), or folders of them.")
    format: ChatFormat = setting("Format of the exports; auto: by their contents.", "auto")
    me: list[str] | None = setting("Nickname or number (or several) of the assistant; the exporter if none is given.")
    session_gap: Annotated[float, at(gt=0, text="minutes above 0")] = setting(
        "Silence that ends a session (minutes).", 60
    )
    speakers: Literal["auto", "always", "never"] = setting("Name： before messages of others; auto: in groups.", "auto")
    system_notices: KeepOrDrop = setting("Messages of the client itself (系统消息).", "drop")
    recalled: KeepOrDrop = setting("…撤回了一条消息", "drop")
    media_marks: Literal["keep", "strip"] = setting("[图片], [表情], [语音] and the like.", "strip")
    cards: KeepOrDrop = setting("Forwarded cards, red packets, and messages that the client could not show.", "drop")
    mentions: Literal["keep", "strip"] = setting("@name of a member.", "keep")
    privacy: bool = setting("Replace personal data and the names of members by placeholders.", True)

    def __post_init__(self):
        super().__post_init__()
        if not self.input:
            raise ValueError("--input is missing: the exported chats")
