"""scripts/inspect_data.py shows what each stage learns from; no weights and no configuration are read."""

import json
import re
from functools import partial

import pytest
from datasets import Dataset
from trl import pack_dataset

from conftest import ROOT, conversation, write_jsonl
from hf_recipes.core.ledger import Ledger, write_ledgers
from hf_recipes.evaluation.reports.report import Examples, Histogram, Report, Table, report_values, visible
from hf_recipes.inspection.inspect import inspect
from hf_recipes.inspection.settings import read_settings

LONG = "患者年龄在十八岁以上，性别不限，自愿签署知情同意书。"


@pytest.fixture
def look(tokens_only, tmp_path):
    """The report of ``look(rows, "--flag", value, …)``."""

    def run(rows, *flags, named="--model_name_or_path") -> Report:
        path = write_jsonl(tmp_path / "rows.jsonl", rows) if isinstance(rows, list) else rows
        flags = ["--train_file", path, named, tokens_only, *flags]
        return inspect(read_settings(list(map(str, flags))))

    return run


def table(report: Report, title: str, section: int = 0) -> Table:
    found = [block for block in report.sections[section].blocks if isinstance(block, Table) and block.title == title]
    assert len(found) == 1, (title, [block.title for block in report.sections[section].blocks])
    return found[0]


def numbers(found: Table, column: int = 1) -> dict:
    return {row[0]: row[column] for row in found.rows}


def examples(report: Report) -> Examples:
    [found] = report.sections[-1].blocks
    return found


def labelled(sequence) -> list[list[bool]]:
    """Of each document, one value a token."""
    return [[span.labelled for span in document.spans for _ in range(span.tokens)] for document in sequence.documents]


def text(document) -> str:
    return "".join(span.text for span in document.spans)


def test_sft_counts_what_the_budgets_cut_as_the_ledger_does(look):
    rows = [{"messages": conversation(f"问题{number}", f"回答{number}" * (number + 1))} for number in range(10)]
    rows.append({"messages": conversation("龘" * 30, "答")})
    rows.append({"messages": conversation("早", "龘" * 20, "问", "答")})
    rows.append({"messages": conversation("问", "")})
    report = look(rows, "--max_source_length", 60, "--max_target_length", 40, "--max_drop_ratio", 0.5)
    [counts] = table(report, "Ledger").rows
    assert counts[1:] == [13, 12, counts[3], 1]
    found = numbers(table(report, "Counts"))
    assert found["rows that are trained on"] == 12 and found["rows over a budget"] == counts[3] > 3
    budgets = {row[0]: row[1:] for row in table(report, "Budgets").rows}
    assert budgets["prompt"] == ["--max_source_length", 60, 2, "16.7 %", "cut"]
    assert budgets["answer"][2] + 2 == counts[3]
    assert (report.verdict, report.tone) == ("12 of 13 rows are trained on; nothing looks wrong.", "good")
    assert budgets["whole"][:2] == ["--max_length", 100]
    bins = [block for block in report.sections[0].blocks if isinstance(block, Histogram)]
    assert [sum(found.counts) for found in bins] == [12, 12, 12]
    lengths = {row[0]: row for row in table(report, "Lengths in tokens, before any budget").rows}
    assert bins[0].edges[-1] - 1 == lengths["prompt"][8] and bins[0].budgets == {"--max_source_length 60": 60}
    assert report.warnings == []


def test_whole_lengths_are_those_without_budgets(look):
    rows = [{"messages": conversation("龘" * 9 * number, "答" * 9)} for number in range(1, 6)]
    free, cut = look(rows, "--max_length", 9999), look(rows, "--max_length", 70)
    tokens = [[row[:9] for row in table(report, "Lengths in tokens, before any budget").rows] for report in (free, cut)]
    assert tokens[0] == tokens[1] and numbers(table(cut, "Ledger"), 3).popitem()[1] >= 4


def test_sft_shows_the_labels_that_training_has(look, tokenizer):
    rows = [{"messages": conversation("你好", "早上好", "再见", "再会")}] * 3
    for train_on, wanted in (("all", ["早上好<|im_end|>", "再会<|im_end|>"]), ("last", ["再会<|im_end|>"])):
        report = look(rows, "--train_on", train_on, "--examples", 2)
        shown = examples(report)
        assert len(shown.rows) == 2 and f"--train_on {train_on}" in shown.note
        [document] = shown.rows[0].sequences[0].documents
        runs = re.findall("1+", "".join("01"[bool(span.labelled)] for span in document.spans))
        assert len(runs) == len(wanted)
        assert "".join(span.text for span in document.spans if span.labelled) == "".join(wanted)
        count = sum(len(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in wanted)
        assert sum(map(sum, labelled(shown.rows[0].sequences[0]))) == count
        assert numbers(table(report, "Tokens"))["tokens that carry loss"] == 3 * count


def test_trained_prompts_are_shown_beside_the_served_ones(look, tokenizer):
    rows = [{"messages": conversation("你好", "早上好", "再见", "再会")}] * 3
    report = look(rows)
    assert table(report, "Prompts, trained and served").rows == [
        ["served_prompt", "equal", "3 of 3", "–"],
        ["apply_chat_template", "equal", "3 of 3", "–"],
    ]
    prompt = tokenizer.apply_chat_template(rows[0]["messages"][:-1], tokenize=False, add_generation_prompt=True)
    [shown] = [b for b in report.sections[0].blocks if isinstance(b, Table) and b.title == "The first of these prompts"]
    assert shown.rows == [["trained, served_prompt, apply_chat_template", visible(prompt)]]


def test_prompts_that_a_server_sends_otherwise_are_named(look, tmp_path):
    """A template that shows the thoughts of earlier turns only inside their text."""
    template = tmp_path / "inline.jinja"
    template.write_text(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    answer = {"role": "assistant", "content": "早上好", "reasoning_content": "想一想"}
    chat = conversation("你好", "早上好", "再见", "再会")
    report = look([{"messages": [chat[0], answer, *chat[2:]]}], "--chat_template", template)
    own, plain = table(report, "Prompts, trained and served").rows
    assert own[:3] == ["served_prompt", "equal", "1 of 1"]
    assert plain[:3] == ["apply_chat_template", "different", "0 of 1"]
    assert table(report, "Prompts, trained and served").findings == [
        "prompts of apply_chat_template differ from the trained ones"
    ]
    assert ":1: from token" in plain[3] and "trained '<" in plain[3] and "served '早上好" in plain[3]


TOOLS = [{"type": "function", "function": {"name": "weather", "description": "天气", "parameters": {}}}]


@pytest.mark.parametrize(
    ("stage", "rows"),
    [
        ("dpo", [{"prompt": "你好", "chosen": "早上好", "rejected": "走开", "tools": TOOLS}]),
        ("orpo", [{"prompt": "你好", "chosen": "早上好", "rejected": "走开"}]),
        ("reward", [{"prompt": "你好", "chosen": "早上好", "rejected": "走开"}]),
        ("kto", [{"prompt": "你好", "completion": "早上好", "label": label} for label in (True, False)]),
        ("grpo", [{"messages": conversation("你好", "早上好", "再见"), "tools": TOOLS}]),
    ],
)
def test_prompts_of_every_stage_are_compared_with_the_served_ones(look, stage, rows):
    flags = ["--rewards", "chinese"] if stage == "grpo" else []
    report = look(rows, "--stage", stage, "--chat_template", "chatml", *flags)
    count = f"{len(rows)} of {len(rows)}"
    assert table(report, "Prompts, trained and served").rows == [
        ["served_prompt", "equal", count, "–"],
        ["apply_chat_template", "equal", count, "–"],
    ]
    shown = table(report, "The first of these prompts").rows
    assert len(shown) == 1 and "你好" in shown[0][1]
    assert ("weather" in shown[0][1]) is ("tools" in rows[0])


def test_answers_are_looked_at_without_their_thoughts(look):
    choices = {"answer_choices": ["年龄", "性别"]}
    thinking = {
        "role": "assistant",
        "content": "年龄",
        "reasoning_content": "The question is about the age of a person.",
    }
    rows = [
        {"messages": [*conversation("哪一类？"), thinking], **choices},
        {"messages": conversation("哪一种？", "<think>\n烫烫烫\n</think>\n\n年龄"), **choices},
        {"messages": conversation("哪一个？", "性别"), **choices},
    ]
    report = look(rows, "--chat_template", "chatml")
    assert numbers(table(report, "Rows that look wrong")) == {"mojibake": 1}  # thoughts are looked at too
    assert table(report, "Most frequent: answer").rows[0][:2] == ["年龄", 2]
    assert table(report, "Languages, by their script").rows[0][1:3] == ["too short to tell", 3]
    pairs = [{"prompt": f"问{n}", "chosen": "年龄", "rejected": "性别", "chosen_cot": f"想{n}"} for n in range(3)]
    report = look(pairs, "--chat_template", "chatml")
    assert table(report, "Most frequent: chosen").rows[0][:2] == ["年龄", 3]


def test_rows_are_shown_by_their_location(look, tmp_path):
    rows = [{"input": f"问{number}", "target": "答"} for number in range(5)] + [{"input": "问", "target": " "}]
    path = tmp_path / "rows.jsonl"
    report = look(rows, "--show", f"{path}:4", f"{path}:6", "--max_drop_ratio", 1)
    fourth, dropped = examples(report).rows
    assert "问3" in text(fourth.sequences[0].documents[0]) and fourth.status == "kept"
    assert (dropped.status, dropped.sequences) == ("dropped: empty answer", [])


def test_packs_are_those_that_the_trainer_makes(look, tokenizer, tmp_path):
    rows = [{"input": f"问题{number}" * (number % 7 + 1), "target": f"回答{number}"} for number in range(40)]
    flags = ["--packing", "--max_length", 128, "--examples", 99]
    report = look(rows, *flags)
    path = tmp_path / "rows.jsonl"
    argv = ["--train_file", path, "--model_name_or_path", "M", *flags, "--stage", "sft"]
    settings = read_settings(list(map(str, argv)))
    settings.tokenizer = tokenizer
    train = settings.stage.read(settings).train
    packed = pack_dataset(Dataset.from_dict({name: train[name][:] for name in ("input_ids", "labels")}), 128, "bfd")
    shown = examples(report).rows
    assert len(shown) == len(packed) > 5
    for example, row in zip(shown, packed, strict=True):
        [sequence] = example.sequences
        assert [len(document) for document in labelled(sequence)] == row["seq_lengths"]
        assert [one for document in labelled(sequence) for one in document] == [
            label != -100 for label in row["labels"]
        ]
        assert "".join(map(text, sequence.documents)) == tokenizer.decode(row["input_ids"])
    found = table(report, "Counts")
    assert numbers(found)["packs"] == len(packed)
    fill = sum(map(len, packed["input_ids"][:])) / (128 * len(packed))
    assert numbers(table(report, "Tokens"), 2)["tokens that fill the packs"] == f"{fill:.1%}".replace("%", " %")
    [one] = examples(look(rows, *flags, "--show", f"{path}:7")).rows
    assert f"{path}:7" in [document.location for document in one.sequences[0].documents]


def test_blocks_of_pretraining_have_their_boundaries(look, tokenizer, tmp_path):
    for name in ("a", "b"):
        write_jsonl(tmp_path / "corpus" / f"{name}.jsonl", [{"text": f"{name}{n}{LONG}"} for n in range(6)])
    flags = ["--block_size", 64, "--config_name", ROOT / "configs" / "models" / "qwen3_30m.json", "--examples", 3]
    report = look(tmp_path / "corpus", *flags, named="--tokenizer_name")
    [counts] = table(report, "Counts").rows
    each = [len(tokenizer(f"{name}{n}{LONG}")["input_ids"]) + 1 for name in "ab" for n in range(6)]
    assert counts[:5] == ["corpus", "100.0 %", 12, sum(each), -(-sum(each) // 64)]
    assert numbers(table(report, "Duplicates"))["exact copies of an earlier row"] == 0
    for example in examples(report).rows:
        [sequence] = example.sequences
        assert len(sequence.documents) > 1
        for found in labelled(sequence):
            assert found == [False] + [True] * (len(found) - 1)
        assert all(text(document).endswith("<|im_end|>") for document in sequence.documents[:-1])
        assert sum(map(len, labelled(sequence))) <= 64
    [one] = examples(look(tmp_path / "corpus", *flags, "--document_attention", "false", named="--tokenizer_name")).rows[
        :1
    ]
    assert len(one.sequences[0].documents) == 1


def test_streams_and_mixtures(look, tmp_path):
    for name, count in (("news", 30), ("wiki", 10)):
        write_jsonl(tmp_path / "corpus" / name / "a.jsonl", [{"text": f"{name}{n}{LONG}"} for n in range(count)])
    (tmp_path / "mixture.json").write_text(json.dumps({"news": 0.25, "wiki": 0.75}))
    flags = ["--block_size", 64, "--config_name", ROOT / "configs" / "models" / "qwen3_30m.json", "--examples", 2]
    flags += ["--mixture", tmp_path / "mixture.json", "--streaming", "true", "--max_steps", 5]
    report = look(tmp_path / "corpus", *flags, named="--tokenizer_name")
    assert numbers(table(report, "Counts")) == {"news": "25.0 %", "wiki": "75.0 %"}
    lengths = table(report, "Lengths in tokens, before any budget")
    assert numbers(lengths) == {"documents of news (the first 10,000)": 30, "documents of wiki (the first 10,000)": 10}
    assert len(examples(report).rows) == 2


@pytest.mark.parametrize("stage", ["dpo", "orpo", "reward"])
def test_pairs(look, tokenizer, stage):
    rows = [{"prompt": f"问{n}", "chosen": f"好的{n}", "rejected": "不"} for n in range(5)]
    rows.append({"prompt": "问", "chosen": "龘" * 30, "rejected": "不"})
    report = look(rows, "--stage", stage, "--max_length", 80, "--examples", 1, "--max_drop_ratio", 0.5)
    found = numbers(table(report, "Counts"))
    name = "tokens that carry loss" if stage != "reward" else "tokens of the answers"
    answers = [text for row in rows[:5] for text in (row["chosen"], row["rejected"])]
    assert numbers(table(report, "Tokens"))[name] == sum(len(tokenizer(answer)["input_ids"]) + 1 for answer in answers)
    assert (found["rows that are trained on"], found["rows over a budget"], found["chosen is the longer one"]) == (
        5,
        1,
        6,
    )
    assert table(report, "Budgets").rows[-1][-3:] == [1, "16.7 %", "left out"]
    [example] = examples(report).rows
    assert [sequence.name for sequence in example.sequences] == ["chosen", "rejected"]
    shown = ["".join(p.text for p in sequence.documents[0].spans if p.labelled) for sequence in example.sequences]
    assert re.fullmatch(r"好的\d<\|im_end\|>", shown[0]) and shown[1] == "不<|im_end|>"


def test_single_answers(look):
    rows = [{"prompt": f"问{n}", "completion": f"答{n}", "label": n < 4} for n in range(5)]
    report = look(rows, "--examples", 5)
    assert numbers(table(report, "Counts"))["good answers"] == 4
    assert [example.facts for example in examples(report).rows] == [["a good answer"]] * 4 + [["a bad answer"]]
    assert report.warnings == [
        "note: the good ones weigh 4 times as much as the bad ones; --undesirable_weight 4 makes them equal"
    ]
    stopped = look(rows[:4])
    [warning] = stopped.warnings
    assert (stopped.verdict, stopped.tone) == ("", "bad")
    assert warning.startswith("the run would stop: none of the 4 answers is a bad one")


def test_prompts_of_rewards(look):
    rows = [{"input": f"问{n}" * (n + 1), "target": "答" * 30, "answer_choices": ["甲", "乙"]} for n in range(6)]
    flags = ["--stage", "grpo", "--rewards", "choice", "--max_source_length", 30, "--max_completion_length", 16]
    report = look(rows, *flags, "--examples", 6)
    [counts] = table(report, "Ledger").rows
    budgets = {row[0]: row[1:] for row in table(report, "Budgets").rows}
    assert budgets["prompt"][2] == counts[3] > 0  # cut
    assert budgets["reference"][:3] == ["--max_completion_length", 16, 6]
    assert numbers(table(report, "Rows that look wrong")) == {"the reference is none of the choices": 6}
    shown = examples(report)
    assert not any(map(any, labelled(shown.rows[0].sequences[0]))) and shown.rows[0].facts == [
        f"reference: {'答' * 30}"
    ]
    assert [example.status != "kept" for example in shown.rows].count(True) == counts[3]
    [warning] = look([{"prompt": "问"}], "--rewards", "choice", "--stage", "grpo").warnings
    assert "choice" in warning


def test_rows_held_out_that_are_trained_on(look, tmp_path):
    rows = [{"input": f"问{n}", "target": "答"} for n in range(6)]
    dev = write_jsonl(
        tmp_path / "dev.jsonl", [rows[0], {"input": "问 2", "target": "答。"}, {"input": "新", "target": "答"}]
    )
    report = look(rows, "--validation_file", dev)
    assert [section.title for section in report.sections] == ["train rows", "validation rows", "Examples"]
    found = numbers(table(report, "In the training rows too", 1))
    assert list(found.values()) == [1, 2, 1]
    assert (report.verdict, report.tone) == ("6 of 6 rows are trained on; 3 things to look at:", "")
    assert table(report, "In the training rows too", 1).findings == [
        "in the training rows too: the row, exactly: 1 (33.3 %)",
        "in the training rows too: the row, but for case, width, spaces and punctuation: 2 (66.7 %)",
        "in the training rows too: the prompt: 1 (33.3 %)",
    ]


def test_the_ledger_of_what_made_the_files(look, tmp_path):
    ledger = Ledger().add_all([("raw.json:1", "kept"), ("raw.json:2", "dropped: an emoji")])
    write_ledgers(tmp_path / "data_ledger.json", comments=ledger)
    report = look([{"input": "问", "target": "答"}])
    assert report.sections[0].title == f"made with {tmp_path}/data_ledger.json"
    assert table(report, "Ledger: comments").rows == [["raw.json", 2, 1, 0, 1]]
    assert table(report, "Reasons: comments").rows == [[1, "dropped: an emoji", "raw.json:2"]]


def test_the_usual_reasons_are_in_the_language_of_the_page(look, tmp_path):
    statuses = ["kept", "dropped: nothing but emoji", "repaired: 回复 @name : removed", "dropped: my own reason"]
    ledger = Ledger().add_all((f"raw.json:{line}", status) for line, status in enumerate(statuses, 1))
    write_ledgers(tmp_path / "data_ledger.json", comments=ledger)
    reasons = table(look([{"input": "问", "target": "答"}]), "Reasons: comments")
    shown = [row[1] for row in report_values(reasons, "zh")["rows"]]
    assert shown == ["丢弃：只有表情", "修复：去掉“回复 @某人 :”", "丢弃：my own reason"]
    assert [row[1] for row in report_values(reasons, "en")["rows"]] == statuses[1:]


def test_personal_data_is_masked_everywhere(look, script, tokens_only, tmp_path):
    rows = [{"input": "我的电话13912345678", "target": f"<b>回拨13912345678{LONG}</b>"}] * 4
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    flags = ["--train_file", path, "--model_name_or_path", tokens_only, "--html", tmp_path / "r.html", "--privacy"]
    code, out, err = script("inspect_data.py", *flags)
    assert code == 0, err
    for shown in (out, (tmp_path / "r.html").read_text(encoding="utf-8")):
        assert "13912345678" not in shown.replace("\n", "") and "手机号" in shown


def test_personal_data_in_rows_that_cannot_be_used_is_in_no_report(script, tokens_only, tmp_path):
    row = {"prompt": "问", "completion": "答", "label": True}
    rows = [row] * 3 + [{**row, "label": f"客户{n} 13812340000"} for n in range(20)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    ledger = {"label": {"total": {"read": 1, "dropped": 1}, "sources": {"a": {"read": 1, "dropped": 1}}}}
    ledger["label"]["reasons"] = [
        {"source": "a", "status": "dropped: 'label' is '客户0 13812340000', neither", "count": 1, "first": ["a:1"]}
    ]
    (tmp_path / "data_ledger.json").write_text(json.dumps(ledger))  # of an earlier version
    flags = ["--train_file", path, "--model_name_or_path", tokens_only, "--html", tmp_path / "r.html", "--show"]
    flags += [f"{path}:5", "--stage", "kto"]
    seen = []
    for more in ([], ["--privacy"]):
        code, out, err = script("inspect_data.py", *flags, *more)
        assert code == 0, err
        seen += [out + err + (tmp_path / "r.html").read_text(encoding="utf-8")]
    assert all("is neither true nor false" in text for text in seen)
    assert "客户1 13812340000" in seen[0] and "客户" not in seen[1] and "13812340000" not in seen[1]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[3:]))
    code, out, err = script("inspect_data.py", *flags[:4], "--stage", "kto", "--privacy")
    assert code == 1 and "20 of 20 rows cannot be used" in err and "138" not in out + err


@pytest.fixture
def fails(script, tokens_only, tmp_path):
    def run(message, *flags, rows=({"input": "问", "target": "答"},)):
        path = write_jsonl(tmp_path / "rows.jsonl", list(rows))
        code, _, err = script("inspect_data.py", "--train_file", path, *flags)
        assert code == 1 and "Traceback" not in err
        assert message in err[err.index("error: ") :], err

    return partial(run)


def test_mistakes(fails, tokens_only, tmp_path):
    model = ["--model_name_or_path", tokens_only]
    fails("--model_name_or_path", "--examples", 1)
    fails("none: neither a local folder nor a model", "--model_name_or_path", "none")
    fails("there is no such training row; the first is", *model, "--show", "rows.jsonl:9")
    fails("makes messages examples; this stage learns from preference examples", *model, "--stage", "dpo")
    fails("1 of 1 rows cannot be used", *model, rows=[{"input": "问", "target": ""}])
    fails("no known schema in the columns foo", *model, rows=[{"foo": 1}])
    fails(
        "pretraining trains on blocks, not on rows", *model, "--stage", "pretrain", "--show", "a:1", "--block_size", 8
    )


def test_the_column_of_thoughts_is_among_the_facts(look, tmp_path):
    rows = [{"prompt": f"问题{number}", "response": f"回答{number}", "cot": f"想法{number}"} for number in range(4)]
    facts = dict(look(rows, "--chat_template", "chatml").facts)
    assert facts[f"thoughts of {tmp_path / 'rows.jsonl'}"] == "the column 'cot'"
    pairs = [{"prompt": row["prompt"], "chosen": "好", "rejected": "坏", "chosen_cot": "想"} for row in rows]
    facts = dict(look(pairs, "--chat_template", "chatml").facts)
    assert facts[f"thoughts of {tmp_path / 'rows.jsonl'}"] == "the column 'chosen_cot'"


def test_json_has_what_the_page_has(script, tokens_only, tmp_path):
    rows = [{"messages": conversation(f"问题{number}", "年" * (number + 1))} for number in range(6)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    flags = ["--train_file", path, "--model_name_or_path", tokens_only, "--max_length", "60", "--stage", "sft"]
    code, out, err = script("inspect_data.py", *flags, "--json", "--examples", "1", "--language", "zh")
    assert code == 0 and "checking the train rows" in err
    report = json.loads(out)
    assert report["verdict"] == "6 行中有 6 行用于训练；没有发现问题。"
    train, examples = report["sections"]
    lengths = {block["title"]: block for block in train["blocks"] if block["kind"] == "histogram"}
    whole = lengths["整行"]
    assert sum(count for _, count in whole["lengths"]) == 6 == sum(whole["counts"])
    assert whole["budgets"] == {"--max_length 60": 60}
    [example] = examples["blocks"][0]["rows"]
    number = example["turns"][0][1].removeprefix("问题")
    assert example["turns"] == [["user", f"问题{number}"], ["assistant", "年" * (int(number) + 1)]]
    spans = example["sequences"][0]["documents"][0]["spans"]
    assert {span["labelled"] for span in spans} == {True, False} and "assistant" in "".join(s["text"] for s in spans)
    code, out, err = script("inspect_data.py", "--tokenizer", tokens_only, "--text", path, "--json", "--language", "en")
    assert code == 0 and json.loads(out)["sections"][-1]["blocks"][0]["kind"] == "examples", err
