"""Sources → one data set of examples in which every row, usable or not, has its location and status."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Json, Value
from datasets.arrow_writer import ArrowWriter
from datasets.table import MemoryMappedTable

from hf_recipes.core import ledger
from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import locked, new_file, writing
from hf_recipes.core.ledger import FILTERED, KEPT, MAX_LOCATIONS, is_dropped, row_status, shown
from hf_recipes.data import files, schemas
from hf_recipes.data.conversations.conversation import FilteredRow, RowProblem
from hf_recipes.data.files.hub_data import cache_root
from hf_recipes.data.files.records import read_records
from hf_recipes.data.files.source import Source
from hf_recipes.data.files.sources import SEED, find_sources
from hf_recipes.data.files.specs import parse_spec
from hf_recipes.data.schemas.columns import NO_COLUMN, Columns, MeaningLost, Schema, status_of
from hf_recipes.data.schemas.detection import merged, schema_of_rows
from hf_recipes.data.schemas.registry import UnknownSchema, as_pair, better_alone, first_row, metadata

FEATURES = {
    "messages": Features({"messages": Json(), "tools": Json()}),
    "preference": Features({"prompt": Json(), "chosen": Json(), "rejected": Json(), "tools": Json()}),
    "unpaired": Features({"prompt": Json(), "completion": Json(), "label": Value("bool"), "tools": Json()}),
    "text": Features({"text": Value("string")}),
}
SNIFFED_ROWS = 100  # the first, which decide a file's schema
READ_ROWS = 1_000  # at a time, of rows that are read once more
ROWS_CODE = (files, schemas)  # for `fingerprint`
COMMON = Features({"meta": Json(), "location": Value("string"), "status": Value("string"), "source": Value("string")})


def fingerprint(*parts, code: Sequence = ()) -> str:
    """A cache key of JSON-able parts and of the source code of modules, of a package all: what changes either, changes
    the key."""
    digest = hashlib.sha256(json.dumps(parts, ensure_ascii=False, sort_keys=True).encode())
    for path in (Path(module.__file__) for module in code):
        for file in sorted(path.parent.glob("*.py")) if path.stem == "__init__" else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:32]


def load_examples(
    specs: Sequence[str],
    columns: Columns | None = None,
    form: str = "messages",
    cache_dir: str | None = None,
    split: str = "train",
    encoding: str | None = None,
    seed: int = SEED,
) -> Dataset:
    """Read `specs` (see `parse_spec`) into examples of `form`: messages, preference, unpaired or text.

    `split` is the one read of a data set on a hub that names none itself, and `seed` draws the rows of ``file#500``.

    The data set has the columns of the form (`messages` and `tools`, …), `meta` (see `registry.metadata`), `location`
    (``file:line``), `status`, and `source`, the name of the spec. Rows that cannot be used are in it too, with a status
    that says why; `Ledger.add_all` counts them. The schema and encoding detected of each source are printed.
    """
    files = []
    for source in find_sources(specs, split, cache_dir, encoding=encoding, seed=seed):
        schema = _schema_for(source, columns or Columns(), form)
        say(f"{source.path}: {described(source, schema)}")
        files.append((source, schema))
    key = fingerprint(
        [[f.path, f.digest, f.encoding, f.name, schema.name, asdict(schema.columns)] for f, schema in files],
        form,
        code=(*ROWS_CODE, ledger),
    )
    root = cache_root(cache_dir)
    path = root / "hf_recipes_examples" / f"{key}.arrow"
    dataset = _open(path, key)
    if dataset is None:
        with writing(f"--cache_dir {root}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            busy = f"{path}: another process makes it; waiting"
            with locked(path.with_suffix(".lock"), busy, wait=-1):
                if _open(path, key) is None:  # else another process was quicker
                    if path.exists():
                        say(f"{path}: damaged; it is made anew")
                    _store(path, Features({**FEATURES[form], **COMMON}), _generate(files, form))
            dataset = _open(path, key)
    return dataset


def _schema_for(source: Source, columns: Columns, form: str) -> Schema:
    """The schema of a file that makes examples of `form`."""
    hint = "name the columns, or choose --schema"
    try:
        schema = schema_of(source, columns)
        if schema.form == form:
            return schema
        problem = (
            f"its schema is {schema.name}, which makes {schema.form} examples; this stage learns from {form} examples"
        )
        hint += first_row(_merged_rows(source)) if schema.form == "text" else ""
        if schema.form == "preference":
            hint = better_alone(schema.columns, _merged_rows(source))
    except UnknownSchema:
        if form != "preference":
            raise
        problem = "no pair in its columns"
    if form == "preference":
        hint = as_pair(_merged_rows(source), columns)
    raise UserError(f"{source.path}: {problem} ({hint})")


def _merged_rows(source: Source) -> dict[str, Any]:
    return merged([record.value for record in islice(read_records(source), SNIFFED_ROWS) if record.value])


def column_names(spec: str, folder: Path) -> list[str]:
    """Of the first rows of a file in `folder`; empty where it has none that can be read."""
    with contextlib.suppress(UserError, OSError):
        name = spec if (folder / spec).exists() else spec.rpartition("=")[2]
        path = parse_spec(str(folder / name)).path
        return _column_names(path, os.path.getmtime(path)) if os.path.isfile(path) else []
    return []


@lru_cache
def _column_names(path: str, changed: float) -> list[str]:
    return list(_merged_rows(find_sources([path], "train", sniff=True)[0]))


def described(source: Source, schema: Schema) -> str:
    """What is read of a file, and what of it is not."""
    columns = schema.columns
    details = [f"schema {schema.name}"]
    if schema.form == "preference" and columns.chosen not in (None, "chosen"):
        details.append(f"chosen by {columns.chosen!r}")
    elif columns.prompt and schema.form != "text":
        question = f"{columns.prompt} + {columns.context}" if columns.context else columns.prompt
        details[0] += f" ({question} → {columns.response})" if columns.response else f" ({question})"
    details += [f"labels from {columns.label!r}"] if columns.label else []
    details += [f"thoughts from {thoughts} (--thoughts_column)"] if (thoughts := thoughts_from(columns)) else []
    names = (columns.system, columns.tools, columns.history)
    others = [repr(name) for name in names if name is not None]
    details += [f"with {', '.join(others)}"] if others else []
    text = ", ".join([*details, *source.notes])
    text += f"; columns not used: {', '.join(map(str, schema.unused))}" if schema.unused else ""
    return f"{text}; no such column to ignore: {', '.join(schema.absent)}" if schema.absent else text


def thoughts_from(columns: Columns) -> str:
    """The columns of thoughts, as text; empty where there are none."""
    names = (columns.thoughts, columns.rejected_thoughts)
    return " and ".join(repr(name) for name in names if name not in (None, NO_COLUMN))


def _open(path: Path, key: str) -> Dataset | None:
    """The rows in an Arrow file; None where there is none, or a damaged one."""
    try:
        return Dataset(MemoryMappedTable.from_file(str(path)), fingerprint=key)
    except (pa.ArrowException, OSError):
        return None


def _store(path: Path, features: Features, rows: Iterable[dict]) -> None:
    # Column by column: `encode_example` looks for arrays and nested features, for a sixth of the time.
    encoders = {
        name: str if feature == Value("string") else feature.encode_example for name, feature in features.items()
    }
    with new_file(path) as partial, ArrowWriter(path=str(partial), features=features) as writer:
        for row in rows:
            values = ((name, row.get(name), encode) for name, encode in encoders.items())
            writer.write({name: value if value is None else encode(value) for name, value, encode in values})
        writer.finalize()


def schema_of(source: Source, columns: Columns) -> Schema:
    """The schema of the first `SNIFFED_ROWS` rows taken together: of each column, the first value that is not empty."""
    problems, rows = [], []
    for record in islice(read_records(source), SNIFFED_ROWS):
        if record.value is None:
            problems.append(f"{record.location}: {shown(record.problem)}")
        else:
            rows.append(record.value)
    for name in source.layout.required if source.layout and rows else ():
        if not any(name in row for row in rows):
            raise UserError(f"{source.path}: its rows have no column that dataset_info.json names for {name!r}")
    if any(rows):
        return schema_of_rows(rows, columns, source.path)
    raise UserError("\n  ".join([f"{source.path}: no row can be read:", *problems[:MAX_LOCATIONS]]))


def fitting_columns(source: Source, columns: Columns) -> Columns:
    """`columns`, with which other files were read, without the schema and the columns that this one does not have."""
    rows = [record.value for record in islice(read_records(source), SNIFFED_ROWS) if record.value]
    names = {name for row in rows for name in row}
    missing = {
        field: getattr(columns, field)
        for field in ("prompt", "response", "history", "thoughts")
        if getattr(columns, field) not in (None, NO_COLUMN, *names)
    }
    fitting = replace(columns, **dict.fromkeys(missing))
    if fitting.schema and not any(_converts(row, fitting, source.path) for row in rows):
        missing["schema"] = columns.schema
        fitting = replace(fitting, schema=None)
    if missing:
        say(f"{source.path}: read without {', '.join(map(str, missing.values()))}, which its rows do not have")
    return fitting


def _converts(row: dict, columns: Columns, path: str) -> bool:
    try:
        return bool(schema_of_rows([row], columns, path).to_example(row))
    except (UserError, RowProblem, MeaningLost):
        return False


def _generate(files: list[tuple[Source, Schema]], form: str) -> Iterator[dict]:
    empty = dict.fromkeys([*FEATURES[form], "meta"])
    for source, schema in files:
        for record in read_records(source):
            row = {**empty, "location": record.location, "status": KEPT, "source": source.name}
            try:
                example = schema.read(record)
            except RowProblem as problem:
                row["status"] = row_status(FILTERED if isinstance(problem, FilteredRow) else "dropped", problem.reason)
            else:
                row |= {**example, "status": status_of(example), "meta": metadata(record.value) or None}
            yield row


def row_statuses(dataset: Dataset) -> Iterator[tuple[str, str]]:
    """Location and status of each row that was read; of a conversation in several examples, those of the last."""
    if "following" in dataset.column_names:
        following = np.asarray(dataset.with_format("arrow")["following"][:])
        dataset = dataset.select(np.flatnonzero(following == 0)) if following.any() else dataset
    for table in dataset.select_columns(["location", "status"]).with_format("arrow").iter(READ_ROWS):
        yield from zip(table["location"].to_pylist(), table["status"].to_pylist(), strict=True)


def usable(dataset: Dataset) -> Dataset:
    """The rows that were not dropped."""
    tables = dataset.select_columns(["status"]).with_format("arrow").iter(READ_ROWS)
    statuses = (status for table in tables for status in table["status"].to_pylist())
    kept = [index for index, status in enumerate(statuses) if not is_dropped(status)]
    return dataset if len(kept) == len(dataset) else dataset.select(kept)


def hold_out(dataset: Dataset, percentage: float, seed: int) -> tuple[Dataset, Dataset]:
    """The rows to train on and those held out; see `held_out_rows`."""
    train, held_out = held_out_rows(dataset["location"][:], percentage, seed)
    return dataset.select(train), dataset.select(held_out)


def held_out_rows(locations: Sequence[str], percentage: float, seed: int) -> tuple[list[int], list[int]]:
    """The indices of rows to train on, and of `percentage` of the rows, at least one, that are held out.

    Both keep the order of the file; `seed` decides which are held out. A row that is repeated is held out once, and
    trained on nowhere.
    """
    first = list({location: index for index, location in reversed(list(enumerate(locations)))}.values())[::-1]
    count = len(first)
    size = max(1, round(count * percentage / 100))
    if size >= count:
        raise UserError(f"--validation_split_percentage {percentage:g} of {count} rows leaves none to train on")
    held_out = [first[row] for row in np.sort(np.random.default_rng(seed).permutation(count)[:size]).tolist()]
    names = {locations[index] for index in held_out}
    return [index for index, location in enumerate(locations) if location not in names], held_out


def sampled_rows(count: int, size: int | None, seed: int) -> list[int] | None:
    """The sorted indices of `size` of `count` rows; None where these are all."""
    if size is None or size >= count:
        return None
    return np.sort(np.random.default_rng(seed).permutation(count)[:size]).tolist()
