"""Which schema each row of a file has, and whether its examples show what the row says."""

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any

from hf_recipes.core.errors import UserError
from hf_recipes.data.conversations.cells import is_empty, keys_of
from hf_recipes.data.conversations.conversation import RowProblem
from hf_recipes.data.conversations.thought_columns import THOUGHTS_KEYS
from hf_recipes.data.conversations.turns import LABELS
from hf_recipes.data.schemas.chat import (
    HARMFUL,
    MEANINGFUL,
    MEDIA,
    MEDIUM,
    OF_QUESTIONS,
    REFERENCES,
    UNWANTED,
    WEIGHTS,
    is_variant,
)
from hf_recipes.data.schemas.columns import NO_COLUMN, Columns, Example, MeaningLost, Row, Schema, without_ignored_keys
from hf_recipes.data.schemas.registry import META_COLUMNS, detect_schema, kind_of

FLAGS = {
    "prompt": "--prompt_column",
    "response": "--response_column",
    "history": "--history_column",
    "thoughts": "--thoughts_column",
}
MEANINGFUL_FOR = {
    "examples": MEANINGFUL,
    "prompts": MEANINGFUL - {*UNWANTED, *REFERENCES},
    "documents": MEANINGFUL - {*UNWANTED, *REFERENCES, *OF_QUESTIONS, "desc"},
}
KEPT_COLUMNS = (*META_COLUMNS, "source")
TURNS = {"messages", "sharegpt", "turns"}  # schemas whose conversation is in one column
CHOICES = "write it into the question"
# Words of names that usually carry meaning, by what to do about one, in the singular; and those of what is only said
# about it, as in reasoning_tokens_len.
WORDS = {
    "read it with --thoughts_column {name}": "reasoning thinking thought think cot trajectory 思考 思维 推理",
    "rename it history": "history previous 历史",
    "rename it tools": "tool function api 工具",
    "rename it system": "system persona role character 系统 人设 角色",
    "rename it context": (
        "context passage document doc article paragraph background material evidence knowledge "
        "reference excerpt snippet "
        "文章 原文 段落 材料 背景 资料 文档 上下文"
    ),
    CHOICES: "option choice candidate 选项",
}
ABOUT = re.compile(
    r"(?:\b|_)(?:id|len|length|token|num|number|count|type|kind|name|score|level|quality|source|lang|language|model|key|hash|"
    r"url|link|path|time|date|duration|rate|size|mode|effort|difficulty|complete|category|tag|topic|label|index|idx|format|"
    r"style|version|domain|reason|answer|response|output|solution|point|is|has)s?(?:\b|_)|长度|数|类|编号|来源|质量|分|名|级|答案|点"
)
# Words of what says true or false of an answer: that it is wanted, and that it is not.
WANTED = re.compile(
    r"(?:\b|_)(?:good|correct|keep|kept|valid|accepted|approved|passed|desirable)$|是否(?:正确|合格|保留)"
)
NOT_WANTED = re.compile(
    r"(?:\b|_)(?:bad|wrong|incorrect|invalid|deleted|toxic|harmful|unsafe|flagged|spam|nsfw)$|是否(?:有害|删除|违规)"
)
# Keys of turns that may say which of them carry loss.
MARKS = ("mask", "masked", "ignore", "ignore_loss", "no_loss", "skip", "train_detail", "training_detail")


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
            raise UserError(f"{path}: {_lost(schema, *lost)}")
    of_turns = [f"{name} (in {count} of the first {len(rows)} rows)" for name, count in turn_keys.items()]
    schema = replace(schema, unused=(*unused, *of_turns, *columns.ignored))
    if columns.reads != "documents":
        schema = replace(schema, convert=converter.checked(read, {*names, *turn_keys}))
    return schema


def is_meaningful(name: Any, columns: Columns) -> bool:
    """Whether a column usually carries meaning for what the rows are read as."""
    keys = keys_of(name)
    if set(THOUGHTS_KEYS).intersection(keys) and (columns.thoughts or columns.reads == "prompts"):
        return False
    if not MEANINGFUL.isdisjoint(keys):
        return not MEANINGFUL_FOR[columns.reads].isdisjoint(keys)
    if columns.reads == "examples" and _verdict(name) is not None:
        return True
    says = remedy_by_word(name) if columns.reads != "documents" else None
    return says is not None and not ("thoughts" in says and (columns.thoughts or columns.reads == "prompts"))


@lru_cache(4096)
def _verdict(name: Any) -> bool | None:
    """Whether true under a name says that an answer is wanted, or that it is not; None for a name that says neither."""
    key = keys_of(name)[0]
    if key in MEANINGFUL or re.search("chosen|reject", key):
        return None
    return True if WANTED.search(key) else False if NOT_WANTED.search(key) else None


def is_watched(name: Any, columns: Columns, read: set[str]) -> bool:
    """Whether a column usually carries meaning, and none of those `read` is the same in a language that is named."""
    return is_meaningful(name, columns) and not any(is_variant(other, name) for other in read)


@lru_cache(4096)
def remedy_by_word(name: Any) -> str | None:
    """What to do about a column whose name has a word of `WORDS`; None for another one."""
    if ABOUT.search(key := keys_of(name)[0]):
        return None
    words = {word.removesuffix("s") for word in re.split(r"[\W_\d]+", key)}
    for remedy, known in WORDS.items():
        if any(word.removesuffix("s") in words or (not word.isascii() and word in str(name)) for word in known.split()):
            return remedy.format(name=shlex.quote(str(name)))
    return None


def is_lost(name: Any, value: Any, example: Example) -> bool:
    """Whether a value that no example is made of says what this example does not show."""
    if is_empty(value):
        return False
    keys, label = {*keys_of(name)}, LABELS.get(str(value).strip().lower())
    if keys & {*HARMFUL, *MARKS}:
        return label is not False
    if keys & {*WEIGHTS}:
        return label is not True
    if (wanted := _verdict(name)) is not None:
        return label is not None and label is not wanted
    return not is_shown(value, example) and (not isinstance(value, (bool, int, float)) or bool(keys & MEANINGFUL))


def is_shown(value: Any, example: Example) -> bool:
    """Whether the texts of an example hold all texts of a value, so that nothing is lost without it."""
    texts = "\n".join(_strings({name: part for name, part in example.items() if name != "remarks"}))
    return all(text.strip() in texts for text in _strings(value)) and not isinstance(value, (bool, int, float))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def _lost(schema: Schema, *names: Any) -> MeaningLost:
    of_turns, key = "[]." in str(names[0]), str(names[0]).rpartition("[].")[2]
    remedies = [CHOICES if str(name).lower() in ("b", "opb") else remedy_by_word(name) for name in names]
    if of_turns or (
        schema.name in TURNS and not any(word in str(remedies) for word in ("thoughts", "tools", "system"))
    ):
        remedies = ["move it into the text of a turn or into a turn of its own"]
    if not {*UNWANTED}.isdisjoint(keys_of(key)) or _verdict(key) is not None:
        remedies = ["take out the rows that it says are not wanted"]
    elif of_turns and key in MARKS:
        remedies = ["write it as loss, false on turns that shall have none"]
    remedy = " or ".join(dict.fromkeys(filter(None, remedies))) or (
        "name what it is with a flag, rename it context or system, choose another --schema"
    )
    listed, ignored = ", ".join(map(repr, names)), " ".join(shlex.quote(str(name)) for name in names)
    what, carry, them = ("key" if of_turns else "column"), "carries", "it"
    if len(names) > 1:
        what, carry, them = f"{what}s", "carry", "them"
    return MeaningLost(
        f"the schema {schema.name} does not use the {what} {listed}, which usually {carry} meaning; {remedy}, or leave "
        f"{them} out with --ignore_columns {ignored}"
    )


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
                raise _lost(self.schema, name)
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
                raise _lost(self.schema, name)
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
            medium = next(filter(None, map(MEDIUM.search, _strings(example))), None)
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
