"""Sources of documents for pretraining: which files belong to each, and the documents in them."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.ledger import KEPT
from hf_recipes.data.conversations.conversation import RowProblem
from hf_recipes.data.examples import described, schema_of
from hf_recipes.data.files.records import read_records
from hf_recipes.data.files.source import BEGIN, Source
from hf_recipes.data.files.sources import SEED, find_sources, is_data
from hf_recipes.data.files.specs import matches, parse_spec, source_name
from hf_recipes.data.schemas.columns import Columns, Schema
from hf_recipes.data.schemas.documents import REPEAT_MARKS, is_marked, marked_paragraphs, without_marked_paragraphs

SHARDS = "manifest.json"  # a folder with this file holds token shards


@dataclass(frozen=True)
class Corpus:
    """One source: its name, and its files or the folder of its token shards."""

    name: str
    files: tuple[Source, ...] = ()
    shards: str | None = None


@dataclass(slots=True)
class Document:
    """The document of the row at ``file:line``, or the `problem` with it; `kind` is ``code`` for a program.

    The next row starts at `after`. `is_repeat` and `repeats` are MNBVC's marks of the row and of how many paragraphs.
    """

    location: str
    text: str | None
    problem: str | None
    after: tuple[int, int]
    id: str | None = None
    kind: str | None = None
    is_repeat: bool = False
    repeats: int = 0
    status: str = KEPT


@dataclass(frozen=True)
class Reader:
    """How the rows of one file become documents; `drop_repeats`: without the paragraphs that MNBVC marks."""

    source: Source
    schema: Schema
    drop_repeats: bool = False

    def read(self, start: tuple[int, int] = BEGIN) -> Iterator[Document]:
        """The documents in order, from `start` (the `after` of one read before) on."""
        for record in read_records(self.source, start):
            example, problem, row, is_repeat, repeats = {}, record.problem, record.value, False, 0
            if problem is None:
                repeats = marked_paragraphs(row)
                is_repeat = is_marked(row) or (repeats > 0 and repeats == len(row["段落"]))
                try:
                    drops = self.drop_repeats and repeats and not is_repeat
                    example = self.schema.to_example(without_marked_paragraphs(row) if drops else row)
                except RowProblem as error:
                    problem = error.reason
            text, kind = example.get("text"), example.get("kind")
            yield Document(record.location, text, problem, record.after, example.get("id"), kind, is_repeat, repeats)


def open_reader(source: Source, columns: Columns | None = None, drop_repeats: bool = False) -> Reader:
    schema = schema_of(source, replace(columns or Columns(), reads="documents"))
    if drop_repeats:
        schema = replace(schema, unused=tuple(name for name in schema.unused if name not in REPEAT_MARKS))
    return Reader(source, schema, drop_repeats)


def find_corpora(
    specs: Sequence[str],
    cache_dir: str | None = None,
    sniff: bool = False,
    txt: str | None = None,
    encoding: str | None = None,
    seed: int = SEED,
) -> list[Corpus]:
    """The sources that `specs` name, sorted by name; see `parse_spec`.

    A file or a data set of a hub is a source named after it; a folder is one source, or, if there are folders in it,
    one for each of them; a folder of token shards is one. ``name=path`` gives files, a folder or a glob another name.
    For `sniff`, `txt` and `encoding` see `find_sources`.
    """
    corpora: dict[str, Corpus] = {}
    settings = {"cache_dir": cache_dir, "txt": txt, "encoding": encoding, "seed": seed}
    for spec in specs:
        for name, path in named_paths(spec):
            if name in corpora:
                raise UserError(f"{path}: there is a source {name} already; name one of them, as other={path}")
            if os.path.isfile(os.path.join(path, SHARDS)):
                corpora[name] = Corpus(name, shards=path)
            else:
                corpora[name] = Corpus(name, tuple(find_sources([path], sniff=sniff, **settings)))
    return [corpora[name] for name in sorted(corpora)]


def named_paths(spec: str) -> Iterator[tuple[str, str]]:
    """Name and spec of each source in `spec`; see `find_corpora`."""
    parsed = parse_spec(spec)
    if parsed.text == parsed.path and not parsed.hub and not os.path.exists(spec):  # a glob
        for path in matches(spec):
            yield source_name(path), path
    elif not os.path.isdir(spec) or os.path.isfile(os.path.join(spec, SHARDS)):
        is_named = spec.startswith(f"{parsed.name}=") and not os.path.exists(spec)
        yield parsed.name, spec.removeprefix(f"{parsed.name}=") if is_named else spec
    else:
        children = sorted(child for child in Path(spec).iterdir() if not child.name.startswith("."))
        folders = [child for child in children if child.is_dir()]
        if folders:
            files = [child for child in children if is_data(child)]
            yield from ((source_name(str(child)), str(child)) for child in (*folders, *files))
        else:
            yield source_name(spec), spec


def print_plan(corpora: Sequence[Corpus], readers: Sequence[Sequence[Reader]]) -> None:
    """Print a line for each source, with the schemas of its files."""
    for corpus, files in zip(corpora, readers, strict=True):
        if corpus.shards:
            say(f"{corpus.name}: token shards in {corpus.shards}")
            continue
        for text, count in Counter(described(reader.source, reader.schema) for reader in files).items():
            say(f"{corpus.name}: {count:,} file{'s' * (count > 1)}, {text}")
