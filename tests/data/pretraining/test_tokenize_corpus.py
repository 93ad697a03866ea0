"""Documents that are tokenized into shards."""

import os
from pathlib import Path

import pytest

from hf_recipes.core.errors import UserError
from hf_recipes.data.pretraining.document_encoder import DocumentEncoder
from hf_recipes.data.pretraining.document_stream import Chunk, Cursor
from hf_recipes.data.pretraining.tokenize_corpus import store


def test_a_killed_worker_names_its_flag(tokenizer, tmp_path, monkeypatch):
    encoder = DocumentEncoder(tokenizer)
    monkeypatch.setattr(DocumentEncoder, "encode", lambda self, texts: os._exit(1))
    chunk = Chunk(Cursor(), Cursor(), ["一篇文档。"], [("a.jsonl:1", "kept")], True)
    with pytest.raises(UserError, match=r"was killed .*; lower --preprocessing_num_workers"):
        store("a", [chunk], encoder, str(tmp_path / "key"), 1, lambda location, status: None)


def test_a_failure_leaves_nothing_and_is_no_other_process(tokenizer, tmp_path):
    encoder, folder = DocumentEncoder(tokenizer), tmp_path / "key"

    def fill(building: Path) -> None:
        folder.mkdir()
        (folder / "mine.txt").touch()

    chunk = Chunk(Cursor(), Cursor(), ["一篇文档。"], [("a.jsonl:1", "kept")], True)
    with pytest.raises(OSError):
        store("a", [chunk], encoder, str(folder), 0, lambda location, status: None, fill)
    assert os.listdir(tmp_path) == ["key"] and os.listdir(folder) == ["mine.txt"]
