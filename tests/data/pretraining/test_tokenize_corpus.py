"""Shards in a cache that several machines share."""

import os
import threading
from pathlib import Path

import pytest

from hf_recipes.data.pretraining.document_encoder import DocumentEncoder
from hf_recipes.data.pretraining.document_stream import Chunk, Cursor
from hf_recipes.data.pretraining.token_shards import open_shards
from hf_recipes.data.pretraining.tokenize_corpus import store


def test_two_nodes_of_equal_process_numbers_fill_one_cache(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as the first process of every container has it
    encoder, folder = DocumentEncoder(tokenizer), tmp_path / "cache" / "key"
    both = threading.Barrier(2, timeout=30)
    errors = []

    def chunks():
        for number in range(2):
            both.wait()
            yield Chunk(Cursor(), Cursor(), [f"第{number}篇文档。"], [("a.jsonl:1", "kept")], number == 1)

    def node():
        try:
            store("a", chunks(), encoder, str(folder), 0, lambda location, status: None, lambda building: both.wait())
        except BaseException as error:
            errors.append(error)

    nodes = [threading.Thread(target=node) for _ in range(2)]
    for one in nodes:
        one.start()
    for one in nodes:
        one.join()
    assert errors == [] and os.listdir(tmp_path / "cache") == ["key"]
    assert open_shards(str(folder), "a", encoder).documents == 2


def test_a_failure_leaves_nothing_and_is_no_other_process(tokenizer, tmp_path):
    encoder, folder = DocumentEncoder(tokenizer), tmp_path / "key"

    def fill(building: Path) -> None:
        folder.mkdir()
        (folder / "mine.txt").touch()

    chunk = Chunk(Cursor(), Cursor(), ["一篇文档。"], [("a.jsonl:1", "kept")], True)
    with pytest.raises(OSError):
        store("a", [chunk], encoder, str(folder), 0, lambda location, status: None, fill)
    assert os.listdir(tmp_path) == ["key"] and os.listdir(folder) == ["mine.txt"]
