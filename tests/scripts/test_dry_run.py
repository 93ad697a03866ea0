"""What --dry_run prints, what it leaves alone, and what is named before a model is loaded."""

import json
import re

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from conftest import write_jsonl
from hf_recipes.dry_run.plan import _linear_bits
from hf_recipes.models.arguments import ModelArguments


@pytest.fixture
def dry(sft, model_dir, pairs, tmp_path):
    """Run scripts/sft.py --dry_run on 40 rows; a model in another folder is named by `model=`."""

    def run(*more, model=model_dir):
        return sft(
            *["--model_name_or_path", model, "--train_file", pairs / "train.json", "--output_dir", tmp_path / "run"],
            *["--report_to", "none", "--dry_run", *more],
        )

    return run


def test_the_table_says_what_the_run_does(dry, sft, model_dir, pairs, tmp_path):
    """The steps and trained weights are those of the run itself; no weight is loaded and no file is written."""
    more = ["--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 2, "--num_train_epochs", 2]
    more += ["--warmup_steps", 3, "--max_source_length", 20, "--max_target_length", 8]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
        code, out, err = dry(*more)
    assert code == 0, err
    assert not (tmp_path / "run").exists()
    assert "global batch      8 rows (4 a device × 2 accumulated × 1 process)" in out
    assert "steps             5 an epoch, 10 in all, 3 of them warmup" in out
    tokens = int(re.search(r"tokens an epoch +([\d,]+),", out)[1].replace(",", ""))
    for part in ("weights", "gradients", "optimizer", "activations", "logits", "checkpoint"):
        assert re.search(rf"^ *{part} +\d+ (bytes|[kM]B)", out, re.MULTILINE), part
    trained = re.search(r"trained +([\d,]+ of [\d,]+ weights .*attention .*)", out)[1]
    truncated = re.search(r"truncated +([\d.]+)%", out)[1]
    flags = ["--model_name_or_path", model_dir, "--train_file", pairs / "train.json", "--output_dir", tmp_path / "run"]
    code, out, err = sft(*flags, "--report_to", "none", *more, light=False)
    assert code == 0, err
    assert f"training {trained}\n" in out and "trained to step 10 " in out
    assert "memory: estimated" in out
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["train"]["tokens"] == 2 * tokens
    assert metrics["memory"].keys() == {"estimated", "most", "peak", "error"}
    ledger = json.loads((tmp_path / "run" / "data_ledger.json").read_text())["train"]["total"]
    assert float(truncated) == pytest.approx(100 * ledger.get("truncated", 0) / ledger["read"], abs=0.05)
    assert "dry_run" not in (tmp_path / "run" / "run_config.yaml").read_text()


def test_packed_blocks_are_counted_as_the_trainer_packs_them(dry, sft, model_dir, pairs, tmp_path):
    code, out, err = dry("--packing", "--max_length", 128, "--per_device_train_batch_size", 1)
    assert code == 0, err
    steps = re.search(r"steps +(\d+) an epoch", out)[1]
    blocks = re.search(r"40 in (\d+) packed blocks", out)[1]
    assert steps == blocks and int(blocks) < 20
    flags = ["--model_name_or_path", model_dir, "--train_file", pairs / "train.json", "--output_dir", tmp_path / "run"]
    flags += ["--packing", "--max_length", 128, "--per_device_train_batch_size", 1, "--num_train_epochs", 1]
    code, out, err = sft(*flags, "--report_to", "none")
    assert code == 0 and f"trained to step {steps} " in out, err


def test_packs_are_rows_of_their_own_unless_attention_takes_them_joined(dry):
    tokens = {}
    for attention in ("sdpa", "flash_attention_2"):
        more = ["--max_length", 100, "--per_device_train_batch_size", 4, "--attn_implementation", attention]
        code, out, err = dry("--packing", *more)
        assert code == 0, err
        rows, length = map(int, re.search(r"largest batch \((\d) × (\d+) tokens\)", out).groups())
        tokens[attention] = rows * length
        assert (rows, length <= 100) == {"sdpa": (4, True), "flash_attention_2": (1, False)}[attention]
    assert tokens["flash_attention_2"] <= tokens["sdpa"] <= 400
    code, _, err = dry("--padding_free", "True")
    assert code == 1 and "give --attn_implementation flash_attention_2, or --packing" in err


def test_packing_that_leaks_is_named_before_the_model_is_loaded(dry, recurrent_dir, monkeypatch):
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
    code, _, err = dry("--packing", model=recurrent_dir)
    assert code == 1 and "--packing: lfm2 carries a state from each packed row into the next" in err


def test_rows_longer_than_the_model(dry, pairs, tokenizer, model_dir, tmp_path):
    write_jsonl(pairs / "train.json", [{"input": "标准" * 300, "target": "年龄"}] * 3)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=128, n_embd=32, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    code, _, err = dry(model=tmp_path / "gpt2")
    assert code == 1
    assert re.search(
        r"the longest row has \d+ tokens, and the model was made for 128; lower --max_length .* to 128", err
    )
    assert dry("--max_length", 128, model=tmp_path / "gpt2")[0] == 0


@pytest.mark.parametrize(
    ("flags", "note"),
    [
        (["--max_steps", 4, "--save_steps", 9], "--save_steps 9 with 4 steps: no checkpoint before the end"),
        (
            ["--max_steps", 4, "--eval_steps", 5, "--validation_split_percentage", 20],
            "--eval_steps 5 with 4 steps: no evaluation before the end",
        ),
        (["--gradient_accumulation_steps", 64], "one step takes 512 rows, and there are 40"),
        (["--max_steps", 4, "--warmup_steps", 4], "4 of 4 steps are warmup: the learning rate is never reached"),
    ],
)
def test_settings_that_miss_their_purpose_are_noted(dry, flags, note):
    code, out, err = dry(*flags)
    assert code == 0, err
    assert f"note: {note}" in out


def test_more_memory_than_there_is(dry, monkeypatch):
    monkeypatch.setattr("hf_recipes.dry_run.advice.free_bytes", lambda: 1e6)
    code, out, _ = dry("--use_lora", "False")
    assert code == 0
    assert re.search(r"note: about \d+ MB are needed and 1 MB are free: try --per_device_train_batch_size 1 with", out)
    monkeypatch.setenv("HF_RECIPES_LANGUAGE", "zh")
    code, out, _ = dry("--use_lora", "False", "--json", "--max_steps", 4, "--save_steps", 9)
    saving, memory = json.loads(out)["notes"]
    assert saving == "--save_steps 9，而一共 4 步：结束之前不存检查点，中途被终止就要从头开始"
    assert re.fullmatch(
        r"大约需要 \d+ MB，空闲 1 MB：可以试试 (调小 --\w+|--[\w .并调大-]+|更小的或量化的模型)(, .+)*", memory
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--bf16", "True", "--fp16", "True"], "bf16"),
        (
            ["--load_best_model_at_end", "--eval_steps", 3, "--save_steps", 4, "--validation_split_percentage", 20],
            "load_best_model_at_end",
        ),
    ],
)
def test_what_transformers_refuses_is_one_sentence(dry, flags, message):
    code, _, err = dry(*flags)
    assert code == 1 and message in err and "Traceback" not in err


def test_a_quantized_base_is_estimated_as_its_file_says(dry, tmp_path):
    def bits(**settings):
        return _linear_bits(ModelArguments("model", **settings))

    assert bits(load_in_4bit=True) == bits(bnb_config="configs/bnb_nf4.json") == 4.13
    assert bits(load_in_8bit=True) == bits(bnb_config="configs/bnb_int8.json") == 8
    (tmp_path / "plain.json").write_text('{"load_in_4bit": true}')
    assert bits(bnb_config=str(tmp_path / "plain.json")) == 4.5 and bits() is None
    code, _, err = dry("--bnb_config", tmp_path / "none.json")
    assert code == 1 and "none.json: no such file" in err


def test_json_is_all_that_stdout_gets(dry, pairs):
    more = ["--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 2, "--num_train_epochs", 2]
    code, out, err = dry("--json", *more, "--eval_steps", 100, "--validation_file", pairs / "dev.json")
    assert code == 0, err
    found = json.loads(out)
    assert found["stage"] == "sft" and found["steps"] == {"per_epoch": 5, "total": 10, "warmup": 0}
    assert found["batch"] == {"per_device": 4, "accumulation": 2, "processes": 1, "global": 8}
    assert found["model"] == {"type": "qwen3", "context": 32768, "chat_template": True, "thinking": []}
    assert found["data"]["rows"] == 40 == found["ledger"]["train"]["total"]["kept"]
    assert found["memory"]["peak"] == sum(found["memory"]["parts"].values()) and found["free_memory"] > 0
    fast, slow = found["seconds"]
    assert 0 <= fast <= slow
    assert [note for note in found["notes"] if note.startswith("--eval_steps 100 with 10 steps")]
    assert "schema" in err


def test_json_is_for_a_dry_run(sft, model_dir, pairs, tmp_path):
    flags = ["--model_name_or_path", model_dir, "--train_file", pairs / "train.json", "--output_dir", tmp_path / "run"]
    code, out, err = sft(*flags, "--json")
    assert code == 1 and out == "" and err.startswith("error: --json is for --dry_run") and err.count("\n") == 1


def test_a_mistake_leaves_no_document(dry):
    code, out, err = dry("--json", "--ignore_columns", "input", "target")
    assert code == 1 and out == "" and "error: " in err
