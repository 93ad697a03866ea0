"""What an importer or a corpus run replaces: what an earlier one made, and nothing else."""

import pytest

from hf_recipes.core.errors import UserError
from hf_recipes.corpus.folder import corpus_folder, write_json
from hf_recipes.importers.output import output_folder


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")


def contents(folder) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def imports(out):
    with output_folder(str(out), True) as folder:
        put(folder, "train.jsonl", "data_ledger.json")
        (folder / "run_config.yaml").write_text("test_size: 0\n")


def test_an_import_replaces_what_an_import_wrote(tmp_path):
    out = tmp_path / "out"
    put(out, "notes.txt", "train.jsonl")
    before = contents(out)
    with pytest.raises(UserError, match=r"out: no earlier run wrote train\.jsonl there; name another folder"):
        imports(out)
    assert contents(out) == before
    (out / "train.jsonl").unlink()
    imports(out)
    imports(out)
    assert contents(out).keys() == {"notes.txt", "train.jsonl", "data_ledger.json", "run_config.yaml"}
    put(out, "test.jsonl")  # the import made none
    with pytest.raises(UserError, match=r"no earlier run wrote test\.jsonl there"):
        imports(out)
    (out / "test.jsonl").unlink()
    (out / "run_config.yaml").write_text("max_chars: 100\n")  # a corpus's, which has a ledger too
    with pytest.raises(UserError, match="no earlier run wrote"):
        imports(out)
    (out / "run_config.yaml").write_text("test_size: 0\n")
    (out / ".run").write_text("{}")  # a training run's
    with pytest.raises(UserError, match="no earlier run wrote"):
        imports(out)
    assert (out / "train.jsonl").exists()


def corpus(out, overwrite=True):
    with corpus_folder(out, out / ".work", {"settings": {}, "inputs": {}}, overwrite):
        pass


def test_a_corpus_replaces_what_a_corpus_run_made(tmp_path):
    out = tmp_path / "out"
    put(out / ".work", "precious.txt")
    with pytest.raises(UserError, match="the folder is not empty and holds no corpus"):
        corpus(out)
    assert contents(out) == {".work/precious.txt": "mine"}
    (out / ".work" / "precious.txt").unlink()
    corpus(out)
    write_json(out / ".work" / "state.json", {"settings": {}, "inputs": {}, "sources": ["wiki", "qa"]})
    put(out, "wiki/manifest.json", "wiki/part-00001.ends.npy", "qa/mine.txt", "notes.txt")
    before = contents(out)
    with pytest.raises(UserError, match=r"qa/mine\.txt: not of the corpus that was made here; move it away"):
        corpus(out)
    (out / "qa").rename(tmp_path / "qa")
    (out / "qa").symlink_to(tmp_path / "qa")
    with pytest.raises(UserError, match=r"qa: a link, and what it leads to is not deleted"):
        corpus(out)
    (out / "qa").unlink()
    (tmp_path / "qa").rename(out / "qa")
    assert contents(out) == before
    (out / "qa" / "mine.txt").unlink()
    corpus(out)
    assert {name for name in contents(out) if not name.startswith(".work")} == {"notes.txt"}
