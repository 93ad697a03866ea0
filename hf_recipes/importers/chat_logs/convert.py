"""Exported chats of QQ and WeChat → conversations in which one of the members, me, is the assistant."""

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.ledger import LEDGER, UNUSABLE, Ledger, row_status, write_ledgers
from hf_recipes.data.files.file_io import COMPRESSED
from hf_recipes.importers.arguments import QQArguments
from hf_recipes.importers.chat_logs.members import ME, SYSTEM, Members
from hf_recipes.importers.chat_logs.qq_txt import read_qq
from hf_recipes.importers.chat_logs.sessions import Chat, Rules, Run, cut, sessions
from hf_recipes.importers.chat_logs.wechat_csv import read_wechat
from hf_recipes.importers.output import SIDES, Writer
from hf_recipes.importers.train_test_split import HELD_OUT, NOT_DRAWN, TEST, draw
from hf_recipes.privacy.redactor import Redactor, mentioned

_TXT, _CSV = (tuple(kind + packed for packed in ("", *COMPRESSED)) for kind in (".txt", ".csv"))


class Example(NamedTuple):
    chat: int
    session: int
    runs: list[Run]


def prepare_qq(args: QQArguments, folder: Path) -> dict[str, int]:
    """Write the examples of exported chats and their ledger into `folder`.

    Returns:
        How many examples are in ``train.jsonl`` and in ``test.jsonl``.

    Raises:
        UserError: files that cannot be read, nobody who is me, or no answer of mine in them.
    """
    members = Members()
    chats = [
        chat
        for path in tqdm(_find(args.input), "files", disable=None)
        for chat in (read_wechat if path.endswith(_CSV) else read_qq)(path, members)
    ]
    mine = members.find(args.me or ())
    if not mine:
        raise UserError("--me is missing: your nickname or number in the exported chats")
    rules = Rules(args, members)
    talks = [Talk(args, chat, members, mine, rules) for chat in chats]
    examples = [
        Example(chat, session, runs)
        for chat, talk in enumerate(talks)
        for session, own in enumerate(talk.sessions())
        for runs in own
    ]
    sides = b""
    if examples:
        numbers: dict[tuple[int, int], int] = {}
        groups = [numbers.setdefault((example.chat, example.session), len(numbers)) for example in examples]
        sides = draw(groups, args.total, args.test_size, args.seed, "session")
    counts = _write(args, talks, examples, sides, folder)
    ledger = Ledger()
    for talk in talks:
        talk.account(ledger)
    say(ledger.table())
    ledger.check(args.max_drop_ratio, UNUSABLE)
    if not examples:
        raise UserError(f"--input {' '.join(args.input)}: nothing that --me {' '.join(args.me or ())} answers is left")
    write_ledgers(folder / LEDGER, messages=ledger)
    return counts


def _find(specs: Sequence[str]) -> list[str]:
    paths = []
    for spec in specs:
        if os.path.isdir(spec):
            found = sorted(str(path) for path in Path(spec).rglob("*") if path.name.endswith((*_TXT, *_CSV)))
        else:
            found = [spec] if os.path.isfile(spec) else sorted(glob.glob(spec, recursive=True))
        if not found:
            raise UserError(f"--input {spec}: no such file, or no .txt or .csv in this folder")
        paths += found
    for path in paths:
        if not path.endswith((*_TXT, *_CSV)):
            raise UserError(f"--input {path}: neither .txt nor .csv; export the chats as text (文本文件, *.txt)")
    return paths


class Talk:
    """A chat, what its messages say, and what becomes of each."""

    def __init__(self, args: QQArguments, chat: Chat, members: Members, mine: set[str], rules: Rules):
        self.args, self.chat, self._members, self._mine = args, chat, members, mine
        self.texts: list[str] = []
        self.repairs: list[list[str]] = []
        self.dropped: dict[int, str] = {}
        for index, message in enumerate(chat.messages):
            text, repairs, reason = rules.judge(message)
            if message.problem:
                reason = UNUSABLE + message.problem
            if reason:
                self.dropped[index] = reason
            self.texts.append(text)
            self.repairs.append(repairs)
        others = {chat.messages[index].sender for index in self._usable()} - mine - {SYSTEM}
        self.has_speakers = args.speakers == "always" or (args.speakers == "auto" and len(others) > 1)
        if len(others) == 1 and not chat.is_group:
            members.meet(others.pop(), chat.name, has_number=False)

    def _usable(self) -> Iterator[int]:
        return (index for index in range(len(self.chat.messages)) if index not in self.dropped)

    def sessions(self) -> Iterator[list[list[Run]]]:
        """The examples of each session."""
        for runs in sessions(self.chat.messages, list(self._usable()), self._mine, self.args.session_gap):
            yield list(cut(runs, self.args.max_turns, self.dropped))

    def said(self, run: Run) -> str:
        """The messages of a run in one text, without personal data if that is wanted."""
        lines = []
        for location in run.locations:
            text = self.texts[location]
            if self.args.privacy:
                text, kinds = self._redactor.redact(text)
                self.repairs[location] += [f"personal data ({kind})" for kind in sorted(kinds)]
            lines.append(text)
        text = "\n".join(lines)
        return f"{self._name(run.sender)}：{text}" if self.has_speakers and run.sender != ME else text

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """Who writes in this chat, numbered by appearance, as a `Redactor` numbers them."""
        senders = dict.fromkeys(message.sender for message in self.chat.messages if message.sender != SYSTEM)
        return {sender: number for number, sender in enumerate(senders, 1)}

    @cached_property
    def _redactor(self) -> Redactor:
        """Of who writes here, and then of those who are only mentioned."""
        people = {sender: self._members.names[sender] for sender in self._numbers}
        known = {*people, *(name for names in people.values() for name in names)}
        called = (name for message in self.chat.messages for name in mentioned(message.text) if name not in known)
        return Redactor(people | dict.fromkeys(called, ()))

    def _name(self, sender: str) -> str:
        is_hidden = self.args.privacy and sender in self._numbers
        return f"用户{self._numbers[sender]}" if is_hidden else self._members.display(sender)

    def account(self, ledger: Ledger) -> None:
        for index, message in enumerate(self.chat.messages):
            statuses = [row_status("repaired", repair) for repair in self.repairs[index]]
            if index in self.dropped:
                statuses = [row_status("dropped", self.dropped[index])]
            ledger.add(f"{self.chat.path}:{message.line}", *statuses)


def _write(
    args: QQArguments, talks: Sequence[Talk], examples: Sequence[Example], sides: Sequence[int], folder: Path
) -> dict[str, int]:
    reasons = {NOT_DRAWN: "not drawn for --total", HELD_OUT: "of a session to test on, and --test_size is reached"}
    with Writer(folder) as writer:
        for example, side in zip(tqdm(examples, "examples", disable=None), sides, strict=True):
            talk = talks[example.chat]
            if side in reasons:
                talk.dropped |= {location: reasons[side] for run in example.runs for location in run.locations}
                continue
            columns = {"chat": example.chat + 1, "session": example.session + 1}
            turns = (("assistant" if run.sender == ME else "user", talk.said(run)) for run in example.runs)
            writer.write(SIDES[side == TEST], _messages(args.system_prompt, turns), **columns)
    return writer.counts


def _messages(system_prompt: str | None, turns: Iterable[tuple[str, str]]) -> Iterator[Mapping[str, str]]:
    if system_prompt:
        yield {"role": "system", "content": system_prompt}
    asked: list[str] = []
    for role, text in turns:
        if role == "user":
            asked.append(text)
        else:
            yield {"role": "user", "content": "\n".join(asked)}
            yield {"role": "assistant", "content": text}
            asked = []
