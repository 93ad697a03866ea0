"""Exported chats of QQ and WeChat → conversations in which one of the members, me, is the assistant."""

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import UNUSABLE, Ledger, row_status
from hf_recipes.data.files.file_io import COMPRESSED
from hf_recipes.importers.arguments import QQArguments
from hf_recipes.importers.chat_logs.members import ME, SYSTEM, Members
from hf_recipes.importers.chat_logs.qq_txt import read_qq
from hf_recipes.importers.chat_logs.sessions import ChatLog, MessageGroup, Rules, split_session, split_sessions
from hf_recipes.importers.chat_logs.wechat_csv import read_wechat
from hf_recipes.importers.output import finish_ledgers, write_examples
from hf_recipes.importers.train_test_split import unused_reason
from hf_recipes.privacy.redactor import Redactor, mentioned

_TXT, _CSV = (tuple(suffix + compression for compression in ("", *COMPRESSED)) for suffix in (".txt", ".csv"))


class Example(NamedTuple):
    chat: int
    session: int
    message_groups: list[MessageGroup]


def prepare_qq(args: QQArguments, folder: Path) -> bytearray:
    """Write the examples of exported chats and their ledger into `folder`; returns the split of each example."""
    members = Members()
    logs = [
        log
        for path in tqdm(_find_files(args.input), "files", disable=None)
        for log in (read_wechat if path.endswith(_CSV) else read_qq)(path, members)
    ]
    me = members.find(args.me or ())
    if not me:
        raise UserError("--me is missing: your nickname or number in the exported chats")
    rules = Rules(args, members)
    chats = [Chat(args, log, members, me, rules) for log in logs]
    examples = [
        Example(chat_index, session_index, message_groups)
        for chat_index, chat in enumerate(chats)
        for session_index, session in enumerate(chat.sessions())
        for message_groups in session
    ]
    numbers: dict[tuple[int, int], int] = {}
    groups = [numbers.setdefault((example.chat, example.session), len(numbers)) for example in examples]

    def to_row(example: Example) -> dict[str, Any]:
        messages = list(chats[example.chat].conversation(example.message_groups))
        return {"messages": messages, "chat": example.chat + 1, "session": example.session + 1}

    splits = write_examples(folder, args, examples, groups, "session", to_row)
    for example, split in zip(examples, splits, strict=True):
        if reason := unused_reason(split, "session"):
            chats[example.chat].drop(example.message_groups, reason)
    ledger = Ledger()
    for chat in chats:
        chat.count(ledger)
    nothing_left = None
    if not examples:
        nothing_left = f"--input {' '.join(args.input)}: no message that --me {' '.join(args.me or ())} answers is left"
    finish_ledgers(folder, args, nothing_left, messages=ledger)
    return splits


def _find_files(specs: Sequence[str]) -> list[str]:
    paths = []
    for spec in specs:
        if os.path.isdir(spec):
            matches = sorted(str(path) for path in Path(spec).rglob("*") if path.name.endswith((*_TXT, *_CSV)))
        else:
            matches = [spec] if os.path.isfile(spec) else sorted(glob.glob(spec, recursive=True))
        if not matches:
            raise UserError(f"--input {spec}: no such file, or no .txt or .csv in this folder")
        paths += matches
    for path in paths:
        if not path.endswith((*_TXT, *_CSV)):
            raise UserError(f"--input {path}: neither .txt nor .csv; export the chats as text (文本文件, *.txt)")
    return paths


class Chat:
    """The messages of a chat, their texts in examples, what was repaired in each, and why some are dropped."""

    def __init__(self, args: QQArguments, log: ChatLog, members: Members, me: set[str], rules: Rules):
        self.args, self.log, self._members, self._me = args, log, members, me
        self.texts: list[str] = []
        self.repairs: list[list[str]] = []
        self.dropped: dict[int, str] = {}
        for index, message in enumerate(log.messages):
            text, repairs, reason = rules.apply(message)
            if message.problem:
                reason = UNUSABLE + message.problem
            if reason:
                self.dropped[index] = reason
            self.texts.append(text)
            self.repairs.append(repairs)
        others = {log.messages[index].sender for index in self._usable()} - me - {SYSTEM}
        self.has_speakers = args.speakers == "always" or (args.speakers == "auto" and len(others) > 1)
        if len(others) == 1 and not log.is_group:
            members.add(others.pop(), log.name, is_account=False)

    def _usable(self) -> Iterator[int]:
        return (index for index in range(len(self.log.messages)) if index not in self.dropped)

    def sessions(self) -> Iterator[list[list[MessageGroup]]]:
        """The examples of each session."""
        for session in split_sessions(self.log.messages, list(self._usable()), self._me, self.args.session_gap):
            yield list(split_session(session, self.args.max_turns, self.drop))

    def drop(self, message_groups: Iterable[MessageGroup], reason: str) -> None:
        self.dropped.update((index, reason) for group in message_groups for index in group.indices)

    def conversation(self, message_groups: Iterable[MessageGroup]) -> Iterator[Mapping[str, str]]:
        """User turns (messages of all others up to an answer of mine) and assistant turns (mine)."""
        if self.args.system_prompt:
            yield {"role": "system", "content": self.args.system_prompt}
        before_answer: list[str] = []
        for group in message_groups:
            if group.sender == ME:
                yield {"role": "user", "content": "\n".join(before_answer)}
                yield {"role": "assistant", "content": self._text(group)}
                before_answer = []
            else:
                before_answer.append(self._text(group))

    def _text(self, group: MessageGroup) -> str:
        """The messages of a group as one text, with --privacy redacted."""
        lines = []
        for index in group.indices:
            text = self.texts[index]
            if self.args.privacy:
                text, kinds = self._redactor.redact(text)
                self.repairs[index] += [f"personal data ({kind})" for kind in sorted(kinds)]
            lines.append(text)
        text = "\n".join(lines)
        if not self.has_speakers or group.sender == ME:
            return text
        is_hidden = self.args.privacy and group.sender in self._numbers
        name = f"用户{self._numbers[group.sender]}" if is_hidden else self._members.display(group.sender)
        return f"{name}：{text}"

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """The senders of this chat, numbered in order of appearance, as a `Redactor` numbers them."""
        senders = dict.fromkeys(message.sender for message in self.log.messages if message.sender != SYSTEM)
        return {sender: number for number, sender in enumerate(senders, 1)}

    @cached_property
    def _redactor(self) -> Redactor:
        """Replaces the senders of this chat and, numbered after them, people who are only mentioned."""
        people = {sender: self._members.names[sender] for sender in self._numbers}
        known = {*people, *(name for names in people.values() for name in names)}
        mentions = (name for message in self.log.messages for name in mentioned(message.text) if name not in known)
        return Redactor(people | dict.fromkeys(mentions, ()))

    def count(self, ledger: Ledger) -> None:
        for index, message in enumerate(self.log.messages):
            statuses = [row_status("repaired", repair) for repair in self.repairs[index]]
            if index in self.dropped:
                statuses = [row_status("dropped", self.dropped[index])]
            ledger.add(f"{self.log.path}:{message.line}", *statuses)
