"""Sources → one data set of examples in which every row, good or bad, has its place and its fate."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import datasets
import pyarrow as pa
from datasets import Dataset, Features, Json, Value
from datasets.arrow_writer import ArrowWriter
from datasets.table import MemoryMappedTable

from hf_recipes.core import ledger as ledger_module
from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import locked, new_file, writing
from hf_recipes.core.ledger import FILTERED, KEPT, is_dropped, row_status
from hf_recipes.data.files import file_io, records, sources
from hf_recipes.data.files.records import read_records
from hf_recipes.data.files.sources import Source, find_sources
from hf_recipes.data.schemas import conversation as conversations_module
from hf_recipes.data.schemas import registry as schemas_module
from hf_recipes.data.schemas.conversation import NotAsked, RowProblem
from hf_recipes.data.schemas.registry import SCHEMAS, Columns, find_schema, metadata

FEATURES = {
    "messages": Features({"messages": Json(), "tools": Json()}),
    "preference": Features({"prompt": Json(), "chosen": Json(), "rejected": Json(), "tools": Json()}),
    "unpaired": Features({"prompt": Json(), "completion": Json(), "label": Value("bool"), "tools": Json()}),
    "text": Features({"text": Value("string")}),
}
PLANNED = 100  # rows that decide a file's schema
COMMON = Features({"meta": Json(), "location": Value("string"), "status": Value("string")})


def fingerprint(*parts, code: Sequence = ()) -> str:
    """A cache key of JSON-able parts and of the source code of modules: what changes either, changes the key."""
    digest = hashlib.sha256(json.dumps(parts, ensure_ascii=False, sort_keys=True).encode())
    for module in code:
        digest.update(Path(module.__file__).read_bytes())
    return digest.hexdigest()[:32]


def load_examples(
    specs: Sequence[str],
    columns: Columns | None = None,
    form: str = "messages",
    cache_dir: str | None = None,
    split: str = "train",
) -> Dataset:
    """Read `specs` (files, globs, folders, Hub ids) into examples of `form`: messages, preference, unpaired or text.

    `split` is read of a Hub id that names none itself (``owner/name:test``).

    Columns: those of the form (`messages` and `tools`, …), `meta` (see `schemas.metadata`), `place` (``file:line``)
    and `fate`. Rows that cannot be used are there too, with a fate that says why; `Ledger.add_all` counts them.
    What was detected of each source (schema, encoding) is printed.

    Raises:
        UserError: a source that cannot be read, whose schema is not known, or that makes another form of example.
    """
    columns = columns or Columns()
    planned = []
    for source in find_sources(specs, split, cache_dir):
        schema, found = find_plan(source, columns)
        if schema.form != form:
            raise UserError(
                f"{source.path}: its schema is {schema.name}, which makes {schema.form} examples; this stage learns "
                f"from {form} examples (name the columns, or choose --schema)"
            )
        detail = f" ({found.prompt} → {found.response})" if found.response else ""
        detail += f", labels from {found.label!r}" if found.label else ""
        said = f"{source.path}: schema {schema.name}{detail}"
        say(said + (", GB18030 text" if source.encoding == "gb18030" else ""))
        planned.append((source, schema.name, found))
    key = fingerprint(
        [[source.path, source.digest, source.encoding, name, asdict(found)] for source, name, found in planned],
        form,
        code=(ledger_module, file_io, sources, records, conversations_module, schemas_module),
    )
    root = cache_root(cache_dir)
    path = root / "hf_recipes_examples" / f"{key}.arrow"
    found = _open(path, key)
    if found is None:
        with writing(f"--cache_dir {root}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            busy = f"{path}: another process makes it; waiting"
            with locked(path.with_suffix(".lock"), busy, wait=-1):
                if _open(path, key) is None:  # else another process was quicker
                    _store(path, Features({**FEATURES[form], **COMMON}), _generate(planned, form))
            found = _open(path, key)
    return found


def cache_root(cache_dir: str | None) -> Path:
    return Path(cache_dir or datasets.config.HF_DATASETS_CACHE)


def _open(path: Path, key: str) -> Dataset | None:
    """The rows in an Arrow file; None where there is none, or one that is damaged, which is said and removed."""
    try:
        if path.is_file():
            return Dataset(MemoryMappedTable.from_file(str(path)), fingerprint=key)
    except (pa.ArrowException, OSError) as error:
        say(f"{path}: damaged ({' '.join(str(error).split())[:100]}); it is made anew")
        with writing(f"--cache_dir {path.parent.parent}"):
            path.unlink()
    return None


def _store(path: Path, features: Features, rows: Iterable[dict]) -> None:
    with new_file(path) as partial, ArrowWriter(path=str(partial), features=features) as writer:
        for row in rows:
            writer.write(features.encode_example(row))
        writer.finalize()


def find_plan(source: Source, columns: Columns, find: Callable = find_schema) -> tuple[schemas_module.Schema, Columns]:
    """The schema that the first `PLANNED` rows show together: for each column, the first value that is not empty.

    `find` is `find_schema`, or decides as it does.
    """
    problems, shown = [], {}
    for record in islice(read_records(source), PLANNED):
        if record.value is None:
            problems.append(f"{record.location}: {ledger_module.shown(record.problem)}")
        else:
            shown |= {name: value for name, value in record.value.items() if not shown.get(name)}
    if shown:
        return find(shown, columns, source.path)
    raise UserError("\n  ".join([f"{source.path}: no row can be read:", *problems[: ledger_module.MAX_LOCATIONS]]))


def _generate(planned: list[tuple[Source, str, Columns]], form: str) -> Iterator[dict]:
    empty = dict.fromkeys([*FEATURES[form], "meta"])
    for source, schema, columns in planned:
        convert = SCHEMAS[schema].convert
        for record in read_records(source):
            row = {**empty, "location": record.location, "status": KEPT}
            problem, action = record.problem, "dropped"
            if problem is None:
                try:
                    row.update(convert(record.value, columns))
                    row["meta"] = metadata(record.value) or None
                except RowProblem as error:
                    problem, action = error.reason, FILTERED if isinstance(error, NotAsked) else "dropped"
            if problem is not None:
                row["status"] = row_status(action, problem)
            yield row


def row_statuses(dataset: Dataset) -> tuple[list[str], list[str]]:
    """The columns `place` and `fate` as lists."""
    table = dataset.select_columns(["location", "status"]).with_format("arrow")[:]
    return table["location"].to_pylist(), table["status"].to_pylist()


def usable(dataset: Dataset) -> Dataset:
    """The rows that were not dropped."""
    _, statuses = row_statuses(dataset)
    kept = [index for index, status in enumerate(statuses) if not is_dropped(status)]
    return dataset if len(kept) == len(dataset) else dataset.select(kept)


def hold_out(dataset: Dataset, percentage: float, seed: int) -> tuple[Dataset, Dataset]:
    """The rows of `held_out_rows`: what is left, and what is held out."""
    rest, chosen = held_out_rows(len(dataset), percentage, seed)
    return dataset.select(rest), dataset.select(chosen)


def held_out_rows(count: int, percentage: float, seed: int) -> tuple[list[int], list[int]]:
    """Split off `percentage` of `count` rows, at least one, drawn by `seed`; both parts keep the order of the file.

    Raises:
        UserError: nothing would be left to train on.
    """
    import numpy as np

    held = max(1, round(count * percentage / 100))
    if held >= count:
        raise UserError(f"--validation_split_percentage {percentage:g} of {count} rows leaves none to train on")
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[:held])
    return np.setdiff1d(np.arange(count), chosen).tolist(), chosen.tolist()
