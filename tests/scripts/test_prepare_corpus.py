"""scripts/prepare_corpus.py: what comes out, what the ledger says of the rest, and going on after a kill."""

import errno
import importlib.util
import json
import os
import random
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from conftest import ROOT, write_jsonl

pytest.importorskip("datatrove")
pytest.importorskip("opencc")

from hf_recipes.corpus import tasks as corpus_tasks
from hf_recipes.corpus.export import TextShard
from hf_recipes.data.files.file_io import zstd
from hf_recipes.data.files.records import read_records
from hf_recipes.data.files.sources import find_sources
from hf_recipes.data.pretraining.document_encoder import DocumentEncoder
from hf_recipes.data.pretraining.token_shards import open_shards

SCRIPT = "scripts/prepare_corpus.py"


@pytest.fixture
def prepare(monkeypatch, capfd):
    """Run the script in this process: ``prepare("--flag", value, …)`` → (exit code, stdout, stderr)."""

    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["prepare_corpus.py", *map(str, flags)])
        capfd.readouterr()
        code = 0
        try:
            runpy.run_path(str(ROOT / SCRIPT), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def small_tasks(monkeypatch):
    monkeypatch.setattr(corpus_tasks, "MIN_TASK_BYTES", 3000)


def text(seed: int, length: int = 120) -> str:
    """Simplified characters with full stops; nothing in it is in that of another seed."""
    draw = random.Random(seed)
    codes = ((draw.randrange(0xB0, 0xD7), draw.randrange(0xA1, 0xFE)) for _ in range(length))
    return "".join("。" if i % 20 == 19 else bytes(code).decode("gb2312") for i, code in enumerate(codes))


def lines(folder: Path) -> list[dict]:
    return [
        json.loads(line)
        for path in sorted(folder.glob("part-*.jsonl.zst"))
        for line in zstd.decompress(path.read_bytes()).decode().splitlines()
    ]


def ledger(out: Path) -> dict:
    found = json.loads((out / "data_ledger.json").read_text())["corpus"]
    for counts in [found["total"], *found["sources"].values()]:
        assert counts["read"] == counts.get("kept", 0) + counts.get("dropped", 0)
    return found


def row_statuses(out: Path) -> dict[str, list[str]]:
    return {row["status"]: [Path(location).name for location in row["first"]] for row in ledger(out)["reasons"]}


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".work" not in path.parts and path.name != "run_config.yaml"
    }


def test_sources_become_shards_of_text(prepare, tmp_path):
    write_jsonl(tmp_path / "in" / "wiki" / "a.jsonl", [{"completion": text(i), "source": "wiki"} for i in range(5)])
    (tmp_path / "in" / "wiki" / "b.txt").write_text(f"词条：甲\n{text(5)}\n\n词条：乙\n{text(6)}\n", encoding="utf-8")
    baike = {"title": "茶", "summary": text(7), "sections": [{"title": "史", "content": text(8)}], "id": "tea"}
    packed = zstd.compress((json.dumps(baike, ensure_ascii=False) + "\n").encode())
    (tmp_path / "baike.jsonl.zst").write_bytes(packed)
    inputs = [tmp_path / "in" / "wiki", f"encyclopedia={tmp_path}/baike.jsonl.zst", tmp_path / "qa.jsonl"]
    write_jsonl(tmp_path / "qa.jsonl", [{"question": "一加一？", "answer": "二。"}])
    code, out, err = prepare("--input_files", *inputs, "--shard_size", 3, "--output_dir", tmp_path / "out")
    assert code == 0, err
    assert sorted(tree(tmp_path / "out")) == [
        "data_ledger.json",
        "encyclopedia/part-00001.jsonl.zst",
        "qa/part-00001.jsonl.zst",
        "wiki/part-00001.jsonl.zst",
        "wiki/part-00002.jsonl.zst",
        "wiki/part-00003.jsonl.zst",
    ]
    wiki = lines(tmp_path / "out" / "wiki")
    entries = [f"词条：甲\n{text(5)}", f"词条：乙\n{text(6)}"]
    assert [row["text"] for row in wiki] == [*(text(i) for i in range(5)), *entries]
    assert wiki[0]["id"] == "a.jsonl:1" and {row["source"] for row in wiki} == {"wiki"}
    assert lines(tmp_path / "out" / "encyclopedia") == [
        {"id": "tea", "source": "encyclopedia", "text": f"茶\n{text(7)}\n史\n{text(8)}"}
    ]
    assert lines(tmp_path / "out" / "qa")[0]["text"] == "问：一加一？\n答：二。"
    assert "wiki: 7 lines" in out and "3 files" in out
    assert err == ""
    code, out, _ = prepare("--input_files", *inputs, "--shard_size", 3, "--output_dir", tmp_path / "out")
    assert code == 0 and "here already" in out
    code, _, err = prepare("--input_files", *inputs, "--shard_size", 4, "--output_dir", tmp_path / "out")
    assert code == 1 and "--shard_size 4, was 3" in err and "--overwrite_output_dir" in err
    code, out, _ = prepare(
        "--input_files", *inputs[1:], "--shard_size", 4, "--output_dir", tmp_path / "out", "--overwrite_output_dir"
    )
    assert code == 0 and not (tmp_path / "out" / "wiki").exists()


def test_every_step_has_its_fates(prepare, tmp_path):
    base = text(0, 400)
    near = base[:200] + "山" + base[201:]
    rows = [
        {"text": base},
        {"text": near},  # 2: near duplicate
        {"text": text(1)},
        {"text": text(1)},  # 4: exact duplicate
        {"text": "ＡＢ" + text(2) + "\u200b"},
        {"text": "短。"},
        {"text": text(3, 3000)},
        {"text": "Nothing but English, which is not what was asked for here."},
        {"text": text(4) + "今天天气很好我们去公园散步吧明天也会是一个晴天" + text(5)},
        {"text": "漢語" + text(6)},
        {"id": 1},
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    with open(tmp_path / "rows.jsonl", "a") as file:
        file.write("{broken\n")
    write_jsonl(tmp_path / "exam.jsonl", [{"q": ["今天天气很好我们去公园散步吧明天也会是一个晴天！"]}, {"q": ["短"]}])
    code, out, err = prepare(
        *("--input_files", tmp_path / "rows.jsonl", "--output_dir", tmp_path / "out", "--max_drop_ratio", 0.2),
        *("--control_characters", "--nfkc", "--simplify", "--quality", "--exact_dedup", "--near_dedup"),
        *("--min_chars", 10, "--max_chars", 2000, "--decontaminate", tmp_path / "exam.jsonl"),
    )
    assert code == 0, err
    assert row_statuses(tmp_path / "out") == {
        "repaired: control characters": ["rows.jsonl:5"],
        "repaired: NFKC": ["rows.jsonl:5"],
        "repaired: traditional characters": ["rows.jsonl:10"],
        "dropped: near duplicate": ["rows.jsonl:2"],
        "dropped: exact duplicate": ["rows.jsonl:4"],
        "dropped: shorter than 10 characters": ["rows.jsonl:6"],
        "dropped: longer than 2,000 characters": ["rows.jsonl:7"],
        "dropped: fewer than 30% Chinese characters": ["rows.jsonl:8"],
        "dropped: overlaps with the evaluation file exam.jsonl": ["rows.jsonl:9"],
        "dropped: unusable row: no 'text'": ["rows.jsonl:11"],
        "dropped: unusable row: broken JSON": ["rows.jsonl:12"],
    }
    assert ledger(tmp_path / "out")["total"] == {"read": 12, "kept": 4, "dropped": 8, "repaired": 2}
    assert [row["text"] for row in lines(tmp_path / "out" / "rows")] == [
        base,
        text(1),
        "AB" + text(2),
        "汉语" + text(6),
    ]
    assert "1 are shorter than 20 words" in out


def test_programs_keep_their_characters(prepare, tmp_path):
    program = "s = 'ＡＢ漢'  # １\x00\n" * 9
    write_jsonl(tmp_path / "code.jsonl", [{"content": program, "lang": "Python"}])
    flags = ("--nfkc", "--simplify", "--control_characters", "--quality")
    code, _, err = prepare("--input_files", tmp_path / "code.jsonl", "--output_dir", tmp_path / "out", *flags)
    assert code == 0, err
    assert lines(tmp_path / "out" / "code")[0]["text"] == program.replace("\x00", "")


def test_personal_data(prepare, tmp_path):
    write_jsonl(tmp_path / "chat.jsonl", [{"text": text(1)}, {"text": "请打13912345678找王小明，谢谢。"}])
    flags = ("--output_dir", tmp_path / "out", "--privacy", "--privacy_names", "王小明")
    code, out, err = prepare("--input_files", tmp_path / "chat.jsonl", *flags)
    assert code == 0, err
    kept = [row["text"] for row in lines(tmp_path / "out" / "chat")]
    assert kept[0] == text(1) and "13912345678" not in kept[1] and "王小明" not in kept[1] and "谢谢" in kept[1]
    assert row_statuses(tmp_path / "out") == {
        "repaired: personal data (mobile)": ["chat.jsonl:2"],
        "repaired: personal data (person)": ["chat.jsonl:2"],
    }
    assert "13912345678" not in out + (tmp_path / "out" / "data_ledger.json").read_text()


def test_the_first_of_duplicates_stays_wherever_it_is(prepare, tmp_path, small_tasks):
    """Over sources, files and tasks, also where the later ones are joined by a chain."""
    base = text(0, 600)
    variants = [base, base[:300] + "一" + base[301:], base[:100] + "二" + base[101:300] + "一" + base[301:]]
    padding_row = [{"text": text(100 + i, 300)} for i in range(20)]
    write_jsonl(tmp_path / "a.jsonl", [*padding_row[:10], {"text": variants[1]}, {"text": "同一篇。"}])
    write_jsonl(
        tmp_path / "b.jsonl", [{"text": variants[0]}, *padding_row[10:], {"text": variants[2]}, {"text": "同一篇。"}]
    )
    options = ("--exact_dedup", "--near_dedup", "--output_dir", tmp_path / "out")
    code, _, err = prepare("--input_files", tmp_path / "b.jsonl", tmp_path / "a.jsonl", *options)
    assert code == 0, err
    assert row_statuses(tmp_path / "out") == {
        "dropped: near duplicate": ["b.jsonl:1", "b.jsonl:12"],
        "dropped: exact duplicate": ["b.jsonl:13"],
    }
    assert len(lines(tmp_path / "out" / "a")) == 12 and len(lines(tmp_path / "out" / "b")) == 10


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "a.json", "a.txt"])
def test_parts_of_a_file_are_the_whole_file(tmp_path, name):
    rows = [{"text": text(i, 30 + i % 50)} for i in range(500)]
    if name.endswith(".txt"):
        content = "".join(row["text"] + ("\n\n" if i % 3 else "\n") for i, row in enumerate(rows)).encode()
    elif name.endswith(".json"):
        content = json.dumps(rows, ensure_ascii=False).encode()
    else:
        content = "".join(
            "\n" * (i % 2) + json.dumps(row, ensure_ascii=False) + "\n" for i, row in enumerate(rows)
        ).encode()
        content = zstd.compress(content) if name.endswith("zst") else content
    (tmp_path / name).write_bytes(content)
    [source] = find_sources([str(tmp_path / name)], txt=None)
    whole = [record.location for record in read_records(source)]
    positions = corpus_tasks.split_positions(source, 4)
    assert len(positions) >= 3 or name.endswith("zst")
    from hf_recipes.corpus.steps import LedgerWriter, ReadDocuments
    from hf_recipes.data.pretraining.corpora import open_reader

    reader = open_reader(source)
    parts = [[0, start, stop] for start, stop in zip([(0, 0), *positions], [*positions, None], strict=True)]
    files, tasks = [(source, reader.schema.name, reader.schema.columns)], [{"parts": [part]} for part in parts]
    step = ReadDocuments(files, tasks, LedgerWriter())
    locations = [[document.metadata["location"] for document in step.run(rank=rank)] for rank in range(len(parts))]
    assert sum(map(bool, locations)) >= 3 or name.endswith("zst")
    assert [location for part in locations for location in part] == whole


def test_token_shards(prepare, tmp_path, model_dir, tokenizer, small_tasks):
    texts = [text(i, 40 + i % 7) for i in range(60)]
    write_jsonl(tmp_path / "a.jsonl", [{"text": t} for t in texts])
    tokens = ("--tokenize", "--model_name_or_path", model_dir, "--document_end_token", "<|endoftext|>")
    options = ("--input_files", tmp_path / "a.jsonl", "--shard_size", 25, "--output_dir", tmp_path / "out")
    code, out, err = prepare(*options, *tokens)
    assert code == 0, err
    encoder = DocumentEncoder(tokenizer, "<|endoftext|>")
    shards = open_shards(str(tmp_path / "out" / "a"), "a", encoder)
    assert [len(ends) for ends in shards.ends] == [25, 25, 10]
    rows = [
        part for ids, ends in zip(shards.tokens, shards.ends, strict=True) for part in np.split(ids, ends[:-1].tolist())
    ]
    assert [tokenizer.decode(row[:-1]) for row in rows] == texts
    assert {int(row[-1]) for row in rows} == {tokenizer.convert_tokens_to_ids("<|endoftext|>")}
    manifest = json.loads((tmp_path / "out" / "a" / "manifest.json").read_text())
    assert manifest["documents"] == 60 and manifest["tokens"] == len(shards) == sum(map(len, rows))
    assert manifest["bytes"] == sum(len(t.encode()) for t in texts) and manifest["dtype"] == "<u2"
    assert f"60 documents, {len(shards):,} tokens" in out


def test_two_workers_write_the_same_bytes(prepare, tmp_path, small_tasks):
    write_jsonl(tmp_path / "a.jsonl", [{"text": text(i % 50, 200)} for i in range(60)])
    options = ("--input_files", tmp_path / "a.jsonl", "--shard_size", 10, "--exact_dedup", "--nfkc")
    for workers in (1, 2):
        code, _, err = prepare(*options, "--output_dir", tmp_path / f"out{workers}", "--workers", workers)
        assert code == 0 and err == "", err
    assert tree(tmp_path / "out1") == tree(tmp_path / "out2")
    assert len(lines(tmp_path / "out2" / "a")) == 50


# Dies just before a task of a stage counts as done, or before a file or folder comes to be under its name.
KILLED = """
import os, signal
from datatrove.executor.base import PipelineExecutor
from hf_recipes.corpus import tasks as corpus_tasks
from hf_recipes.corpus.export import TextShard
corpus_tasks.MIN_TASK_BYTES = 3000
mark, replace = PipelineExecutor.mark_rank_as_completed, os.replace
def die_at(*step):
    if step == {location}:
        os.kill(os.getpid(), signal.SIGKILL)
def mark_or_die(self, rank):
    die_at(os.path.basename(self.logging_dir.path), rank)
    mark(self, rank)
def replace_or_die(one, other):
    die_at(os.path.basename(other))
    replace(one, other)
PipelineExecutor.mark_rank_as_completed, os.replace = mark_or_die, replace_or_die
"""


def test_a_killed_run_goes_on_to_the_same_bytes(forks, tmp_path):
    for name in ("a", "b"):
        seeds = [ord(name) * 30 + i % 40 for i in range(45)]
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": text(seed, 200)} for seed in seeds])
    options = ("--input_files", tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--shard_size", 7, "--nfkc", "--quality")
    options += ("--exact_dedup", "--near_dedup", "--min_chinese", 0.1)
    whole = forks.run(*options, "--output_dir", tmp_path / "whole", script=SCRIPT, before=KILLED.format(location=()))
    assert whole.code == 0, whole.err
    out = tmp_path / "killed"
    stages = [("read", 4), ("find_exact", 3), ("find_near", 6), ("write", 2)]
    for location in (*stages, ("part-00005.jsonl.zst",), ("b",), ()):
        killed = forks.run(*options, "--output_dir", out, script=SCRIPT, before=KILLED.format(location=location))
        assert killed.code == (-9 if location else 0), (location, killed.err)
        for name in {path.name for path in out.iterdir()} & {"a", "b"}:
            assert tree(out / name) == tree(tmp_path / "whole" / name)
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


def test_a_worker_that_is_killed_ends_the_run(forks, tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": text(i, 200)} for i in range(60)])
    own = "from hf_recipes.corpus import executors\nexecutors._end_with_parent = os.abort\n"
    before = KILLED.format(location=()) + own
    run = forks.run(
        *("--input_files", tmp_path / "a.jsonl", "--output_dir", tmp_path / "out", "--workers", 2),
        script=SCRIPT,
        before=before,
    )
    assert run.code == 1 and "a worker was killed" in run.err and "Traceback" not in run.err


def test_one_process_at_a_time(forks, prepare, tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": text(i)} for i in range(5)])
    options = ("--input_files", tmp_path / "a.jsonl", "--output_dir", tmp_path / "out")
    before = "import time\nfrom hf_recipes.corpus.steps import Keep\nold = Keep.run\n"
    before += "def slow(*a, **k):\n    print('begun', flush=True)\n    time.sleep(60)\nKeep.run = slow\n"
    first = forks.start(*options, script=SCRIPT, before=before)
    first.wait_for("begun")
    code, _, err = prepare(*options)
    assert code == 1 and "another process is writing it" in err
    first.signal()
    first.wait()
    code, _, err = prepare(*options)
    assert code == 0, err
    assert len(lines(tmp_path / "out" / "a")) == 5


def test_the_extra_is_named_where_it_is_missing(prepare, monkeypatch, tmp_path):
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "opencc" else found(name))
    code, _, err = prepare("--input_files", __file__, "--output_dir", tmp_path)
    assert code == 1 and "opencc is not installed: pip install -e '.[corpus]'" in err


def test_changed_files_are_another_corpus(prepare, tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": text(i)} for i in range(3)])
    write_jsonl(tmp_path / "exam.jsonl", [{"text": text(9)}])
    options = ("--input_files", tmp_path / "a.jsonl", "--decontaminate", tmp_path / "exam.jsonl")
    options += ("--output_dir", tmp_path / "out")
    assert prepare(*options)[0] == 0
    for name in ("exam.jsonl", "a.jsonl"):
        write_jsonl(tmp_path / name, [{"text": text(8)}])
        code, _, err = prepare(*options)
        assert code == 1 and f"{name} changed" in err
        assert prepare(*options, "--overwrite_output_dir")[0] == (0 if name == "exam.jsonl" else 1)


@pytest.fixture
def rows(tmp_path) -> Path:
    return write_jsonl(tmp_path / "rows.jsonl", [{"text": text(i)} for i in range(5)])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--min_chars", "1000"], "source rows: no document is left of 5 (5 dropped: shorter than 1,000 characters)"),
        (["--min_chars", "5", "--max_chars", "4"], "--min_chars 5 is more than --max_chars 4"),
        (["--tokenize"], "--tokenize and --model_name_or_path go together"),
        (["--document_end_token", "x"], "--document_end_token has no effect without --tokenize"),
        (["--shard_size", "0"], "--shard_size 0: expected at least 1"),
        (["--workers", "0"], "--workers 0: expected at least 1"),
        (["--executor", "slurm"], "name the partition with --slurm_partition"),
        (["--schema", "preference"], "--schema preference: expected one of prompt_response, code, text"),
        (["--prompt_column", "body"], "--prompt_column 'body' is not a column; there are text"),
        (["--decontaminate", "none.jsonl"], "none.jsonl: no such file"),
        (["--qualty"], "unknown flag --qualty (did you mean --quality?)"),
    ],
)
def test_what_people_get_wrong(prepare, tmp_path, rows, flags, message):
    code, _, err = prepare("--input_files", rows, "--output_dir", tmp_path / "out", *flags)
    assert code == 1 and message in err and "Traceback" not in err, err
    assert not list((tmp_path / "out").glob("rows"))


def test_input_that_is_no_corpus(prepare, tmp_path, rows):
    whole = zstd.compress("".join(json.dumps({"text": text(i)}) + "\n" for i in range(300)).encode())
    (tmp_path / "cut.jsonl.zst").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "long.jsonl").write_text('{"text": "好"}\n{"text": "' + "a" * (17 << 20) + '"}\n', encoding="utf-8")
    write_jsonl(tmp_path / "bad.jsonl", [{"text": text(i)} for i in range(5)] + [{"text": ""}])
    for name, message in (
        ("cut.jsonl.zst", "cut.jsonl.zst: the archive is damaged or cut short"),
        ("empty.jsonl", "empty.jsonl: the file is empty"),
        ("long.jsonl", "long.jsonl:2: this row is longer than 16 MiB"),
        ("bad.jsonl", "1 of 6 rows cannot be used"),
    ):
        code, _, err = prepare("--input_files", tmp_path / name, "--output_dir", tmp_path / "out" / name)
        assert code == 1 and message in err and "Traceback" not in err, err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for out, message in (
        (tmp_path / "mine", "is not empty and holds no corpus"),
        (tmp_path, "name a folder without input"),
    ):
        code, _, err = prepare("--input_files", rows, "--output_dir", out, "--overwrite_output_dir")
        assert code == 1 and message in err, err
    code, _, err = prepare("--input_files", rows, f"rows={tmp_path}/bad.jsonl", "--output_dir", tmp_path / "out" / "x")
    assert code == 1 and "there is a source rows already" in err


def test_slurm_runs_the_same_tasks(prepare, tmp_path, monkeypatch, rows):
    """A cluster of one node: sbatch runs the array's tasks one after the other, as the job's script says."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    programs = {
        "sbatch": f"""#!/bin/bash
for option in "$@"; do [[ $option == --export=ALL,* ]] && export "${{option#--export=ALL,}}"; script=$option; done
cp "$script" {tmp_path}/job.slurm
last=$(grep -oP '(?<=--array=0-)[0-9]+' "$script")
for task in $(seq 0 $last); do
    SLURM_ARRAY_TASK_ID=$task SLURM_NODELIST=node1 bash "$script" >> {tmp_path}/slurm.log 2>&1
done
echo Submitted batch job 7
""",
        "scontrol": "#!/bin/bash\necho node1\n",
        "squeue": "#!/bin/bash\nexit 1\n",
    }
    for name, content in programs.items():
        (bin_folder / name).write_text(content)
        (bin_folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr("hf_recipes.corpus.executors.POLL_SECONDS", 0.1)
    slurm = (
        "--executor",
        "slurm",
        "--slurm_partition",
        "cpu",
        "--slurm_time",
        "1:00:00",
        "--sbatch_args",
        "account=me",
    )
    options = ("--input_files", rows, "--nfkc")
    code, _, err = prepare(*options, "--output_dir", tmp_path / "slurm", *slurm)
    assert code == 0, err + (tmp_path / "slurm.log").read_text()
    code, _, err = prepare(*options, "--output_dir", tmp_path / "local")
    assert tree(tmp_path / "slurm") == tree(tmp_path / "local")
    job = (tmp_path / "job.slurm").read_text()
    assert "--partition=cpu" in job and "--account=me" in job and "--time=1:00:00" in job
    (tmp_path / "long.jsonl").write_text('{"text": "好"}\n{"text": "' + "a" * (17 << 20) + '"}\n', encoding="utf-8")
    code, _, err = prepare("--input_files", tmp_path / "long.jsonl", "--output_dir", tmp_path / "bad", *slurm)
    assert code == 1 and "long.jsonl:2: this row is longer than 16 MiB" in err  # as the task said on its node


@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_ray_runs_the_same_tasks(prepare, tmp_path, rows, request):
    import ray as cluster

    request.addfinalizer(cluster.shutdown)  # else its servers run beside the tests that follow
    ray = ("--executor", "ray")
    code, _, err = prepare("--input_files", rows, "--nfkc", "--output_dir", tmp_path / "ray", *ray)
    assert code == 0, err
    code, _, err = prepare("--input_files", rows, "--nfkc", "--output_dir", tmp_path / "local")
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")
    (tmp_path / "long.jsonl").write_text('{"text": "好"}\n{"text": "' + "a" * (17 << 20) + '"}\n', encoding="utf-8")
    code, _, err = prepare("--input_files", tmp_path / "long.jsonl", "--output_dir", tmp_path / "bad", *ray)
    assert code == 1 and "long.jsonl:2: this row is longer than 16 MiB" in err


def test_programs_stay_programs_when_a_corpus_is_cleaned_again(prepare, tmp_path):
    write_jsonl(tmp_path / "code.jsonl", [{"content": "def ｆ(ｘ):\n    return ｘ\n", "lang": "python"}])
    assert prepare("--input_files", tmp_path / "code.jsonl", "--output_dir", tmp_path / "one")[0] == 0
    again = ["--input_files", tmp_path / "one" / "code", "--nfkc", "--quality", "--output_dir", tmp_path / "two"]
    code, _, err = prepare(*again)
    assert code == 0, err
    [path] = (tmp_path / "two" / "code").glob("*.zst")
    [row] = map(json.loads, zstd.decompress(path.read_bytes()).decode().splitlines())
    assert row["kind"] == "code" and "ｆ(ｘ)" in row["text"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_is_full(prepare, tmp_path, monkeypatch, workers):
    """One sentence, from this process or a worker; with room again the same command resumes."""
    write_jsonl(tmp_path / "a.jsonl", [{"text": text(i, 200)} for i in range(20)])
    argv = ["--input_files", tmp_path / "a.jsonl", "--output_dir", tmp_path / "out", "--workers", workers]

    def fails(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(TextShard, "add", fails)
        code, _, err = prepare(*argv)
    assert code == 1 and err == (
        f"error: --output_dir {tmp_path}/out: cannot be written (No space left on device); make room or check "
        "the permissions; the same command resumes\n"
    )
    assert os.listdir(tmp_path / "out") == [".work"]
    code, _, err = prepare(*argv)
    assert code == 0 and lines(tmp_path / "out" / "a"), err
    (tmp_path / "file").touch()
    code, _, err = prepare(*argv[:2], "--output_dir", tmp_path / "file" / "below")
    assert code == 1 and "Not a directory" in err and err.count("\n") == 1, err


def paragraph(text: str, **marks) -> dict:
    return {"行号": 1, "是否重复": False, "是否跨文件重复": False, "内容": text, **marks}


def test_what_mnbvc_marks_as_repeats_is_kept_and_said_or_dropped(prepare, tmp_path):
    rows = [
        {"文件名": "一", "是否重复文件": False, "段落": [paragraph("天亮了。"), paragraph("请收藏。", 是否重复=True)]},
        {"文件名": "二", "是否重复文件": True, "段落": [paragraph("一样的。")]},
        {"文件名": "三", "是否重复文件": False, "段落": [paragraph("论坛整理。", 是否跨文件重复=True)]},
    ]
    rows[0]["段落"].append(paragraph("网上了船。"))
    flat = [{"text": "平的。", "是否重复": False}, {"text": "平的。", "是否重复": "True"}]
    sources = (write_jsonl(tmp_path / "mnbvc.jsonl", rows), write_jsonl(tmp_path / "flat.jsonl", flat))
    code, out, err = prepare("--input_files", *sources, "--output_dir", tmp_path / "all")
    assert code == 0, err
    assert lines(tmp_path / "all" / "mnbvc")[0]["text"] == "天亮了。\n请收藏。\n网上了船。"
    assert "kept, documents marked as repeats: 3; --drop_repeats drops them" in out
    assert "kept, paragraphs marked as repeats: 2; --drop_repeats removes them" in out

    code, out, err = prepare("--input_files", *sources, "--drop_repeats", "--output_dir", tmp_path / "some")
    assert code == 0 and "--drop_repeats" not in out and "columns not used" not in out, err
    assert [row["text"] for row in lines(tmp_path / "some" / "mnbvc")] == ["天亮了。\n网上了船。"]
    assert [row["text"] for row in lines(tmp_path / "some" / "flat")] == ["平的。"]
    counts = {(Path(row["source"]).stem, row["status"]): row["count"] for row in ledger(tmp_path / "some")["reasons"]}
    assert counts == {
        ("mnbvc", "dropped: marked as a repeat"): 2,
        ("mnbvc", "repaired: a paragraph marked as a repeat"): 1,
        ("flat", "dropped: marked as a repeat"): 1,
    }


def test_wiki_markup_is_kept_and_said_or_removed(prepare, tmp_path):
    wiki = "'''柳湾'''是[[石桥县|石桥]]的[[渔村]]。{{人口|3200}}<ref>县志</ref>\n"
    wiki += "\n== 历史 ==\n村子建于[[明朝]]。\n[[Category:渔村]]"
    rows = [{"title": "柳湾", "text": wiki}, {"title": "石桥", "text": "石桥因桥得名。"}]
    source = write_jsonl(tmp_path / "wiki.jsonl", rows)
    code, out, err = prepare("--input_files", source, "--output_dir", tmp_path / "all")
    assert code == 0 and "kept, documents with wiki markup: 1; --wiki_markup removes it" in out, err
    assert lines(tmp_path / "all" / "wiki")[0]["text"] == f"柳湾\n{wiki}"
    code, out, err = prepare("--input_files", source, "--wiki_markup", "--output_dir", tmp_path / "clean")
    assert code == 0 and "--wiki_markup" not in out, err
    texts = [row["text"] for row in lines(tmp_path / "clean" / "wiki")]
    assert texts == ["柳湾是石桥的渔村。\n\n历史\n村子建于明朝。", "石桥因桥得名。"]
    assert row_statuses(tmp_path / "clean") == {"repaired: wiki markup": ["wiki.jsonl:1"]}
