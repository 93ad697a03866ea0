"""Names and sizes of sources in pasted text: ls, du, wc, csv, JSON, or a name and a size a line."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

from hf_recipes.apps.mixture.sizes import NUMBER, SIZE, Sizes, parse_size, unit_of
from hf_recipes.data.files.specs import source_name

LONGEST_LINE = 1000  # characters; matching takes time that grows faster than the length
_NAME_FIRST = re.compile(
    rf"(?P<name>.+?)(?P<between>\s*[:=：,，;；\t]\s*|\s+)[\"']?(?P<size>{SIZE.pattern})[\"']?", re.IGNORECASE
)
_SIZE_FIRST = re.compile(rf"(?P<size>{SIZE.pattern})(?P<between>[\s,，;；]+)(?P<name>\S.*)", re.IGNORECASE)
_DATE = (
    r"(?:\d{4}-\d\d-\d\d(?:[ T]\d\d:\d\d(?::[\d.]+)?(?: [+-]\d{4})?)?|\d\d-\d\d \d\d:\d\d"
    r"|(?:[^\W\d]{3,9}\.?|\d{1,2}月?)\s*\d{1,2}日?\s+(?:\d\d:\d\d|\d{4}年?)"
    r"|\d{1,2}\s+[^\W\d]{3,9}\.?\s+(?:\d\d:\d\d|\d{4}))"
)
_LS = re.compile(
    rf"(?P<kind>[-dlbcps])[-rwxst]{{9}}[.+@]?\s+\d+\s(?:.*?\s)?(?P<size>{NUMBER}[KMGTP]?B?)\s+{_DATE}\s+(?P<name>\S.*)",
    re.IGNORECASE,
)
_SUMS = ("total", "总用量", "总计", "總用量", "總計", "合计")
# Columns and keys of names and of sizes, the preferred ones first, and the unit that a size's key implies.
_NAMES = ("name", "source", "file", "filename", "path", "dataset", "名称", "名字", "来源", "文件", "文件名", "数据集")
_SIZES = {"tokens": "tokens", "token": "tokens", "词元": "tokens", "size": "", "大小": "", "bytes": "bytes"}
_SIZES |= {"字节": "bytes", "documents": "documents", "docs": "documents", "rows": "documents", "条数": "documents"}


class _Item(NamedTuple):
    """A name and a size, or a text without them and why (a key of `sizes.REASONS`); `path` as du and wc have it."""

    line: int
    text: str
    name: str = ""
    size: str = ""
    path: str = ""
    reason: str = "unreadable"


def parse_sizes(text: str, unit: str | None = None) -> Sizes:
    """Names and sizes in pasted text; nothing in it is executed.

    Read are a JSON object or array, JSON lines, csv with or without a header, the lines of ``ls -l``, ``du`` and
    ``wc``, and ``name size`` (also ``name: size`` and ``size name``), with sizes as in `parse_size`. Files of ls and du
    are named by `source_name`. ``#`` starts a comment.

    Args:
        unit: of the sizes; if None, what the text says (``tokens``, ``GB``, a header), or else bytes.
    """
    items = list(_read(text.removeprefix("\ufeff")))
    sizes = Sizes(unit=unit or next(filter(None, (unit_of(item.size) for item in items)), "bytes"))
    du = [item for item in items if item.path and "\t" in item.text]
    if du and sizes.unit == "bytes" and all(item.size.isdigit() for item in du):  # du without -h
        sizes.warn(du[0].line, du[0].text, "KiB")
        items = [item._replace(size=f"{item.size}K") if item in du else item for item in items]
    paths = {PurePosixPath(item.path) for item in items if item.path}
    sums = {path for path in paths if len(paths) > 1 and all(path in other.parents for other in paths - {path})}
    for item in items:
        path = PurePosixPath(item.path)
        count = parse_size(item.size, sizes.unit)
        if item.path and (path in sums or (paths - sums).intersection(path.parents)):
            sizes.warn(item.line, item.text, "counted elsewhere")
        elif count is not None:
            sizes.add(item.line, item.text, item.name, count)
        elif unit_of(item.size) not in (None, sizes.unit) or item.size[-1:] in ("b", "B"):
            sizes.warn(item.line, item.text, "another unit")
        else:
            sizes.warn(item.line, item.text, item.reason)
    sizes.warnings.sort(key=lambda warning: warning[0])
    return sizes


def _read(text: str) -> Iterator[_Item]:
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines()]
    first = next(filter(None, lines), "")[:LONGEST_LINE]
    if first[:1] in ("{", "["):
        try:
            yield from _json_items(text)
            return
        except (ValueError, RecursionError) as error:
            if first[0] != "{" or first.rstrip(",")[-1] != "}":  # JSON lines are read below
                line = getattr(error, "lineno", 1)
                yield _Item(line, text.split("\n")[line - 1][:LONGEST_LINE])
                return
    delimiter, titles = _header(first)
    folder = ""
    for number, line in enumerate(lines, 1):
        if not line or (titles and line == first):
            continue
        if len(line) > LONGEST_LINE:
            yield _Item(number, f"{line[:60]}…")
        elif line[0] == "{":
            try:
                yield from [item._replace(line=number) for item in _json_items(line)]
            except (ValueError, RecursionError):
                yield _Item(number, line)
        elif titles:
            fields = _fields(line, delimiter)
            row = dict(zip(titles, fields, strict=False)) if len(fields) == len(titles) else {}
            yield _Item(number, line, _name_of(row), _size_of(row))
        elif match := _LS.fullmatch(line):
            name = folder or source_name(_unquoted(match["name"]))
            is_file = match["kind"] == "-"
            yield _Item(number, line, name, match["size"]) if is_file else _Item(number, line, reason="no file")
        elif line[-1] == ":" and any(map(_LS.fullmatch, lines[number : number + 2])):
            folder = PurePosixPath(_unquoted(line[:-1])).name
        else:
            yield _name_and_size(number, line.rstrip(",;，； "))


def _json_items(text: str) -> Iterator[_Item]:
    value = json.loads(text.strip().rstrip(","), object_pairs_hook=tuple)  # tuples of pairs keep repeated keys
    for number, (name, item) in enumerate(_named(value), 1):
        position = text.find(json.dumps(name, ensure_ascii=False)) if name else -1
        line = number if position < 0 else text.count("\n", 0, position) + 1
        shown = json.dumps({name: item} if name else item, ensure_ascii=False)[:LONGEST_LINE]
        shown = shown.encode(errors="replace").decode()  # half a surrogate pair cannot be displayed
        is_name = name and not re.search("[\ud800-\udfff]", name)
        yield _Item(line, shown, name, _size_of(item)) if is_name else _Item(line, shown)


def _named(value: tuple | list) -> Iterator[tuple[str, object]]:
    """Names and their sizes, in ``{"news": 5}``, ``{"name": "news", "size": 5}`` or lists of either."""
    if isinstance(value, tuple):
        is_record = any(key in dict(value) for key in _SIZES)
        yield from [(_name_of(dict(value)), value)] if is_record else value
        return
    for item in value:
        if isinstance(item, tuple):
            yield from _named(item)
        else:
            is_pair = isinstance(item, list) and len(item) == 2 and isinstance(item[0], str)
            yield tuple(item) if is_pair else ("", item)


def _name_of(record: dict) -> str:
    return next((record[key] for key in _NAMES if isinstance(record.get(key), str)), "")


def _size_of(value: object) -> str:
    """The size in a number, a text or a record, whose key may imply a unit."""
    if isinstance(value, (tuple, dict)):
        record = dict(value)
        key = next((key for key in _SIZES if key in record), None)
        size = _size_of(record[key]) if key else ""
        return size if unit_of(size) else f"{size} {_SIZES.get(key, '')}".strip()
    return str(value).strip() if isinstance(value, (int, float, str)) and not isinstance(value, bool) else ""


def _fields(line: str, delimiter: str) -> list[str]:
    return [part.strip() for part in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]


def _header(line: str) -> tuple[str, list[str]]:
    """Delimiter and titles of columns, if they have a name and a size; else no titles."""
    for delimiter in ",\t;，":
        titles = [title.lower() for title in _fields(line, delimiter)]
        if all(any(key in titles for key in keys) for keys in (_NAMES, _SIZES)):
            return delimiter, titles
    return "", []


def _unquoted(name: str) -> str:
    name = name.strip()
    return name[1:-1] if len(name) > 1 and name[0] == name[-1] and name[0] in "'\"`" else name


def _name_and_size(number: int, line: str) -> _Item:
    """A number at either end is the size; of two, the one next to a tab or with a unit; else the line is ambiguous."""
    first, last = _SIZE_FIRST.fullmatch(line), _NAME_FIRST.fullmatch(line)
    if first and last:
        has_tab = "\t" in line
        is_marked = ["\t" in m["between"] if has_tab else not m["size"][-1].isdigit() for m in (first, last)]
        if is_marked[0] == is_marked[1]:
            return _Item(number, line)
        first, last = (first, None) if is_marked[0] else (None, last)
    match = first or last
    if not match:
        return _Item(number, line)
    if match["name"].strip().lower() in _SUMS:
        return _Item(number, line, reason="counted elsewhere")
    if first:
        path = _unquoted(first["name"])
        return _Item(number, line, source_name(path), first["size"], path)
    delimiter = last["between"].strip()
    if delimiter in (",", "，", ";", "；") and len(_fields(line, delimiter)) > 2:
        return _Item(number, line)  # news,120,350: one number, or two columns?
    return _Item(number, line, _unquoted(last["name"]), last["size"])
