"""Names and sizes of sources from text as people have it: ls, du and wc, csv, json, or a name and a size a line."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

from hf_recipes.apps.mixture.sizes import NUMBER, SIZE, Sizes, parse_size, unit_of
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
_SUMS = ("total", "总用量", "总计", "總用量", "總計", "合计")
_NAMES = ("name", "source", "file", "filename", "path", "dataset", "名称", "名字", "来源", "文件", "文件名", "数据集")
# Columns and keys that hold a size, the preferred ones first, and the unit that they say.
_SIZES = {"tokens": "tokens", "token": "tokens", "词元": "tokens", "size": "", "大小": "", "bytes": "bytes"}
_SIZES |= {"字节": "bytes", "documents": "documents", "docs": "documents", "rows": "documents", "条数": "documents"}


class _Entry(NamedTuple):
    line: int
    text: str
    name: str
    size: str
    path: str = ""  # where the size comes first, as du has it


class _NotCounted(NamedTuple):
    line: int
    text: str
    reason: str


def parse_sizes(text: str, unit: str | None = None) -> Sizes:
    """Names and sizes from pasted text; nothing in it is executed.

    Understood are a JSON object or array, JSON lines, csv with or without a header, the lines of ``ls -l``, ``du`` and
    ``wc``, and ``name size`` (also ``name: size`` and ``size name``), with sizes as `parse_size` has them. Files that
    ls and du name become sources by `source_name`. A ``#`` begins a comment.

    Args:
        unit: that of the sizes; if None, what the text says (``tokens``, ``GB``, a header), or else bytes.
    """
    parsed = list(_read(text.removeprefix("\ufeff")))
    entries = [item for item in parsed if isinstance(item, _Entry)]
    sizes = Sizes(unit=unit or next(filter(None, (unit_of(entry.size) for entry in entries)), "bytes"))
    for item in parsed:
        if isinstance(item, _NotCounted):
            sizes.remark(*item)
    paths = {PurePosixPath(entry.path) for entry in entries if entry.path}
    roots = {path for path in paths if len(paths) > 1 and all(path in other.parents for other in paths - {path})}
    # du without -h counts blocks of 1,024 bytes.
    listed = [entry for entry in entries if entry.path and "\t" in entry.text]
    blocks = sizes.unit == "bytes" and all(entry.size.isdigit() for entry in listed)
    if blocks and listed:
        sizes.remark(listed[0].line, listed[0].text, "KiB")
    for entry in entries:
        size = f"{entry.size}K" if blocks and entry in listed else entry.size
        count = parse_size(size, sizes.unit)
        path = PurePosixPath(entry.path)
        if entry.path and path in roots:
            sizes.remark(entry.line, entry.text, "sum")
        elif entry.path and (paths - roots).intersection(path.parents):
            sizes.remark(entry.line, entry.text, "inside")
        elif count is not None:
            sizes.add(entry.line, entry.text, entry.name, count)
        elif unit_of(size) not in (None, sizes.unit):
            sizes.remark(entry.line, entry.text, "another unit")
        else:
            sizes.remark(entry.line, entry.text, "billions" if size[-1:] in ("b", "B") else "no size")
    sizes.remarks.sort(key=lambda remark: remark[0])
    return sizes


def _read(text: str) -> Iterator[_Entry | _NotCounted]:
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines()]
    first = next(filter(None, lines), "")[:LONGEST_LINE]
    if first[:1] in ("{", "["):
        try:
            yield from _json_entries(json.loads(text, object_pairs_hook=tuple), text)
            return
        except (ValueError, RecursionError) as error:
            if not all(line[0] == "{" and line.rstrip(",")[-1] == "}" for line in filter(None, lines)):
                line = getattr(error, "lineno", 1)
                yield _NotCounted(line, text.split("\n")[line - 1][:LONGEST_LINE], "broken json")
                return
    header, folder = _header(first), ""
    for number, line in enumerate(lines, 1):
        if not line or (header and line == first):
            continue
        if len(line) > LONGEST_LINE:
            yield _NotCounted(number, f"{line[:60]}…", "no size")
        elif line[0] == "{":
            yield from _json_line(number, line)
        elif header:
            yield _csv_entry(number, line, *header)
        elif match := _LS.fullmatch(line):
            name = folder or source_name(_unquoted(match["name"]))
            is_file = match["kind"] == "-"
            yield _Entry(number, line, name, match["size"]) if is_file else _NotCounted(number, line, "no file")
        elif line[-1] == ":" and any(map(_LS.fullmatch, lines[number : number + 2])):
            folder = PurePosixPath(_unquoted(line[:-1])).name
        else:
            yield _pair(number, line.rstrip(",;，； "))


def _json_line(number: int, line: str) -> Iterator[_Entry | _NotCounted]:
    try:
        items = list(_json_entries(json.loads(line.rstrip(","), object_pairs_hook=tuple), line))
    except (ValueError, RecursionError):
        items = [_NotCounted(number, line, "broken json")]
    for item in items:
        yield item._replace(line=number)


def _json_entries(value: tuple | list, text: str) -> Iterator[_Entry | _NotCounted]:
    """Entries of a JSON value whose objects are tuples of all their pairs, the repeated ones too."""
    for number, (name, item) in enumerate(_named(value), 1):
        position = text.find(json.dumps(name, ensure_ascii=False)) if name else -1
        line = number if position < 0 else text.count("\n", 0, position) + 1
        shown = json.dumps({name: item} if name else item, ensure_ascii=False)[:LONGEST_LINE]
        shown = shown.encode(errors="replace").decode()  # half a surrogate pair is in no file's name
        if name and name == name.encode(errors="replace").decode():
            yield _Entry(line, shown, name, _json_size(item))
        else:
            yield _NotCounted(line, shown, "no name")


def _named(value: tuple | list) -> list[tuple[str, object]]:
    """Names and what stands for their sizes, in ``{"news": 5}``, ``{"name": "news", "size": 5}`` or lists of either."""
    if isinstance(value, tuple):
        record = dict(value)
        if not any(key in record for key in _SIZES):
            return list(value)
        return [(next((record[key] for key in _NAMES if isinstance(record.get(key), str)), ""), value)]
    pairs = []
    for item in value:
        is_pair = isinstance(item, list) and len(item) == 2 and isinstance(item[0], str)
        pairs += _named(item) if isinstance(item, tuple) else [tuple(item) if is_pair else ("", item)]
    return pairs


def _json_size(value: object) -> str:
    if isinstance(value, tuple):
        record = dict(value)
        key = next((key for key in _SIZES if key in record), None)
        return _with_unit(_json_size(record[key]), _SIZES[key]) if key else ""
    return str(value).strip() if isinstance(value, (int, float, str)) and not isinstance(value, bool) else ""


def _with_unit(size: str, unit: str) -> str:
    return size if unit_of(size) else f"{size} {unit}".strip()


def _fields(line: str, delimiter: str) -> list[str]:
    return [part.strip() for part in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]


def _header(line: str) -> tuple[str, list[str], str, str] | None:
    """Delimiter, all titles, and those of the name and of the size, if the line is a header."""
    for delimiter in ",\t;，":
        titles = [title.lower() for title in _fields(line, delimiter)]
        name, size = (next((key for key in keys if key in titles), "") for keys in (_NAMES, _SIZES))
        if name and size:
            return delimiter, titles, name, size
    return None


def _csv_entry(number: int, line: str, delimiter: str, titles: list[str], name: str, size: str) -> _Entry | _NotCounted:
    fields = _fields(line, delimiter)
    if len(fields) != len(titles):
        return _NotCounted(number, line, "columns")
    row = dict(zip(titles, fields, strict=True))
    return _Entry(number, line, row[name], _with_unit(row[size], _SIZES[size]))


def _unquoted(name: str) -> str:
    name = name.strip()
    return name[1:-1] if len(name) > 1 and name[0] == name[-1] and name[0] in "'\"`" else name


def _pair(number: int, line: str) -> _Entry | _NotCounted:
    first, last = _SIZE_FIRST.fullmatch(line), _NAME_FIRST.fullmatch(line)
    if first and last:  # a name that begins or ends with a number: a tab, or else the unit, marks the size
        key = "between" if "\t" in line else "size"
        marked = ["\t" in match[key] if "\t" in line else not match[key][-1].isdigit() for match in (first, last)]
        if marked[0] == marked[1]:
            return _NotCounted(number, line, "two readings")
        first, last = (first, None) if marked[0] else (None, last)
    match = first or last
    if not match:
        return _NotCounted(number, line, "columns" if len(_fields(line, ",")) > 2 else "no size")
    if match["name"].strip().lower() in _SUMS:
        return _NotCounted(number, line, "sum")
    if first:
        path = _unquoted(first["name"])
        return _Entry(number, line, source_name(path), first["size"], path)
    mark = last["between"].strip()
    if mark in (",", "，", ";", "；") and mark in last["name"] + last["size"] and '"' not in line:
        return _NotCounted(number, line, "columns")  # news,120,350: one number, or two columns?
    return _Entry(number, line, _unquoted(last["name"]), last["size"])
