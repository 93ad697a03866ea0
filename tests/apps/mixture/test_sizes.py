"""The sources in a folder and how large they are, and what shares of them come to."""

import json

import pandas as pd
import pytest

from hf_recipes.apps.mixture.sizes import REASONS, folder_sizes, tempered_shares
from hf_recipes.core.errors import UserError
from hf_recipes.data.files.specs import source_name
from hf_recipes.data.pretraining.corpora import named_paths


def write(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)


def write_shards(path, **manifest):
    write(path / "0000.bin", 8)
    (path / "manifest.json").write_text(json.dumps(manifest))


def warnings(sizes):
    assert {reason for _, _, reason in sizes.warnings} <= set(REASONS)
    return [(text, reason) for _, text, reason in sizes.warnings]


def test_a_sub_folder_is_a_source_and_so_is_a_loose_file(tmp_path):
    write(tmp_path / "news" / "2024" / "a.jsonl", 30)
    write(tmp_path / "news" / "b.txt", 12)
    write(tmp_path / "news" / "LICENSE", 1000)
    write(tmp_path / "my wiki.v2.jsonl", 7)
    write(tmp_path / "README.md", 99)
    write(tmp_path / ".cache" / "a.txt", 99)
    (tmp_path / "none").mkdir()
    write(tmp_path / "empty.txt", 0)
    sizes = folder_sizes(str(tmp_path))
    assert (sizes.unit, sizes.amounts) == ("bytes", {"my wiki.v2": 7, "news": 42})
    assert warnings(sizes) == [("README.md", "no data"), ("empty.txt", "empty"), ("none", "no data")]


def test_sources_are_named_as_for_pretraining(tmp_path):
    write(tmp_path / "data" / "news.v1" / "a.jsonl", 30)
    write(tmp_path / "data" / "wiki.jsonl.gz", 30)
    write_shards(tmp_path / "data" / "law", documents=3, tokens=500, bytes=2000, source="statutes")
    names = {name for name, _ in named_paths(str(tmp_path / "data"))}
    assert set(folder_sizes(str(tmp_path / "data")).amounts) == names == {"news.v1", "wiki", "law"}


def test_a_folder_of_files_alone_is_given_to_pretraining_file_by_file(tmp_path):
    write(tmp_path / "news.txt", 30)
    write(tmp_path / "wiki.txt", 10)
    sizes = folder_sizes(str(tmp_path))
    assert sizes.amounts == {"news": 30, "wiki": 10}
    assert warnings(sizes) == [(str(tmp_path), "files only")]


def test_files_and_a_folder_of_one_name_are_one_source(tmp_path):
    for name in ("news/a.txt", "news.jsonl.zst", "news.json"):
        write(tmp_path / name, 10)
    sizes = folder_sizes(str(tmp_path))
    assert sizes.amounts == {"news": 30}
    assert warnings(sizes) == [
        ("news.json", "added"),
        ("news.jsonl.zst", "compressed"),
        ("news.jsonl.zst", "added"),
    ]


def test_token_shards_have_their_tokens(tmp_path):
    write_shards(tmp_path / "a", documents=3, tokens=500, bytes=2000, source="news")
    write_shards(tmp_path / "wiki", documents=1, tokens=300, bytes=900)
    sizes = folder_sizes(str(tmp_path))
    assert (sizes.unit, sizes.amounts) == ("tokens", {"a": 500, "wiki": 300})
    assert folder_sizes(str(tmp_path / "a")).amounts == {"a": 500}
    write(tmp_path / "qa.jsonl", 50)
    sizes = folder_sizes(str(tmp_path))
    assert (sizes.unit, sizes.amounts) == ("bytes", {"a": 2000, "qa": 50, "wiki": 900})
    assert warnings(sizes) == [("a", "bytes of shards"), ("wiki", "bytes of shards")]


def test_another_manifest_is_no_measure(tmp_path):
    for number, content in enumerate(['{"tokens": "many", "bytes": 1}', "[]", "{"]):
        write(tmp_path / f"s{number}" / "a.txt", 10)
        (tmp_path / f"s{number}" / "manifest.json").write_text(content)
    sizes = folder_sizes(str(tmp_path))
    assert sizes.unit == "bytes"
    assert sorted(sizes.amounts) == ["s0", "s1", "s2"]


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match="gone: no such folder"):
        folder_sizes(str(tmp_path / "gone"))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("data/news.jsonl", "news"),
        ("news.jsonl.gz", "news"),
        ("news.txt.zst", "news"),
        ("news.v2", "news.v2"),
        ("a/news/", "news"),
        (".jsonl", ".jsonl"),
    ],
)
def test_the_name_of_a_source(path, name):
    assert source_name(path) == name


def test_temperature():
    sizes = pd.Series({"large": 9e12, "small": 1e12})
    assert tempered_shares(sizes).to_dict() == pytest.approx({"large": 0.9, "small": 0.1})
    assert tempered_shares(sizes, 0.5).to_dict() == pytest.approx({"large": 0.75, "small": 0.25})
    assert tempered_shares(sizes, 0).to_dict() == {"large": 0.5, "small": 0.5}
