"""Names and sizes of sources from text as people have it: ls, du and wc, csv, json, or a name and a size a line."""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from hf_recipes.apps.mixture.sizes import NUMBER, SIZE, Amount, Remark, Sizes
from hf_recipes.data.files.sources import source_name

LONGEST_LINE = 1000  # characters; matching takes time that grows faster than the length
_FLAGS = re.IGNORECASE
_NAME_FIRST = re.compile(
    rf"(?P<name>.+?)(?P<between>\s*[:=：,，;；\t]\s*|\s+)[\"']?(?P<size>{SIZE.pattern})[\"']?", _FLAGS
)
_SIZE_FIRST = re.compile(rf"(?P<size>{SIZE.pattern})(?P<between>[\s,，;；]+)(?P<name>\S.*)", _FLAGS)
_DATE = (
    r"(?:\d{4}-\d\d-\d\d(?:[ T]\d\d:\d\d(?::[\d.]+)?(?: [+-]\d{4})?)?|\d\d-\d\d \d\d:\d\d"
    r"|(?:[^\W\d]{3,9}\.?|\d{1,2}月?)\s*\d{1,2}日?\s+(?:\d\d:\d\d|\d{4}年?)"
    r"|\d{1,2}\s+[^\W\d]{3,9}\.?\s+(?:\d\d:\d\d|\d{4}))"
)
_LS = re.compile(
    rf"(?P<kind>[-dlbcps])[-rwxst]{{9}}[.+@]?\s+\d+\s(?:.*?\s)?(?P<size>{NUMBER}[KMGTP]?B?)\s+{_DATE}\s+(?P<name>\S.*)",
    _FLAGS,
)
_HEADING = re.compile(r"(?P<folder>[^\s,=]+|'[^']+'):")
_SUMS = ("total", "总用量", "总计", "總用量", "總計", "合计")
_NAMES = ("name", "source", "file", "filename", "path", "dataset", "名称", "名字", "来源", "文件", "文件名", "数据集")
# Columns and keys that hold a size, the preferred ones first; None is a size in the unit of the whole.
_AMOUNTS = {"tokens": "tokens", "token": "tokens", "词元": "tokens", "size": None, "大小": None, "bytes": "bytes"}
_AMOUNTS |= {"字节": "bytes", "documents": "documents", "docs": "documents", "rows": "documents", "条数": "documents"}


@dataclass
class _Entry:
    line: int
    text: str
    name: str
    amount: Amount
    path: str | None = None  # where the size comes first, as du has it
    tabbed: bool = False


class _Pairs(list):
    """A JSON object with all its pairs, the repeated ones too."""


def parse_sizes(text: str, unit: str | None = None) -> Sizes:
    """Names and sizes from pasted text; nothing in it is executed.

    Understood are a JSON object or array, JSON lines, csv with or without a header, the lines of ``ls -l``, ``du`` and
    ``wc``, and ``name size`` (also ``name: size`` and ``size name``), with sizes as `parse_size` has them. Files that
    ls and du name become sources by `source_name`. A ``#`` begins a comment.

    Args:
        unit: that of the sizes; if None, what the text says (``tokens``, ``GB``, a header), or else bytes.
    """
    sizes = Sizes()
    entries = _without_nested(list(_read(text.removeprefix("\ufeff"), sizes)), sizes)
    sizes.unit = unit or next((entry.amount.unit for entry in entries if entry.amount.unit), "bytes")
    listed = [entry for entry in entries if entry.tabbed]
    if sizes.unit == "bytes" and listed and not any(entry.amount.scale for entry in listed):
        sizes.notes.append(Remark(listed[0].line, listed[0].text, "KiB"))
        for entry in listed:
            entry.amount.scale = "k"
    for entry in entries:
        count = entry.amount.count(sizes.unit)
        if entry.amount.unit not in (None, sizes.unit):
            sizes.problems.append(Remark(entry.line, entry.text, "unit"))
        elif count is None:
            sizes.problems.append(
                Remark(entry.line, entry.text, "billions" if entry.amount.scale == "b" else "no size")
            )
        else:
            sizes.add(entry.line, entry.text, entry.name, count)
    sizes.problems.sort(key=lambda remark: remark.line)
    sizes.notes.sort(key=lambda remark: remark.line)
    return sizes


def _read(text: str, sizes: Sizes) -> Iterator[_Entry]:
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines()]
    filled = [line for line in lines if line]
    if filled and filled[0][0] in "{[":
        try:
            value = json.loads(text, object_pairs_hook=_Pairs)
        except (ValueError, RecursionError) as error:
            if not all(line[0] == "{" and line.rstrip(",")[-1] == "}" for line in filled):
                line = getattr(error, "lineno", 1)
                sizes.problems.append(Remark(line, text.split("\n")[line - 1][:LONGEST_LINE], "broken json"))
                return
        else:
            yield from _json_entries(value, text, sizes)
            return
    header = _header(filled[0][:LONGEST_LINE]) if filled else None
    folder, folders, heading = "", set(), None
    for number, line in enumerate(lines, 1):
        if not line or (header and line is filled[0]):
            continue
        listed = len(line) <= LONGEST_LINE and _LS.fullmatch(line)
        if heading and not listed and not line.startswith(_SUMS):
            sizes.problems.append(heading)
        heading = None
        if len(line) > LONGEST_LINE:
            sizes.problems.append(Remark(number, f"{line[:60]}…", "no size"))
        elif line[0] == "{":
            yield from _json_line(number, line, sizes)
        elif header:
            yield from _csv_entry(number, line, header, sizes)
        elif listed:
            yield from _ls_entry(number, line, listed, folder, sizes)
        elif match := _HEADING.fullmatch(line):
            folder, heading = PurePosixPath(_unquoted(match["folder"])).name, Remark(number, line, "no size")
            folders.add(folder)
        else:
            yield from _pair(number, line.rstrip(",;，； "), sizes)
    if heading:
        sizes.problems.append(heading)
    # A folder that ls goes on to list by itself is not missing.
    sizes.problems[:] = [p for p in sizes.problems if p.reason != "folder" or _listed_name(p.text) not in folders]


def _json_entries(value: list, text: str, sizes: Sizes) -> Iterator[_Entry]:
    items: list[tuple[str | None, Any]] = [(None, part) for part in value]
    if isinstance(value, _Pairs):
        items = [(None, value)] if _record_name(value) is not None else list(value)
    for number, (name, part) in enumerate(items, 1):
        if name is None and isinstance(part, _Pairs):
            name = _record_name(part)
        elif name is None and isinstance(part, list) and len(part) == 2 and isinstance(part[0], str):
            name, part = part
        place = -1 if name is None else text.find(json.dumps(name, ensure_ascii=False))
        yield from _json_entry(text.count("\n", 0, place) + 1 if place >= 0 else number, name, part, sizes)


def _record_name(pairs: _Pairs) -> str | None:
    """The name in ``{"name": "news", "size": 5}``; of ``{"news": 5}`` None, whose keys are names."""
    own = dict(pairs)
    names = [own[key] for key in _NAMES if isinstance(own.get(key), str)]
    return names[0] if names and any(key in own for key in _AMOUNTS) else None


def _json_entry(line: int, name: str | None, value: Any, sizes: Sizes) -> Iterator[_Entry]:
    unit = None
    if isinstance(value, _Pairs):
        own = dict(value)
        key = next((key for key in _AMOUNTS if key in own), None)
        unit, value = _AMOUNTS.get(key), own.get(key, own)
    text = json.dumps(value if name is None else {name: value}, ensure_ascii=False)[:LONGEST_LINE]
    if name is None:
        sizes.problems.append(Remark(line, text, "no name"))
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e30:
        yield _Entry(line, text, name, Amount(float(value), unit=unit))
    elif isinstance(value, str) and (match := SIZE.fullmatch(value.strip())):
        yield _Entry(line, text, name, _with_unit(Amount.of(match), unit))
    else:
        sizes.problems.append(Remark(line, text, "no size"))


def _with_unit(amount: Amount, unit: str | None) -> Amount:
    return Amount(amount.number, amount.scale, amount.unit or unit)


def _json_line(number: int, line: str, sizes: Sizes) -> Iterator[_Entry]:
    try:
        value = json.loads(line.rstrip(","), object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        sizes.problems.append(Remark(number, line, "broken json"))
        return
    found = Sizes()
    for entry in _json_entries(value, line, found):
        entry.line = number
        yield entry
    sizes.problems += [Remark(number, line, problem.reason) for problem in found.problems]


def _fields(line: str, delimiter: str) -> list[str]:
    return [part.strip() for part in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]


def _header(line: str) -> tuple[str, int, int, str | None, int] | None:
    """Delimiter, columns of the name and of the size, its unit, and how many columns, if the line is a header."""
    for delimiter in ",\t;，":
        titles = [title.lower() for title in _fields(line, delimiter)]
        names = [title for title in _NAMES if title in titles]
        amounts = [title for title in _AMOUNTS if title in titles]
        if names and amounts:
            columns = titles.index(names[0]), titles.index(amounts[0])
            return delimiter, *columns, _AMOUNTS[amounts[0]], len(titles)
    return None


def _csv_entry(number: int, line: str, header: tuple, sizes: Sizes) -> Iterator[_Entry]:
    delimiter, name, size, unit, columns = header
    fields = _fields(line, delimiter)
    if len(fields) != columns:
        sizes.problems.append(Remark(number, line, "columns"))
    elif match := SIZE.fullmatch(fields[size]):
        yield _Entry(number, line, fields[name], _with_unit(Amount.of(match), unit))
    else:
        sizes.problems.append(Remark(number, line, "no size"))


def _ls_entry(number: int, line: str, match: re.Match, folder: str, sizes: Sizes) -> Iterator[_Entry]:
    if match["name"] in (".", ".."):
        sizes.notes.append(Remark(number, line, "dots"))
    elif match["kind"] != "-":
        kind = {"d": "folder", "l": "link"}.get(match["kind"], "no file")
        sizes.problems.append(Remark(number, line, kind))
    else:
        name = folder or source_name(_unquoted(match["name"]))
        yield _Entry(number, line, name, Amount.of(SIZE.fullmatch(match["size"])))


def _listed_name(line: str) -> str:
    return PurePosixPath(_unquoted(_LS.fullmatch(line)["name"])).name


def _unquoted(name: str) -> str:
    name = name.strip()
    return name[1:-1] if len(name) > 1 and name[0] == name[-1] and name[0] in "'\"`" else name


def _pair(number: int, line: str, sizes: Sizes) -> Iterator[_Entry]:
    if '"' in line:
        for delimiter in ",\t;，":
            fields = _fields(line, delimiter)
            if len(fields) == 2 and (match := SIZE.fullmatch(fields[1])):
                yield _Entry(number, line, fields[0], Amount.of(match))
                return
    first, last = _SIZE_FIRST.fullmatch(line), _NAME_FIRST.fullmatch(line)
    if first and last:  # a name that begins or ends with a number
        says = [bool(match["scale"] or match["word"]) for match in (first, last)]
        if "\t" in line:
            says = ["\t" in match["between"] for match in (first, last)]
        if says[0] == says[1]:
            sizes.problems.append(Remark(number, line, "two readings"))
            return
        first, last = (first, None) if says[0] else (None, last)
    match = first or last
    if not match:
        sizes.problems.append(Remark(number, line, "columns" if len(_fields(line, ",")) > 2 else "no size"))
    elif match["name"].strip().lower() in _SUMS:
        sizes.notes.append(Remark(number, line, "sum"))
    elif first:
        path, tabbed = _unquoted(first["name"]), "\t" in first["between"]
        yield _Entry(number, line, source_name(path), Amount.of(first), path, tabbed)
    elif (mark := last["between"].strip()) and mark in ",，;；" and mark in last["name"] + last["size"]:
        sizes.problems.append(Remark(number, line, "columns"))  # news,120,350: one number, or two columns?
    else:
        yield _Entry(number, line, _unquoted(last["name"]), Amount.of(last))


def _without_nested(entries: list[_Entry], sizes: Sizes) -> list[_Entry]:
    """Entries without what du counts twice: the folder above all others, and what is inside another."""
    paths = {PurePosixPath(entry.path) for entry in entries if entry.path}
    roots = {path for path in paths if len(paths) > 1 and all(path in other.parents for other in paths - {path})}
    kept = []
    for entry in entries:
        path = PurePosixPath(entry.path) if entry.path else None
        if path in roots:
            sizes.notes.append(Remark(entry.line, entry.text, "sum"))
        elif path and (paths - roots).intersection(path.parents):
            sizes.notes.append(Remark(entry.line, entry.text, "inside"))
        else:
            kept.append(entry)
    return kept
