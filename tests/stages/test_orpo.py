"""ORPO: its loss, its figures and its evaluation, without a reference."""

import json
import math

import pytest
import torch
from stage_runs import trainer_of

from conftest import ROOT, tiny_model, write_jsonl
from hf_recipes.models.inference.batch_options import BatchOptions
from hf_recipes.stages.orpo import STAGE, ValidationLoss, odds_ratio_losses

PAIRS = [{"prompt": f"标准{i}：", "chosen": "年龄" * (i + 1), "rejected": "药物，睡眠" * (i % 2 + 1)} for i in range(3)]


def test_the_loss_is_that_of_the_paper(tokenizer, tmp_path):
    """-log p(chosen) - beta · log sigmoid(log odds(chosen) / odds(rejected)), p the mean over tokens, in float64."""
    values = {"report_to": "none", "bf16": False, "per_device_train_batch_size": 3, "beta": 0.3}
    args = STAGE.arguments(output_dir=str(tmp_path / "run"), **values)
    model = tiny_model(len(tokenizer))
    trainer, data = trainer_of(STAGE, args, write_jsonl(tmp_path / "pairs.jsonl", PAIRS), tokenizer, model)
    [batch] = trainer.get_train_dataloader()
    model.eval()
    loss = trainer.compute_loss(model, batch, num_items_in_batch=torch.tensor(3)).item()
    logged = trainer.logged_means()

    found, wins = [], []
    model.double()
    for row in data.train:
        mean = {}
        for side in ("chosen", "rejected"):
            ids, labels = torch.tensor(row[f"{side}_ids"]), torch.tensor(row[f"{side}_labels"])
            log_probs = model(ids[None]).logits[0, :-1].log_softmax(-1)
            labelled = labels[1:] != -100
            mean[side] = log_probs[labelled, labels[1:][labelled]].mean().item()
        odds = {side: math.exp(value) / (1 - math.exp(value)) for side, value in mean.items()}
        ratio = odds["chosen"] / odds["rejected"]
        found.append(-mean["chosen"] - 0.3 * math.log(1 / (1 + math.exp(-math.log(ratio)))))
        wins.append(mean["chosen"] > mean["rejected"])
    assert loss == pytest.approx(sum(found) / 3, rel=1e-5)
    method = ValidationLoss.of_rows(data.train)
    method.beta = 0.3
    assert method.summarise(method.compute(model, range(3), BatchOptions()))["loss"] == pytest.approx(sum(found) / 3)
    assert logged["rewards/accuracies"] == pytest.approx(sum(wins) / 3)


def test_a_certain_answer_has_a_finite_loss():
    log_probs = torch.tensor([0.0, -1e-3, -200.0], requires_grad=True)
    odds_ratio_losses(log_probs, log_probs.detach().flip(0), 0.1).sum().backward()
    assert log_probs.grad.isfinite().all()


def test_a_run_leaves_an_adapter_and_its_evaluation(script, model_dir, tmp_path):
    flags = ["--model_name_or_path", model_dir, "--train_file", ROOT / "datasets/preference/reviews.jsonl"]
    flags += ["--validation_split_percentage", 25, "--eval_on_start", "true", "--report_to", "none", "--max_steps", 2]
    flags += ["--bf16", False, "--gradient_checkpointing", True, "--metric_for_best_model", "accuracy"]
    flags += ["--eval_strategy", "steps", "--eval_steps", 1, "--output_dir", tmp_path / "run"]
    code, out, err = script("orpo.py", *flags)
    assert code == 0 and "the reference" not in out, err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {"loss", "accuracy", "accuracy_per_token", "pairs"} <= metrics["after"].keys() and metrics["train"][
        "loss"
    ] > 0
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
    card = (tmp_path / "run" / "README.md").read_text()
    assert "tags:\n- hf_recipes\n- orpo\n- lora\n" in card and "pairs of" in card
    code, out, err = script("orpo.py", *flags, "--overwrite_output_dir", "--use_lora", False, "--dry_run")
    assert code == 0 and "tokens an epoch" in out, err
    code, _, err = script("orpo.py", *flags, "--overwrite_output_dir", "--beta", 0)
    assert code == 1 and "--beta 0: expected more than 0" in err
