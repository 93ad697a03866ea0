"""Documents that hold a part of an evaluation set."""

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
from hf_recipes.corpus.steps import REPAIRS, Book
from hf_recipes.data.files.records import read_records
from hf_recipes.data.files.sources import find_sources


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
