"""The documents that are left, as numbered shards: text (.jsonl.zst) or token ids."""

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from datatrove.pipeline.base import PipelineStep

from hf_recipes.core.errors import say
from hf_recipes.core.files import new_folder, to_json
from hf_recipes.corpus.dedup import removals
from hf_recipes.data.files.file_io import CHUNK
from hf_recipes.data.pretraining.document_encoder import DocumentEncoder
from hf_recipes.data.pretraining.token_shards import Shard, ShardWriter

BATCH, BATCH_CHARACTERS = 512, 1 << 18  # documents tokenized at once, a few dozen MB


class TextShard:
    """As `ShardWriter`, for text: a JSON object a line."""

    def __init__(self, path: Path):
        self.path, self.shard = path, Shard(path.name)
        self._partial = Path(f"{path}.partial")
        self._file = zstandard.open(self._partial, "wb", zstandard.ZstdCompressor(3))

    def add(self, rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> None:
        for row, text in zip(rows, texts, strict=True):
            self._file.write(to_json(row).encode() + b"\n")
            self.shard.bytes += len(text.encode())
            self.shard.characters += len(text)
        self.shard.documents += len(rows)

    def close(self) -> Shard:
        self._file.close()
        os.replace(self._partial, self.path)
        return self.shard


_encoders: dict[str, DocumentEncoder] = {}  # by the folder of the tokenizer


def _encoder(folder: str, end_token: str | None, trust_remote_code: bool) -> DocumentEncoder:
    from transformers import AutoTokenizer

    if folder not in _encoders:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        _encoders[folder] = DocumentEncoder(tokenizer, end_token)
    return _encoders[folder]


def save_tokenizer(encoder: DocumentEncoder, folder: Path) -> None:
    """Keep the tokenizer where other machines find it; this process and those forked from it have it already."""
    if not folder.is_dir():
        with new_folder(folder) as partial:
            encoder.tokenizer.save_pretrained(partial)
    _encoders.clear()
    _encoders[str(folder)] = encoder


def plan_shards(counts: Sequence[Mapping], tasks: Sequence[Mapping], work: Path, size: int, group: int) -> list[list]:
    """Which documents make each shard, in groups of shards of about `group` characters, each group one task.

    A shard has `size` documents of one source, the last one what is left. Its parts are [task, first, end] counted
    before duplicates are taken out, so that each duplicate belongs to one shard too.

    Args:
        counts: of each task, the documents that it kept and their characters.
    """
    groups: list[list[dict]] = []
    shard: dict | None = None
    room = characters = 0
    for task, (count, plan) in enumerate(zip(counts, tasks, strict=True)):
        kept = np.setdiff1d(np.arange(count["documents"]), list(removals(work / "exact", work / "near", task)))
        if shard is None or shard["corpus"] != plan["corpus"]:
            shard, room = None, 0
        first = taken = 0
        while first < count["documents"]:
            if not room and (taken < len(kept) or shard is None):
                if not groups or groups[-1][-1]["corpus"] != plan["corpus"] or characters >= group:
                    groups.append([])
                    characters = 0
                number = shard["number"] + 1 if shard is not None else 1
                shard, room = {"corpus": plan["corpus"], "number": number, "parts": []}, size
                groups[-1].append(shard)
            taken += min(room, len(kept) - taken)
            end = int(kept[taken]) if taken < len(kept) else count["documents"]
            characters += count["characters"] * (end - first) // count["documents"]
            room -= int(np.count_nonzero((kept >= first) & (kept < end)))
            shard["parts"].append([task, first, end])
            first = end
    return groups


class Export(PipelineStep):
    """Writes a group of shards, and what was left out of it as duplicates.

    Args:
        tokens: settings of `_encoder`, or None for text.
    """

    name, type = "shards", "WRITER"

    def __init__(self, groups: Sequence[Sequence[Mapping]], work: Path, tokens: tuple[str, str | None, bool] | None):
        super().__init__()
        self.groups, self.work, self.tokens = groups, work, tokens

    def run(self, data=None, rank: int = 0, world_size: int = 1) -> None:
        dropped: list[list] = []
        written = []
        for shard in self.groups[rank]:
            folder = self.work / "shards" / shard["corpus"]
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"part-{shard['number']:05d}"
            documents = self._documents(shard["parts"], dropped)
            if self.tokens is None:
                writer = TextShard(path.with_suffix(".jsonl.zst"))
                for rows in _batches(documents):
                    texts = [row["text"] for row in rows]
                    own = [
                        {"id": row["id"], "source": shard["corpus"], "text": row["text"]}
                        | ({"kind": row["kind"]} if "kind" in row else {})
                        for row in rows
                    ]
                    writer.add(own, texts)
            else:
                encoder = _encoder(*self.tokens)
                writer = ShardWriter(path.with_suffix(".npy"), encoder.dtype)
                for rows in _batches(documents):
                    texts = [row["text"] for row in rows]
                    writer.add(encoder.encode(texts), texts)
            done = writer.close()
            written.append([shard["corpus"], asdict(done)])
            tokens = f", {done.tokens:,} tokens" if self.tokens else ""
            say(f"{shard['corpus']}/{done.file}: {done.documents:,} documents{tokens}")
        found = json.dumps({"dropped": dropped, "shards": written}, ensure_ascii=False)
        (self.work / "write" / f"{rank:05d}.json").write_text(found, encoding="utf-8")

    def _documents(self, parts: Sequence[Sequence[int]], dropped: list[list]) -> Iterator[dict]:
        for task, first, end in parts:
            gone = removals(self.work / "exact", self.work / "near", task)
            with zstandard.open(self.work / "documents" / f"{task:05d}.jsonl.zst", "rb") as file:
                for number, line in enumerate(io.BufferedReader(file, CHUNK)):
                    if number >= end:
                        break
                    if number < first:
                        continue
                    row = json.loads(line)
                    if number in gone:
                        dropped.append([row["location"], row["statuses"], gone[number]])
                    else:
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
