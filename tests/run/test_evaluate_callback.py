"""Evaluation in the course of training: the same figures at any width, and no trace in the training."""

import json

import numpy as np
import pytest
from datasets import Dataset

from conftest import ROOT, TEXT, json_files, same, weights, write_pairs
from hf_recipes.core.errors import UserError
from hf_recipes.data.chat.prompts import Prompt
from hf_recipes.evaluation.methods.generation import GenerationMethod
from hf_recipes.evaluation.methods.perplexity import NLL
from hf_recipes.rewards.settings import RewardArguments
from hf_recipes.rewards.weighted_sum import Rewards
from hf_recipes.run.evaluate_callback import VALIDATION_LOSS, choose_best_by
from hf_recipes.stages.dpo import REFERENCE_METRICS
from hf_recipes.stages.kto import KTOArguments
from hf_recipes.trainer.losses.reference_log_probs import PreferenceLoss
from preference_runs import make_pairs

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
            assert len({record["location"] for record in records}) == len(records) == count, name
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


def test_the_best_step_is_kept_by_the_metrics_own_direction(forks, settings, tmp_path):
    """A perplexity that falls and rises again; transformers would keep the largest."""
    output = tmp_path / "run"
    argv = [*settings, "--output_dir", output, "--eval_files", f"wiki={FILES['wiki']}", "--eval_methods", "nll"]
    argv += ["--eval_steps", 1, "--save_steps", 1, "--max_steps", 5, "--load_best_model_at_end", "True"]
    argv += ["--learning_rate", 0.3, "--lr_scheduler_type", "constant", "--metric_for_best_model", "wiki_perplexity"]
    run = forks.run(*argv)
    assert run.code == 0, run.err
    history = json.loads((output / "checkpoint-5" / "trainer_state.json").read_text())["log_history"]
    found = {entry["step"]: entry["eval_wiki_perplexity"] for entry in history if "eval_wiki_perplexity" in entry}
    best = min(found, key=found.get)
    assert len(found) == 5 and best < 5 and max(found.values()) > 1.01 * found[best]
    assert same(weights(output), weights(output / f"checkpoint-{best}"))
    metrics = json.loads((output / "metrics.json").read_text())
    chosen = {"step": best, "of": 5, "metric": "wiki_perplexity", "value": found[best]}
    assert metrics["best"] == chosen and metrics["steps"] == best and metrics["train"]["steps"] == 5
    assert metrics["after"]["wiki_perplexity"] == found[best]
    value = f"{found[best]:.4f}"
    assert f"kept: the weights of step {best} of 5, the best by wiki_perplexity ({value})" in run.out
    card = (output / "README.md").read_text()
    assert f"The weights are those of step {best} of 5, the best by wiki perplexity ({value})." in card
    assert f"权重取自 5 步中的第 {best} 步" in card and value in card.split("```")[3]


# The model of these steps' evaluations has logits that are not numbers.
SPOIL = """
import torch
from hf_recipes.run.evaluate_callback import Evaluations
evaluate = Evaluations.on_evaluate
def spoiled(self, args, state, control, model=None, **kwargs):
    norm = model.get_base_model().model.norm.weight
    kept = norm.data.clone()
    if state.global_step >= 2:
        norm.data.fill_(torch.nan)
    evaluate(self, args, state, control, model=model, **kwargs)
    norm.data = kept
Evaluations.on_evaluate = spoiled
"""


@pytest.mark.parametrize("metric", ["exam_accuracy", "loss"])
def test_figures_of_logits_that_are_not_numbers_are_missing(forks, settings, tmp_path, metric):
    output = tmp_path / "run"
    argv = [*settings, *EVALUATED, "--per_device_train_batch_size", 8, "--output_dir", output, "--max_steps", 3]
    argv += ["--eval_steps", 1, "--save_steps", 1, "--max_eval_samples", 4, "--max_new_tokens", 2]
    best = ["--load_best_model_at_end", "True", "--metric_for_best_model", metric] if metric != "loss" else []
    run = forks.run(*argv, *best, before=SPOIL)
    assert run.code == 0, run.err
    for step, count in ((1, 0), (2, 8), (3, 8)):  # a line for each method
        lines = [line for line in run.out.splitlines() if line.startswith(f"step {step}: no finite value of eval_")]
        assert len(lines) == count, run.out
        assert all("are NaN or infinite); it counts as missing" in line for line in lines)
    found = json_files(output)  # without NaN
    history = found[output / "checkpoint-3" / "trainer_state.json"]["log_history"]
    figures = [entry for entry in history if "eval_loss" in entry]
    assert [entry["step"] for entry in figures] == [0, 1, 2, 3]
    for entry in figures:
        numbers = [value for key, value in entry.items() if key.startswith("eval_")]
        assert len(numbers) > 20 and {value is None for value in numbers} == {entry["step"] >= 2}
    metrics = found[output / "metrics.json"]
    assert metrics["steps"] == (1 if best else 3)
    if best:
        assert metrics["best"]["step"] == 1 and same(weights(output), weights(output / "checkpoint-1"))
    else:
        assert metrics["after"]["loss"] is metrics["after"]["exam_accuracy"] is metrics["after"]["rougeL"] is None


@pytest.mark.parametrize("follows", [["--lr_scheduler_type", "reduce_lr_on_plateau"], ["--load_best_model_at_end"]])
def test_a_metric_without_a_value_counts_as_missing(sft, settings, tmp_path, follows):
    """The best step, the learning rate and early stopping go by a reward that no answer has."""
    (tmp_path / "mine.py").write_text("def reward(completions, **rest):\n    return [None] * len(completions)\n")
    rewards = ["--rewards", tmp_path / "mine.py", "--metric_for_best_model", "reward", "--early_stopping_patience", 2]
    steps = ["--max_steps", 4, "--eval_steps", 1, "--save_steps", 1, "--max_eval_samples", 2]
    code, out, err = sft(*settings, *rewards, *steps, *follows, "--output_dir", tmp_path / "run")
    assert code == 0, err
    assert "step 1: no value of eval_reward; it counts as missing" in out
    metrics = json_files(tmp_path / "run")[tmp_path / "run" / "metrics.json"]
    assert (metrics["steps"], metrics["best"], metrics["after"]["reward"]) == (2, None, None)
    assert metrics["train"]["stopped_early"]["evaluations"] == 2


SCORED = {"": ["rouge", "accuracy"], "my_loss": ["accuracy", "generation"]}


def scored(tokenizer) -> dict:
    """The validation rows, and files called wiki, exam, pairs, eval and, misleadingly, my_loss."""
    prompts = [Prompt("a:1", [1], "问", "年龄", {"answer_choices": ["年龄", "性别"]}, is_chat=True)]
    found = {name: GenerationMethod(prompts, tokenizer, scores=scores) for name, scores in SCORED.items()}
    found[""].rewards = Rewards(RewardArguments(["chinese", "repetition=-1"]))
    rows = [{"text": text, "location": f"a:{n}", "meta": None, "status": "kept"} for n, text in enumerate(TEXT)]
    found |= dict.fromkeys(("wiki", "eval"), NLL(Dataset.from_list(rows), tokenizer, max_length=64))
    directions = {**REFERENCE_METRICS, "kl": False}
    found[VALIDATION_LOSS] = PreferenceLoss(Dataset.from_list(rows), np.ones((1, len(rows))), directions)
    return found


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("eval_wiki_perplexity", ("eval_wiki_perplexity", False)),
        ("wiki_bits_per_character", ("eval_wiki_bits_per_character", False)),
        ("wiki_loss/news.jsonl", ("eval_wiki_loss/news.jsonl", False)),
        ("eval_token_accuracy", ("eval_eval_token_accuracy", True)),
        ("loss", ("eval_loss", False)),
        ("kl", ("eval_kl", False)),
        ("rewards/margins", ("eval_rewards/margins", True)),
        ("rougeL", ("eval_rougeL", True)),
        ("my_loss_accuracy", ("eval_my_loss_accuracy", True)),
        ("my_loss_finished", ("eval_my_loss_finished", True)),
        ("reward", ("eval_reward", True)),
        ("rewards/repetition", ("eval_rewards/repetition", False)),
        ("my_loss", "no evaluation of this run gives it (did you mean "),
        ("perplexity", "there are accuracy, bleu4, chrf, "),
        ("length_ratio", "say with --greater_is_better which is better"),
    ],
)
def test_each_metric_knows_its_direction(tokenizer, tmp_path, metric, expected):
    values = {"output_dir": str(tmp_path), "report_to": "none", "eval_steps": 1, "save_steps": 1}
    args = KTOArguments(**values, load_best_model_at_end=True, metric_for_best_model=metric)
    methods = scored(tokenizer)
    if isinstance(expected, str):
        with pytest.raises(UserError) as raised:
            choose_best_by(args, None, methods)
        assert str(raised.value).startswith(f"--metric_for_best_model {metric}: ") and expected in str(raised.value)
        return
    choose_best_by(args, None, methods)
    assert (args.metric_for_best_model, args.greater_is_better) == expected
    choose_best_by(args, expected[1], methods)
    with pytest.raises(UserError, match=f"--greater_is_better {not expected[1]}: .* is better the"):
        choose_best_by(args, not expected[1], methods)


def test_a_metric_of_nothing_is_refused_before_anything_is_loaded(sft, settings, tmp_path):
    argv = [*settings, "--output_dir", tmp_path / "run", "--dry_run"]
    code, _, err = sft(*argv, "--metric_for_best_model", "rougeL")
    assert (
        code == 1 and "--metric_for_best_model rougeL: nothing is evaluated in the training; give --eval_steps" in err
    )
    code, _, err = sft(*argv, "--eval_steps", 500, "--load_best_model_at_end", "True", "--metric_for_best_model", "f1")
    assert code == 1 and "--metric_for_best_model f1: no evaluation of this run gives it" in err


def test_a_step_is_the_best_only_where_it_is_saved_and_has_the_metric(model_dir, tmp_path):
    trainer, _, _ = make_pairs(model_dir, tmp_path, metric_for_best_model="eval_pairs_loss", greater_is_better=False)
    trainer.args.save_strategy = "steps"
    course = [(2.0, True), (1.0, False), (None, True), (float("nan"), True), (1.5, True), (1.5, True), (1.8, True)]
    for step, (value, is_saved) in enumerate(course, 1):
        trainer.state.global_step, trainer.control.should_save = step, is_saved
        trainer._determine_best_metric({} if value is None else {"eval_pairs_loss": value}, None)
    assert (trainer.state.best_global_step, trainer.state.best_metric) == (5, 1.5)
