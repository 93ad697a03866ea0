"""The files of exports → chats: what is read, what is skipped, and pages that are one chat."""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from hf_recipes.core.errors import UserError, say
from hf_recipes.importers.chat_logs.export_file import SUFFIXES, ExportFile
from hf_recipes.importers.chat_logs.formats.registry import HOW_TO_EXPORT, detect
from hf_recipes.importers.chat_logs.formats.weclone import USERS
from hf_recipes.importers.chat_logs.members import EXPORTER, Members
from hf_recipes.importers.chat_logs.messages import ChatLog


def read_exports(specs: Sequence[str], format_name: str | None, members: Members) -> list[ChatLog]:
    """The chats of files and folders, in order; files of a folder that are no export are skipped, and named.

    Raises:
        UserError: a file that was named is no export, or there is none at all.
    """
    logs: list[ChatLog] = []
    by_name = set()
    for path, is_named in tqdm(list(_files(specs)), "files", disable=None):
        file = ExportFile(path)
        try:
            format = detect(file, format_name)
        except UserError as error:
            if is_named:
                raise
            say(f"skipped: {str(error).removesuffix(f'; {HOW_TO_EXPORT}')}")
            continue
        chats = [log for log in format.read(file, members) if log.messages]
        if not chats:
            say(f"{path}: no message in it")
        elif format.by_name:
            by_name.add(format.name)
        logs += chats
    if not logs:
        raise UserError(f"--input {' '.join(specs)}: no chat export with messages here; {HOW_TO_EXPORT}")
    for name in sorted(by_name):
        say(f"{name} has no account numbers: two people of one nickname count as one")
    logs = _merge_pages(logs)
    for log in logs:
        _name_exporter(log, members)
        log.owner = log.owner or (EXPORTER if log.pages else None)  # whose pages all say who sent a message
    return logs


def _files(specs: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Each file, and whether it was named rather than found in a folder."""
    seen = set()
    for spec in specs:
        if os.path.isdir(spec):
            paths = [str(path) for path in Path(spec).rglob("*") if path.is_file() and not _is_part(path)]
            paths = [path for path in paths if path.lower().endswith(SUFFIXES)]
        else:
            paths = [spec] if os.path.isfile(spec) else glob.glob(spec, recursive=True)
        if not paths:
            raise UserError(
                f"--input {spec}: no .txt, .csv, .json or .jsonl in this folder; {HOW_TO_EXPORT}"
                if os.path.isdir(spec)
                else f"--input {spec}: no such file"
            )
        for path in sorted(paths, key=_in_order_of_numbers):
            if path not in seen:
                seen.add(path)
                yield path, not os.path.isdir(spec)


def _in_order_of_numbers(path: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", path)]


def _is_part(path: Path) -> bool:
    """Whether a file belongs to an export that another file is read for."""
    in_chunks = path.suffix == ".jsonl" and (path.parent.parent / "manifest.json").exists()
    has_manifest = path.name == "avatars.json" and (path.parent / "manifest.json").exists()
    return in_chunks or has_manifest or path.name == USERS or path.name.startswith(".")


def _merge_pages(logs: list[ChatLog]) -> list[ChatLog]:
    chats: dict[tuple, ChatLog] = {}
    for index, log in enumerate(logs):
        key = (os.path.dirname(log.path), os.path.splitext(log.path)[1], log.pages) if log.pages else (index,)
        if (chat := chats.setdefault(key, log)) is not log:
            chat.owner = chat.owner or log.owner
            chat.messages += [
                message._replace(sender=chat.owner) if message.sender == log.owner else message
                for message in log.messages
            ]
            chat.is_group = chat.is_group and log.is_group
    return list(chats.values())


def _name_exporter(log: ChatLog, members: Members) -> None:
    """Name an exporter without an account, who is the only one of the listed accounts that no message is from."""
    silent = log.accounts.keys() - log.senders
    if log.owner and log.owner.startswith(EXPORTER) and len(silent) == 1:
        for account in silent:
            members.add(log.owner, *log.accounts[account], account)
