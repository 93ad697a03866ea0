"""The members of chats, their names, and which of them is me."""

from collections.abc import Iterable, Sequence

from hf_recipes.core.errors import UserError
from hf_recipes.importers.chat_logs.messages import ChatLog

# Keys of senders without a number: the client itself and, followed by a name if there is one, the exporter.
SYSTEM, EXPORTER = "\0", "\0\0"
MYSELF = "我"  # names, in --me, the exporter


class Members:
    """The senders of all chats: `names` by number, by mail address, or by a name where an export has only that."""

    def __init__(self):
        self.names: dict[str, list[str]] = {}
        self._accounts: set[str] = set()

    def add(self, key: str, *names: str, is_account: bool = True) -> str:
        known = self.names.setdefault(key, [])
        known += [name for name in names if name and name not in known]
        if is_account and not key.startswith(EXPORTER):
            self._accounts.add(key)
        return key

    def display(self, key: str) -> str:
        if key == SYSTEM:
            return "系统消息"
        return next(iter(self.names.get(key, ())), MYSELF if key.startswith(EXPORTER) else key)

    def display_with_number(self, key: str) -> str:
        name = self.display(key)
        return f"{name} ({key})" if key in self._accounts and key != name else name

    def find(self, names_or_numbers: Sequence[str], logs: Sequence[ChatLog] = ()) -> set[str]:
        """The keys of one person: the exporter, or who is given by numbers or nicknames.

        Raises:
            UserError: a name is of nobody or of several; without a name, a chat does not say who exported it.
        """
        chats = [(log.owner, log.senders) for log in logs]
        owners = {owner for owner, _ in chats if owner in self.names}  # who write anything
        # The exports of one person, unless an exporter writes in a chat that another one exported.
        is_one_exporter = not any(owner and self._writes_another(owner, owners, senders) for owner, senders in chats)
        if not names_or_numbers:
            for log, (owner, senders) in zip(logs, chats, strict=True):
                if not owner and not senders & owners:
                    raise UserError(
                        f"--me is missing: your nickname or number in the exported chats; {log.path} does not say "
                        f"which of {self._listed([log])} you are"
                    )
            if not is_one_exporter:
                names = ", ".join(sorted(self.display(key) for key in owners))
                raise UserError(f"--me is missing: several people exported these chats ({names}); name one of them")
            return owners
        me: set[str] = set()
        for name in names_or_numbers:
            if name in self._accounts:
                keys = {name}
            else:
                keys = {key for key, names in self.names.items() if name in (key, *names)}
                keys |= owners if name == MYSELF else set()
            if not keys:
                raise UserError(f"--me {name}: nobody of this name or number writes here, but {self._listed(logs)} do")
            accounts = {key for key in keys if key in self._accounts or key.startswith(EXPORTER)}
            people = accounts | {key for key in keys if _writes_with(key, keys, chats)}
            if is_one_exporter:
                people = people - owners | set(list(people & owners)[:1])
            if len(people) > 1:
                choices = ", ".join(sorted({MYSELF if key.startswith(EXPORTER) else key for key in people} - {name}))
                raise UserError(
                    f"--me {name}: {len(people)} people have this nickname; give one of {choices}, or all that are you"
                )
            me |= keys
        if me & owners and is_one_exporter:
            me |= owners
        # Where an export has names alone, the same person has no number.
        names = {name for key in me for name in self.names[key]} & self.names.keys() - self._accounts
        return me | {key for key in names if not _writes_with(key, me, chats)}

    def _writes_another(self, owner: str, owners: set[str], senders: set[str]) -> bool:
        """Whether one of the other exporters writes in a chat that `owner` exported."""
        others = owners - {owner}
        if not owner.startswith(EXPORTER):
            return bool(senders & others)
        names = {name for key in others if key.startswith(EXPORTER) for name in self.names[key]}
        return bool(senders & (others | names - self._accounts))

    def _listed(self, logs: Iterable[ChatLog]) -> str:
        """The senders of `logs`, or all; the same name once for each account."""
        keys = dict.fromkeys(key for log in logs for key in (message.sender for message in log.messages))
        keys = [key for key in keys or self.names if key != SYSTEM]
        first = [self.display(key) for key in keys][:5]
        return ", ".join(first) + (f" and {len(keys) - 5:,} more" if len(keys) > 5 else "")


def _writes_with(key: str, others: set[str], chats: Iterable[tuple[str | None, set[str]]]) -> bool:
    """Whether `key` writes in a chat with one of `others`, and is another person therefore."""
    return any(key in senders and senders & others - {key} for _, senders in chats)
