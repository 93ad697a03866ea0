"""A template that prints today's date prints one for a whole run, however often it is resumed."""

import json
import shutil
from datetime import datetime

import pytest
from transformers import AutoTokenizer

from conftest import CHATML, build_tokenizer
from hf_recipes.core.errors import UserError
from hf_recipes.data.chat.encoder import ChatEncoder
from hf_recipes.data.chat.templates import dates
from hf_recipes.models.templates import options
from hf_recipes.models.tokenizers.tokenizer import load_tokenizer
from hf_recipes.run import run_folder

DATED = "<|im_start|>system\n{{ strftime_now('%Y年%m月%d日 %H:%M:%S') }}<|im_end|>\n" + CHATML
CHAT = [{"role": "user", "content": "今天几号"}, {"role": "assistant", "content": "一号"}]


@pytest.fixture
def clock(monkeypatch):
    """``clock(day)``: today is that day."""

    def set_to(day):
        for module in (options, run_folder):
            monkeypatch.setattr(module, "today", lambda: day)

    return set_to


@pytest.fixture
def dated(model_dir, tmp_path) -> str:
    folder = shutil.copytree(model_dir, tmp_path / "dated")
    build_tokenizer(chat_template=DATED).save_pretrained(folder)
    return str(folder)


def test_a_date_is_frozen_and_the_saved_template_is_not(dated, tmp_path):
    tokenizer, _ = load_tokenizer(dated, date="2026-03-01")
    assert "2026年03月01日 00:00:00" in tokenizer.decode(ChatEncoder(tokenizer).served_prompt(CHAT[:1]))
    assert dates.printed_date(tokenizer) == "2026-03-01"
    tokenizer.save_pretrained(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert datetime.now().strftime("%Y年%m月") in saved.apply_chat_template(CHAT[:1], tokenize=False)


def test_rows_of_another_day_are_tokenized_anew_where_the_template_prints_it(dated, model_dir):
    def fingerprints(name):
        return {ChatEncoder(load_tokenizer(name, date=day)[0]).fingerprint for day in ("2026-03-01", "2026-03-02")}

    assert len(fingerprints(dated)) == 2
    assert len(fingerprints(model_dir)) == 1
    assert dates.printed_date(load_tokenizer(model_dir)[0]) is None


def test_what_is_no_date_is_an_error(dated):
    with pytest.raises(UserError, match=r"--chat_template_date yesterday: expected a date such as 2026-11-29"):
        load_tokenizer(dated, date="yesterday")


def test_a_run_that_is_resumed_keeps_its_date(sft, dated, pairs, tmp_path, clock, monkeypatch):
    run, prompts = tmp_path / "run", []
    served = ChatEncoder.encode
    monkeypatch.setattr(
        ChatEncoder,
        "encode",
        lambda self, *args, **kwargs: [
            prompts.append(self.tokenizer.decode(row.input_ids)) or row for row in served(self, *args, **kwargs)
        ],
    )
    flags = ["--model_name_or_path", dated, "--train_file", pairs, "--output_dir", run, "--report_to", "none"]
    flags += ["--max_steps", "2", "--save_steps", "1", "--save_total_limit", "3"]
    clock("2026-03-01")
    code, _, err = sft(*flags)
    assert code == 0, err
    shutil.rmtree(run / "checkpoint-2")
    clock("2026-03-02")
    code, _, err = sft(*flags, "--resume_from_checkpoint", "true")
    assert code == 0, err
    assert prompts and all("2026年03月01日" in prompt for prompt in prompts)
    assert "chat_template_date: '2026-03-01'" in (run / "run_config.yaml").read_text()
    code, _, err = sft(*flags, "--resume_from_checkpoint", "true", "--chat_template_date", "2026-03-02")
    assert code == 1 and "--chat_template_date 2026-03-02, was 2026-03-01" in err


def test_a_file_of_answers_that_is_continued_keeps_its_date(script, dated, pairs, tmp_path, clock):
    out = tmp_path / "out.jsonl"
    flags = ["--model_name_or_path", dated, "--input_file", pairs, "--output_file", out, "--max_new_tokens", "2"]
    clock("2026-03-01")
    assert script("predict.py", *flags)[0] == 0
    lines = out.read_text(encoding="utf-8").splitlines(keepends=True)
    out.write_text("".join(lines[:-1]), encoding="utf-8")
    clock("2026-03-02")
    code, _, err = script("predict.py", *flags)
    assert code == 0, err
    assert out.read_text(encoding="utf-8") == "".join(lines)
    [sidecar] = tmp_path.glob("*generation_config.json")
    assert json.loads(sidecar.read_text())["chat_template_date"] == "2026-03-01"
    assert script("predict.py", *flags, "--overwrite_output")[0] == 0
    assert json.loads(sidecar.read_text())["chat_template_date"] == "2026-03-02"


FORMATS = [
    "%d %b %Y",
    "%-d/%-m/%y",
    "%A, %B",
    "%Y-%m-%dT%H:%M:%S%%",
    "今天是%Y年%m月%d日",
    "%j",
    "%F %T",
    "%e %B",
    "%D %R",
]


@pytest.mark.parametrize("moment", FORMATS)
def test_every_format_is_printed_as_strftime_does(moment):
    template = "\n{% macro m() %}{{ strftime_now('" + moment + "') }}{% endmacro %}{{ m() }}\n" + CHATML
    tokenizer = build_tokenizer(chat_template=template)
    dates.set_date(tokenizer, "2026-03-01")
    printed = ChatEncoder(tokenizer).template.prompt(CHAT[:1])
    expected = "\n" + datetime(2026, 3, 1).strftime(moment) + "\n"
    assert printed.startswith(expected)
