"""Steps of datatrove pipelines that make a corpus: rows in; clean documents, signatures and a ledger out.

A task writes the documents that it keeps to ``TASK.jsonl.zst`` and what became of the others to ``TASK.json``.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter

from hf_recipes.core.errors import say
from hf_recipes.core.ledger import UNUSABLE, Ledger, row_status
from hf_recipes.corpus.cleaning import nfkc, quality_problem, simplify, strip_controls
from hf_recipes.data.files.sources import Source
from hf_recipes.data.pretraining.corpora import Reader
from hf_recipes.data.schemas.registry import Columns, named_schema

REPAIRS = {"control characters": strip_controls, "NFKC": nfkc, "traditional characters": simplify}


class Book:
    """A task's ledger. To datatrove's filters it is the writer of what they exclude."""

    def __init__(self):
        self.begin()

    def begin(self) -> None:
        self.ledger, self.start = Ledger(), time.monotonic()

    def __enter__(self) -> "Book":
        return self

    def __exit__(self, *error) -> None:
        pass

    def write(self, document: Document, rank: int = 0) -> None:
        self.ledger.add(document.metadata["location"], row_status("dropped", document.metadata["filter_reason"]))


class ReadDocuments(PipelineStep):
    """The documents of a task: of each of its parts, [file, start, stop], what begins between the two places.

    Args:
        files: source, name of the schema, and columns of every file.
    """

    name, type = "rows of any schema", "READER"

    def __init__(self, files: Sequence[tuple[Source, str, Columns]], tasks: Sequence[Mapping], book: Book):
        super().__init__()
        self.files, self.tasks, self.book = files, tasks, book

    def run(self, data=None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        self.book.begin()
        for file, start, stop in self.tasks[rank]["parts"]:
            source, schema, columns = self.files[file]
            for found in Reader(source, named_schema(schema, columns)).read(tuple(start)):
                if stop is not None and found.after[0] > stop[0]:
                    break
                if found.problem is not None:
                    self.book.ledger.add(found.location, row_status("dropped", UNUSABLE + found.problem))
                else:
                    own = {"location": found.location, "is_code": found.kind == "code", "statuses": [], "rank": rank}
                    yield Document(found.text, found.id or os.path.basename(found.location), metadata=own)


class Repair(PipelineStep):
    """Changes texts, and notes how; of programs, nothing but control characters and personal data.

    Args:
        names: of `REPAIRS`.
        people: None, or names to take out together with other personal data.
    """

    name, type = "repairs", "FORMAT"

    def __init__(self, names: Sequence[str], people: Sequence[str] | None = None):
        super().__init__()
        self.names, self.people = names, people

    def run(self, data, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        redactor = None
        if self.people is not None:
            from hf_recipes.privacy.redactor import Redactor

            redactor = Redactor(self.people)
        for document in data:
            statuses = document.metadata["statuses"]
            for name in self.names:
                if document.metadata["is_code"] and name != "control characters":
                    continue
                text = REPAIRS[name](document.text)
                if text != document.text:
                    document.text = text
                    statuses.append(row_status("repaired", name))
            if redactor is not None:
                document.text, kinds = redactor.redact(document.text)
                statuses += [row_status("repaired", f"personal data ({kind})") for kind in sorted(kinds)]
            yield document


class Rules(BaseFilter):
    """Length in characters, and the rules of `cleaning.quality_problem` for what is not a program."""

    name = "length and quality"

    def __init__(self, book: Book, min_chars: int | None, max_chars: int | None, min_chinese: float | None):
        super().__init__(book)
        self.min_chars, self.max_chars, self.min_chinese = min_chars, max_chars, min_chinese

    def filter(self, document: Document) -> bool | tuple[bool, str]:
        length = len(document.text)
        if not document.text.strip():
            return False, "nothing is left of the text"
        if self.min_chars is not None and length < self.min_chars:
            return False, f"shorter than {self.min_chars:,} characters"
        if self.max_chars is not None and length > self.max_chars:
            return False, f"longer than {self.max_chars:,} characters"
        if self.min_chinese is not None and not document.metadata["is_code"]:
            problem = quality_problem(document.text, self.min_chinese)
            return (False, problem) if problem else True
        return True


class Keep(PipelineStep):
    """Writes the documents and the ledger of a task, and says how far the work is."""

    name, type = "documents", "WRITER"

    def __init__(self, folder: Path, book: Book):
        super().__init__()
        self.folder, self.book = folder, book

    def run(self, data, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        import zstandard

        self.folder.mkdir(parents=True, exist_ok=True)
        documents = size = 0
        with zstandard.open(self.folder / f"{rank:05d}.jsonl.zst", "wb", zstandard.ZstdCompressor(1)) as file:
            for document in data:
                own = document.metadata
                self.book.ledger.add(own["location"], *own["statuses"])
                row = {
                    "id": document.id,
                    "location": own["location"],
                    "statuses": own["statuses"],
                    "text": document.text,
                }
                row |= {"kind": "code"} if own["is_code"] else {}
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                documents, size = documents + 1, size + len(document.text)
                yield document
        found = {"documents": documents, "characters": size, "ledger": self.book.ledger.to_dict()}
        (self.folder / f"{rank:05d}.json").write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
        read = self.book.ledger.totals["read"]
        speed = read / max(1e-9, time.monotonic() - self.book.start)
        say(f"task {rank + 1} of {world_size}: {read:,} documents read, {documents:,} kept, {speed:,.0f} read/s")
