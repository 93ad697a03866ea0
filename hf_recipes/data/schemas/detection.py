"""Which schema each row of a file has, and whether its examples show what the row says."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from hf_recipes.core.arguments.command_line import nearest
from hf_recipes.core.errors import UserError
from hf_recipes.data.conversations.cells import is_empty
from hf_recipes.data.conversations.conversation import RowProblem
from hf_recipes.data.schemas.column_names import MARKS, MEDIA, MEDIUM
from hf_recipes.data.schemas.columns import NO_COLUMN, Columns, Example, MeaningLost, Row, Schema, without_ignored_keys
from hf_recipes.data.schemas.meaning import TURNS, is_lost, is_meaningful, is_watched, meaning_lost, strings_in
from hf_recipes.data.schemas.registry import META_COLUMNS, detect_schema, kind_of

FLAGS = {
    "prompt": "--prompt_column",
    "response": "--response_column",
    "history": "--history_column",
    "thoughts": "--thoughts_column",
}
KEPT_COLUMNS = (*META_COLUMNS, "source")


class _ReadRow(dict):
    """A row that records which of its columns are read."""

    def __init__(self, row: Row, read: set[str]):
        super().__init__(row)
        self.read = read

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)


def schema_of_rows(rows: Sequence[Row], columns: Columns, path: str) -> Schema:
    """The schema of a file that begins with `rows`, taken together: of each column, the first value that is not empty.

    Rows of another schema are read by their own, where the user names none.

    Raises:
        UserError: no schema, or one that leaves out a column that usually carries meaning.
    """
    present, shown = {name for row in rows for name in row}, repr(rows)  # with keys of turns, at any depth
    absent = [name for name in columns.ignored if "[]." not in name and name not in shown]
    rows = [without_ignored_keys(row, columns.ignored) for row in rows]
    rows = [{name: value for name, value in row.items() if name not in columns.ignored} for row in rows]
    is_named = bool(columns.schema or columns.prompt or columns.response or columns.label)
    kinds = [] if is_named or columns.reads == "documents" else [kind_of(_without_empty(row), columns) for row in rows]
    common = Counter(kind for kind in kinds if kind).most_common()
    of_kind = rows if len(common) < 2 else [row for row, kind in zip(rows, kinds, strict=True) if kind == common[0][0]]
    schema = detect_schema(merged(of_kind), columns, path)
    read: set[str] = set()
    converter = RowConverter(schema, columns, path, is_uniform=is_named)
    examples: list[Example | None] = []
    turn_keys: Counter[str] = Counter()
    for row in rows:
        try:
            examples.append(converter.convert(_ReadRow(row, read), schema.columns))
        except RowProblem:
            examples.append(None)
            continue
        try:
            turn_keys.update(dict(converter.check_turns(examples[-1])).keys())
        except MeaningLost as error:
            raise UserError(f"{path}: {error}") from None
    if not any(examples):
        read = set(merged(rows))
    names = list(dict.fromkeys(name for row in rows for name in row))
    has_turns = TURNS.intersection((schema.name, schema.columns.schema))
    for field, flag in FLAGS.items():
        name = getattr(columns, field)
        is_used = name in read and getattr(schema.columns, field) == name and not (has_turns and field != "thoughts")
        if name not in (None, NO_COLUMN) and not is_used:
            raise UserError(f"{path}: {flag} {name!r} has no effect on the schema {schema.name}; leave it out")
    unused = [name for name in names if name not in read and name not in KEPT_COLUMNS]
    watched = [name for name in unused if is_watched(name, columns, read) or name in ("a", "A")]
    for row, example in zip(rows, examples, strict=True):
        lost = [name for name in watched if example and name in row and is_lost(name, row[name], example)]
        if any(is_watched(name, columns, read) for name in lost):
            raise UserError(f"{path}: {meaning_lost(schema, *lost)}")
    of_turns = [f"{name} (in {count} of the first {len(rows)} rows)" for name, count in turn_keys.items()]
    ignored = [name for name in columns.ignored if name not in absent]
    absent = [f"{name}{nearest(name, present.difference(ignored), cutoff=0.8)}" for name in absent]
    schema = replace(schema, unused=(*unused, *of_turns, *ignored), absent=tuple(absent))
    if columns.reads != "documents":
        schema = replace(schema, convert=converter.checked(read, {*names, *turn_keys}))
    return schema


def _without_empty(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not is_empty(value)}


def merged(rows: Sequence[Row]) -> dict[str, Any]:
    """Of each column the first value that is not empty."""
    values: dict[str, Any] = {}
    for row in rows:
        values |= {name: value for name, value in row.items() if name not in values or is_empty(values[name])}
    return values


class RowConverter:
    """Converts the rows of a file and checks that what is left out of them was named.

    Unless they are `is_uniform`, they may have several schemas, each known by the names of its columns.
    """

    def __init__(self, schema: Schema, columns: Columns, path: str, is_uniform: bool = False):
        self.schema, self.columns, self.path, self.is_uniform = schema, columns, path, is_uniform
        self._read: set[str] = set()  # the columns that the examples of the first rows were made of
        self._named: set[str] = set()  # the columns and the unused keys of turns of the first rows
        self._schemas: dict[tuple[str, ...], Schema] = {}
        self._unused: dict[tuple[str, ...], list[str]] = {}
        self._kinds: dict[str, tuple[bool, bool]] = {}

    def checked(self, read: set[str], named: set[str]) -> "RowConverter":
        """`self`, which knows the columns that were `read` of the first rows, and all that were `named`."""
        self._read, self._named = read, named
        return self

    def __call__(self, row: Row, columns: Columns) -> Example:
        """The example of `row`, with a remark on what the first rows do not have and no example uses.

        Raises:
            MeaningLost: it leaves out what usually carries meaning.
        """
        names = tuple(row)
        if (unused := self._unused.get(names)) is not None:
            example = self.convert(row, columns)
        else:
            read = set(self._read)
            example = self.convert(_ReadRow(row, read), columns)
            unused = [name for name in names if name not in read and name not in self.columns.ignored]
            unused = [name for name in unused if name not in self._named or is_meaningful(name, self.columns)]
            self._unused[names] = unused = [name for name in unused if name not in KEPT_COLUMNS]
        if not unused and "unused" not in example:
            return example
        unused = [name for name in unused if not is_empty(row[name])]
        for name in unused:
            if is_watched(name, self.columns, self._read) and is_lost(name, row[name], example):
                raise meaning_lost(self.schema, name)
        unused += [name for name, _ in self.check_turns(example)]
        if late := dict.fromkeys(name for name in unused if name not in self._named):
            example.setdefault("remarks", []).append(f"not used: {', '.join(map(str, late))}")
        return example

    def check_turns(self, example: Example) -> list[tuple[str, Any]]:
        """Names and values of keys of turns that `example` does not use, without those that the user leaves out.

        Raises:
            MeaningLost: one usually carries meaning.
        """
        unused = [pair for pair in example.pop("unused", ()) if not is_empty(pair[1])]
        watched = [(pair, self._kind_of_key(pair[0])) for pair in unused]
        for (name, value), (_, has_meaning) in watched:
            if has_meaning and is_lost(name.rpartition("[].")[2], value, example):
                raise meaning_lost(self.schema, name)
        return [pair for pair, (is_ignored, _) in watched if not is_ignored]

    def _kind_of_key(self, name: str) -> tuple[bool, bool]:
        """Whether the user leaves out a key of turns, and whether it usually carries meaning, if not."""
        if name not in self._kinds:
            key = name.rpartition("[].")[2]
            is_ignored = not {name, key}.isdisjoint(self.columns.ignored)
            self._kinds[name] = is_ignored, not is_ignored and (key in MARKS or is_meaningful(key, self.columns))
        return self._kinds[name]

    def convert(self, row: Row, columns: Columns) -> Example:
        """The example of `row` by its own schema.

        Raises:
            RowProblem: its examples are of another form than the file's.
        """
        if columns.reads == "documents":
            return self.schema.convert(row, columns)
        names = tuple(row)
        if names not in self._schemas:
            self._schemas[names] = self._schema_of(dict(row))
        schema = self._schemas[names]
        if schema.form != self.schema.form:
            raise RowProblem(f"its schema is {schema.name}, which makes {schema.form} examples")
        example = schema.convert(row, schema.columns)
        for name in MEDIA.intersection(row):
            medium = next(filter(None, map(MEDIUM.search, strings_in(example))), None)
            if medium and not is_empty(dict.get(row, name)):
                raise RowProblem(f"{medium[0]} in its text stands for {name!r}, which is not trained on")
        if schema.name != self.schema.name:
            example.setdefault("remarks", []).append(f"read by the schema {schema.name}")
        return example

    def _schema_of(self, row: Row) -> Schema:
        """The file's schema with the columns of `row`, or that of `row`, where it is another one."""
        filled = _without_empty(row)
        kind = kind_of(
            {name: value for name, value in filled.items() if name not in self.columns.ignored}, self.columns
        )
        try:
            own = detect_schema(row, self.columns, self.path) if kind else None
        except UserError:
            own = None
        if own is None:
            return self.schema
        known = self.schema.columns
        if not self.is_uniform and kind != kind_of_schema(self.schema):
            return own
        more = {f.name: getattr(own.columns, f.name) for f in fields(known) if getattr(known, f.name) is None}
        return replace(self.schema, columns=replace(known, **more))


def kind_of_schema(schema: Schema) -> tuple:
    return kind_of({}, replace(schema.columns, schema=schema.name))
