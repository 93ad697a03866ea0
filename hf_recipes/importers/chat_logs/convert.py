"""Exported chats → conversations in which one of the members, me, is the assistant."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from rich.cells import cell_len, set_cell_size

from hf_recipes.core.errors import say
from hf_recipes.core.ledger import UNUSABLE, Ledger, row_status
from hf_recipes.importers.arguments import QQArguments
from hf_recipes.importers.chat_logs.exports import read_exports
from hf_recipes.importers.chat_logs.members import EXPORTER, MYSELF, SYSTEM, Members
from hf_recipes.importers.chat_logs.messages import ChatLog
from hf_recipes.importers.chat_logs.rules import Rules
from hf_recipes.importers.chat_logs.sessions import ME, MessageGroup, split_session, split_sessions
from hf_recipes.importers.output import finish_ledgers, write_examples
from hf_recipes.importers.train_test_split import unused_reason
from hf_recipes.privacy.redactor import Redactor, mentioned

MAX_LISTED, SAMPLES, SAMPLE_CELLS = 20, 3, 100  # members and samples to print, and the width of a turn


class Example(NamedTuple):
    chat: int
    session: int
    message_groups: list[MessageGroup]


def prepare_qq(args: QQArguments, folder: Path) -> bytearray:
    """Write the examples of exported chats and their ledger into `folder`; returns the split of each example."""
    members = Members()
    logs = read_exports(args.input, None if args.format == "auto" else args.format, members)
    me = members.find(args.me or (), logs)
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

    _print_overview(chats, members, me)
    step = max(1, len(examples) // SAMPLES)
    _print_samples([to_row(example) for example in examples[::step][:SAMPLES]])
    splits = write_examples(folder, args, examples, groups, "session", to_row)
    for example, split in zip(examples, splits, strict=True):
        if reason := unused_reason(split, "session"):
            chats[example.chat].drop(example.message_groups, reason)
    ledger = Ledger()
    for chat in chats:
        chat.count(ledger)
    nothing_left = None
    if not examples:
        name = f"--me {' '.join(args.me)}" if args.me else "the exporter"
        nothing_left = f"--input {' '.join(args.input)}: no message that {name} answers is left"
    finish_ledgers(folder, args, nothing_left, messages=ledger)
    return splits


def _print_overview(chats: Sequence["Chat"], members: Members, me: set[str]) -> None:
    """Print how many messages are of whom, and in which chats me writes nothing; names are personal, so only print."""
    counts = Counter(message.sender for chat in chats for message in chat.log.messages)
    mine = {key: counts.pop(key) for key in me & counts.keys()}
    name = next((members.display(key) for key in sorted(mine) if members.names[key]), MYSELF)
    say(f"the assistant is {name}: {sum(mine.values()):,} messages; others:")
    for key, count in counts.most_common(MAX_LISTED):
        say(f"{count:>9,}  {members.display_with_number(key)}")
    if len(counts) > MAX_LISTED:
        say(f"{'':>9}  and {len(counts) - MAX_LISTED:,} more")
    without_me = [chat.log for chat in chats if not chat.log.senders & me]
    for log in without_me[:MAX_LISTED]:
        is_named_me = log.owner in log.senders and log.owner.startswith(EXPORTER)
        hint = f"; add {MYSELF} to --me if that is you" if is_named_me else ""
        say(f"{log.path}: a chat in which {name} writes nothing{hint}")
    if len(without_me) > MAX_LISTED:
        say(f"and {len(without_me) - MAX_LISTED:,} more chats in which {name} writes nothing")


def _print_samples(rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        say("sample:")
        for turn in row["messages"][-2:]:
            text = turn["content"].replace("\n", " ⏎ ")
            if cell_len(text) > SAMPLE_CELLS:
                text = f"{set_cell_size(text, SAMPLE_CELLS)}…"
            say(f"  {turn['role']}: {text}")


class Chat:
    """The messages of a chat, their texts in examples, what was repaired in each, and why some are dropped."""

    def __init__(self, args: QQArguments, log: ChatLog, members: Members, me: set[str], rules: Rules):
        self.args, self.log, self._members, self._me = args, log, members, me
        self.texts: list[str] = []
        self.repairs: list[list[str]] = []
        self.dropped: dict[int, str] = {}
        is_without_me = not log.senders & me
        for index, message in enumerate(log.messages):
            text, repairs, reason = rules.apply(message)
            if message.problem:
                reason = UNUSABLE + message.problem
            elif is_without_me and not reason:
                reason = "a chat in which --me writes nothing"
            if reason:
                self.dropped[index] = reason
            self.texts.append(text)
            self.repairs.append(repairs)
        senders = {log.messages[index].sender for index in self._usable()} - {SYSTEM}
        self.has_speakers = args.speakers == "always" or (args.speakers == "auto" and len(senders - me) > 1)
        contacts = senders - ({log.owner} if log.owner else me)
        if len(contacts) == 1 and not log.is_group and not any(log.name in members.names[key] for key in senders):
            members.add(*contacts, log.name, is_account=False)

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
                repairs = (f"personal data ({kind})" for kind in sorted(kinds))
                self.repairs[index] += [repair for repair in repairs if repair not in self.repairs[index]]
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
            ledger.add(f"{message.path}:{message.line}", *statuses)
