"""Writes the documents that are left as numbered shards: text (.jsonl.zst) or token ids."""

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.pipeline.base import PipelineStep

from hf_recipes.core.errors import say
from hf_recipes.core.files import new_folder, to_json, write_json
from hf_recipes.core.ledger import Ledger, row_status
from hf_recipes.corpus.dedup import duplicates_of
from hf_recipes.data.files.file_io import CHUNK, zstd, zstd_writer
from hf_recipes.data.pretraining.document_encoder import DocumentEncoder
from hf_recipes.data.pretraining.token_shards import Shard, ShardWriter

BATCH, BATCH_CHARACTERS = 512, 1 << 18  # documents tokenized at once; a few dozen MB


class TextShard:
    """As `ShardWriter`, for text: a JSON object a line."""

    def __init__(self, path: Path, source: str):
        path = path.with_suffix(".jsonl.zst")
        self.path, self.shard, self.source = path, Shard(path.name), source
        # The next writer of the shard, on any machine, overwrites what a killed one left.
        self._partial = Path(f"{path}.partial")
        self._file = zstd_writer(self._partial, level=3)

    def add(self, rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> None:
        for row, text in zip(rows, texts, strict=True):
            line = {"id": row["id"], "source": self.source, "text": text}
            line |= {"kind": row["kind"]} if "kind" in row else {}
            self._file.write(to_json(line).encode() + b"\n")
            self.shard.bytes += len(text.encode())
            self.shard.characters += len(text)
        self.shard.documents += len(rows)

    def close(self) -> Shard:
        self._file.close()
        os.replace(self._partial, self.path)
        return self.shard


_encoders: dict[str, DocumentEncoder] = {}  # by the tokenizer's folder


def _encoder(folder: str, end_token: str | None, trust_remote_code: bool) -> DocumentEncoder:
    from transformers import AutoTokenizer

    if folder not in _encoders:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        _encoders[folder] = DocumentEncoder(tokenizer, end_token)
    return _encoders[folder]


def save_tokenizer(encoder: DocumentEncoder, folder: Path) -> None:
    """Save the tokenizer for other machines; this process and its forks use the loaded one."""
    if not folder.is_dir():
        with new_folder(folder) as partial:
            encoder.tokenizer.save_pretrained(partial)
    _encoders.clear()
    _encoders[str(folder)] = encoder


def plan_shards(
    counts: Sequence[Mapping], tasks: Sequence[Mapping], work: Path, size: int, group_characters: int
) -> list[list[dict]]:
    """Cut the documents of each source into shards of `size` documents, without counting duplicates.

    A shard is a list of parts, [task, start, stop], that index all documents which the task kept. A duplicate goes with
    the document before it. Consecutive shards of one source, of about `group_characters`, are written by one task.

    Args:
        counts: of each task, the documents that it kept and their characters.
    """
    groups: list[list[dict]] = []
    for corpus, numbers in groupby(range(len(tasks)), key=lambda task: tasks[task]["corpus"]):
        tasks_of_source = [task for task in numbers if counts[task]["documents"]]
        offsets = np.cumsum([0, *(counts[task]["documents"] for task in tasks_of_source)])
        duplicates = [
            offset + document
            for task, offset in zip(tasks_of_source, offsets, strict=False)
            for document in sorted(duplicates_of(work, task))
        ]
        kept_before = np.array(duplicates, np.int64) - np.arange(len(duplicates))  # number kept before each duplicate
        firsts = np.arange(0, offsets[-1] - len(duplicates), size)  # of each shard, counted without duplicates …
        firsts += np.searchsorted(kept_before, firsts, side="right")  # … and with them
        bounds = [0, *firsts[1:], offsets[-1]]
        characters = group_characters  # so that each source begins a group
        for number, (start, stop) in enumerate(pairwise(bounds), 1):
            parts = [
                [task, int(max(start, first) - first), int(min(stop, last) - first)]
                for task, first, last in zip(tasks_of_source, offsets, offsets[1:], strict=False)
                if max(start, first) < min(stop, last)
            ]
            if not parts:
                continue
            if characters >= group_characters:
                groups.append([])
                characters = 0
            groups[-1].append({"corpus": corpus, "number": number, "parts": parts})
            for task, first, last in parts:
                characters += counts[task]["characters"] * (last - first) // counts[task]["documents"]
    return groups


class Export(PipelineStep):
    """Writes a group of shards, and the ledger of their documents and duplicates.

    Args:
        tokens: arguments of `_encoder`, or None for text.
    """

    name, type = "shards", "WRITER"

    def __init__(self, groups: Sequence[Sequence[Mapping]], work: Path, tokens: tuple[str, str | None, bool] | None):
        super().__init__()
        self.groups, self.work, self.tokens = groups, work, tokens

    def run(self, data=None, rank: int = 0, world_size: int = 1) -> None:
        ledger, shards = Ledger(), []
        encoder = _encoder(*self.tokens) if self.tokens else None
        for shard in self.groups[rank]:
            folder = self.work / "shards" / shard["corpus"]
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"part-{shard['number']:05d}"
            writer = (
                ShardWriter(path.with_suffix(".npy"), encoder.dtype) if encoder else TextShard(path, shard["corpus"])
            )
            for rows in _batches(self._documents(shard["parts"], ledger)):
                texts = [row["text"] for row in rows]
                writer.add(encoder.encode(texts) if encoder else rows, texts)
            written = writer.close()
            shards.append([shard["corpus"], asdict(written)])
            tokens = f", {written.tokens:,} tokens" if encoder else ""
            say(f"{shard['corpus']}/{written.file}: {written.documents:,} documents{tokens}")
        write_json(
            self.work / "write" / f"{rank:05d}.json", {"ledger": ledger.to_dict(), "shards": shards}, indent=None
        )

    def _documents(self, parts: Sequence[Sequence[int]], ledger: Ledger) -> Iterator[dict]:
        for task, start, stop in parts:
            duplicates = duplicates_of(self.work, task)
            with zstd.open(self.work / "documents" / f"{task:05d}.jsonl.zst", "rb") as file:
                for number, line in enumerate(islice(io.BufferedReader(file, CHUNK), start, stop), start):
                    row = json.loads(line)
                    if number in duplicates:
                        ledger.add(row["location"], row_status("dropped", duplicates[number]))
                    else:
                        ledger.add(row["location"], *row["statuses"])
                        yield row


def _batches(rows: Iterator[dict]) -> Iterator[list[dict]]:
    batch, characters = [], 0
    for row in rows:
        batch.append(row)
        characters += len(row["text"])
        if len(batch) == BATCH or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
