"""Evaluation in the course of training: the same figures at any width, and no trace in the training."""

import json

import pytest

from conftest import ROOT, same, weights, write_pairs

SAMPLES = ROOT / "datasets"
METHODS = ["rouge", "accuracy", "single_choice", "generation", "nll", "pair_accuracy"]
FILES = {
    "exam": SAMPLES / "eval" / "single_choice.jsonl",
    "open": SAMPLES / "eval" / "generation.jsonl",
    "pairs": SAMPLES / "preference" / "train.jsonl",
    "wiki": SAMPLES / "pretrain" / "wiki.jsonl",
}
EVALUATED = ["--eval_methods", *METHODS, "--eval_files", *(f"{name}={path}" for name, path in FILES.items())]
EVALUATED += ["--eval_steps", "3", "--eval_on_start", "--per_device_eval_batch_size", "4"]


@pytest.fixture(scope="module")
def settings(model_dir, tmp_path_factory):
    data = write_pairs(tmp_path_factory.mktemp("data"))
    return f"""--model_name_or_path {model_dir} --train_file {data}/train.json --validation_file {data}/dev.json
    --report_to none --logging_steps 1 --bf16 False --max_steps 4 --learning_rate 1e-2 --max_new_tokens 4
    --max_source_length 64 --max_target_length 16""".split()


@pytest.fixture(scope="module")
def evaluated(forks, settings, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluated")
    run = forks.run(*settings, *EVALUATED, "--per_device_train_batch_size", 8, "--output_dir", output)
    assert run.code == 0, run.err
    return output


def after(output) -> dict:
    return json.loads((output / "metrics.json").read_text())["after"]


def test_every_method_leaves_its_metrics_and_records(evaluated):
    found = after(evaluated)
    assert found.keys() >= {"loss", "rougeL", "accuracy", "macro_f1", "chrf", "distinct1", "length_ratio", "finished"}
    assert found.keys() >= {"exam_accuracy", "exam_accuracy_low", "exam_share_A", "open_finished"}
    assert found.keys() >= {"pairs_pair_accuracy_accuracy", "pairs_answers_rougeL"}
    assert found.keys() >= {"wiki_nll_loss", "wiki_nll_perplexity", "wiki_nll_bits_per_character"}
    counts = {"exam": 60, "open": 15, "wiki_nll": 30, "wiki_answers": 30, "": 8}
    counts |= {"pairs_pair_accuracy": 81, "pairs_answers": 81}
    for step in (0, 3, 4):
        for name, count in counts.items():
            path = evaluated / "predictions" / name / f"step-{step}.jsonl"
            records = [json.loads(line) for line in path.read_text().splitlines()]
            assert len({record["place"] for record in records}) == len(records) == count, name
    assert (evaluated / "curves.png").exists()
    settings = json.loads((evaluated / "metrics.json").read_text())["settings"]
    assert settings["decoding"]["max_new_tokens"] == 4 and settings["versions"].keys() >= {"torch", "transformers"}
    assert settings["chat_template"] and settings["few_shot"] is None


def test_training_is_the_same_with_evaluations_and_without(forks, settings, evaluated, tmp_path):
    argv = [*settings, "--output_dir", tmp_path / "plain", "--per_device_train_batch_size", 8]
    at = argv.index("--validation_file")
    run = forks.run(*argv[:at], *argv[at + 2 :])
    assert run.code == 0, run.err
    assert same(weights(evaluated), weights(tmp_path / "plain"))


@pytest.mark.parametrize("stage", [None, pytest.param(3, marks=pytest.mark.slow)], ids=["DDP", "ZeRO-3"])
def test_two_processes_give_the_same_figures(forks, settings, evaluated, tmp_path, stage):
    argv = [*settings, *EVALUATED, "--per_device_train_batch_size", 4, "--output_dir", tmp_path / "run"]
    argv += ["--deepspeed", f"configs/deepspeed/zero{stage}.json"] if stage else []
    run = forks.run(*argv, world=2)
    assert run.codes == [0, 0], run.err
    ours, expected = after(tmp_path / "run"), after(evaluated)
    timed = ("runtime", "per_second")
    assert ours.keys() == expected.keys()
    for key in (key for key in expected if not key.endswith(timed)):
        assert ours[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-3), key


def test_a_quantized_base_with_new_tokens_and_no_validation_rows(forks, settings, tmp_path):
    at = settings.index("--validation_file")
    argv = [*settings[:at], *settings[at + 2 :], "--load_in_4bit", "--chat_template", "glm", "--eval_steps", 2]
    argv += ["--eval_files", *(f"{name}={path}" for name, path in FILES.items()), "--output_dir", tmp_path / "run"]
    run = forks.run(*argv)
    assert run.code == 0, run.err
    found = after(tmp_path / "run")
    assert found.keys() >= {"exam_accuracy", "open_finished", "pairs_accuracy", "wiki_loss"} and "loss" not in found
