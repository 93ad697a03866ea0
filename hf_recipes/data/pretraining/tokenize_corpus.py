"""Tokenizing the documents of a source into shards, in several processes."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from hf_recipes.core.files import new_folder
from hf_recipes.data.pretraining.document_encoder import DocumentEncoder
from hf_recipes.data.pretraining.parallel_tokenizer import Tokenization
from hf_recipes.data.pretraining.token_shards import Shard, ShardWriter, write_manifest

if TYPE_CHECKING:
    from hf_recipes.data.pretraining.document_stream import Chunk

SHARD_TOKENS = 1 << 27


def store(
    name: str,
    chunks: "Iterable[Chunk]",
    encoder: DocumentEncoder,
    folder: str,
    workers: int,
    on_row: Callable[[str, str], None],
    finish: Callable[[Path], None] = lambda building: None,
) -> None:
    """Tokenize an epoch of `chunks` of a source into shards in `folder`, which is complete or absent.

    Args:
        on_row: called with the location and the status of each row.
        finish: called with the temporary folder, to put more into it.
    """
    tokenization = Tokenization(encoder, workers)
    shards: list[Shard] = []
    writer: ShardWriter | None = None
    pending: deque = deque()
    left = iter(chunks)
    done = False
    with contextlib.closing(tokenization), new_folder(folder) as building:
        while pending or not done:
            while not done and len(pending) < 1 + 2 * workers:
                chunk = next(left)
                pending.append((chunk, tokenization.submit(chunk.texts, 0)))
                done = chunk.ends_epoch
            chunk, ids = pending.popleft()
            for location, status in chunk.statuses:
                on_row(location, status)
            writer = writer or ShardWriter(building / f"part-{len(shards) + 1:05d}.npy", encoder.dtype)
            writer.add(tokenization.result(ids, 0), chunk.texts)
            if writer.shard.tokens >= SHARD_TOKENS or (done and not pending):
                shards.append(writer.close())
                writer = None
        write_manifest(building, name, encoder, shards)
        finish(building)
