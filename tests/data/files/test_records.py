import gzip
import json
import lzma
import os
import time

import datasets
import pytest

from hf_recipes.core.errors import UserError
from hf_recipes.data.files import file_io, table_rows
from hf_recipes.data.files.file_io import zstd
from hf_recipes.data.files.records import read_records
from hf_recipes.data.files.sources import Source, find_sources

ROWS = [{"input": f"问题{i}", "target": f"回答{i}"} for i in range(5)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def read(path):
    [source] = find_sources([str(path)])
    return list(read_records(source))


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_large_file_that_was_changed_in_place_is_another_one(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a"}\n' * (1 << 17))  # 1.8 MB, of which the first is read
    [before] = find_sources([str(path)], sniff=True)
    assert find_sources([str(path)], sniff=True) == [before]
    stat = path.stat()
    with open(path, "r+b") as file:
        file.seek(-5, 2)
        file.write(b"b")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    [after] = find_sources([str(path)], sniff=True)
    assert path.stat().st_size == stat.st_size and after.digest != before.digest


@pytest.mark.parametrize("encoding", ["gb18030", "big5", "utf-8"])
@pytest.mark.parametrize("size", [1, 40_000])
def test_one_line_that_is_only_sniffed(tmp_path, encoding, size):
    text = "我們今天去公園散步，看見許多花。" if encoding == "big5" else "我们今天去公园散步，看见许多花。"
    path = write(tmp_path / "one.txt", (text * size).encode(encoding))  # 40,000 are more than the MiB that is read
    [source] = find_sources([str(path)], sniff=True)
    assert source.encoding == {"big5": "cp950"}.get(encoding, encoding)


@pytest.mark.parametrize(
    ("name", "content"),
    # The processes that test must all collect the same ids, of which the contents are part: so without a time.
    [
        ("lines.json", LINES),
        ("lines.jsonl", LINES),
        ("bom.jsonl", b"\xef\xbb\xbf" + LINES.encode()),
        ("gb.jsonl", LINES.encode("gb18030")),
        ("utf16le.jsonl", LINES.encode("utf-16-le")),  # without a byte order mark
        ("utf16be.json", json.dumps(ROWS, ensure_ascii=False, indent=2).encode("utf-16-be")),
        ("utf32.jsonl", LINES.encode("utf-32")),
        ("spaced.csv", "input , target\n" + "".join(f"问题{i},回答{i}\n" for i in range(5))),
        ("array.json", json.dumps(ROWS, ensure_ascii=False)),
        ("pretty.json", json.dumps(ROWS, ensure_ascii=False, indent=2)),
        ("gb_array.json", json.dumps(ROWS, ensure_ascii=False, indent=1).encode("gb18030")),
        ("objects.json", "\n".join(json.dumps(row, indent=1) for row in ROWS)),
        ("lines.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
        ("gb.jsonl.gz", gzip.compress(LINES.encode("gb18030"), mtime=0)),
        ("lines.jsonl.xz", lzma.compress(LINES.encode())),
        ("array.JSON.XZ", lzma.compress(f"[{','.join(LINES.splitlines())}]".encode())),
        ("gb.jsonl.zst", zstd.compress(LINES.encode("gb18030"))),
        ("lines.jsonl.zst", zstd.compress(LINES.encode())),
        ("frames.jsonl.zst", b"".join(zstd.compress(part.encode()) for part in LINES.splitlines(True))),
        ("table.csv", "input,target\n" + "".join(f"{r['input']},{r['target']}\n" for r in ROWS)),
        ("table.tsv", "input\ttarget\n" + "".join(f"{r['input']}\t{r['target']}\n" for r in ROWS)),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path, name, content):
    assert [record.value for record in read(write(tmp_path / name, content))] == ROWS


@pytest.mark.parametrize(
    ("content", "note"),
    [
        ({"数据集": ROWS}, "rows under 数据集"),
        ({"code": 0, "data": {"items": ROWS, "total": 5}}, "rows under items"),
        ({f"id_{number}": row for number, row in enumerate(ROWS)}, "rows under their ids"),
        ({name: [row[name] for row in ROWS] for name in ROWS[0]}, "columns as lists"),
        ({name: {str(n): row[name] for n, row in enumerate(ROWS)} for name in ROWS[0]}, "columns as objects"),
        (
            {"columns": [*ROWS[0]], "index": [*range(5)], "data": [[*row.values()] for row in ROWS]},
            "rows as lists under",
        ),
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_one_object_that_holds_all_rows(tmp_path, content, note, indent):
    path = write(tmp_path / "rows.json", json.dumps(content, ensure_ascii=False, indent=indent))
    assert [record.value for record in read(path)] == ROWS
    [source] = find_sources([str(path)])
    assert note in source.note and read_records(source, (3, 0)).__next__().value == ROWS[3]


@pytest.mark.parametrize(
    "row",
    [
        {"段落": [{"内容": "文"}]},
        {"dialog": ["问", "答"], "knowledge": ["甲", "乙"]},
        {"msgs": [{"Role": "user", "Content": "问"}, {"Role": "assistant", "Content": "答"}]},
        {"user": {"text": "问"}, "assistant": {"text": "答"}},
    ],
)
def test_one_object_that_is_a_row(tmp_path, row):
    assert [record.value for record in read(write(tmp_path / "row.json", json.dumps(row)))] == [row]


def test_parquet(tmp_path):
    from datasets import Dataset

    Dataset.from_list(ROWS).to_parquet(tmp_path / "rows.parquet")
    assert [record.value for record in read(tmp_path / "rows.parquet")] == ROWS


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
@pytest.mark.parametrize("column", ["text", "labels"])
def test_a_long_cell_of_a_table(tmp_path, monkeypatch, ending, column):
    import pyarrow as pa
    from pyarrow import parquet

    monkeypatch.setattr(table_rows, "MAX_ROW_BYTES", 1 << 10)
    texts = ["短"] * 3 + ["长" * 400]
    names = pa.array(texts).dictionary_encode() if column == "labels" else texts
    for size, table in enumerate((pa.table({column: names[:3]}), pa.table({column: names}))):
        path = str(tmp_path / f"{size}.{ending}")
        if ending == "parquet":
            parquet.write_table(table, path)
        else:
            with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)
        source = Source(path, "")
        if not size:
            assert [record.value for record in read_records(source)] == [{column: "短"}] * 3
            continue
        with pytest.raises(UserError, match=rf"1\.{ending}:4: this row is longer than"):
            list(read_records(source))


def test_text_is_a_row_a_line(tmp_path):
    records = read(write(tmp_path / "a.txt", "第一行\n\n第三行\n"))
    assert [(r.location.rpartition(":")[2], r.value) for r in records] == [
        ("1", {"text": "第一行"}),
        ("3", {"text": "第三行"}),
    ]


def test_places_are_file_and_line(tmp_path):
    path = write(tmp_path / "pretty.json", json.dumps(ROWS, ensure_ascii=False, indent=2))
    assert [record.location for record in read(path)] == [f"{path}:{line}" for line in (2, 6, 10, 14, 18)]
    path = write(tmp_path / "quoted.csv", 'input,target\n"两\n行",甲\n\n问,乙\nx')
    assert [record.location for record in read(path)] == [f"{path}:2", f"{path}:5", f"{path}:6"]


def test_folders_and_globs(tmp_path):
    for name in ("b/2.jsonl", "a/1.json", "a/notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, LINES)
    expected = [str(tmp_path / "a/1.json"), str(tmp_path / "b/2.jsonl")]
    assert [source.path for source in find_sources([str(tmp_path)])] == expected
    assert [source.path for source in find_sources([str(tmp_path / "*/*.json*")])] == expected


def test_digest_follows_the_content_not_size_and_time(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a"}\n')
    before = find_sources([str(path)])[0].digest
    stat = path.stat()
    write(path, '{"text": "b"}\n')
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert find_sources([str(path)])[0].digest != before


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"input": "a", "target": ', "broken JSON"),
        (b'["a"]', "not a JSON object"),
        (b'{"a": 1, "a": 2}', "duplicate key 'a'"),
        (rb'{"a": "\ud800"}', "surrogate"),
        (b'{"a": "\xff\xfe"}', "not UTF-8"),
        (b'{"a": ' + b"[" * 100_000 + b"}", "nested too deeply"),
    ],
)
def test_a_broken_line_is_one_problem_with_its_place(tmp_path, line, problem):
    lines = LINES.encode().splitlines()
    path = write(tmp_path / "rows.jsonl", b"\n".join([*lines[:2], line, *lines[2:]]))
    records = read(path)
    assert [record.value for record in records if record.value] == ROWS
    [broken] = [record for record in records if record.problem]
    assert broken.location == f"{path}:3" and problem in broken.problem


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.json", b"", "is empty"),
        ("blank.jsonl", b"\n\n", "holds no rows"),
        ("none.json", b"[]", "holds no rows"),
        ("cut.json", json.dumps(ROWS, indent=1)[:-20].encode(), "cut.json:20: cut short"),
        ("open.json", json.dumps(ROWS).encode()[:-1], "cut short"),
        ("more.json", b'[{"a": 1}]\n{"a": 2}', "more after the end"),
        ("bad.json", b'[\n{"a": 1},\n{"a" 2},\n{"a": 3}]', r"bad.json:3: broken JSON"),
        ("comma.json", b'[{"a": 1},\n{"a": 2}\n{"a": 3}]', r"comma.json:3: broken JSON \(expected one comma"),
        ("commas.json", b'[{"a": 1},\n,{"a": 2}]', r"commas.json:2: broken JSON \(expected one comma"),
        ("neither.txt", bytes(range(128, 256)) * 20, "not UTF-8 text, and not all of it is GB18030, which fits best"),
        ("xz.json", lzma.compress(b'{"a": 1}'), "it is xz; give its name the ending .xz"),
        ("rows.jsonl.bz2", b"BZh", "unknown file type; known are .json, .*, those of text also with .gz, .zst, .xz"),
        ("gzip.json", gzip.compress(b'{"a": 1}', mtime=0), "it is gzip; give its name the ending .gz"),
        ("book.xlsx", b"PK", "save its sheet as csv"),
        ("pointer.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        ("twice.csv", b"a,a\n1,2\n", "repeated column"),
        ("quote.csv", b'a,b\n"1,2\n', "broken CSV"),
        ("rows.parquet", b"PAR1 and no more", "not a whole Parquet file"),
        ("rows.xlsx", b"PK", "unknown file type"),
    ],
)
def test_a_spoilt_file_is_an_error_that_names_it(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


COMPRESS = {"zst": zstd.compress, "gz": gzip.compress, "xz": lzma.compress}


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_an_archive_cut_short_is_an_error(tmp_path, ending, share):
    text = "".join(f'{{"text": "{hash((i, "x")):x} 第{i}行"}}\n' for i in range(20_000)).encode()
    whole = COMPRESS[ending](text)
    path = write(tmp_path / f"rows.jsonl.{ending}", whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match="damaged or cut short"):
        read(path)


@pytest.mark.parametrize("sign", [";", "|", "\t"])
def test_a_csv_with_another_sign_between_its_columns(tmp_path, sign):
    lines = [sign.join(values) for values in (ROWS[0], *(row.values() for row in ROWS))]
    assert [record.value for record in read(write(tmp_path / "rows.csv", "\n".join(lines)))] == ROWS


def test_csv_rows_of_the_wrong_width_are_problems(tmp_path):
    records = read(write(tmp_path / "rows.csv", "a,b\n1,2\n1\n1,2,3\n"))
    assert [bool(record.problem) for record in records] == [False, True, True]


@pytest.mark.parametrize("name", ["long.jsonl", "long.json", "bomb.jsonl.zst", "bomb.jsonl.gz"])
def test_endless_rows_and_bombs_are_refused_quickly(tmp_path, name):
    path = tmp_path / name
    size = 100 << 20
    if name == "long.jsonl":
        write(path, b'{"text": "' + b"a" * size)
    elif name == "long.json":
        write(path, b'[{"text": "' + b"a" * size)
    else:
        write(path, zstd.compress(b"0" * size) if name.endswith("zst") else gzip.compress(b"0" * size, 1))
    start = time.process_time()
    with pytest.raises(UserError, match=r"longer than 16 MiB"):
        read(path)
    assert time.process_time() - start < 10


@pytest.mark.parametrize("line", [b"\n", b'{"a":1}\n', "问\n".encode("gb18030")])
@pytest.mark.parametrize("ending", ["zst", "gz"])
def test_bombs_of_short_lines_are_refused_quickly(tmp_path, line, ending):
    path = tmp_path / f"bomb.jsonl.{ending}"
    block = line * ((1 << 20) // len(line))
    with (gzip.open if ending == "gz" else zstd.open)(path, "wb") as file:
        for _ in range(400):
            file.write(block)
    start = time.process_time()
    with pytest.raises(UserError, match="refused as a bomb"):
        find_sources([str(path)])
    assert time.process_time() - start < 10


def test_gb18030_on_one_endless_line(tmp_path, monkeypatch):
    monkeypatch.setattr(file_io, "MAX_ROW_BYTES", 1000)
    monkeypatch.setattr(file_io, "CHUNK", 500)
    for encoding in ("utf-8", "gb18030"):
        path = write(tmp_path / f"{encoding}.json", json.dumps(ROWS * 99, ensure_ascii=False).encode(encoding))
        assert [record.value for record in read(path)] == ROWS * 99


def test_missing_files_and_unreachable_hub_ids(tmp_path):
    named = ("nowhere.json", "data/trian.json", "data/train.jsn", "data/train.cvs", "./none", "datasets/nothing_here")
    for name in (*named, str(tmp_path / "none"), str(tmp_path / "*.json")):
        with pytest.raises(UserError, match="no such file"):
            find_sources([name])
    with pytest.raises(UserError, match="nor to be had from the Hub"):
        find_sources(["some-owner/some-data"])
    with pytest.raises(UserError, match="no data file in this folder"):
        find_sources([str(tmp_path)])


@pytest.fixture
def hub(monkeypatch):
    """A Hub with one data set, ``some-owner/data.v2``; the calls of `load_dataset` are recorded."""
    calls = []

    def load_dataset(name, **kwargs):
        calls.append(kwargs)
        return datasets.Dataset.from_list([{"input": kwargs["split"], "target": "答"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_split_names", {"some-owner/data.v2": ["train", "test"]}.__getitem__)
    return calls


def test_splits_of_a_hub_data_set(hub, tmp_path):
    name = "some-owner/data.v2"
    for spec, split, found in ((name, "train", "train"), (f"{name}:test", "train", "test"), (name, "test", "test")):
        [source] = find_sources([spec], split, str(tmp_path))
        assert [(r.location, r.value["input"]) for r in read_records(source)] == [(f"{name}/{found}:1", found)]
    assert hub == [
        {"split": split, "cache_dir": str(tmp_path)} for split in ("train", "test", "test") for _ in range(2)
    ]
    with pytest.raises(UserError, match=rf"no split 'validation'; there are train, test: name one as {name}:train"):
        find_sources([name], "validation")


def test_the_validation_split_is_evaluated_on(hub, tokenizer, tmp_path):
    from stage_runs import rows_of

    from hf_recipes.data.arguments import DataArguments
    from hf_recipes.stages.sft import STAGE, SFTArguments

    args = SFTArguments(output_dir=str(tmp_path), report_to="none")
    data = DataArguments(["some-owner/data.v2"], ["some-owner/data.v2:test"], cache_dir=str(tmp_path))
    found = rows_of(STAGE, args, data, tokenizer)
    assert found.validation["question"][:] == ["test"]
    assert list(found.ledgers["train"].sources) == ["some-owner/data.v2/train"]
    assert all(call["cache_dir"] == str(tmp_path) for call in hub)
    with pytest.raises(UserError, match="no split 'validation'"):
        rows_of(STAGE, args, DataArguments(["some-owner/data.v2"], ["some-owner/data.v2"]), tokenizer)


PASSAGES = "﻿第一段\n　　续\n\n \n第二段\n\n第三段"
ENTRIES = "词条：西湖\n在杭州。\n\n十景。\n词条: 茶\n一种饮料。\n"


@pytest.mark.parametrize(
    ("content", "txt", "rows"),
    [
        (PASSAGES, None, [(1, "第一段\n　　续"), (5, "第二段"), (7, "第三段")]),
        (PASSAGES, "lines", [(1, "第一段"), (2, "续"), (5, "第二段"), (7, "第三段")]),
        (ENTRIES, None, [(1, "词条：西湖\n在杭州。\n\n十景。"), (5, "词条: 茶\n一种饮料。")]),
        (ENTRIES, "blank", [(1, "词条：西湖\n在杭州。"), (4, "十景。\n词条: 茶\n一种饮料。")]),
        ("甲\n乙\n", None, [(1, "甲"), (2, "乙")]),
        ("序\n词条：茶\n饮料\n", "entry", [(1, "序"), (2, "词条：茶\n饮料")]),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.txt.zst"])
def test_documents_of_a_text_file(tmp_path, content, txt, rows, name):
    data = content.encode()
    path = write(tmp_path / name, zstd.compress(data) if name.endswith("zst") else data)
    [source] = find_sources([str(path)], txt=txt)
    records = list(read_records(source))
    assert [(int(record.location.rpartition(":")[2]), record.value["text"]) for record in records] == rows
    for count, record in enumerate(records, 1):  # each is a place to go on from
        assert [later.value for later in read_records(source, record.after)] == [r.value for r in records[count:]]


def test_bad_and_endless_passages(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", "好\n好\n\n甲\n".encode() + b"\xff\xfe\n\n" + "乙".encode())
    [source] = find_sources([str(path)], txt="blank")
    assert [(r.location[-1], r.problem) for r in read_records(source)] == [
        ("1", None),
        ("4", "not UTF-8 text"),
        ("7", None),
    ]
    monkeypatch.setattr("hf_recipes.data.files.text_rows.MAX_ROW_BYTES", 1000)
    [source] = find_sources([str(write(tmp_path / "b.txt", "段\n" * 400))], txt="blank")
    with pytest.raises(UserError, match=r"b\.txt:1: this row is longer than"):
        list(read_records(source))


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        ('"你好"他说\t再见\n', [('"你好"他说', "再见")]),
        ('"未完\t答\n问\t"也是\n', [('"未完', "答"), ("问", '"也是')]),
        ('"引""号"\t"全引"\n', [('引"号', "全引")]),
        ('"制\t表"\t答\n', [("制\t表", "答")]),
        ('"两\n行"\t答\n问\t"第一行\n第二行"\n', [("两\n行", "答"), ("问", "第一行\n第二行")]),
        ('问\t"最后', [("问", '"最后')]),
    ],
)
def test_quotation_marks_in_tab_separated_fields(tmp_path, body, rows):
    """A field is quoted where it is quoted whole, as pandas writes it; else the mark is one of its characters."""
    path = tmp_path / "rows.tsv"
    path.write_text("input\ttarget\n" + body, encoding="utf-8")
    assert [tuple(record.value.values()) for record in read(path)] == rows
