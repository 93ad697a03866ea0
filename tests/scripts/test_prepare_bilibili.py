"""scripts/prepare_bilibili.py: what comes out, what the ledger says of the rest, and bad input."""

import csv
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import openpyxl
import pytest

from conftest import ROOT, write_jsonl
from hf_recipes.importers.bilibili.crawl_files import Sheet, find_crawl

VIDEO = {"video_id": "100", "title": "葱油拌面", "desc": "小火慢熬", "user_id": "1", "nickname": "灶台小满"}
OTHER = {"video_id": "200", "title": "骑行川西", "desc": "-", "nickname": "慢轮阿野", "creator_hash": "ff"}


def comment(number, text, parent=0, video="100", **more):
    row = {"comment_id": str(number), "parent_comment_id": str(parent), "video_id": video, "content": text}
    return {**row, "user_id": str(9000 + number), "nickname": f"网友{number}号", **more}


@pytest.fixture
def crawl(tmp_path):
    """Write a crawl: ``crawl([comments])`` → its folder."""

    def write(comments, videos=(VIDEO, OTHER)):
        folder = tmp_path / "crawl" / "bili"
        folder.mkdir(parents=True)
        (folder / "search_contents_2025.json").write_text(json.dumps(list(videos), ensure_ascii=False), "utf-8")
        (folder / "search_comments_2025.json").write_text(json.dumps(comments, ensure_ascii=False, indent=4), "utf-8")
        return tmp_path / "crawl"

    return write


@pytest.fixture
def prepare(script, tmp_path):
    """``prepare(folder, "--flag", value, …)`` → (exit code, stdout, stderr); the output is in ``tmp_path / "out"``."""
    return lambda folder, *flags: script(
        "prepare_bilibili.py", "--input_dir", folder, "--output_dir", tmp_path / "out", *flags
    )


def rows(folder: Path, side: str = "train") -> list[dict]:
    return [json.loads(line) for line in (folder / "out" / f"{side}.jsonl").read_text("utf-8").splitlines()]


def turns(row: dict) -> list[str]:
    return [message["content"] for message in row["messages"]]


def answers(folder: Path, side: str = "train") -> list[str]:
    return [turns(row)[-1] for row in rows(folder, side)]


def ledger(folder: Path) -> dict:
    found = json.loads((folder / "out" / "data_ledger.json").read_text("utf-8"))["comments"]
    assert found["total"]["read"] == found["total"].get("kept", 0) + found["total"].get("dropped", 0)
    return found


def row_statuses(folder: Path) -> dict[str, int]:
    counts = {}
    for row in ledger(folder)["reasons"]:
        counts[row["status"]] = counts.get(row["status"], 0) + row["count"]
    return counts


def prompt(title="葱油拌面", description="小火慢熬", parent="None") -> str:
    return f"视频标题：{title}\n视频简介：{description}\n父级评论内容：{parent}"


def test_a_comment_answers_the_video_and_its_parent(prepare, crawl, tmp_path):
    comments = [
        comment(1, "好吃", like_count=7),
        comment(2, "回复 @网友1号 :真的吗", 1, like_count="12"),
        comment(3, "美", video="200"),
    ]
    code, out, err = prepare(crawl(comments))
    assert (code, err) == (0, "")
    system = {"role": "system", "content": "你是一个B站老玩家."}
    assert rows(tmp_path) == [
        {
            "messages": [system, {"role": "user", "content": question}, {"role": "assistant", "content": answer}],
            "video_id": video,
            "like_count": likes,
            "comment_id": number,
        }
        for question, answer, video, likes, number in (
            (prompt(), "好吃", "100", 7, "1"),
            (prompt(parent="好吃"), "真的吗", "100", 12, "2"),
            (prompt("骑行川西", "None"), "美", "200", None, "3"),
        )
    ]
    assert sorted(os.listdir(tmp_path / "out")) == ["data_ledger.json", "run_config.yaml", "train.jsonl"]
    assert "train.jsonl: 3 examples" in out and sorted(os.listdir(tmp_path)) == [".out.lock", "crawl", "out"]


def test_templates(prepare, crawl, tmp_path):
    flags = (
        "--system_prompt",
        "",
        "--title_template",
        "《{}》",
        "--description_template",
        "",
        "--parent_template",
        "问{}",
    )
    code, _, err = prepare(crawl([comment(1, "好吃")]), *flags)
    assert code == 0, err
    assert turns(rows(tmp_path)[0]) == ["《葱油拌面》\n问None", "好吃"]
    code, _, err = prepare(tmp_path / "crawl", "--parent_template", "问")
    assert code == 1 and "--parent_template 问: expected {} where the text goes" in err


def test_a_chain_of_replies_is_one_example(prepare, crawl, tmp_path):
    chain = [
        comment(1, "一"),
        comment(2, "二", 1),
        comment(3, "三", 2),
        comment(4, "四", 3),
        comment(5, "五", 2),
        comment(6, "六"),
    ]
    code, _, err = prepare(crawl(chain), "--thread")
    assert code == 0, err
    assert [turns(row)[1:] for row in rows(tmp_path)] == [
        [prompt(parent="一"), "二", "三", "四"],
        [prompt(), "一", "二", "五"],
        [prompt(), "六"],
    ]
    assert [row["comment_id"] for row in rows(tmp_path)] == ["4", "5", "6"]
    assert ledger(tmp_path)["total"] == {"read": 6, "kept": 6}


def test_a_chain_breaks_where_a_comment_is_dropped_and_at_max_turns(prepare, crawl, tmp_path):
    chain = [comment(1, "一"), comment(2, "[doge]", 1), comment(3, "三", 2), comment(4, "四", 3), comment(5, "五", 4)]
    code, _, err = prepare(crawl(chain), "--thread", "--max_turns", 2)
    assert code == 0, err
    assert [turns(row)[1:] for row in rows(tmp_path)] == [[prompt(), "一"], [prompt(parent="四"), "五"]]
    assert row_statuses(tmp_path) == {
        "dropped: nothing but emoji": 1,
        "dropped: earlier in its chain than --max_turns": 1,
    }


COPY = "这是一段被很多人转来转去的话，只要你在评论区待得久，就一定会看到它。"
RULES = [
    ([comment(1, "")], (), "dropped: empty"),
    ([comment(1, None)], (), "dropped: empty"),
    ([comment(1, "回复 @甲 :")], (), "dropped: empty"),
    ([comment(1, "😋👍🏽 [doge][笑哭]❤️")], ("--emoji_only", "keep"), "dropped: nothing but emoji"),
    ([comment(1, "1️⃣‼️")], ("--emoji_only", "keep"), "dropped: nothing but emoji"),
    ([comment(1, "甲", 2), comment(2, "乙", 1)], ("--reply_loops", "keep"), "dropped: in a loop of replies"),
    ([comment(1, "甲", 1)], ("--reply_loops", "keep"), "dropped: in a loop of replies"),
    (
        [comment(1, "甲", video="300")],
        ("--missing_video", "drop"),
        "repaired: the video is None, not being in the contents",
    ),
    ([comment(1, "甲", 77)], ("--missing_parent", "drop"), "repaired: the parent is None, not being in the comments"),
    (
        [comment(1, "甲", 0, "200"), comment(2, "乙", 1)],
        ("--missing_parent", "drop"),
        "repaired: the parent is None, being under another video",
    ),
    ([comment(1, COPY), comment(2, f" {COPY} ")], ("--exact_dedup", "False"), "dropped: exact duplicate"),
    ([comment(1, "回复 @甲 :乙", 0)], ("--reply_prefix", "keep"), "repaired: 回复 @name : removed"),
]


@pytest.mark.parametrize(("comments", "flags", "reason"), RULES, ids=[f"{n}-{rule[2]}" for n, rule in enumerate(RULES)])
def test_every_rule_has_a_reason_and_a_flag(prepare, crawl, tmp_path, comments, flags, reason):
    folder = crawl([*comments, comment(50, "好吃")])
    code, _, err = prepare(folder)
    assert code == 0, err
    count = len(comments) if "loop" in reason else 1
    assert row_statuses(tmp_path) == {reason: count}
    if flags:
        code, _, err = prepare(folder, "--overwrite_output_dir", *flags)
        assert code == 0, err
        assert reason not in row_statuses(tmp_path)


def test_punctuation_and_numbers_are_no_emoji(prepare, crawl, tmp_path):
    texts = ["？？？", "666", "[doge]好", "A", "回复 @甲 :👍好"]
    code, _, err = prepare(crawl([comment(number, text) for number, text in enumerate(texts, 1)]))
    assert code == 0, err
    assert answers(tmp_path) == ["？？？", "666", "[doge]好", "A", "👍好"]


def test_a_dropped_comment_still_is_the_parent_that_is_answered(prepare, crawl, tmp_path):
    code, _, err = prepare(crawl([comment(1, "😋😋"), comment(2, "馋了", 1)]))
    assert code == 0, err
    assert [turns(row)[1:] for row in rows(tmp_path)] == [[prompt(parent="😋😋"), "馋了"]]


@pytest.mark.parametrize(("flags", "kept", "line"), [((), "新", 2), (("--duplicate_ids", "first"), "旧", 1)])
def test_a_comment_that_was_crawled_twice(prepare, crawl, tmp_path, flags, kept, line):
    folder = crawl([comment(1, "旧", like_count=1)])
    write_jsonl(folder / "bili" / "z_comments.jsonl", [comment(2, "别的"), comment(1, "新", like_count=5)])
    code, _, err = prepare(folder, *flags)
    assert code == 0, err
    assert answers(tmp_path) == [kept, "别的"]
    [reason] = ledger(tmp_path)["reasons"]
    assert reason["status"] == "dropped: another row has the same comment_id"
    assert reason["first"][0].endswith(
        "search_comments_2025.json:2" if kept == "新" else f"z_comments.jsonl:{line + 1}"
    )


def test_short_comments_may_recur(prepare, crawl, tmp_path):
    code, _, err = prepare(crawl([comment(1, "来了"), comment(2, "来了"), comment(3, COPY), comment(4, COPY)]))
    assert code == 0, err
    assert answers(tmp_path) == ["来了", "来了", COPY]


@pytest.mark.skipif(find_spec("datatrove") is None, reason="datatrove is missing: pip install -e '.[corpus]'")
def test_copies_with_a_character_changed(prepare, crawl, tmp_path):
    long = COPY * 3
    comments = [
        comment(1, long),
        comment(2, "别的话，和上面那一段没有任何关系，也不会被当成它。"),
        comment(3, long.replace("久", "长", 1)),
    ]
    code, _, err = prepare(crawl(comments), "--near_dedup")
    assert code == 0, err
    assert answers(tmp_path) == [long, comments[1]["content"]] and row_statuses(tmp_path) == {
        "dropped: near duplicate": 1
    }


def test_prefixes_are_kept_or_anonymised(prepare, crawl, tmp_path):
    comments = [
        comment(1, "甲"),
        comment(2, "回复 @网友1号 :乙", 1),
        comment(3, "回复 @没爬到的人 :回复 @网友2号：丙", 2),
    ]
    folder = crawl(comments)
    assert prepare(folder, "--reply_prefix", "keep")[0] == 0
    assert answers(tmp_path) == ["甲", "回复 @网友1号 :乙", "回复 @没爬到的人 :回复 @网友2号：丙"]
    assert prepare(folder, "--reply_prefix", "anonymise", "--overwrite_output_dir")[0] == 0
    assert answers(tmp_path) == ["甲", "回复 @用户2 :乙", "回复 @用户5 :回复 @用户3 :丙"]
    assert turns(rows(tmp_path)[2])[1] == prompt(parent="回复 @用户2 :乙")
    assert row_statuses(tmp_path) == {"repaired: 回复 @name : anonymised": 2}


def test_personal_data(prepare, crawl, tmp_path):
    videos = [{**VIDEO, "desc": "合作请加zhao@example.com，我是灶台小满"}]
    comments = [comment(1, "打13912345678找我"), comment(2, "回复 @网友1号 :网友1号你好，@路过的人 也好", 1)]
    code, out, err = prepare(crawl(comments, videos), "--privacy", "--reply_prefix", "keep")
    assert code == 0, err
    question = prompt(description="合作请加<邮箱>，我是用户1", parent="打<手机号>找我")
    assert turns(rows(tmp_path)[1])[1:] == [question, "回复 @用户2 :用户2你好，@用户4 也好"]
    assert row_statuses(tmp_path) == {"repaired: personal data (mobile)": 1, "repaired: personal data (person)": 1}
    written = "".join(path.read_text("utf-8") for path in (tmp_path / "out").iterdir())
    videos = json.loads((tmp_path / "out" / "data_ledger.json").read_text())["videos"]["reasons"]
    assert {row["status"] for row in videos} == {f"repaired: personal data ({kind})" for kind in ("email", "person")}
    for secret in ("13912345678", "zhao@", "网友", "灶台", "路过", '"comment_id"'):
        assert secret not in out + written


def test_the_split_is_by_video(prepare, crawl, tmp_path):
    comments = [comment(video * 100 + n, f"{video}的{n}", video=str(video)) for video in range(1, 9) for n in range(5)]
    videos = [{"video_id": str(video), "title": "题", "desc": "介"} for video in range(1, 9)]
    folder = crawl(comments, videos)
    flags = ("--total", 20, "--test_size", 6)
    assert prepare(folder, *flags)[0] == 0
    first = {side: rows(tmp_path, side) for side in ("train", "test")}
    assert (len(first["train"]), len(first["test"])) == (14, 6)
    assert not {row["video_id"] for row in first["train"]} & {row["video_id"] for row in first["test"]}
    assert row_statuses(tmp_path) == {
        "dropped: not sampled for --total": 16,
        "dropped: its video is in test.jsonl, which is full": 4,
    }
    assert prepare(folder, *flags, "--overwrite_output_dir")[0] == 0
    assert {side: rows(tmp_path, side) for side in ("train", "test")} == first
    assert prepare(folder, *flags, "--overwrite_output_dir", "--seed", 1)[0] == 0
    assert rows(tmp_path, "test") != first["test"]


def write_csv(path, records):
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def write_sqlite(path, tables):
    connection = sqlite3.connect(path)
    for name, records in tables.items():
        columns = list(records[0])
        names = ", ".join(f'"{column}"' for column in columns)
        connection.execute(f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, {names})")
        for record in records:
            marks = ", ".join("?" * len(columns))
            connection.execute(f"INSERT INTO {name} ({names}) VALUES ({marks})", [record[column] for column in columns])
    connection.commit()
    connection.close()


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "sqlite"])
def test_every_kind_of_file(prepare, tmp_path, kind):
    """A newer crawl, with numbers as ids; its csv files are called videos."""
    keys = ("comment_id", "parent_comment_id", "video_id")
    comments = [comment(1, "好吃", like_count=3), comment(2, "一般，\n不好吃", 1, like_count=0)]
    comments = [{**row, **{key: int(row[key]) for key in keys}} for row in comments]
    for row in comments:
        row["creator_hash"] = row.pop("user_id")
    videos = [{**VIDEO, "video_id": 100, "title": "第2.0"}]
    folder = tmp_path / "crawl"
    folder.mkdir()
    if kind == "sqlite":
        tables = {"bilibili_video": videos, "bilibili_video_comment": comments, "xhs_note": [{"note_id": "1"}]}
        write_sqlite(folder / "sqlite_tables.db", tables)
    elif kind == "csv":
        write_csv(folder / "search_videos_2025.csv", videos)
        write_csv(folder / "search_comments_2025.csv", comments)
    else:
        write = write_jsonl if kind == "jsonl" else lambda path, found: path.write_text(json.dumps(found))
        write(folder / f"search_contents_2025.{kind}", videos)
        write(folder / f"search_comments_2025.{kind}", comments)
        write(folder / f"search_creators_2025.{kind}", [{"user_id": "1"}])
    code, out, err = prepare(folder)
    assert code == 0, err
    assert [(turns(row)[1], turns(row)[2], row["like_count"]) for row in rows(tmp_path)] == [
        (prompt("第2.0"), "好吃", 3),
        (prompt("第2.0", parent="好吃"), "一般，\n不好吃", 0),
    ]
    if kind.startswith("json"):
        assert f"ignored, since they hold neither comments nor contents: search_creators_2025.{kind}" in out


def test_rows_that_are_none_are_in_the_ledger(prepare, crawl, tmp_path):
    good = [comment(number, "好") for number in range(1, 5)]
    bad = [
        {**comment(8, "好"), "comment_id": "甲"},
        {**comment(9, "好"), "video_id": None},
        comment(10, ["好"]),
        comment(11, "好", "2.5e11"),
        "文",
    ]
    folder = crawl([*good, *bad])
    code, _, err = prepare(folder)
    assert code == 1 and "5 of 9 rows cannot be used, more than --max_drop_ratio 0.01 allows" in err
    assert not (tmp_path / "out").exists()
    code, _, err = prepare(folder, "--max_drop_ratio", 0.9)
    assert code == 0, err
    assert set(row_statuses(tmp_path)) == {
        "dropped: unusable row: no 'comment_id', or one that is no whole number",
        "dropped: unusable row: no 'video_id'",
        "dropped: unusable row: 'content' is a list, not text",
        "dropped: unusable row: 'parent_comment_id' is no whole number",
        "dropped: unusable row: not a JSON object",
    }


@pytest.fixture
def fails(prepare, tmp_path):
    """The script ends with one sentence that has `message`, and leaves nothing."""

    def check(message, folder, *flags):
        code, _, err = prepare(folder, *flags)
        assert code == 1 and message in err and err.startswith("error: ") and "Traceback" not in err
        assert not list(tmp_path.glob("out*"))

    return check


def test_a_wrong_folder(fails, crawl, tmp_path):
    (tmp_path / "empty").mkdir()
    fails("no such folder or file", tmp_path / "nowhere")
    fails("no file of MediaCrawler here", tmp_path / "empty")
    write_jsonl(tmp_path / "half" / "a_comments.jsonl", [comment(1, "好")])
    fails("there is no *contents* (or *videos*) file", tmp_path / "half")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"comment_id": "1", "note_id": "5", "content": "好"}, "its column note_id is of Xiaohongshu, Weibo or Tieba"),
        ({"comment_id": "1", "aweme_id": "5", "content": "好"}, "its column aweme_id is of Douyin"),
        ({"comment_id": "1", "video_id": "3xkuaishou", "content": "好"}, "its video_id is not one of Bilibili"),
        ({"text": "好"}, "no column 'comment_id' among text"),
    ],
)
def test_a_named_file_of_another_platform(script, crawl, tmp_path, row, message):
    folder, file = crawl([comment(1, "好")]), write_jsonl(tmp_path / "other" / "search_comments.jsonl", [row])
    code, _, err = script("prepare_bilibili.py", "--input_dir", folder, file, "--output_dir", tmp_path / "out")
    assert code == 1 and message in err


def test_damaged_files(fails, crawl, tmp_path):
    folder = crawl([comment(number, "好") for number in range(5)])
    path = folder / "bili" / "search_comments_2025.json"
    path.write_text(path.read_text()[:-40])
    fails("search_comments_2025.json:39: cut short in the middle of a row; fetch it again", folder)
    path.write_bytes(b"")
    fails("the file is empty", folder)
    path.unlink()
    (folder / "bili" / "crawl.db").write_bytes(b"SQLite format 3\0 and then nothing")
    fails("cannot be read as SQLite", folder)
    (folder / "bili" / "crawl.db").unlink()
    write_sqlite(folder / "bili" / "crawl.db", {"xhs_note": [{"note_id": "1"}]})
    fails("no table bilibili_video; it is not the database of a Bilibili crawl", folder)


def test_the_empty_tables_of_another_crawl(fails, tmp_path):
    (tmp_path / "crawl").mkdir()
    tables = {"bilibili_video": [VIDEO], "bilibili_video_comment": [comment(1, "好")]}
    write_sqlite(tmp_path / "crawl" / "a.db", tables)
    with sqlite3.connect(tmp_path / "crawl" / "a.db") as connection:
        connection.execute("DELETE FROM bilibili_video_comment")
    fails("there is no comment in its files", tmp_path / "crawl")


def test_nothing_is_left(fails, crawl, tmp_path):
    folder = crawl([comment(1, "😋"), comment(2, "好", video="300")])
    fails("no comment is left of 2; the reasons are above", folder, "--missing_video", "drop")
    fails(
        "--test_size 2: of 2 examples none would be left to train on", folder, "--emoji_only", "keep", "--test_size", 2
    )


def test_one_video_cannot_be_split(fails, crawl):
    fails("no video is left to train on", crawl([comment(1, "好"), comment(2, "美")]), "--test_size", 1)


WAITING = """
import runpy, sys
import hf_recipes.importers.bilibili.convert as importer

def wait(*args):
    print("writing", flush=True)
    input()

importer.write_examples = wait
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_kill_leaves_nothing_that_looks_whole(prepare, crawl, tmp_path):
    folder, path = crawl([comment(1, "好")]), ROOT / "scripts" / "prepare_bilibili.py"
    argv = [str(path), "--input_dir", str(folder), "--output_dir", str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.argv = {argv!r}\n{WAITING}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
    )
    assert process.stdout.readline() == "writing\n"
    code, _, err = prepare(folder)
    assert code == 1 and "another process is writing it" in err
    process.kill()
    process.communicate()
    assert list(tmp_path.glob("out.partial-*")) and not (tmp_path / "out").exists()
    code, _, err = prepare(folder)
    assert code == 0, err
    assert answers(tmp_path) == ["好"] and not list(tmp_path.glob("out.partial-*"))


def test_the_sample_is_learned_from(prepare, sft, model_dir, tmp_path):
    code, _, err = prepare("datasets/bilibili", "--test_size", 10)
    assert code == 0, err
    assert (len(rows(tmp_path)), len(rows(tmp_path, "test"))) == (42, 10)
    out = tmp_path / "out"
    code, _, err = sft(
        *(
            "--model_name_or_path",
            model_dir,
            "--train_file",
            out / "train.jsonl",
            "--validation_file",
            out / "test.jsonl",
        ),
        *("--output_dir", tmp_path / "run", "--max_steps", 2, "--max_length", 256, "--report_to", "none"),
    )
    assert code == 0, err
    assert (tmp_path / "run" / "adapter_config.json").exists()


CRAWLS = ROOT / "tests/data/cases/crawls"


@pytest.mark.parametrize("store", ["json", "jsonl", "csv", "sqlite", "excel", "words", "creator", "platforms"])
def test_every_store_gives_the_same_examples(script, tmp_path, store):
    flags = ["--input_dir", CRAWLS / store, "--system_prompt", "", "--test_size", 0, "--output_dir", tmp_path / "out"]
    code, out, err = script("prepare_bilibili.py", *flags)
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "out/train.jsonl").read_text(encoding="utf-8").splitlines()]
    expected = [json.loads(line) for line in (CRAWLS / "expected.jsonl").read_text(encoding="utf-8").splitlines()]
    conversations = sorted(json.dumps(row["messages"], ensure_ascii=False) for row in rows)
    assert conversations == sorted(json.dumps(row["messages"], ensure_ascii=False) for row in expected)
    if store == "platforms":
        assert "of other platforms: douyin, kuaishou, tieba, weibo, xhs, zhihu" in out
    if store == "words":
        assert "neither comments nor contents: search_comments_2026-08-14_word_freq.json" in out


def test_files_of_other_platforms_beside_bilibili(script, tmp_path):
    """In one folder they are told by their columns; without Bilibili the run stops."""
    for store in ("bili", "douyin"):
        for path in (CRAWLS / "platforms/data" / store / "jsonl").iterdir():
            shutil.copyfile(path, tmp_path / f"{store}_{path.name}")
    flags = ["--input_dir", tmp_path, "--test_size", 0]
    code, out, err = script("prepare_bilibili.py", *flags, "--output_dir", tmp_path / "out")
    assert code == 0, err
    assert "of other platforms: douyin_search_comments_2026-08-14.jsonl (its column aweme_id is of Douyin)" in out
    code, _, err = script(
        "prepare_bilibili.py", "--input_dir", CRAWLS / "platforms/data/zhihu", "--output_dir", tmp_path / "zhihu"
    )
    assert code == 1 and "no file of MediaCrawler here" in err


def test_a_damaged_excel_file(script, tmp_path):
    (tmp_path / "bili.xlsx").write_bytes(b"PK\x03\x04 no archive")
    code, _, err = script("prepare_bilibili.py", "--input_dir", tmp_path, "--output_dir", tmp_path / "out")
    assert code == 1 and "bili.xlsx: cannot be read as an Excel file" in err


def test_excel_files_of_others_beside_a_crawl(tmp_path, capsys):
    for name, sheet, column in (
        ("douyin_a", "Comments", "aweme_id"),
        ("notes", "Sheet", "a"),
        ("bili", "Creators", "a"),
    ):
        book = openpyxl.Workbook()
        book.active.title = sheet
        for value in (column, "7"):
            book.active.append([value])
        book.save(tmp_path / f"{name}.xlsx")
    (tmp_path / "~$bili.xlsx").write_bytes(b"open in Excel")
    [crawl] = (CRAWLS / "excel").rglob("*.xlsx")
    shutil.copyfile(crawl, tmp_path / crawl.name)
    files = find_crawl([str(tmp_path)])
    assert [file.path for kind in files.values() for file in kind] == [str(tmp_path / crawl.name)] * 2
    printed = capsys.readouterr().out
    assert "neither comments nor contents: bili.xlsx, notes.xlsx" in printed
    assert "of other platforms: douyin_a.xlsx (its column aweme_id is of Douyin)" in printed


def test_a_column_without_a_name_in_a_sheet_moves_no_other(tmp_path):
    book = openpyxl.Workbook()
    book.active.title = "Comments"
    for row in (["comment_id", None, "content"], ["7", "note", "好"], [None, None, None]):
        book.active.append(row)
    book.save(tmp_path / "bili.xlsx")
    [record] = Sheet(str(tmp_path / "bili.xlsx"), "Comments").read()
    assert record.value == {"comment_id": "7", "content": "好"} and record.location.endswith("Comments:2")
