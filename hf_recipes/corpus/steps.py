"""Steps of the datatrove pipeline from rows to clean documents.

A task writes the documents that it keeps to ``TASK.jsonl.zst``, and the ledger of the dropped ones to ``TASK.json``.
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
from hf_recipes.core.files import write_json
from hf_recipes.core.ledger import KEPT, UNUSABLE, Ledger, row_status
from hf_recipes.corpus.cleaning import nfkc, quality_problem, simplify, strip_controls
from hf_recipes.corpus.wikitext import has_wiki_markup, without_wiki_markup
from hf_recipes.data.files.file_io import zstd_writer
from hf_recipes.data.files.source import Source
from hf_recipes.data.pretraining.corpora import Reader
from hf_recipes.data.schemas.registry import Columns, named_schema

REPAIRS = {
    "wiki markup": without_wiki_markup,
    "control characters": strip_controls,
    "NFKC": nfkc,
    "traditional characters": simplify,
}
IS_REPEAT, PARAGRAPH_IS_REPEAT = "marked as a repeat", "a paragraph marked as a repeat"
# What is kept as it is without a flag, as remarks in the ledger.
REMARKS = {
    row_status(KEPT, IS_REPEAT): "documents marked as repeats: {:,}; --drop_repeats drops them",
    row_status(KEPT, PARAGRAPH_IS_REPEAT): "paragraphs marked as repeats: {:,}; --drop_repeats removes them",
    row_status(KEPT, "wiki markup"): "documents with wiki markup: {:,}; --wiki_markup removes it",
}


class LedgerWriter:
    """The ledger of a task's dropped rows; for datatrove's filters, the writer of the documents that they exclude."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self.ledger, self.start = Ledger(), time.monotonic()

    def __enter__(self) -> "LedgerWriter":
        return self

    def __exit__(self, *error) -> None:
        pass

    def write(self, document: Document, rank: int = 0) -> None:
        self.ledger.add(document.metadata["location"], row_status("dropped", document.metadata["filter_reason"]))


class ReadDocuments(PipelineStep):
    """The documents of a task: those that begin between two positions, for each of its parts [file, start, stop].

    Args:
        files: source, name of the schema, and columns of every file.
        drop_repeats: leave out what MNBVC marks as a repeat.
    """

    name, type = "rows of any schema", "READER"

    def __init__(
        self,
        files: Sequence[tuple[Source, str, Columns]],
        tasks: Sequence[Mapping],
        writer: LedgerWriter,
        drop_repeats: bool = False,
    ):
        super().__init__()
        self.files, self.tasks, self.writer, self.drop_repeats = files, tasks, writer, drop_repeats

    def run(self, data=None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        self.writer.reset()
        for file, start, stop in self.tasks[rank]["parts"]:
            source, schema, columns = self.files[file]
            for row in Reader(source, named_schema(schema, columns), self.drop_repeats).read(tuple(start)):
                if stop is not None and row.after[0] > stop[0]:
                    break
                if row.problem is not None:
                    self.writer.ledger.add(row.location, row_status("dropped", UNUSABLE + row.problem))
                elif row.is_repeat and self.drop_repeats:
                    self.writer.ledger.add(row.location, row_status("dropped", IS_REPEAT))
                else:
                    statuses = [row_status(KEPT, IS_REPEAT)] if row.is_repeat else []
                    action = "repaired" if self.drop_repeats else KEPT
                    statuses += [row_status(action, PARAGRAPH_IS_REPEAT)] * row.repeats
                    metadata = {"location": row.location, "is_code": row.kind == "code", "rank": rank}
                    metadata["statuses"] = statuses
                    yield Document(row.text, row.id or os.path.basename(row.location), metadata=metadata)


class Repair(PipelineStep):
    """Repairs texts and records it; in programs only control characters and personal data.

    Args:
        names: keys of `REPAIRS`.
        people: names to replace together with all personal data; None: replace nothing.
        remarks: record markup that is kept.
    """

    name, type = "repairs", "FORMAT"

    def __init__(self, names: Sequence[str], people: Sequence[str] | None = None, remarks: bool = False):
        super().__init__()
        self.names, self.people, self.remarks = names, people, remarks

    def run(self, data, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        redactor = None
        if self.people is not None:
            from hf_recipes.privacy.redactor import Redactor

            redactor = Redactor(self.people)
        for document in data:
            statuses = document.metadata["statuses"]
            if self.remarks and not document.metadata["is_code"] and has_wiki_markup(document.text):
                statuses.append(row_status(KEPT, "wiki markup"))
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
    """Limits of length in characters and, except for programs, the rules of `cleaning.quality_problem`."""

    name = "length and quality"

    def __init__(self, writer: LedgerWriter, min_chars: int | None, max_chars: int | None, min_chinese: float | None):
        super().__init__(writer)
        self.min_chars, self.max_chars, self.min_chinese = min_chars, max_chars, min_chinese

    def filter(self, document: Document) -> bool | tuple[bool, str]:
        length = len(document.text)
        if not document.text.strip():
            return False, "empty text"
        if self.min_chars is not None and length < self.min_chars:
            return False, f"shorter than {self.min_chars:,} characters"
        if self.max_chars is not None and length > self.max_chars:
            return False, f"longer than {self.max_chars:,} characters"
        if self.min_chinese is not None and not document.metadata["is_code"]:
            problem = quality_problem(document.text, self.min_chinese)
            return (False, problem) if problem else True
        return True


class Keep(PipelineStep):
    """Writes the documents of a task and the ledger of the dropped ones, and prints the progress."""

    name, type = "documents", "WRITER"

    def __init__(self, folder: Path, writer: LedgerWriter):
        super().__init__()
        self.folder, self.writer = folder, writer

    def run(self, data, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        self.folder.mkdir(parents=True, exist_ok=True)
        documents = size = 0
        with zstd_writer(self.folder / f"{rank:05d}.jsonl.zst", level=1) as file:
            for document in data:
                row = {key: document.metadata[key] for key in ("location", "statuses")}
                row |= {"id": document.id, "text": document.text}
                row |= {"kind": "code"} if document.metadata["is_code"] else {}
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                documents, size = documents + 1, size + len(document.text)
                yield document
        ledger = self.writer.ledger
        counts = {"documents": documents, "characters": size, "dropped": ledger.to_dict()}
        write_json(self.folder / f"{rank:05d}.json", counts, indent=None)
        read = documents + ledger.totals["read"]
        speed = read / max(1e-9, time.monotonic() - self.writer.start)
        say(f"task {rank + 1} of {world_size}: {read:,} documents read, {documents:,} kept, {speed:,.0f} read/s")
