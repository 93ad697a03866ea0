"""The formats that are read, and how the format of a file is known."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from hf_recipes.core.errors import UserError
from hf_recipes.importers.chat_logs.export_file import ExportFile
from hf_recipes.importers.chat_logs.formats import (
    chatlab,
    chatlog,
    qq_chat_exporter_json,
    qq_chat_exporter_txt,
    qq_desktop,
    telegram,
    wechatmsg_csv,
    wechatmsg_txt,
    weclone,
    weflow_json,
    weflow_text,
)
from hf_recipes.importers.chat_logs.members import Members
from hf_recipes.importers.chat_logs.messages import ChatLog

HOW_TO_EXPORT = (
    "read are the exports of QQ's desktop client (txt), qq-chat-exporter (json, chunked, txt), "
    "chatlog and WeFlow (csv, txt, "
    "json), PyWxDump (csv, json), WeChatMsg (csv, txt), WeClone (csv), ChatLab (json, jsonl) and Telegram (json); "
    "export QQ with qq-chat-exporter, WeChat with WeFlow or chatlog, Telegram with Export chat history as JSON; "
    "databases and backups are not decrypted; unpack a .zip"
)


class Format(NamedTuple):
    """One format: `matches` knows a file of it, `read` gives its chats and adds the senders to the members."""

    name: str
    matches: Callable[[ExportFile], bool]
    read: Callable[[ExportFile, Members], Iterator[ChatLog]]
    by_name: bool = False  # people are told apart by their names alone


# In the order in which they are tried: a text that several match is of the first.
FORMATS = (
    Format("chatlog-csv", chatlog.matches_csv, chatlog.read_csv),
    Format("weclone-csv", weclone.matches_weclone, weclone.read_csv, by_name=True),
    Format("weflow-csv", weflow_text.matches_csv, weflow_text.read_csv, by_name=True),
    Format("pywxdump-csv", weclone.matches_csv, weclone.read_csv),
    Format("wechatmsg1-csv", wechatmsg_csv.matches_1, wechatmsg_csv.read_1),
    Format("wechatmsg2-csv", wechatmsg_csv.matches_2, wechatmsg_csv.read_2, by_name=True),
    Format("qce-txt", qq_chat_exporter_txt.matches, qq_chat_exporter_txt.read, by_name=True),
    Format("weflow-txt", weflow_text.matches_txt, weflow_text.read_txt, by_name=True),
    Format("chatlog-txt", chatlog.matches_txt, chatlog.read_txt),
    Format("qce-chunked", qq_chat_exporter_json.matches_chunked, qq_chat_exporter_json.read_chunked),
    Format("qce-json", qq_chat_exporter_json.matches, qq_chat_exporter_json.read),
    Format("chatlab-jsonl", chatlab.matches_lines, chatlab.read_lines),
    Format("chatlab-json", chatlab.matches, chatlab.read),
    Format("weflow-json", weflow_json.matches, weflow_json.read),
    Format("telegram-full", telegram.matches_full, telegram.read_full),
    Format("telegram", telegram.matches, telegram.read),
    Format("chatlog-json", chatlog.matches_json, chatlog.read_json),
    Format("pywxdump-json", weclone.matches_json, weclone.read_json),
    Format("wechatmsg-txt", wechatmsg_txt.matches, wechatmsg_txt.read, by_name=True),
    Format("qq-desktop", qq_desktop.matches, qq_desktop.read),
)


def detect(file: ExportFile, name: str | None = None) -> Format:
    """The format of a file, or the format `name`, if the file is of it.

    Raises:
        UserError: the file is of no format that is read.
    """
    for format in FORMATS:
        if name in (None, format.name) and format.matches(file):
            return format
    problem = "no chat export that is known" if name is None else f"not of --format {name}"
    raise UserError(f"{file.path}: {problem}; {HOW_TO_EXPORT}")
