"""Drops documents that contain text of an evaluation set."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
from datatrove.utils.hashing import create_hash_func
from datatrove.utils.text import ngrams
from datatrove.utils.word_tokenizers import WordTokenizer

from hf_recipes.core.errors import say
from hf_recipes.corpus.cleaning import words
from hf_recipes.corpus.steps import REPAIRS, LedgerWriter
from hf_recipes.data.files.records import read_records
from hf_recipes.data.files.sources import find_sources


class Words(WordTokenizer):
    """Each Chinese character, and each Latin word or number."""

    def word_tokenize(self, text: str) -> list[str]:
        return list(words(text))

    def sent_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        raise NotImplementedError


def index_evaluation(specs: Sequence[str], size: int, folder: Path, repairs: Sequence[str]) -> None:
    """Write the n-grams of every text in evaluation files of any schema, as `NGramsDecontFilter` reads them."""
    hash_of = create_hash_func(NGramsDecontConfig().hash_config)
    folder.mkdir(parents=True, exist_ok=True)
    for number, source in enumerate(find_sources(specs, all_splits=True), 1):
        hashes, short, rows = set(), 0, 0
        for record in read_records(source):
            rows += 1
            row_hashes = set()
            for text in _texts(record.value):
                for name in repairs:
                    text = REPAIRS[name](text)
                row_hashes |= {hash_of(" ".join(gram).encode()) for gram in ngrams(words(text), size)}
            hashes |= row_hashes
            short += not row_hashes
        name = f"{number:03d}-{Path(source.path).name}"
        np.array(sorted(hashes), np.uint64).tofile(folder / f"{name}.index.hashes")
        unmatched = f"; {short:,} are shorter than {size} words and match none" if short else ""
        say(f"{source.path}: documents that share {size} words in a row with its {rows:,} rows are dropped{unmatched}")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (Mapping, list)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)


class Decontaminate(NGramsDecontFilter):
    """Drops documents that share an n-gram with an evaluation file."""

    def __init__(self, folder: Path, size: int, writer: LedgerWriter):
        super().__init__(str(folder), NGramsDecontConfig(n_grams=size), writer, Words())

    def filter(self, document: Document) -> bool | tuple[bool, str]:
        if self._index_hashes is None:
            self.load_index_hashes()
        for gram in ngrams(words(document.text), self.config.n_grams):  # datatrove's filter makes a list of all
            if name := self._index_hashes.get(self.hash_func(" ".join(gram).encode())):
                return False, f"overlaps with the evaluation file {name.partition('-')[2]}"
        return True
