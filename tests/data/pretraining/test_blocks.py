"""Documents as blocks: nothing is lost, and a stream has the blocks of the shards."""

import json
import random
from itertools import chain
from typing import get_args

import numpy as np
import pytest

from conftest import write_jsonl
from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import Ledger
from hf_recipes.data.pretraining import document_stream, streamed_blocks, tokenize_corpus
from hf_recipes.data.pretraining.corpora import find_corpora, open_reader
from hf_recipes.data.pretraining.document_encoder import DocumentEncoder
from hf_recipes.data.pretraining.document_stream import Cursor, read_chunks
from hf_recipes.data.pretraining.packing import Block, Blocking, Mode, example
from hf_recipes.data.pretraining.parallel_tokenizer import Tokenization
from hf_recipes.data.pretraining.stored_blocks import StoredBlocks, permute
from hf_recipes.data.pretraining.streamed_blocks import StreamedBlocks
from hf_recipes.data.pretraining.token_shards import ShardWriter, open_shards, write_manifest
from hf_recipes.data.pretraining.tokenize_corpus import store

SIZE = 32


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(document_stream, "CHUNK_BYTES", 1500)
    monkeypatch.setattr(streamed_blocks, "WINDOW_TOKENS", 8 * SIZE)
    monkeypatch.setattr(tokenize_corpus, "SHARD_TOKENS", 2000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, draw = tmp_path_factory.mktemp("source"), random.Random(1)
    for part in range(3):
        rows = [{"text": f"{part}-{number}：" + "一二三四五六七" * draw.randint(0, 6)} for number in range(40)]
        write_jsonl(folder / f"part-{part}.jsonl", rows)
    with open(folder / "part-1.jsonl", "a", encoding="utf-8") as file:
        file.write('{"text": ""}\nbroken\n')
    return folder


@pytest.fixture(scope="module")
def readers(folder):
    [corpus] = find_corpora([f"all={folder}"])
    return [open_reader(file) for file in corpus.files]


@pytest.fixture
def encoder(tokenizer):
    return DocumentEncoder(tokenizer)


@pytest.fixture
def shards(readers, encoder, tmp_path):
    store("all", read_chunks(readers, Cursor()), encoder, str(tmp_path / "shards"), 0, lambda *row: None)
    return open_shards(str(tmp_path / "shards"), "all", encoder)


def documents(shards) -> list[list[int]]:
    return [part.tolist() for t, e in zip(shards.tokens, shards.ends, strict=True) for part in np.split(t, e)[:-1]]


def test_documents_end_with_their_token_and_none_is_lost(shards, folder, tokenizer):
    texts = [json.loads(line)["text"] for p in sorted(folder.iterdir()) for line in p.read_text().splitlines()[:40]]
    assert len(shards.tokens) > 2 and shards.tokens[0].dtype == np.uint16
    found = documents(shards)
    assert [tokenizer.decode(ids) for ids in found] == [f"{text}<|im_end|>" for text in texts]
    assert shards.manifest["bytes"] == sum(len(text.encode()) for text in texts)
    assert shards.manifest["characters"] == sum(map(len, texts))


def test_text_that_looks_like_a_special_token_is_text(encoder, tokenizer):
    [ids] = encoder.encode(["甲<|im_end|>乙"])
    assert ids.tolist().count(encoder.end) == 1 and ids[-1] == encoder.end
    assert tokenizer("<|im_end|>")["input_ids"] == [encoder.end]  # the tokenizer itself is as it was


def test_blocks_are_the_documents_one_after_the_other(shards):
    """With mode none, cut at every 32nd token; each document's beginning is known."""
    blocks = StoredBlocks(shards, Blocking(SIZE))
    rows = documents(shards)
    whole = list(chain(*rows))
    assert len(blocks) == -(-len(whole) // SIZE)
    starts, at = set(np.cumsum([0, *map(len, rows)])[:-1].tolist()), 0
    for index in range(len(blocks)):
        ids, own, _ = blocks.read(index, 0)
        assert ids.tolist() == whole[at : at + SIZE]
        assert own == [location - at for location in sorted(starts) if at <= location < at + SIZE]
        at += len(ids)
    assert at == len(whole)
    assert len(StoredBlocks(shards, Blocking(SIZE, drop_last=True))) == len(whole) // SIZE


def test_modes_for_long_documents(shards):
    rows = documents(shards)
    assert max(map(len, rows)) > 2 * SIZE
    cut = StoredBlocks(shards, Blocking(SIZE, "truncate"))
    read = np.concatenate([cut.read(index, 0).ids for index in range(len(cut))]).tolist()
    assert read == list(chain(*(row[:SIZE] for row in rows)))
    drawn = StoredBlocks(shards, Blocking(SIZE, "sample"))
    epochs = []
    for epoch in range(2):
        read = np.concatenate([drawn.read(index, epoch).ids for index in range(len(drawn))]).tolist()
        parts = np.split(np.array(read), np.cumsum([min(len(row), SIZE) for row in rows]))[:-1]
        for part, row in zip(parts, rows, strict=True):
            text, whole = ",".join(map(str, part.tolist())), ",".join(map(str, row))
            assert text in whole
        epochs.append(read)
    assert epochs[0] != epochs[1]
    pieces = StoredBlocks(shards, Blocking(SIZE, "split"))
    count = sum(len(pieces.read(index, 0).starts) for index in range(len(pieces)))
    assert count == sum(-(-len(row) // SIZE) for row in rows)


def test_what_the_model_takes():
    block = Block(np.array([5, 6, 7, 8, 9]), [0, 3], "")
    apart = {name: row.tolist() for name, row in example(block, 6, True, 0).items()}
    assert apart == {
        "input_ids": [5, 6, 7, 8, 9, 0],
        "position_ids": [0, 1, 2, 0, 1, 0],
        "labels": [-100, 6, 7, -100, 9, -100],
    }
    together = {name: row.tolist() for name, row in example(block, 6, False, 0).items()}
    assert together["position_ids"] == [0, 1, 2, 3, 4, 5] and together["labels"] == [5, 6, 7, 8, 9, -100]
    middle = example(Block(np.array([5, 6, 7, 8]), [3], ""), 4, True, 0)  # begins within a document
    assert middle["position_ids"].tolist() == [0, 1, 2, 0] and middle["labels"].tolist() == [-100, 6, 7, -100]


@pytest.mark.parametrize("mode", get_args(Mode))
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_stream_has_the_blocks_of_the_shards(shards, readers, encoder, mode, drop_last):
    blocking = Blocking(SIZE, mode, drop_last)
    stored, streamed = StoredBlocks(shards, blocking), StreamedBlocks("all", readers, blocking, Tokenization(encoder))
    for epoch in range(2):
        for index in range(len(stored)):
            one, two = stored.read(index, epoch), streamed.next()
            assert np.array_equal(one.ids, two.ids) and one.starts == two.starts
    labelled = sum(len(stored.read(index, 0).ids) for index in range(len(stored)))
    assert stored.skipped_tokens(1) == len(shards) - labelled
    if drop_last:
        streamed.next()  # the rest of an epoch is dropped on the way to the next one's first block
    assert streamed.skipped_tokens(2) >= 2 * stored.skipped_tokens(1)
    assert streamed.skipped_tokens(2) == 2 * stored.skipped_tokens(1) or (drop_last and mode in ("truncate", "sample"))


def test_a_shuffled_stream_has_every_token_once_an_epoch(shards, readers, encoder):
    blocking = Blocking(SIZE)
    stored = StoredBlocks(shards, blocking)
    stream = StreamedBlocks("all", readers, blocking, Tokenization(encoder), seed=1)
    epochs = []
    for _ in range(2):
        epochs.append(np.concatenate([stream.next().ids for _ in range(len(stored))]).tolist())
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(chain(*documents(shards)))
    assert epochs[0] != epochs[1] != list(chain(*documents(shards)))
    assert stream.epochs(0) == pytest.approx(2)


def test_a_stream_goes_on_from_any_place(readers, encoder):
    def stream():
        return StreamedBlocks("all", readers, Blocking(SIZE), Tokenization(encoder), seed=5)

    one, states, blocks = stream(), [], []
    for _ in range(600):
        states.append(json.dumps(one.state()))
        blocks.append(one.next())
    assert one.epochs(0) > 2
    for location in (0, 1, 7, 8, 9, *random.Random(0).sample(range(590), 30)):
        other = stream()
        other.start_at(json.loads(states[location]))
        for block in blocks[location : location + 10]:
            found = other.next()
            assert np.array_equal(found.ids, block.ids) and found.starts == block.starts


def test_processes_share_the_tokenizing(readers, encoder):
    """Each of three tokenizes a third; all get the same blocks, whatever the number of workers."""
    import threading
    from queue import Queue

    alone = StreamedBlocks("all", readers, Blocking(SIZE), Tokenization(encoder), seed=5)
    wanted = [alone.next().ids.tolist() for _ in range(300)]
    barrier, values, found, texts = threading.Barrier(3), {}, {}, Queue()

    def process(rank):
        def exchange(value, owner):
            if rank == owner:
                values["now"] = value
            barrier.wait(20)
            result = values["now"]
            barrier.wait(20)
            return result

        class Counted(Tokenization):
            def submit(self, given, turn):
                pending = super().submit(given, turn)
                texts.put(0 if pending is None else len(given))
                return pending

        own = StreamedBlocks("all", readers, Blocking(SIZE), Counted(encoder, 0, rank, 3, exchange), seed=5)
        found[rank] = [own.next().ids.tolist() for _ in range(300)]

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(3)]
    [thread.start() for thread in threads], [thread.join(60) for thread in threads]
    assert found[0] == found[1] == found[2] == wanted
    counts = [texts.get() for _ in range(texts.qsize())]
    assert sum(not count for count in counts) == pytest.approx(2 / 3 * len(counts), abs=3)


def test_rows_that_are_no_documents_are_told_once(readers, encoder):
    ledger = Ledger()
    stream = StreamedBlocks("all", readers, Blocking(SIZE), Tokenization(encoder), seed=5, on_row=ledger.add)
    for _ in range(50):
        stream.next()
    saved, told = json.loads(json.dumps(stream.state())), Ledger.from_dict(json.loads(json.dumps(ledger.to_dict())))
    other = StreamedBlocks("all", readers, Blocking(SIZE), Tokenization(encoder), seed=5, on_row=told.add)
    other.start_at(saved)
    for _ in range(600):
        other.next()
    assert told.totals == {"read": 122, "kept": 120, "dropped": 2}
    [broken] = [entry.locations for (_, status), entry in told.reasons.items() if "broken" in status]
    assert broken[0].endswith("part-1.jsonl:42")


def test_a_killed_worker_is_named(readers, encoder):
    import os
    import signal

    shared = Tokenization(encoder, 1, workers_flag="--dataloader_num_workers")
    stream = StreamedBlocks("all", readers, Blocking(SIZE), shared)
    stream.next()
    for pid in shared._pool._processes:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"was killed \(out of memory\?\); lower --dataloader_num_workers"):
        for _ in range(300):
            stream.next()
    shared.close()


@pytest.mark.parametrize("size", [1, 2, 3, 64, 65, 1000])
def test_a_permutation_has_every_index_once(size):
    assert sorted(permute(index, size, 1, 2) for index in range(size)) == list(range(size))
    if size > 3:
        orders = [tuple(permute(index, size, 1, key) for index in range(size)) for key in range(3)]
        assert len({*orders, tuple(range(size))}) == 4


def test_shards_are_checked(shards, encoder, tokenizer, tmp_path):
    import shutil

    from conftest import build_tokenizer

    folder = tmp_path / "copy"

    def copy():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(shards.folder, folder)

    copy()
    with open(folder / "part-00002.npy", "r+b") as file:
        file.truncate(500)
    with pytest.raises(UserError, match=r"part-00002\.npy: this shard is cut short or changed \(500 bytes\)"):
        open_shards(str(folder), "all", encoder)
    copy()
    (folder / "part-00001.ends.npy").unlink()
    with pytest.raises(UserError, match=r"part-00001\.ends\.npy: this shard is missing"):
        open_shards(str(folder), "all", encoder)
    copy()
    (folder / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json: cannot be read"):
        open_shards(str(folder), "all", encoder)
    other = build_tokenizer()
    other.add_tokens(["今天天气"])
    with pytest.raises(UserError, match="tokenized with another tokenizer"):
        open_shards(shards.folder, "all", DocumentEncoder(other))
    more = build_tokenizer()
    more.add_special_tokens({"additional_special_tokens": ["<|later|>"]})
    assert len(open_shards(shards.folder, "all", DocumentEncoder(more))) == len(shards)
    with pytest.raises(UserError, match=r"end with <\|im_end\|>, and --document_end_token is <\|endoftext\|>"):
        open_shards(shards.folder, "all", DocumentEncoder(tokenizer, "<|endoftext|>"))
    with pytest.raises(UserError, match="--document_end_token <x>: no token"):
        DocumentEncoder(tokenizer, "<x>")


def test_a_shard_is_there_whole_or_not_at_all(encoder, tmp_path):
    writer = ShardWriter(tmp_path / "part-00001.npy", encoder.dtype)
    writer.add(encoder.encode(["甲"]), ["甲"])
    assert not (tmp_path / "part-00001.npy").exists()
    shard = writer.close()
    assert {path.name for path in tmp_path.iterdir()} == {"part-00001.npy", "part-00001.ends.npy"}
    assert write_manifest(tmp_path, "one", encoder, [shard])["documents"] == 1
    assert np.load(tmp_path / "part-00001.npy").tolist() == encoder.encode(["甲"])[0].tolist()


def test_a_source_without_a_document(tmp_path, encoder):
    rows = [{"text": "甲"}, *[{"text": " "}] * 3]
    write_jsonl(tmp_path / "empty.jsonl", rows)
    [corpus] = find_corpora([str(tmp_path / "empty.jsonl")])
    readers = [open_reader(file) for file in corpus.files]
    write_jsonl(tmp_path / "empty.jsonl", rows[1:])
    with pytest.raises(UserError, match=r"empty\.jsonl: no document is left in this source"):
        StreamedBlocks("empty", readers, Blocking(SIZE), Tokenization(encoder)).next()


def test_a_source_shorter_than_a_block(tmp_path, encoder):
    write_jsonl(tmp_path / "short.jsonl", [{"text": "甲"}])
    [corpus] = find_corpora([str(tmp_path / "short.jsonl")])
    readers = [open_reader(file) for file in corpus.files]
    with pytest.raises(UserError, match="short: the source is shorter than one block of 32 tokens"):
        StreamedBlocks("short", readers, Blocking(SIZE, drop_last=True), Tokenization(encoder)).next()
