"""Digests of weights."""

import os

from hf_recipes.models import weight_files
from hf_recipes.models.weight_files import digest


def write(path, content: bytes):
    """With the same modification time always."""
    path.write_bytes(content)
    os.utime(path, ns=(10**18, 10**18))


def test_any_byte_of_the_weights_counts(tmp_path):
    content = bytearray(9 << 20)
    write(tmp_path / "model.safetensors", content)
    (tmp_path / "notes.txt").write_text("a")
    first = digest(tmp_path)
    content[100_000] = 1  # between the samples of 64 KiB in every 144 KiB that were once looked at
    write(tmp_path / "model.safetensors", content)
    second = digest(tmp_path)
    (tmp_path / "notes.txt").write_text("b")
    assert first != second == digest(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    assert digest(tmp_path) != second
    assert digest("owner/name") == "owner/name"


def test_the_digest_of_a_large_file_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(weight_files, "LARGE", 1000)
    path = tmp_path / "model.safetensors"
    write(path, bytes(2000))
    first = digest(tmp_path)
    assert "reading 0.0 GB for their digest (once)" in capsys.readouterr().out
    assert digest(tmp_path) == first and capsys.readouterr().out == ""
    path.write_bytes(bytes(2000))  # the same content, written anew
    assert digest(tmp_path) == first and "reading" in capsys.readouterr().out
    path.write_bytes(bytes(1999) + b"1")
    assert digest(tmp_path) != first
    # A cache that cannot be written costs time only.
    monkeypatch.setattr(weight_files, "cache_root", lambda folder: path)
    write(path, bytes(2000))
    assert digest(tmp_path) == first and digest(tmp_path) == first
