"""Validation rows and the same rows as a file of --eval_files give the same figures."""

import pytest
import torch
from accelerate import accelerator
from stage_runs import rows_of, trainer_of

from conftest import conversation, tiny_model, write_jsonl
from hf_recipes.data.examples import load_examples
from hf_recipes.evaluation.method import run_method
from hf_recipes.evaluation.methods.perplexity import NLL
from hf_recipes.evaluation.methods.preference_accuracy import PairAccuracy
from hf_recipes.models.inference import forward
from hf_recipes.models.inference.batch_options import BatchOptions
from hf_recipes.stages.sft import STAGE, ValidationLoss
from preference_runs import PAIRS, make_kto, make_pairs, stirred


def test_of_supervised_fine_tuning_it_is_nll(tokenizer, tmp_path):
    rows = [{"messages": conversation(f"标准{n}：", "年龄" * (n % 4 + 1))} for n in range(7)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    args = STAGE.arguments(output_dir=str(tmp_path / "run"), report_to="none", bf16=False)
    ours = ValidationLoss.of_rows(rows_of(STAGE, args, path, tokenizer).train)
    other = NLL(load_examples([str(path)]), tokenizer)
    model = tiny_model(len(tokenizer))
    _, found = run_method(ours, model, BatchOptions(3))
    _, expected = run_method(other, model, BatchOptions(8))
    assert found == {
        "loss": pytest.approx(expected["loss"], rel=1e-6),
        "mean_token_accuracy": expected["token_accuracy"],
    }


def test_the_accuracy_of_training_is_that_of_all_processes(tokenizer, tmp_path, monkeypatch):
    """At the end of an epoch too: of 8 rows and the padding row, accelerate would take one value of two."""
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": conversation("标准：", "年龄")}])
    args = STAGE.arguments(output_dir=str(tmp_path / "run"), report_to="none", bf16=False)
    trainer, data = trainer_of(STAGE, args, path, tokenizer, tiny_model(len(tokenizer)))
    state = type(trainer.accelerator.gradient_state)
    monkeypatch.setattr(state, "end_of_dataloader", True)
    monkeypatch.setattr(state, "remainder", 1)
    values = iter((3, 0.0, 1))  # labelled tokens, their entropy and right ones of the other process
    monkeypatch.setattr(accelerator, "gather", lambda value: torch.stack([value, value.new_tensor(next(values, 0))]))
    batch = trainer.data_collator([data.train.select_columns(["input_ids", "labels"])[0]])
    trainer.compute_loss(trainer.model, batch)
    labels = batch["labels"][0, 1:]
    right = (trainer.model(**batch).logits[0, :-1].argmax(-1) == labels)[labels != -100]
    expected = (int(right.sum()) + 1) / (len(right) + 3)
    assert trainer._metrics["train"]["mean_token_accuracy"] == [pytest.approx(expected)]


def test_of_pairs_the_log_probabilities_are_those_of_pair_accuracy(model_dir, tokenizer, tmp_path):
    data = {"validation_file": [str(tmp_path / "rows.jsonl")]}
    trainer, _, _ = make_pairs(model_dir, tmp_path, data=data)
    found = stirred(trainer).evaluate()
    method = PairAccuracy(load_examples(data["validation_file"], form="preference"), tokenizer)
    policy, _ = run_method(method, trainer.model, BatchOptions(4))
    with trainer.model.disable_adapter():
        reference, _ = run_method(method, trainer.model, BatchOptions(4))
    assert len(policy) == len(PAIRS)
    for side in ("chosen", "rejected"):
        log_probs, before = (sum(record[side] for record in records) / len(records) for records in (policy, reference))
        assert found[f"eval_logps/{side}"] == pytest.approx(log_probs, rel=1e-5)
        assert found[f"eval_rewards/{side}"] == pytest.approx(0.1 * (log_probs - before), abs=1e-5)


@pytest.mark.parametrize("make", [make_pairs, make_kto])
def test_memory_does_not_grow_with_the_batch(make, model_dir, tmp_path, monkeypatch):
    """Of a batch as many rows go through the model together as have `TOKENS` tokens."""
    data = {"validation_file": [str(tmp_path / "rows.jsonl")]}
    trainer, _, _ = make(model_dir, tmp_path, data=data, per_device_eval_batch_size=24)
    sizes, embeddings = [], trainer.model.get_input_embeddings()
    embeddings.register_forward_hook(lambda module, args, output: sizes.append(args[0].numel()))
    whole = trainer.evaluate()
    assert max(sizes) > 96
    sizes.clear()
    monkeypatch.setattr(forward, "TOKENS", 96)
    assert trainer.evaluate() == {name: pytest.approx(value, abs=1e-5) for name, value in whole.items()}
    assert 48 < max(sizes) <= 96
