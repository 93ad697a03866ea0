"""The data ledger: how many rows were kept, truncated, split, repaired or dropped, by source and reason."""

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

from rich.cells import cell_len, set_cell_size

from hf_recipes.core.errors import UserError
from hf_recipes.core.files import write_json

LEDGER = "data_ledger.json"  # in an output folder
HELD_OUT = "held_out.json"  # in a run's: the locations of the rows that it held out of its training files
KEPT = "kept"
FILTERED = "dropped by settings"  # the limit on dropped rows does not count these
MAX_LOCATIONS, MAX_DETAILS = 10, 3  # of each reason: locations to keep, details to print
UNUSABLE = "unusable row: "  # prefix of the reasons of rows that cannot be read, as opposed to rows that a rule dropped


def row_status(action: str, reason: str) -> str:
    """The status of a row, as in the `status` column of data sets (`KEPT` for an unchanged row).

    With the action `KEPT`, the reason is a remark on a row of which nothing is left out.
    """
    return f"{action}: {reason}"


# There are few different reasons. The value of a row that explains one is its detail, after this character. Details may
# be personal: they are printed, but never written to a file.
_DETAIL, DETAIL_LENGTH = "\x1f", 60
# Quoted values and long numbers in a reason; a quote without end extends to the end of the reason.
_QUOTED = re.compile(r"""(?<!\w)(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|['"].*)|\d{5,}""", re.DOTALL)
_hidden: ContextVar[bool] = ContextVar("hidden", default=False)


def with_detail(reason: str, detail: object) -> str:
    """A reason with a value of the row, cut to `DETAIL_LENGTH` characters."""
    text = " ".join("".join(sign if sign.isprintable() else " " for sign in str(detail)).split())
    return f"{reason}{_DETAIL}{text if len(text) <= DETAIL_LENGTH else text[: DETAIL_LENGTH - 1] + '…'}"


def shown(reason: str) -> str:
    """A reason or status to print: with its detail in brackets, unless details are hidden."""
    reason, _, detail = reason.partition(_DETAIL)
    return f"{reason} ({detail})" if detail and not _hidden.get() else reason


def without_quoted_values(reason: str) -> str:
    """A reason of an earlier version's ledger, which may quote values of a row, without these."""
    return ": ".join(_QUOTED.sub("…", reason).split(": ")[:2])  # a third part is the message of another program


@contextlib.contextmanager
def details_hidden(hidden: bool = True) -> Iterator[None]:
    """Print no details within this context."""
    token = _hidden.set(hidden)
    try:
        yield
    finally:
        _hidden.reset(token)


def is_dropped(status: str) -> bool:
    return status.startswith("dropped")


@dataclass
class Entry:
    """The number of rows of one reason, the locations (``file:line``) of the first `MAX_LOCATIONS`, and their details.

    `Ledger.to_dict` omits the details.
    """

    count: int = 0
    locations: list[str] = field(default_factory=list)
    details: dict[str, str] = field(default_factory=dict)

    def shown(self, reason: str, location: str) -> str:
        return shown(with_detail(reason, self.details[location]) if location in self.details else reason)


@dataclass
class Ledger:
    """Counts of one data set. Kept (including truncated, split and repaired rows) + dropped equals read.

    `sources` maps a file to `Counter(read=…, kept=…, dropped=…, truncated=…, …)`, `reasons` maps ``(file, status)``
    to its `Entry`.
    """

    sources: dict[str, Counter] = field(default_factory=dict)
    reasons: dict[tuple[str, str], Entry] = field(default_factory=dict)

    def add(self, location: str, *statuses: str) -> None:
        """Count one row; `location` is ``file:line``. A row that was repaired in several ways has several statuses."""
        source = location.rpartition(":")[0]
        counts = self.sources.setdefault(source, Counter())
        counts["read"] += 1
        counts["dropped" if any(map(is_dropped, statuses)) else "kept"] += 1
        statuses = [status for status in statuses if status != KEPT]
        for action in {status.split(":", 1)[0] for status in statuses} - {"dropped", KEPT}:
            counts[action] += 1
        for status in statuses:
            reason, _, detail = status.partition(_DETAIL)
            entry = self.reasons.setdefault((source, reason), Entry())
            entry.count += 1
            if len(entry.locations) < MAX_LOCATIONS:
                entry.locations.append(location)
                if detail:
                    entry.details[location] = detail

    def add_all(self, rows: Iterable[tuple[str, str]]) -> "Ledger":
        """Count rows, each by its location and its status."""
        for location, status in rows:
            self.add(location, status)
        return self

    def merge(self, other: "Ledger") -> "Ledger":
        """Add the counts of another ledger, of later rows."""
        for source, counts in other.sources.items():
            self.sources.setdefault(source, Counter()).update(counts)
        for key, more in other.reasons.items():
            entry = self.reasons.setdefault(key, Entry())
            entry.count += more.count
            entry.locations += more.locations[: MAX_LOCATIONS - len(entry.locations)]
            entry.details |= {location: text for location, text in more.details.items() if location in entry.locations}
        return self

    @property
    def totals(self) -> Counter:
        return sum(self.sources.values(), Counter())

    def check(self, max_drop_ratio: float, reasons: str = "", hint: str = "") -> None:
        """Raise a UserError, with the first locations, when more than `max_drop_ratio` of the rows were dropped.

        Only drops whose reason begins with `reasons` count; rows that are `FILTERED` are not counted as read. `hint`
        says what would keep them.
        """
        prefix = row_status("dropped", reasons)
        entries = [(status, entry) for (_, status), entry in self.reasons.items() if status.startswith(prefix)]
        dropped, read = sum(entry.count for _, entry in entries), self.totals["read"] - self.totals[FILTERED]
        if not dropped or (dropped <= max_drop_ratio * read and dropped < read):
            return
        first = [
            f"  {location}: {entry.shown(status.split(': ', 1)[1], location)}"
            for status, entry in entries
            for location in entry.locations
        ]
        problem = f"{dropped} of {read} rows cannot be used"
        if dropped < read:
            problem += f", more than --max_drop_ratio {max_drop_ratio:g} allows; correct them or raise it"
        problem += f"; {hint}" if hint else ""
        raise UserError("\n".join([f"{problem}:", *first[:MAX_LOCATIONS]]))

    def table(self) -> str:
        """The counts as a table: a line a source, with its reasons below."""
        columns = ["read", "kept", "truncated", "dropped"]
        for extra in ("split", "repaired"):
            if self.totals[extra]:
                columns.insert(3, extra)
        width = max([cell_len(source) for source in self.sources] + [8])
        lines = [set_cell_size("source", width) + "".join(name.rjust(11) for name in columns)]
        for source, counts in self.sources.items():
            lines.append(set_cell_size(source, width) + "".join(f"{counts[name]:,}".rjust(11) for name in columns))
            for (owner, status), entry in self.reasons.items():
                if owner == source:
                    first = ""
                    if entry.locations:
                        file, _, line = entry.locations[0].rpartition(":")
                        first = f" (first at {f'line {line}' if file == owner else entry.locations[0]})"
                    lines.append(f"  {entry.count:,} {status}{first}")
                    details = [] if _hidden.get() else list(entry.details.items())[:MAX_DETAILS]
                    lines += [f"    {location}: {detail}" for location, detail in details]
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
        """The ledger of `to_dict`, also of an earlier version, in which the key of a status was "fate"."""
        sources = {source: Counter(counts) for source, counts in value["sources"].items()}
        reasons = {
            (entry["source"], entry.get("status") or entry["fate"]): Entry(entry["count"], list(entry.get("first", ())))
            for entry in value["reasons"]
        }
        return cls(sources, reasons)


def write_ledgers(path: str | os.PathLike, **ledgers: Ledger) -> None:
    """Write `data_ledger.json`, with one object a data set (``train``, ``validation``)."""
    write_json(path, {name: ledger.to_dict() for name, ledger in ledgers.items()})
