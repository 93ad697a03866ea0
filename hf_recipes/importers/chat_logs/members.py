"""The members of chats, and their names."""

from collections.abc import Sequence

from hf_recipes.core.errors import UserError

SYSTEM, ME = "\0system", "\0me"  # senders without a name or number


class Members:
    """The senders of all chats: `names` by number, by mail address, or by a name where an export has only that."""

    def __init__(self):
        self.names: dict[str, list[str]] = {}
        self._accounts: set[str] = set()

    def add(self, key: str, *names: str, is_account: bool = True) -> str:
        known = self.names.setdefault(key, [])
        known += [name for name in names if name and name not in known]
        if is_account:
            self._accounts.add(key)
        return key

    def display(self, key: str) -> str:
        return "系统消息" if key == SYSTEM else next(iter(self.names[key]), key)

    def find(self, names_or_numbers: Sequence[str]) -> set[str]:
        """The keys of one person, given by numbers or nicknames; an error if a nickname is of nobody or of several."""
        matches: set[str] = {ME} & self.names.keys()
        for name in names_or_numbers:
            keys = {key for key, names in self.names.items() if name in (key, *names)}
            if name in self._accounts:
                keys = {name}
            if not keys:
                raise UserError(f"--me {name}: nobody of this name or number writes here, but {self._listed()} do")
            if len(numbers := sorted(keys & self._accounts)) > 1:
                numbers = f"{len(numbers)} people have this nickname; give one of {', '.join(numbers)}"
                raise UserError(f"--me {name}: {numbers}")
            matches |= keys
        their_names = {name for key in matches for name in self.names[key]}
        return matches | {key for key in self.names.keys() - self._accounts if key in their_names}

    def _listed(self) -> str:
        first = [self.display(key) for key in self.names][:5]
        return ", ".join(first) + (f" and {len(self.names) - 5:,} more" if len(self.names) > 5 else "")
