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

SHINGLE = 5  # characters or words; 14 bands of 8 hashes match documents of a Jaccard similarity of about 0.72 or more
SLICE = 10_000  # shingles hashed at once: 112 hashes of 8 bytes for each


def _text_of(document: Document) -> bytes:
    return document.text.encode()  # xxhash 4 takes only bytes


def _priority(document: Document) -> int:
    return (1 << 16) - 1 - document.metadata["rank"]  # the first of equal documents is kept


EXACT = ExactDedupConfig(_text_of, _priority)


class SignExactly(ExactDedupSignature):
    """As datatrove's, but passes the documents to the next step."""

    def run(self, data, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        signatures = []
        for index, document in enumerate(data):
            signatures += self.get_hashes(document, index)
            yield document
        self.save_hashes(rank, signatures)


class SignNearly(MinhashDedupSignature):
    """As datatrove's, with shingles of Chinese characters, in bounded memory for documents of any length."""

    def __init__(self, folder: Path):
        super().__init__(str(folder), MinhashConfig(n_grams=SHINGLE), Words())

    def get_shingles(self, text: str) -> np.ndarray:
        hashes = (self._hash_func(" ".join(gram).encode()) for gram in ngrams(words(text), self.config.n_grams))
        return np.fromiter(hashes, np.uint64).reshape(-1, 1)

    def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
        slices = [shingles[start : start + SLICE] for start in range(0, len(shingles), SLICE)]
        signatures = [super(SignNearly, self).get_signature(each) for each in slices]
        return np.min(np.array(signatures, np.uint64), axis=0).tolist()


class KeepFirst(MinhashDedupCluster):
    """As datatrove's, but always keeps the first document of each cluster."""

    def run(self, data=None, rank: int = 0, world_size: int = 1) -> None:
        first: dict[tuple[int, int], tuple[int, int]] = {}

        def root(node: tuple[int, int]) -> tuple[int, int]:
            parent = first.setdefault(node, node)
            while parent != first[parent]:
                first[node] = first[parent]
                node, parent = parent, first[parent]
            return parent

        for name in self.input_folder.list_files(glob_pattern="*.dups"):
            with self.input_folder.open(name, "rb") as file:
                for one_task, one, other_task, other in read_tuples_from_file(file, "4I", lines_to_buffer=4096):
                    roots = root((one_task, one)), root((other_task, other))
                    first[max(roots)] = min(roots)
        with self.output_folder.get_output_file_manager(mode="wb") as files:
            for task, document in sorted(first):
                if root((task, document)) != (task, document):
                    files.write(f"{task:06d}.remove", struct.pack("<I", document))


def duplicates_of(work: Path, task: int) -> dict[int, str]:
    """The duplicates among the documents of a task, by index, and their kind."""
    duplicates = {}
    files = {"near": work.glob(f"near/{task:06d}.remove"), "exact": work.glob(f"exact/*/{task:05d}.c4_dup")}
    for kind, paths in files.items():
        for path in paths:
            duplicates |= dict.fromkeys(np.fromfile(path, np.uint32).tolist(), f"{kind} duplicate")
    return duplicates
