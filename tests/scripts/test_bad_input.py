"""What people get wrong: one sentence that says where and what to do, exit code 1, no traceback."""

import json
import shutil

import pytest

from conftest import tiny_model, write_jsonl
from hf_recipes.data.files.file_io import zstd

GOOD = {"input": "问题", "target": "回答"}


@pytest.fixture
def fails(sft, model_dir, tmp_path):
    """``fails("part of the message", "--flag", value, …)`` over a command that would otherwise work."""
    write_jsonl(tmp_path / "good.jsonl", [GOOD] * 4)

    def run(message, *flags, model=model_dir):
        basic = {
            "--model_name_or_path": model,
            "--train_file": tmp_path / "good.jsonl",
            "--output_dir": tmp_path / "run",
        }
        basic |= {"--report_to": "none", "--max_steps": "1"}
        argv = [item for flag, value in basic.items() if flag not in flags for item in (flag, value)]
        code, out, err = sft(*argv, *flags)
        errors = err[err.index("error") :] if "error" in err else err
        assert code == 1, (out, err)
        assert "Traceback" not in err and errors.startswith("error: ")
        assert message in errors, errors
        return errors

    return run


def test_no_such_file(fails, tmp_path):
    fails(f"{tmp_path}/none.json: no such file", "--train_file", tmp_path / "none.json")


def test_empty_file(fails, tmp_path):
    (tmp_path / "empty.json").touch()
    fails("empty.json: the file is empty", "--train_file", tmp_path / "empty.json")


def test_wrong_column(fails):
    fails("--prompt_column 'question' is not a column; there are input, target", "--prompt_column", "question")


def test_broken_json_on_line_3_of_5(fails, tmp_path):
    lines = [json.dumps(GOOD, ensure_ascii=False)] * 5
    lines[2] = lines[2][:-3]
    (tmp_path / "bad.jsonl").write_text("\n".join(lines), encoding="utf-8")
    error = fails("1 of 5 rows cannot be used", "--train_file", tmp_path / "bad.jsonl")
    assert f"{tmp_path}/bad.jsonl:3: broken JSON" in error


def test_zst_cut_short(fails, tmp_path):
    data = zstd.compress("".join(f'{{"input": "问{i}", "target": "{i * 7919}"}}\n' for i in range(999)).encode())
    (tmp_path / "cut.jsonl.zst").write_bytes(data[: len(data) // 2])
    fails("cut.jsonl.zst: the archive is damaged or cut short", "--train_file", tmp_path / "cut.jsonl.zst")


def test_file_in_no_encoding(fails, tmp_path):
    (tmp_path / "odd.jsonl").write_bytes(b'{"input": "\xff\xfe\x80\x81"}\n' * 3)
    fails("odd.jsonl: not UTF-8 text, and not all of it is GB18030", "--train_file", tmp_path / "odd.jsonl")


def test_schema_not_recognised(fails, tmp_path):
    write_jsonl(tmp_path / "odd.jsonl", [{"foo": "1", "bar": "2"}])
    fails("no known schema in the columns foo, bar", "--train_file", tmp_path / "odd.jsonl")


def test_data_for_another_stage(fails, tmp_path):
    write_jsonl(tmp_path / "text.jsonl", [{"text": "文章"}])
    fails("its schema is text", "--train_file", tmp_path / "text.jsonl")


def test_model_path_without_config(fails, tmp_path):
    (tmp_path / "hollow").mkdir()
    fails("hollow: this folder has no config.json", model=tmp_path / "hollow")
    fails("/nowhere/at/all: no such folder", model="/nowhere/at/all")


def test_adapter_given_as_model(fails, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    fails("it holds an adapter: give its base", model=tmp_path / "adapter")


def test_lora_json_with_an_unknown_key(fails, tmp_path):
    (tmp_path / "lora.json").write_text('{"lora_r": 8, "lora_alpah": 16}')
    fails("unknown key 'lora_alpah' (did you mean lora_alpha?)", "--lora_config", tmp_path / "lora.json")


def test_lora_modules_of_another_family(fails):
    fails("its linear modules are down_proj", "--lora_config", "configs/lora_bloom.json")


def test_no_target_length(fails):
    fails("--max_target_length 0: expected at least 1", "--max_target_length", "0")


def test_output_folder_not_empty(fails, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").touch()
    fails("the folder is not empty; resume with --resume_from_checkpoint true, start over with --overwrite_output_dir")


def test_packing_where_rows_would_leak(fails, recurrent_dir):
    fails("lfm2 carries a state from each packed row into the next", "--packing", model=recurrent_dir)


def test_adapter_for_another_base(fails, tmp_path):
    from peft import LoraConfig, get_peft_model

    get_peft_model(tiny_model(64), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    other = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert other["r"] == 8
    model = tiny_model(64)
    model.model.layers[1].self_attn.q_proj = __import__("torch").nn.Linear(16, 32, bias=False)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "odd")
    fails("an adapter for another base: it has model.layers.1.self_attn.q_proj", "--peft_path", tmp_path / "odd")


def test_all_rows_dropped(fails, tmp_path):
    write_jsonl(tmp_path / "bad.jsonl", [{"input": "问", "target": ""}] * 12)
    error = fails("12 of 12 rows cannot be used", "--train_file", tmp_path / "bad.jsonl")
    assert error.count("empty answer") == 10


def test_no_token_left_to_learn(fails):
    fails("the budget of an answer is too small for any text", "--max_target_length", "1")


def test_no_chat_template(fails, tmp_path, model_dir):
    shutil.copytree(model_dir, tmp_path / "bare")
    (tmp_path / "bare" / "chat_template.jinja").unlink()
    fails("no chat template; choose one with --chat_template", model=tmp_path / "bare")


def test_misspelt_flag(fails):
    fails("unknown flag --learning_rat (did you mean --learning_rate?)", "--learning_rat", "1")


def test_a_mistake_does_not_cost_the_former_run(fails, tmp_path):
    write_jsonl(tmp_path / "run" / "checkpoint-3" / "trainer_state.json", [{}])
    (tmp_path / "run" / ".run").write_text('{"kind": "training", "launch": "", "files": [], "claims": [".*"]}')
    fails("no such file", "--overwrite_output_dir", "--train_file", tmp_path / "none.json")
    assert (tmp_path / "run" / "checkpoint-3" / "trainer_state.json").exists()
