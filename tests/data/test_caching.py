"""The caches of rows and tokens: warm, read-only, damaged, or on a disk that takes nothing."""

import errno
import os
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from datasets.arrow_writer import ArrowWriter

from conftest import conversation, write_jsonl
from hf_recipes.core.errors import UserError
from hf_recipes.data import examples
from hf_recipes.data.arguments import SourceArguments
from hf_recipes.data.chat.encoder import ChatEncoder
from hf_recipes.data.examples import fingerprint, load_examples
from hf_recipes.data.pretraining import token_shards
from hf_recipes.data.tokenized import tokenize_dataset
from hf_recipes.stages.data import pretrain as pretrain_data
from hf_recipes.stages.data.pretrain import prepare_mixture
from hf_recipes.stages.pretrain import PretrainArguments


def fails(code):
    def write(self, *args, **kwargs):
        raise OSError(code, os.strerror(code))

    return write


@pytest.fixture
def rows(tmp_path):
    turns = [{"messages": conversation(f"第{number}个问题？", f"第{number}个回答。")} for number in range(30)]
    return write_jsonl(tmp_path / "rows.jsonl", turns)


@pytest.fixture
def load(rows, tokenizer, tmp_path):
    """The examples in the cache, and their token ids."""

    def loaded():
        examples = load_examples([str(rows)], cache_dir=str(tmp_path / "cache"))
        return examples[:], tokenize_dataset(examples, ChatEncoder(tokenizer))["input_ids"][:]

    return loaded


@pytest.fixture
def mix(tokenizer, tmp_path):
    """The blocks of a corpus, whose tokens are in the cache."""
    texts = write_jsonl(tmp_path / "texts.jsonl", [{"text": f"第{number}篇。" * 9} for number in range(20)])

    def mixed():
        args = PretrainArguments(output_dir=str(tmp_path / "run"), block_size=16, report_to="none", max_steps=1)
        mixture, ledger = prepare_mixture(
            SourceArguments([str(texts)], cache_dir=str(tmp_path / "cache")), args, tokenizer
        )
        return [mixture[index] for index in range(4)], ledger.to_dict()

    return mixed


def same(one, other) -> bool:
    return str(one) == str(other)


@pytest.mark.parametrize("cut", [0, 0.5, 0.99])
def test_rows_that_are_damaged_in_the_cache_are_made_anew(load, tmp_path, capsys, cut):
    whole = load()
    paths = (tmp_path / "cache" / "hf_recipes_examples").glob("*.arrow")
    rows, tokens = sorted(paths, key=lambda path: path.name.startswith("cache-"))
    for path in (rows, tokens):
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * cut)])
    capsys.readouterr()
    assert same(load(), whole)
    out = capsys.readouterr().out
    assert f"{rows}: damaged" in out and "tokenized rows are damaged" in out and out.count("made anew") == 2
    load()
    assert "made anew" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["part-00001.npy", "part-00001.ends.npy", "ledger.json", "manifest.json"])
def test_tokens_that_are_damaged_in_the_cache_are_made_anew(mix, tmp_path, capsys, name):
    whole = mix()
    [path] = (tmp_path / "cache" / "hf_recipes_tokens").glob(f"*/{name}")
    path.write_bytes(path.read_bytes()[:-9])
    capsys.readouterr()
    assert same(mix(), whole)
    assert "damaged (" in capsys.readouterr().out
    mix()
    assert "tokeniz" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["examples", "tokens"])
def test_two_nodes_of_equal_process_numbers_share_one_cache(load, mix, tmp_path, monkeypatch, capsys, kind):
    """Of a damaged entry too: one process makes it, the other waits."""
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as the first process of every container has it
    read = {"examples": load, "tokens": mix}[kind]
    with ThreadPoolExecutor(2) as nodes:
        first, second = [node.result() for node in [nodes.submit(read) for _ in range(2)]]
        assert same(first, second)
        [path] = (tmp_path / "cache" / f"hf_recipes_{kind}").glob("*/part-00001.npy" if kind == "tokens" else "?" * 38)
        path.write_bytes(path.read_bytes()[:-9])
        capsys.readouterr()
        assert all(same(node.result(), first) for node in [nodes.submit(read) for _ in range(2)])
    assert capsys.readouterr().out.count("damaged") == 1


@pytest.mark.parametrize("is_repaired", [True, False], ids=["repaired", "deleted"])
@pytest.mark.parametrize("kind", ["examples", "tokens"])
def test_another_process_repairs_what_this_one_saw_damaged(load, mix, tmp_path, monkeypatch, capsys, kind, is_repaired):
    """What is damaged is looked at again once the lock is held."""
    read, owner, name = {
        "examples": (load, examples.MemoryMappedTable, "from_file"),
        "tokens": (mix, pretrain_data, "open_shards"),
    }[kind]
    whole = read()
    [entry] = [
        path
        for path in (tmp_path / "cache" / f"hf_recipes_{kind}").iterdir()
        if path.stem.isalnum() and path.suffix != ".lock"
    ]
    original, seen = getattr(owner, name), []

    def damaged_at_first(path, *args):
        if not seen:
            seen.append(path)
            if not is_repaired:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            raise token_shards.Damaged("cut") if kind == "tokens" else pa.ArrowInvalid("cut")
        return original(path, *args)

    written = entry.stat().st_mtime_ns
    monkeypatch.setattr(owner, name, damaged_at_first)
    capsys.readouterr()
    assert same(read(), whole) and seen
    assert "anew" not in capsys.readouterr().out and (entry.stat().st_mtime_ns == written) is is_repaired


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_no_row(load, tmp_path, monkeypatch, code):
    monkeypatch.setattr(ArrowWriter, "finalize", fails(code))
    with pytest.raises(UserError, match=rf"--cache_dir {tmp_path}/cache: cannot be written \({os.strerror(code)}\)"):
        load()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_no_tokens(rows, load, mix, tmp_path, monkeypatch, code):
    monkeypatch.setattr(token_shards.ShardWriter, "close", fails(code))
    with pytest.raises(UserError, match=rf"--cache_dir {tmp_path}/cache: cannot be written \({os.strerror(code)}\)"):
        mix()
    assert [path.suffix for path in (tmp_path / "cache" / "hf_recipes_tokens").iterdir()] == [".lock"]
    load_examples([str(rows)], cache_dir=str(tmp_path / "cache"))
    monkeypatch.setattr(ArrowWriter, "write_table", fails(code))
    with pytest.raises(UserError, match=rf"the cache in .*: cannot be written \({os.strerror(code)}\); .*--cache_dir"):
        load()
    assert not list((tmp_path / "cache").rglob("tmp*"))


def test_a_file_in_the_place_of_the_cache(load, mix, tmp_path):
    (tmp_path / "cache").touch()
    for read in (load, mix):
        with pytest.raises(UserError, match=rf"--cache_dir {tmp_path}/cache: cannot be written \((Not a dir|File ex)"):
            read()


# Within a process of its own, what is below `folder` cannot be written to, not even by root.
READ_ONLY = """
import ctypes, os
libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
def checked(result):
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
checked(libc.unshare(0x10000000 | 0x20000))  # CLONE_NEWUSER, CLONE_NEWNS
for name, text in (("setgroups", "deny"), ("uid_map", f"0 {{user}} 1"), ("gid_map", f"0 {{group}} 1")):
    open(f"/proc/self/{{name}}", "w").write(text)
folder = {folder!r}.encode()
checked(libc.mount(folder, folder, None, 0x1000 | 0x4000, None))  # MS_BIND, MS_REC
checked(libc.mount(None, folder, None, 0x1000 | 0x20 | 0x1, None))  # MS_BIND, MS_REMOUNT, MS_RDONLY
"""


def can_mount() -> bool:
    return subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="no user namespaces to mount a folder read-only in")
def test_a_warm_cache_that_is_read_only(forks, model_dir, pairs, rows, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    argv = ["--model_name_or_path", model_dir, "--report_to", "none", "--cache_dir", cache, "--dry_run"]
    texts = write_jsonl(tmp_path / "texts.jsonl", [{"text": f"第{number}篇。" * 90} for number in range(20)])
    kinds = {
        "scripts/sft.py": ["--train_file", rows, "--packing", "--max_length", 64],
        "scripts/pretrain.py": ["--train_file", texts, "--block_size", 16, "--max_steps", 2],
    }
    read_only = READ_ONLY.format(folder=str(cache))
    for script, own in kinds.items():
        output = ["--output_dir", tmp_path / Path(script).stem]
        cold = forks.run(*argv, *own, *output, script=script, before=read_only)
        assert cold.code == 1 and cold.err.startswith(f"error: --cache_dir {cache}: cannot be "), cold.err
        assert cold.err.count("\n") == 1 and "Read-only file system" in cold.err and not any(cache.iterdir())
    for script, own in kinds.items():
        output = ["--output_dir", tmp_path / Path(script).stem]
        assert forks.run(*argv, *own, *output, script=script).code == 0
        warm = forks.run(*argv, *own, *output, script=script, before=read_only)
        assert warm.code == 0, warm.err


def test_a_key_has_every_file_of_a_package(tmp_path):
    (tmp_path / "__init__.py").touch()
    package, keys = SimpleNamespace(__file__=str(tmp_path / "__init__.py")), set()
    for text in ("", "a = 1", "a = 2"):
        (tmp_path / "more.py").write_text(text)
        keys.add(fingerprint("rows", code=[package]))
    assert len(keys) == 3


def test_a_killed_worker_names_its_flag(rows, tokenizer, tmp_path, monkeypatch):
    encoder, here = ChatEncoder(tokenizer), os.getpid()

    def killed(batch):
        assert os.getpid() != here
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(encoder, "map_batch", killed)
    environ = os.environ
    examples = load_examples([str(rows)], cache_dir=str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"was killed \(out of memory\?\); lower --preprocessing_num_workers$"):
        tokenize_dataset(examples, encoder, num_proc=2)
    assert os.environ is environ  # which datasets replaces
