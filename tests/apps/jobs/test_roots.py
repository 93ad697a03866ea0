"""What a page may read and write: what is in its folders once all links are followed."""

import pytest

from hf_recipes.apps.jobs.roots import Roots
from hf_recipes.core.errors import UserError


@pytest.fixture
def roots(tmp_path):
    """Folders work and more, and beside them one with a secret, which links in work lead to."""
    for name in ("work/data", "more", "secret"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "secret" / "rows.jsonl").write_text("{}")
    (tmp_path / "work" / "data" / "rows.jsonl").write_text("{}")
    (tmp_path / "work" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "work" / "inner").symlink_to(tmp_path / "more")
    return Roots([str(tmp_path / "work"), str(tmp_path / "more")])


GOOD = [
    "data/rows.jsonl",
    "data",
    "data/*.jsonl",
    "a=data/rows.jsonl#200",
    "inner",
    "Qwen/Qwen3-0.6B",
    "owner/name:train",
]
GOOD += [
    "configs/lora_qwen.json",
    "configs/recipes/demo.yaml",
    "not/there.json",
    "modelscope:owner/name",
    "今天天气？",
    "2e-4",
]


@pytest.mark.parametrize("text", GOOD)
def test_what_is_inside(roots, text):
    roots.check({"train_file": [text]})


BAD = [
    "/etc/passwd",
    "../secret/rows.jsonl",
    "data/../../secret/rows.jsonl",
    "~/x.json",
    "link/rows.jsonl",
    "link",
    "/etc/*",
]
BAD += [
    "a=/etc/passwd",
    "a=../secret/rows.jsonl#200",
    "/etc/passwd*2",
    "../secret/*.jsonl",
    "configs/../../secret/rows.jsonl",
]
BAD += [
    "../secret/dataset_info.json:entry",
    "../secret/reward.py:score",
    "modelscope:/etc/passwd",
    "link/*",
    "a\0../b/..",
]
BAD += ['{"nvme_path": "/etc"}', "."]


@pytest.mark.parametrize("text", BAD)
@pytest.mark.parametrize("shape", [lambda text: text, lambda text: ["x", {"key": [text]}]], ids=["text", "nested"])
def test_what_leaves_the_folders(roots, text, shape):
    with pytest.raises(UserError, match="outside of the folders"):
        roots.check(shape(text))


def test_absolute_paths_in_any_of_the_folders(roots, tmp_path):
    roots.check([str(tmp_path / "more"), str(tmp_path / "work" / "data")])
    assert roots.relative(tmp_path / "work" / "data" / "rows.jsonl") == "data/rows.jsonl"
    assert roots.relative(tmp_path / "more") == str(tmp_path / "more")


def upload(tmp_path, name: str, content: bytes = b"{}\n"):
    path = tmp_path / "upload" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def test_an_upload_is_kept_under_a_name_of_its_own(roots, tmp_path):
    first = roots.save_upload(upload(tmp_path, "我的 rows.jsonl"), 100)
    same = roots.save_upload(upload(tmp_path, "我的 rows.jsonl"), 100)
    other = roots.save_upload(upload(tmp_path, "我的 rows.jsonl", b"[]\n"), 100)
    assert [path.name for path in (first, same, other)] == ["我的-rows.jsonl", "我的-rows.jsonl", "我的-rows-2.jsonl"]
    assert first.parent == tmp_path / "work" / "uploads" and not list((tmp_path / "upload").iterdir())


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("rows.exe", b"{}", "rows.exe: not a file of data; json, jsonl"),
        ("run.py", b"{}", "run.py: not a file of data"),
        ("config.yaml", b"{}", "not a file of data"),
        ("dataset_info.json", b"{}", "not a file of data"),
        ("rows.json", b"", "rows.json: the file is empty"),
        ("rows.jsonl", b"x" * 2_000_001, "rows.jsonl: larger than 2 MB; see --max_upload_mb"),
        ("rows.csv", b"\x7fELF\0\0", "rows.csv: not text, although its name says so"),
    ],
)
def test_an_upload_that_is_refused_leaves_nothing(roots, tmp_path, name, content, message):
    with pytest.raises(UserError) as error:
        roots.save_upload(upload(tmp_path, name, content), 2_000_000)
    assert message in str(error.value)
    assert not (tmp_path / "work" / "uploads").exists() and not list((tmp_path / "upload").iterdir())


def test_uploads_follow_no_link(roots, tmp_path):
    (tmp_path / "work" / "uploads").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="outside of the folders"):
        roots.save_upload(upload(tmp_path, "rows.json"), 100)
    assert [path.name for path in (tmp_path / "secret").iterdir()] == ["rows.jsonl"]
