"""Exact and near duplicates among the documents of a corpus."""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.dedup.exact_dedup import ExactDedupConfig, ExactDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupCluster, MinhashDedupSignature
from datatrove.utils.binaryio import read_tuples_from_file
from datatrove.utils.text import ngrams

from hf_recipes.corpus.cleaning import words
from hf_recipes.corpus.decontamination import Words

SHINGLE = 5  # characters or words; with 14 bands of 8 hashes, documents of a similarity of 0.72 or more meet


SLICE = 10_000  # shingles hashed at once: 112 hashes of 8 bytes for each


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
