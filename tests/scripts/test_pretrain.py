"""scripts/pretrain.py as it is used."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from conftest import ROOT, weights, write_jsonl

SAMPLES = [ROOT / "datasets" / "pretrain" / f"{name}.jsonl" for name in ("news", "qa", "wiki")]
LEAN = ("--report_to", "none", "--block_size", 64, "--max_steps", 2, "--save_strategy", "no", "--bf16", False)


@pytest.fixture
def pretrain(script, model_dir, tmp_path):
    def run(*flags, model=("--model_name_or_path", model_dir)):
        cache = ("--cache_dir", tmp_path / "cache", "--output_dir", tmp_path / "run")
        return script("pretrain.py", *model, *LEAN, *cache, *flags)

    return run


def run_json(tmp_path, name):
    return json.loads((tmp_path / "run" / name).read_text())


def test_a_run_with_everything(pretrain, tmp_path, model_dir):
    """A mixture from a file, evaluation by likelihood, generation and choice, and the folder that is left."""
    valid = write_jsonl(tmp_path / "held.out 1.jsonl", [{"text": "西湖位于浙江省杭州市。"}, {"text": "今天天气很好。"}])
    choices = ROOT / "datasets" / "eval" / "single_choice.jsonl"
    prompts = ROOT / "datasets" / "eval" / "generation.jsonl"
    code, out, err = pretrain(
        "--train_file", *SAMPLES, "--mixture", ROOT / "configs" / "mixtures" / "demo.json", "--learning_rate", 1e-2,
        "--validation_file", valid, "--eval_files", f"exam={choices}", f"more={prompts}", "--eval_on_start",
        "--max_new_tokens", 4, "--logging_steps", 1, "--save_strategy", "steps", "--save_steps", 1,
    )  # fmt: skip
    assert code == 0, err
    metrics = run_json(tmp_path, "metrics.json")
    for when in ("before", "after"):
        assert {"held_out_1_bits_per_character", "held_out_1_perplexity", "exam_accuracy"} <= set(metrics[when])
    assert metrics["after"]["held_out_1_loss"] != metrics["before"]["held_out_1_loss"]
    sources = metrics["train"]["sources"]
    assert set(sources) == {"news", "qa", "wiki"} and sum(s["target"] for s in sources.values()) == pytest.approx(1)
    assert "source target realised tokens epochs loss" in " ".join(out.split())
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"model.safetensors", "tokenizer.json", "run_config.yaml", "metrics.json", "data_ledger.json"} <= left
    assert {"curves.png", "README.md", "predictions", "checkpoint-2"} <= left
    assert run_json(tmp_path, "data_ledger.json")["train"]["total"]["read"] == 90
    assert "Pretrained further from" in (tmp_path / "run" / "README.md").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run").num_parameters() > 0
    before, after = weights(model_dir), weights(tmp_path / "run")
    assert all(not torch.equal(before[name], after[name]) for name in after)


def test_a_folder_a_source_and_the_cache(pretrain, tmp_path):
    for name in ("news", "wiki"):
        write_jsonl(tmp_path / "corpus" / name / "part-1.jsonl", [{"text": f"{name}{n}今天。" * 9} for n in range(30)])
    (tmp_path / "corpus" / "data_ledger.json").write_text('{"text": "how the corpus was made"}')  # is not learned
    code, out, err = pretrain("--train_file", tmp_path / "corpus", "--dry_run")
    assert code == 0, err
    assert "tokenizing into" in out and "blocks" in out and "memory" in out
    assert not (tmp_path / "run").exists()
    code, out, err = pretrain("--train_file", tmp_path / "corpus")
    assert code == 0 and "tokenizing into" not in out, err  # the same files are tokenized once
    assert set(run_json(tmp_path, "metrics.json")["train"]["sources"]) == {"news", "wiki"}


def test_a_stream_writes_no_tokens(pretrain, tmp_path):
    code, _, err = pretrain("--train_file", *SAMPLES, "--streaming", True, "--dataloader_num_workers", 1)
    assert code == 0, err
    assert not list(tmp_path.rglob("*.npy"))
    metrics = run_json(tmp_path, "metrics.json")["train"]
    assert 0 < metrics["epoch"] < 1 and metrics["tokens"] == 2 * 8 * 64


def test_a_new_model_from_a_shape(pretrain, tmp_path, model_dir):
    shape = json.loads((ROOT / "configs" / "models" / "qwen3_30m.json").read_text())
    shape |= {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "head_dim": 8}
    (tmp_path / "shape.json").write_text(json.dumps(shape))
    model = ("--config_name", tmp_path / "shape.json", "--tokenizer_name", model_dir)
    code, out, err = pretrain("--train_file", SAMPLES[0], model=model)
    assert code == 0, err
    assert "a new qwen3 model" in out
    assert "Pretrained as a new model (shape.json)" in (tmp_path / "run" / "README.md").read_text()
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert saved.config.vocab_size % 64 == 0


def test_lora_and_parts_of_the_model(pretrain, tmp_path, model_dir):
    code, _, err = pretrain("--train_file", SAMPLES[0], "--use_lora", True)
    assert code == 0 and (tmp_path / "run" / "adapter_model.safetensors").is_file(), err
    moved = {}
    for flags in (("--train_only", "embeddings"), ("--freeze_layers", "1")):
        code, _, err = pretrain("--train_file", SAMPLES[0], *flags, "--overwrite_output_dir")
        assert code == 0, err
        before, after = weights(model_dir), weights(tmp_path / "run")
        moved[flags[0]] = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved["--train_only"] == {"model.embed_tokens.weight"}
    assert moved["--freeze_layers"] and not any(".layers.1." in name for name in moved["--freeze_layers"])


def test_what_cannot_be(pretrain, tmp_path, model_dir, recurrent_dir):
    """Each is one sentence, and none leaves a folder."""
    policy = tmp_path / "policy.json"
    write_jsonl(tmp_path / "empty.jsonl", [{"text": ""}] * 3)
    (tmp_path / "nothing.jsonl").touch()

    def says(expected, *flags, **more):
        code, _, err = pretrain(*flags, **more)
        assert code == 1 and err.startswith("error: ") and "Traceback" not in err and expected in err, err
        assert not (tmp_path / "run").exists()

    policy.write_text('{"news": 0.5, "sport": 0.5}')
    with_policy = ("--train_file", *SAMPLES, "--mixture", policy)
    says("sport is not among the sources of --train_file, which are news, qa, wiki", *with_policy)
    policy.write_text('{"news": -1, "qa": 2}')
    says("news: -1; expected a number of at least 0", *with_policy)
    policy.write_text('{"news": 0, "qa": 0}')
    says("every source has a share of 0", *with_policy)
    policy.write_text('{"by": "epochs", "sources": {"news": 2}}')
    says("the length of news is not known before it was read", *with_policy, "--streaming", True)
    says("no such file, folder or glob", "--train_file", tmp_path / "none.jsonl")
    says("empty.jsonl", "--train_file", tmp_path / "empty.jsonl")
    says("nothing.jsonl: the file is empty", "--train_file", tmp_path / "nothing.jsonl")
    says("the file is empty", "--train_file", SAMPLES[0], "--validation_file", tmp_path / "nothing.jsonl")
    says("--streaming needs --max_steps", "--train_file", SAMPLES[0], "--streaming", True, "--max_steps", -1)
    says("--document_end_token <end>: no token", "--train_file", SAMPLES[0], "--document_end_token", "<end>")
    says("there is no layer 7; the model has 0 to 1", "--train_file", SAMPLES[0], "--freeze_layers", "7")
    says("--freeze_layers 1-0: 1-0 has no layers; write 0-1", "--train_file", SAMPLES[0], "--freeze_layers", "1-0")
    lora = ("--use_lora", "True", "--train_only", "embeddings")
    says("--train_only embeddings trains weights that no adapter holds", "--train_file", SAMPLES[0], *lora)
    lora = ("--use_lora", "True", "--freeze_layers", "0-1")
    says("--freeze_layers 0-1 freezes all layers that the adapter is on", "--train_file", SAMPLES[0], *lora)
    says("give --model_name_or_path to train a model further", "--train_file", SAMPLES[0], model=())
    shape = ("--config_name", tmp_path / "shape.json", "--tokenizer_name", model_dir)
    (tmp_path / "shape.json").write_text('{"model_type": "qwen3", "hiden_size": 3}')
    says("qwen3 has no key 'hiden_size' (did you mean", "--train_file", SAMPLES[0], model=shape)
    (tmp_path / "shape.json").write_text('{"model_type": "qwen33"}')
    says("model_type 'qwen33' is not known", "--train_file", SAMPLES[0], model=shape)
    lfm2 = ("--model_name_or_path", recurrent_dir)
    says("--document_attention: lfm2 carries a state from each packed row", "--train_file", SAMPLES[0], model=lfm2)


def test_an_architecture_that_leaks_can_be_trained_without(pretrain, recurrent_dir, tmp_path):
    code, _, err = pretrain(
        "--train_file", SAMPLES[0], "--document_attention", False, model=("--model_name_or_path", recurrent_dir)
    )
    assert code == 0, err
    assert run_json(tmp_path, "metrics.json")["steps"] == 2


def test_other_data_does_not_go_on(pretrain, tmp_path):
    saves = ("--save_strategy", "steps", "--save_steps", 1, "--lr_scheduler_type", "constant")
    assert pretrain("--train_file", SAMPLES[0], *saves)[0] == 0
    code, _, err = pretrain("--train_file", SAMPLES[1], *saves, "--max_steps", 4, "--resume_from_checkpoint", "true")
    assert code == 1 and "checkpoint-2 was written with other training data (--train_file" in err, err
    (tmp_path / "run" / "checkpoint-2" / "data_state.json").unlink()
    code, out, err = pretrain("--train_file", SAMPLES[0], *saves, "--max_steps", 4, "--resume_from_checkpoint", "true")
    assert code == 0 and "checkpoint-2 is left aside: data_state.json is missing" in out, err
