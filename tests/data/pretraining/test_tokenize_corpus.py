"""Documents that are tokenized into shards."""

import os
from pathlib import Path

import pytest

from hf_recipes.data.pretraining.document_encoder import DocumentEncoder
from hf_recipes.data.pretraining.document_stream import Chunk, Cursor
from hf_recipes.data.pretraining.tokenize_corpus import store


def test_a_failure_leaves_nothing_and_is_no_other_process(tokenizer, tmp_path):
    encoder, folder = DocumentEncoder(tokenizer), tmp_path / "key"

    def fill(building: Path) -> None:
        folder.mkdir()
        (folder / "mine.txt").touch()

    chunk = Chunk(Cursor(), Cursor(), ["一篇文档。"], [("a.jsonl:1", "kept")], True)
    with pytest.raises(OSError):
        store("a", [chunk], encoder, str(folder), 0, lambda location, status: None, fill)
    assert os.listdir(tmp_path) == ["key"] and os.listdir(folder) == ["mine.txt"]
