"""What names data in every stage and script: files, draws, entries of dataset_info.json, data sets of hubs."""

import hashlib
import json
import os
from pathlib import Path

import datasets
import pytest

from conftest import write_jsonl
from hf_recipes.core.errors import UserError
from hf_recipes.data.arguments import DataArguments
from hf_recipes.data.examples import described, hold_out, load_examples, schema_of
from hf_recipes.data.files.records import read_records
from hf_recipes.data.files.sources import find_sources
from hf_recipes.data.files.specs import parse_spec
from hf_recipes.data.pretraining.corpora import find_corpora, open_reader
from hf_recipes.data.schemas.registry import Columns


def rows(count: int, text: str = "问") -> list[dict]:
    return [{"prompt": f"{text}{number}", "response": "答"} for number in range(count)]


def read(*specs, **settings):
    return [record for source in find_sources(list(map(str, specs)), **settings) for record in read_records(source)]


def numbers(*specs, **settings) -> list[int]:
    return [int(record.value["prompt"].strip("问")) for record in read(*specs, **settings)]


@pytest.mark.parametrize("name", ["a#5.jsonl", "a*2.jsonl", "a:b.jsonl", "a=b.jsonl", "a[1].jsonl", "问#1*2.jsonl"])
def test_real_names_with_signs(tmp_path, name):
    path = write_jsonl(tmp_path / name, rows(6))
    write_jsonl(tmp_path / "a12.jsonl", rows(9))
    assert numbers(path) == list(range(6))
    assert len(numbers(f"{path}#4")) == 4 and len(numbers(f"{path}*0.5")) == 3
    assert parse_spec(f"{path}#4").path == str(path)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("owner/name", ("name", "owner/name", None, None)),
        ("owner/name:test", ("name", "owner/name", None, "test")),
        ("owner/name/sub.set-1:test#5", ("sub.set-1", "owner/name/sub.set-1", 5, "test")),
        ("modelscope:owner/name*1.5", ("name", "modelscope:owner/name", 1.5, None)),
        ("mine=modelscope:owner/name/zh:dev", ("mine", "modelscope:owner/name/zh", None, "dev")),
    ],
)
def test_names_on_hubs(text, parts):
    spec = parse_spec(text)
    assert (spec.name, spec.path, spec.amount, spec.split) == parts and spec.hub


def test_rows_are_drawn_by_the_seed(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", rows(40))
    found = numbers(f"{path}#10")
    assert found == sorted(set(found)) and len(found) == 10
    assert found == numbers(f"{path}#10") == numbers(f"{path}*0.25") != numbers(f"{path}#10", seed=1)
    record = read(f"{path}#10")[0]
    assert record.location == f"{path}:{found[0] + 1}"
    twice = numbers(f"{path}*2.5")
    assert twice[:80] == [*range(40)] * 2 and len(twice) == 100 == len(numbers(f"{path}#100"))
    digests = {find_sources([spec])[0].digest for spec in (str(path), f"{path}#10", f"{path}#11")}
    assert len(digests) == 3
    for spec, problem in ((f"{path}#0", "none of its 40 rows"), (f"{path}*0.001", "none of its 40 rows")):
        with pytest.raises(UserError, match=problem):
            find_sources([spec])
    with pytest.raises(UserError, match=r"is read by .*a.jsonl already; name it once"):
        find_sources([str(path), f"{path}#10"])


def test_a_draw_is_of_all_files_of_a_folder(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("a", "b"):
        write_jsonl(tmp_path / "data" / f"{name}.jsonl", rows(30))
    sources = find_sources([f"{tmp_path}/data#20"])
    counts = [sum(1 for _ in read_records(source)) for source in sources]
    assert sum(counts) == 20 and min(counts) > 3
    assert described(sources[0], schema_of(sources[0], Columns())).endswith(f", {counts[0]} rows sampled from 30")
    assert len(numbers(f"{tmp_path}/data/*.jsonl#20")) == 20
    one, other = (numbers(f"{tmp_path}/data/{name}.jsonl#15") for name in ("a", "b"))
    assert one != other


def test_a_drawn_source_is_read_on_from_any_row(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": f"第{number}篇"} for number in range(9)])
    [corpus] = find_corpora([f"mine={path}*1.5"])
    reader = open_reader(corpus.files[0])
    documents = list(reader.read())
    assert corpus.name == "mine" and len(documents) == 14
    for count, document in enumerate(documents, 1):
        assert [d.text for d in reader.read(document.after)] == [d.text for d in documents[count:]]


def test_a_repeated_row_is_not_held_out_and_trained_on(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", rows(20))
    train, held = hold_out(load_examples([f"{path}*2.5"]), 20, seed=0)
    assert len(held) == 4 and not set(held["location"]) & set(train["location"])
    assert len(train) >= 32 and set(train["source"]) == {"a"}


def test_sources_of_the_same_name(tmp_path):
    paths = []
    for folder in ("zh", "en"):
        (tmp_path / folder).mkdir()
        paths.append(str(write_jsonl(tmp_path / folder / "train.jsonl", rows(2))))
    assert [source.name for source in find_sources(paths)] == ["zh/train", "en/train"]


def test_rows_on_one_line_have_locations_of_their_own(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"prompt": "0"}\n{"prompt": "1"}{"prompt": "2"} {"prompt": "3"}\n{"prompt": "4"}', encoding="utf-8"
    )
    endings = ["1", "2", "2, row 2", "2, row 3", "3"]
    assert [record.location for record in read(path)] == [f"{path}:{ending}" for ending in endings]
    path = tmp_path / "b.json"
    path.write_text('[\n{"prompt": "0"}, {"prompt": "1"},\n {"prompt": "2"},{"prompt": "3"}]', encoding="utf-8")
    assert [record.location for record in read(path)] == [f"{path}:{e}" for e in ("2", "2, row 2", "3", "3, row 2")]


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("a.csv", "prompt;response\n问;答\n", "; between the columns"),
        ("a.csv", "prompt\tresponse\n问\t答\n", "tabs between the columns"),
        ("a.csv", "prompt,response\n问,答\n", None),
        ("a.json", '{"version": 1, "data": [{"prompt": "问", "response": "答"}]}', "rows under data"),
        ("a.json", '{\n"rows": [{"row": {"prompt": "问", "response": "答"}}]}', "rows under rows"),
        ("a.json", '{"prompt": "问", "response": "答"}\n{"prompt": "问", "response": "答"}', None),
    ],
)
def test_how_a_file_is_read_is_said_once(tmp_path, capsys, name, content, note):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    load_examples([str(path)])
    said = capsys.readouterr().out
    assert said.splitlines() == [f"{path}: schema prompt_response (prompt → response)" + (f", {note}" if note else "")]


# LLaMA-Factory


@pytest.fixture
def info(tmp_path):
    """Write `dataset_info.json` with one entry, `mine`, of rows; the spec of it."""

    def write(rows, **entry):
        write_jsonl(tmp_path / "rows.jsonl", rows)
        entry = {"file_name": "rows.jsonl", **entry}
        (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": entry}), encoding="utf-8")
        return f"{tmp_path}/dataset_info.json:mine"

    return write


SPOKEN = [{"who": "问者", "text": "几点？"}, {"who": "答者", "text": "三点。"}]
TAGS = {"role_tag": "who", "content_tag": "text", "user_tag": "问者", "assistant_tag": "答者", "system_tag": "设定"}
ASKED = [{"role": "user", "content": "几点？"}]
SHAREGPT = {"formatting": "sharegpt", "tags": TAGS}


@pytest.mark.parametrize(
    ("row", "entry", "form", "example"),
    [
        (
            {"q": "几点？", "more": "现在", "a": "三点。", "sys": "简答", "past": [["在？", "在。"]]},
            {"columns": {"prompt": "q", "query": "more", "response": "a", "system": "sys", "history": "past"}},
            "messages",
            ["简答", "在？", "在。", "几点？\n现在", "三点。"],
        ),
        ({"instruction": "几点？", "input": "", "output": "三点。"}, {}, "messages", ["几点？", "三点。"]),
        (
            {"talk": SPOKEN, "sys": "简答"},
            {**SHAREGPT, "columns": {"messages": "talk", "system": "sys"}},
            "messages",
            ["简答", "几点？", "三点。"],
        ),
        (
            {"conversations": [{"from": "human", "value": "几点？"}, {"from": "gpt", "value": "三点。"}]},
            {"formatting": "sharegpt"},
            "messages",
            ["几点？", "三点。"],
        ),
        (
            {"talk": SPOKEN[:1], "good": SPOKEN[1], "bad": {"who": "答者", "text": "走开。"}},
            {**SHAREGPT, "ranking": True, "columns": {"messages": "talk", "chosen": "good", "rejected": "bad"}},
            "preference",
            ["几点？", "三点。", "走开。"],
        ),
        (
            {"q": "几点？", "good": "三点。", "bad": "走开。"},
            {"ranking": True, "columns": {"prompt": "q", "chosen": "good", "rejected": "bad"}},
            "preference",
            ["几点？", "三点。", "走开。"],
        ),
    ],
)
def test_an_entry_is_read_as_it_maps_its_columns(info, row, entry, form, example):
    spec = info([row], **entry)
    found = load_examples([spec], form=form)
    parts = [found[0][name] for name in (("messages",) if form == "messages" else ("prompt", "chosen", "rejected"))]
    assert [turn["content"] for part in parts for turn in part] == example
    assert found["source"][:] == ["mine"] and found["status"][:] == ["kept"]


def test_an_entry_of_labels_and_one_of_texts(info):
    rows = [{"talk": SPOKEN, "good": False}]
    spec = info(rows, **SHAREGPT, columns={"messages": "talk", "kto_tag": "good"})
    found = load_examples([spec], Columns(label="label"), form="unpaired")
    assert found["label"][:] == [False] and found[0]["completion"][0]["content"] == "三点。"
    spec = info([{"body": "第一篇。"}], columns={"prompt": "body"})
    [corpus] = find_corpora([spec])
    assert corpus.name == "mine" and [d.text for d in open_reader(corpus.files[0]).read()] == ["第一篇。"]


def test_num_samples_and_the_digest_of_a_file(info, tmp_path):
    spec = info(rows(10), num_samples=4, columns={"prompt": "prompt", "response": "response"})
    assert len(load_examples([spec])) == 4 and len(load_examples([f"{spec}#3"])) == 3
    content = (tmp_path / "rows.jsonl").read_bytes()
    columns = {"prompt": "prompt", "response": "response"}
    spec = info(rows(10), file_sha1=hashlib.sha1(content).hexdigest(), columns=columns)
    assert len(load_examples([spec])) == 10
    with pytest.raises(UserError, match="is another file than file_sha1 says"):
        load_examples([info(rows(9), file_sha1=hashlib.sha1(content).hexdigest(), columns=columns)])


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"script_url": "x"}, "the key 'script_url' is not supported"),
        ({"folder": "x"}, "the key 'folder' is not supported"),
        ({"columns": {"images": "x"}}, "columns: 'images' is not supported"),
        ({"tags": {"emoji_tag": "x"}, "formatting": "sharegpt"}, "tags: 'emoji_tag' is not supported"),
        ({"tags": {"role_tag": "role"}}, "tags are of formatting sharegpt"),
        ({"formatting": "openai"}, "formatting 'openai' is not supported; there are alpaca, sharegpt"),
        ({"file_name": "nowhere.jsonl"}, "file_name nowhere.jsonl: there is no"),
        ({"file_name": None}, "it names no data; expected file_name, hf_hub_url or ms_hub_url"),
        ({"ranking": True}, "ranking without 'chosen' in its columns"),
        ({"num_samples": -1}, "num_samples -1: expected a number of rows above 0"),
        ({"subset": "zh"}, "subset has no effect on file_name"),
        ({"columns": {"prompt": "prompt", "system": "sytem"}}, "no column that dataset_info.json names for 'system'"),
        ({"columns": {"prompt": "response"}, "formatting": "sharegpt"}, "without 'messages' in its columns"),
        ({"columns": {"response": "prompt", "prompt": "output"}}, "the column 'output' is none of the columns"),
    ],
)
def test_what_of_an_entry_cannot_be_used_is_named(info, entry, problem):
    row = {"prompt": "问", "response": "答"}
    if "is none of the columns" in problem:
        entry, row = {"columns": {"prompt": "a", "response": "b"}}, {"a": "问", "b": "答", "output": "别的"}
    with pytest.raises(UserError, match=problem):
        load_examples([info([row], **entry)])


def test_the_flags_of_llama_factory(info, tmp_path):
    info(rows(3), columns={"prompt": "prompt", "response": "response"})
    data = DataArguments(dataset="mine", dataset_dir=str(tmp_path))
    assert data.train_file == [f"{tmp_path}/dataset_info.json:mine"] and len(load_examples(data.train_file)) == 3
    with pytest.raises(UserError, match=r"no entry 'mino' \(did you mean mine\?\)"):
        load_examples(DataArguments(dataset="mine,mino", dataset_dir=str(tmp_path)).train_file)
    for settings, problem in (
        ({"dataset": "mine", "train_file": ["a"]}, "give one of them"),
        ({"dataset": "mine"}, r"there is no data/dataset_info.json; name its folder with --dataset_dir"),
        ({"train_file": ["a"], "dataset_dir": "x"}, "--dataset_dir has no effect without --dataset"),
        ({}, "--train_file is missing"),
    ):
        with pytest.raises(ValueError, match=problem):
            DataArguments(**settings)


# Hubs


@pytest.fixture
def cached(tmp_path):
    """The cache of ``some-owner/Data.v2`` with the subsets default and zh, as `load_dataset` leaves it."""
    for subset in ("default", "zh"):
        path = write_jsonl(tmp_path / f"{subset}.jsonl", rows(5, subset))
        builder = datasets.load_dataset_builder(
            "json", data_files={"train": str(path)}, cache_dir=str(tmp_path / "made")
        )
        builder.download_and_prepare(str(tmp_path / "cache" / "some-owner___data.v2" / subset / "0.0.0" / "abc"))
    for file in (tmp_path / "cache").rglob("json-train.arrow"):
        file.rename(file.with_name("data.v2-train.arrow"))
    for file in (tmp_path / "cache").rglob("dataset_info.json"):
        info = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(
            json.dumps({**info, "config_name": file.parts[-4], "dataset_name": "data.v2"}), encoding="utf-8"
        )
    return str(tmp_path / "cache")


@pytest.mark.parametrize("offline", [True, False])
def test_a_set_in_the_cache_needs_no_network(cached, monkeypatch, capsys, offline):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)

    def ask(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(datasets, "get_dataset_split_names", ask)
    monkeypatch.setattr(datasets, "load_dataset", ask)
    for spec, text in (("some-owner/Data.v2", "default"), ("some-owner/Data.v2/zh:train", "zh")):
        [source] = find_sources([spec], cache_dir=cached)
        records = list(read_records(source))
        assert [record.value["prompt"] for record in records] == [f"{text}{number}" for number in range(5)]
        assert records[4].location == f"{spec.partition(':')[0]}/train:5"
        assert [record.value for record in read_records(source, records[2].after)] == [r.value for r in records[3:]]
    with pytest.raises(UserError, match=r"no split 'test'; there are train: name one as some-owner/Data.v2:train"):
        find_sources(["some-owner/Data.v2:test"], cache_dir=cached)
    assert "delete " in capsys.readouterr().out


@pytest.mark.parametrize("spec", ["some-owner/Data.v2", "some-owner/Data.v2/zh:train", "cached=some-owner/Data.v2"])
def test_a_set_of_a_hub_is_a_corpus_beside_files(cached, tmp_path, spec):
    file = write_jsonl(tmp_path / "rows.jsonl", [{"text": "文"}])
    corpora = find_corpora([spec, str(file)], cache_dir=cached)
    expected = {"some-owner/Data.v2": "Data.v2", "some-owner/Data.v2/zh:train": "zh"}.get(spec, "cached")
    assert {corpus.name: len(corpus.files) for corpus in corpora} == {expected: 1, "rows": 1}


def test_a_subset_that_is_not_there(monkeypatch, tmp_path):
    def names(name, subset=None):
        if subset != "zh":
            raise ValueError("Config name is missing.")
        return ["train"]

    monkeypatch.setattr(datasets, "get_dataset_split_names", names)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: ["zh", "en"])
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: datasets.Dataset.from_list([{"args": args}]))
    [source] = find_sources(["o/n/zh"], cache_dir=str(tmp_path))
    assert next(read_records(source)).value["args"] == ["o/n", "zh"]
    for spec, problem in (("o/n", "it has several subsets"), ("o/n/fr", "it has no subset 'fr'")):
        with pytest.raises(UserError, match=rf"{problem}; there are zh, en: name one as o/n/zh"):
            find_sources([spec], cache_dir=str(tmp_path))


def test_a_data_set_of_modelscope(hub, tmp_path):
    card = "---\nconfigs:\n- config_name: zh\n  data_files:\n  - split: train\n    path: zh.jsonl\n---\n"
    files = {"README.md": card.encode(), "zh.jsonl": "\n".join(map(json.dumps, rows(4))).encode()}
    hub.add("some-owner/data", files)
    spec = "modelscope:some-owner/data/zh"
    [source] = find_sources([spec], cache_dir=str(tmp_path))
    assert [(r.location, r.value["prompt"]) for r in read_records(source)] == [
        (f"{spec}/train:{number + 1}", f"问{number}") for number in range(4)
    ]
    asked = len(hub.requests)
    find_sources([f"{spec}:train#2"], cache_dir=str(tmp_path))
    assert len(hub.requests) == asked
    with pytest.raises(UserError, match="no such repository"):
        find_sources(["modelscope:some-owner/none"], cache_dir=str(tmp_path))


@pytest.mark.parametrize("folder", [False, True])
def test_a_file_name_in_another_encoding(tmp_path, folder):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + "/数据.jsonl".encode("gbk")))
    write_jsonl(path, rows(1))
    with pytest.raises(UserError, match="its name is not utf-8 text; rename it, or run with PYTHONUTF8=1"):
        find_sources([str(tmp_path) if folder else str(path)])


def test_a_column_to_ignore_that_is_not_there(tmp_path):
    """It is no column that is left out, and may be a misspelled one, which is read."""
    row = {"system": "s", "input": "q", "output": "a", "extra": 1}
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    source = find_sources([str(path)], "train")[0]
    text = described(source, schema_of(source, Columns(ignored=("sytem", "extra", "zz"))))
    assert text.endswith("columns not used: extra; no such column to ignore: sytem (did you mean system?), zz")
