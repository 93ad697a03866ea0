"""Steps of datatrove pipelines that make a corpus: rows in; clean documents, signatures and a ledger out.

A task writes the documents that it keeps to ``TASK.jsonl.zst`` and what became of the others to ``TASK.json``.
"""

import json
import os
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
from datatrove.pipeline.dedup.exact_dedup import ExactDedupConfig, ExactDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupCluster, MinhashDedupSignature
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.utils.binaryio import read_tuples_from_file
from datatrove.utils.hashing import create_hash_func
from datatrove.utils.text import ngrams
from datatrove.utils.word_tokenizers import WordTokenizer

from hf_recipes.core.errors import say
from hf_recipes.core.ledger import UNUSABLE, Ledger, fate
from hf_recipes.corpus.cleaning import nfkc, quality_problem, simplify, strip_controls, words
from hf_recipes.data.files.records import read_records
from hf_recipes.data.files.sources import Source, find_sources
from hf_recipes.data.pretraining.corpora import Reader
from hf_recipes.data.schemas.documents import DOCUMENT_SCHEMAS
from hf_recipes.data.schemas.registry import Columns

REPAIRS = {"control characters": strip_controls, "NFKC": nfkc, "traditional characters": simplify}
SHINGLE = 5  # characters or words; with 14 bands of 8 hashes, documents of a similarity of 0.72 or more meet
SLICE = 10_000  # shingles hashed at once: 112 hashes of 8 bytes for each


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
        self.ledger.add(document.metadata["place"], fate("dropped", document.metadata["filter_reason"]))


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
            for found in Reader(source, DOCUMENT_SCHEMAS[schema], columns).read(tuple(start)):
                if stop is not None and found.after[0] > stop[0]:
                    break
                if found.problem is not None:
                    self.book.ledger.add(found.place, fate("dropped", UNUSABLE + found.problem))
                else:
                    own = {"place": found.place, "is_code": found.kind == "code", "fates": [], "rank": rank}
                    yield Document(found.text, found.id or os.path.basename(found.place), metadata=own)


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
            fates = document.metadata["fates"]
            for name in self.names:
                if document.metadata["is_code"] and name != "control characters":
                    continue
                text = REPAIRS[name](document.text)
                if text != document.text:
                    document.text = text
                    fates.append(fate("repaired", name))
            if redactor is not None:
                document.text, kinds = redactor.redact(document.text)
                fates += [fate("repaired", f"personal data ({kind})") for kind in sorted(kinds)]
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


class Words(WordTokenizer):
    """Chinese by characters, Latin by words, without a model of the language."""

    def word_tokenize(self, text: str) -> list[str]:
        return list(words(text))

    def sent_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        raise NotImplementedError


def index_evaluation(specs: Sequence[str], size: int, folder: Path, repairs: Sequence[str]) -> None:
    """Write the n-grams of every text in evaluation files, whatever their schema, as `NGramsDecontFilter` reads them.

    Raises:
        UserError: a file that cannot be read.
    """
    hash_of = create_hash_func(NGramsDecontConfig().hash_config)
    folder.mkdir(parents=True, exist_ok=True)
    for number, source in enumerate(find_sources(specs), 1):
        hashes, short, rows = set(), 0, 0
        for record in read_records(source):
            rows += 1
            found = set()
            for text in _texts(record.value):
                for name in repairs:
                    text = REPAIRS[name](text)
                found |= {hash_of(" ".join(gram).encode()) for gram in ngrams(words(text), size)}
            hashes |= found
            short += not found
        name = f"{number:03d}-{Path(source.path).name}"
        np.array(sorted(hashes), np.uint64).tofile(folder / f"{name}.index.hashes")
        unseen = f"; {short:,} are shorter than {size} words and cannot be found" if short else ""
        say(f"{source.path}: documents that share {size} words in a row with its {rows:,} rows go{unseen}")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (Mapping, list)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)


class Decontaminate(NGramsDecontFilter):
    """Drops documents that share an n-gram with an evaluation file."""

    def __init__(self, folder: Path, size: int, book: Book):
        super().__init__(str(folder), NGramsDecontConfig(n_grams=size), book, Words())

    def filter(self, document: Document) -> bool | tuple[bool, str]:
        if self._index_hashes is None:
            self.load_index_hashes()
        for gram in ngrams(words(document.text), self.config.n_grams):  # datatrove's own makes a list of them all
            if name := self._index_hashes.get(self.hash_func(" ".join(gram).encode())):
                return False, f"overlaps with the evaluation file {name.partition('-')[2]}"
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
                self.book.ledger.add(own["place"], *own["fates"])
                row = {"id": document.id, "place": own["place"], "fates": own["fates"], "text": document.text}
                row |= {"kind": "code"} if own["is_code"] else {}
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                documents, size = documents + 1, size + len(document.text)
                yield document
        found = {"documents": documents, "characters": size, "ledger": self.book.ledger.to_dict()}
        (self.folder / f"{rank:05d}.json").write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
        read = self.book.ledger.totals["read"]
        speed = read / max(1e-9, time.monotonic() - self.book.start)
        say(f"task {rank + 1} of {world_size}: {read:,} documents read, {documents:,} kept, {speed:,.0f} read/s")


def _text_of(document: Document) -> bytes:
    return document.text.encode()  # xxhash 4 takes nothing but bytes


def _priority(document: Document) -> int:
    return (1 << 16) - 1 - document.metadata["rank"]  # of equal documents, the first is kept


EXACT = ExactDedupConfig(_text_of, _priority)


class SignExactly(ExactDedupSignature):
    """As datatrove's, but hands the documents on."""

    def run(self, data, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        signatures = []
        for index, document in enumerate(data):
            signatures += self.get_hashes(document, index)
            yield document
        self.save_hashes(rank, signatures)


class SignNearly(MinhashDedupSignature):
    """As datatrove's, with shingles of Chinese characters, and in bounded memory for documents of any length."""

    def __init__(self, folder: Path):
        super().__init__(str(folder), MinhashConfig(n_grams=SHINGLE), Words())

    def get_shingles(self, text: str) -> np.ndarray:
        hashes = (self._hash_func(" ".join(gram).encode()) for gram in ngrams(words(text), self.config.n_grams))
        return np.fromiter(hashes, np.uint64).reshape(-1, 1)

    def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
        parts = [
            super(SignNearly, self).get_signature(shingles[at : at + SLICE]) for at in range(0, len(shingles), SLICE)
        ]
        return np.min(np.array(parts, np.uint64), axis=0).tolist()


class KeepFirst(MinhashDedupCluster):
    """As datatrove's, but keeps the first document of each cluster, whatever the cluster's shape."""

    def run(self, data=None, rank: int = 0, world_size: int = 1) -> None:
        first: dict[tuple[int, int], tuple[int, int]] = {}

        def root(node: tuple[int, int]) -> tuple[int, int]:
            above = first.setdefault(node, node)
            while above != first[above]:
                first[node] = first[above]
                node, above = above, first[above]
            return above

        for name in self.input_folder.list_files(glob_pattern="*.dups"):
            with self.input_folder.open(name, "rb") as file:
                for one_task, one, other_task, other in read_tuples_from_file(file, "4I", lines_to_buffer=4096):
                    roots = root((one_task, one)), root((other_task, other))
                    first[max(roots)] = min(roots)
        with self.output_folder.get_output_file_manager(mode="wb") as files:
            for task, document in sorted(first):
                if root((task, document)) != (task, document):
                    files.write(f"{task:06d}.remove", struct.pack("<I", document))


def removals(exact: Path, near: Path, task: int) -> dict[int, str]:
    """Which documents of a task are duplicates, and of which kind."""
    found = {}
    for kind, paths in (("near", [near / f"{task:06d}.remove"]), ("exact", exact.glob(f"*/{task:05d}.c4_dup"))):
        for path in paths:
            if path.is_file():
                found |= dict.fromkeys(np.fromfile(path, np.uint32).tolist(), f"{kind} duplicate")
    return found
