"""Who says what in a chat, under what name."""

from collections.abc import Sequence

from hf_recipes.core.errors import UserError


class Members:
    """Who writes, over all chats: names by number, mail address, or by name where an export has no more."""

    def __init__(self):
        self.names: dict[str, list[str]] = {}
        self._numbered: set[str] = set()

    def meet(self, key: str, *names: str, has_number: bool = True) -> str:
        known = self.names.setdefault(key, [])
        known += [name for name in names if name and name not in known]
        if has_number:
            self._numbered.add(key)
        return key

    def display(self, key: str) -> str:
        return "系统消息" if key == SYSTEM else next(iter(self.names[key]), key)

    def find(self, given: Sequence[str]) -> set[str]:
        """Those that `given` means, each a number or a nickname.

        Raises:
            UserError: nobody, or several people of one nickname.
        """
        found: set[str] = {ME} & self.names.keys()
        for name in given:
            keys = (
                {name}
                if name in self._numbered
                else {key for key, names in self.names.items() if name in (key, *names)}
            )
            if not keys:
                raise UserError(f"--me {name}: nobody of this name or number writes here, but {self._listed()} do")
            if len(numbers := sorted(keys & self._numbered)) > 1:
                raise UserError(
                    f"--me {name}: {len(numbers)} people have this nickname; give one of {', '.join(numbers)}"
                )
            found |= keys
        own = {name for key in found for name in self.names[key]}
        return found | {key for key in self.names.keys() - self._numbered if key in own}

    def _listed(self) -> str:
        shown = [self.display(key) for key in self.names][:5]
        return ", ".join(shown) + (f" and {len(self.names) - 5:,} more" if len(self.names) > 5 else "")


SYSTEM, ME = "\0system", "\0me"  # senders that have no name or number
