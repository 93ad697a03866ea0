"""What became of every row: kept, truncated, split, repaired or dropped, by source and reason."""

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

from hf_recipes.core.errors import UserError
from hf_recipes.core.files import write_json

LEDGER = "data_ledger.json"  # in the folder of what was made
KEPT = "kept"
FILTERED = "dropped by settings"  # by the settings, which no limit on dropped rows counts
MAX_LOCATIONS, SHOWN = 10, 3  # the first places of each reason are remembered, and the details of so many are shown
UNUSABLE = "unusable row: "  # begins the reason of what could not be read, as opposed to what a rule dropped


def row_status(action: str, reason: str) -> str:
    """One row's fate as the string that data sets carry in their `fate` column (`KEPT` for an untouched row)."""
    return f"{action}: {reason}"


# A reason is one of few sentences; what of a row's own makes it clearer is a detail, behind this sign. Details may be
# personal: they are shown to whoever has the data on screen, and no file of counts holds them.
_DETAIL, DETAIL_LENGTH = "\x1f", 60
# What a reason quotes, as `repr` writes it. A quote that does not end takes the rest; a long number may be a row's.
_QUOTED = re.compile(r"""(?<!\w)(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|['"].*)|\d{5,}""", re.DOTALL)
_hidden: ContextVar[bool] = ContextVar("hidden", default=False)


def with_detail(reason: str, detail: object) -> str:
    """A reason with what the row holds, cut to `DETAIL_LENGTH` characters."""
    text = " ".join("".join(sign if sign.isprintable() else " " for sign in str(detail)).split())
    return f"{reason}{_DETAIL}{text if len(text) <= DETAIL_LENGTH else text[: DETAIL_LENGTH - 1] + '…'}"


def without_detail(reason: str) -> str:
    return reason.split(_DETAIL, 1)[0]


def shown(reason: str) -> str:
    """A reason or fate for people: with its detail in brackets, unless details are hidden."""
    reason, _, detail = reason.partition(_DETAIL)
    return f"{reason} ({detail})" if detail and not _hidden.get() else reason


def without_values(reason: str) -> str:
    """A reason of an earlier version's ledger, which may quote a row, without what it quotes."""
    return ": ".join(_QUOTED.sub("…", reason).split(": ")[:2])  # a third part is another program's message


@contextlib.contextmanager
def details_hidden(hidden: bool = True) -> Iterator[None]:
    """Whatever is said of rows within shows no detail of them."""
    before = _hidden.set(hidden)
    try:
        yield
    finally:
        _hidden.reset(before)


def is_dropped(status: str) -> bool:
    return status.startswith("dropped")


@dataclass
class Entry:
    """One reason: how many rows, the first `PLACES` of them as ``file:line``, and of these the details.

    Details are of this process: `Ledger.to_dict` leaves them out.
    """

    count: int = 0
    locations: list[str] = field(default_factory=list)
    details: dict[str, str] = field(default_factory=dict)

    def shown(self, reason: str, location: str) -> str:
        return shown(with_detail(reason, self.details[location]) if location in self.details else reason)


@dataclass
class Ledger:
    """Counts of one data set. Kept (truncated, split and repaired rows among them) + dropped equals read.

    `sources` maps a file to `Counter(read=…, kept=…, dropped=…, truncated=…, …)`; `reasons` maps
    ``(file, fate)`` to its `Entry`.
    """

    sources: dict[str, Counter] = field(default_factory=dict)
    reasons: dict[tuple[str, str], Entry] = field(default_factory=dict)

    def add(self, location: str, *statuses: str) -> None:
        """Count one row; `place` is ``file:line``. Several fates are for one that was repaired in several ways."""
        source = location.rpartition(":")[0]
        counts = self.sources.setdefault(source, Counter())
        counts["read"] += 1
        counts["dropped" if any(map(is_dropped, statuses)) else "kept"] += 1
        statuses = [status for status in statuses if status != KEPT]
        for action in {status.split(":", 1)[0] for status in statuses} - {"dropped"}:
            counts[action] += 1
        for status in statuses:
            reason, _, detail = status.partition(_DETAIL)
            entry = self.reasons.setdefault((source, reason), Entry())
            entry.count += 1
            if len(entry.locations) < MAX_LOCATIONS:
                entry.locations.append(location)
                if detail:
                    entry.details[location] = detail

    def drop(self, location: str, statuses: Iterable[str], reason: str) -> None:
        """Drop a row after all that was counted, with `row_fates`, as kept."""
        source = location.rpartition(":")[0]
        counts = self.sources[source]
        counts.subtract(["read", "kept", *{status.split(":", 1)[0] for status in statuses}])
        for status in map(without_detail, statuses):
            entry = self.reasons[source, status]
            entry.count -= 1
            if location in entry.locations:
                entry.locations.remove(location)
            if not entry.count:
                del self.reasons[source, status]
        self.add(location, row_status("dropped", reason))

    def add_all(self, locations: Iterable[str], statuses: Iterable[str]) -> "Ledger":
        for location, status in zip(locations, statuses, strict=True):
            self.add(location, status)
        return self

    def merge(self, other: "Ledger") -> "Ledger":
        """Add what another ledger counted of later rows."""
        for source, counts in other.sources.items():
            self.sources.setdefault(source, Counter()).update(counts)
        for key, found in other.reasons.items():
            entry = self.reasons.setdefault(key, Entry())
            entry.count += found.count
            entry.locations += found.locations[: MAX_LOCATIONS - len(entry.locations)]
            entry.details |= {
                location: found.details[location] for location in entry.locations if location in found.details
            }
        return self

    @property
    def totals(self) -> Counter:
        return sum(self.sources.values(), Counter())

    def check(self, max_drop_ratio: float, reasons: str = "") -> None:
        """Raise `UserError`, with the first ten places, when more than `max_drop_ratio` of the rows were dropped.

        Counted are drops whose reason begins with `reasons`; rows that were dropped as `ASKED` are left out.
        """
        entries = [
            (status, e) for (_, status), e in self.reasons.items() if status.startswith(row_status("dropped", reasons))
        ]
        dropped, read = sum(entry.count for _, entry in entries), self.totals["read"] - self.totals[FILTERED]
        if not dropped or (dropped <= max_drop_ratio * read and dropped < read):
            return
        first = [
            f"  {location}: {entry.shown(status.split(': ', 1)[1], location)}"
            for status, entry in entries
            for location in entry.locations
        ]
        head = f"{dropped} of {read} rows cannot be used"
        if dropped < read:
            head += f", more than --max_drop_ratio {max_drop_ratio:g} allows; mend them or raise it"
        raise UserError("\n".join([f"{head}:", *first[:MAX_LOCATIONS]]))

    def table(self) -> str:
        """The counts as a table, a line a source, with the reasons below each."""
        columns = ["read", "kept", "truncated", "dropped"]
        for extra in ("split", "repaired"):
            if self.totals[extra]:
                columns.insert(3, extra)
        width = max([len(source) for source in self.sources] + [8])
        lines = ["source".ljust(width) + "".join(name.rjust(11) for name in columns)]
        for source, counts in self.sources.items():
            lines.append(source.ljust(width) + "".join(f"{counts[name]:,}".rjust(11) for name in columns))
            for (owner, status), entry in self.reasons.items():
                if owner == source:
                    file, _, line = entry.locations[0].rpartition(":") if entry.locations else ("", "", "")
                    first = f" (first at {f'line {line}' if file == owner else entry.places[0]})" if file else ""
                    lines.append(f"  {entry.count:,} {status}{first}")
                    if not _hidden.get():
                        lines += [f"    {where}: {what}" for where, what in list(entry.details.items())[:SHOWN]]
        return "\n".join(lines)

    def to_dict(self) -> dict:
        return {
            "total": dict(self.totals),
            "sources": {source: dict(counts) for source, counts in self.sources.items()},
            "reasons": [
                {"source": source, "status": status, "count": entry.count, "first": entry.locations}
                for (source, status), entry in self.reasons.items()
            ],
        }

    @classmethod
    def from_dict(cls, value: dict) -> "Ledger":
        """The ledger of a `to_dict`, and of the files of earlier versions, whose key was "fate"."""
        sources = {source: Counter(counts) for source, counts in value["sources"].items()}
        reasons = {
            (entry["source"], entry.get("status") or entry["fate"]): Entry(entry["count"], list(entry.get("first", ())))
            for entry in value["reasons"]
        }
        return cls(sources, reasons)


def write_ledgers(path: str | os.PathLike, **ledgers: Ledger) -> None:
    """Write `data_ledger.json`: one object a data set (``train``, ``validation``)."""
    write_json(path, {name: ledger.to_dict() for name, ledger in ledgers.items()})
