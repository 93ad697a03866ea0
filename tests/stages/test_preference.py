"""The trainers of DPO and KTO: what they learn from, means over exactly the real rows, and what they refuse."""

import json
import math

import pytest
import torch

from conftest import conversation
from hf_recipes.core.errors import UserError
from hf_recipes.data.arguments import UnpairedArguments
from hf_recipes.data.chat.encoder import ChatEncoder
from hf_recipes.stages.dpo import DPOArguments
from hf_recipes.stages.kto import KTOArguments
from hf_recipes.trainer.losses.collators import PADDING_ROW, PairCollator, UnpairedCollator
from preference_runs import ANSWERS, PAIRS, make_kto, make_pairs, stirred

MAKE = {"dpo": make_pairs, "kto": make_kto}


def batch_of(trainer, rows, fillers: int = 0):
    examples = [trainer.train_dataset[row] for row in rows]
    return trainer.data_collator(examples + [trainer.padding_row(examples[0])] * fillers)


def test_a_batch_of_pairs():
    pairs = [
        {"chosen_ids": [1, 2, 3], "rejected_ids": [4, 5], "chosen_labels": [-100, 2, 3], "rejected_labels": [-100, 5]},
        {"chosen_ids": [6, 7], "rejected_ids": [8], "chosen_labels": [-100, -100], "rejected_labels": [8]},
    ]
    batch = PairCollator(0)([{**pair, "row": row} for row, pair in enumerate(pairs)])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [6, 7, 0], [4, 5, 0], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 0], [1, 0, 0]]
    assert batch["completion_mask"].tolist() == [[0, 1, 1], [0, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert batch["row"].tolist() == [0, 1] and batch.keys() == {"input_ids", "attention_mask", "completion_mask", "row"}


def test_a_batch_of_single_answers_has_their_prompts_with_other_answers():
    rows = [
        {"input_ids": [1, 2, 3], "labels": [-100, -100, 3], "prompt_length": 2},
        {"input_ids": [4, 5, 6, 7], "labels": [-100, 5, 6, -100], "prompt_length": 1},
    ]
    rows = [
        {**row, **{f"KL_{key}": value for key, value in rows[number - 1].items()}, "row": number, "label": number == 0}
        for number, row in enumerate(rows)
    ]
    batch = UnpairedCollator(0, max_length=4)(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 0], [4, 5, 6, 7]]
    assert batch["completion_mask"].tolist() == [[0, 0, 1, 0], [0, 1, 1, 0]]
    assert batch["KL_input_ids"].tolist() == [[1, 2, 5, 6], [4, 3, 0, 0]]  # 7 is beyond four tokens
    assert batch["KL_attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["KL_completion_mask"].tolist() == [[0, 0, 1, 1], [0, 1, 0, 0]]
    assert batch["label"].tolist() == [True, False]


def test_loss_is_on_what_supervised_fine_tuning_learns(model_dir, tokenizer, tmp_path):
    trainer, _, _ = make_pairs(model_dir, tmp_path)
    batch = batch_of(trainer, [0, 4])
    for row, (number, side) in enumerate([(0, "chosen"), (4, "chosen"), (0, "rejected"), (4, "rejected")]):
        messages = conversation(PAIRS[number]["prompt"], PAIRS[number][side])
        [expected] = ChatEncoder(tokenizer).encode([messages])
        mask = batch["completion_mask"][row][: len(expected.labels)].bool()
        assert mask.tolist() == (expected.labels != -100).tolist() and not batch["completion_mask"][row].sum() > sum(
            mask
        )
        assert tokenizer.decode(batch["input_ids"][row][: len(mask)][mask]) == f"{PAIRS[number][side]}<|im_end|>"


@pytest.mark.parametrize("stage", MAKE)
def test_the_loss_is_the_mean_over_real_rows(model_dir, tmp_path, stage):
    trainer = stirred(MAKE[stage](model_dir, tmp_path)[0])
    rows = [0, 1, 4]
    plain, filled = batch_of(trainer, rows), batch_of(trainer, rows, fillers=2)
    assert filled["row"].tolist()[3:] == [PADDING_ROW] * 2
    device = torch.device("cpu")
    [_, _], count = trainer.get_batch_samples(iter([filled, filled]), 2, device)
    assert count == 6
    trainer.model.train()
    losses = [trainer.compute_loss(trainer.model, batch).item() for batch in (plain, filled)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    half = trainer.compute_loss(trainer.model, filled, num_items_in_batch=count)
    assert half.item() == pytest.approx(losses[0] / 2, abs=1e-6)
    empty = trainer.data_collator([trainer.padding_row(trainer.train_dataset[0])] * 2)
    nothing = trainer.compute_loss(trainer.model, empty, num_items_in_batch=count)
    nothing.backward()
    assert nothing.item() == 0
    assert all(not weight.grad.any() for weight in trainer.model.parameters() if weight.grad is not None)
    assert trainer.tokens_in(filled) == trainer.tokens_in(plain) == int(plain["attention_mask"].sum())
    named = sorted(trainer.data_rows[row]["location"] for row in plain["row"].tolist())
    assert sorted(trainer.locations_of([filled])) == named


@pytest.mark.parametrize("stage", MAKE)
def test_what_is_logged_and_evaluated_are_means_over_all_rows(model_dir, tmp_path, stage):
    """Twelve rows in batches of five, five and two; the policy stays as it is."""
    found = {}
    loss_type = ["sigmoid", "aot", "sft"] if stage == "dpo" else "kto"
    for size in (2, 5, 12):
        settings = {"per_device_train_batch_size": 5, "per_device_eval_batch_size": size, "num_train_epochs": 1}
        settings |= {"learning_rate": 0.0, "logging_steps": 99, "loss_type": loss_type}
        data = {"validation_file": [str(tmp_path / "rows.jsonl")]}
        trainer, _, _ = MAKE[stage](model_dir, tmp_path, data=data, **settings)
        found[size] = stirred(trainer).evaluate()
        trainer.train()
        logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
        names = {"rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"}
        names |= {"rewards/accuracies"} if stage == "dpo" else {"kl"}
        assert {name for name in logged if "/" in name or name == "kl"} == names
        for name in names - {"kl"}:  # whose training rows are in another order
            assert logged[name] == pytest.approx(found[size][f"eval_{name}"], abs=1e-4), name
            assert found[size][f"eval_{name}"] == pytest.approx(found[2][f"eval_{name}"], abs=1e-4)
        assert found[size]["eval_loss"] == pytest.approx(found[2]["eval_loss"], abs=1e-5)
    batch = trainer.data_collator(list(trainer.eval_dataset))
    ahead = trainer.log_probs(trainer.model.eval(), batch).detach() - trainer.reference_log_probs(batch)
    if stage == "kto":
        kl = trainer._mismatched(batch).mean().clamp(min=0)
        worth = torch.sigmoid(0.1 * torch.where(batch["label"], ahead - kl, kl - ahead))
        assert found[2]["eval_kl"] == pytest.approx(kl.item(), abs=1e-5)
        assert found[2]["eval_loss"] == pytest.approx(1 - worth.mean().item(), abs=1e-5)
        chosen, rejected = ahead[batch["label"]], ahead[~batch["label"]]
    else:
        chosen, rejected = ahead.chunk(2)
    for name, value in (("chosen", chosen.mean()), ("rejected", rejected.mean())):
        assert found[2][f"eval_rewards/{name}"] == pytest.approx(0.1 * value.item(), abs=1e-5)
    margin = 0.1 * (chosen.mean() - rejected.mean())
    assert found[2]["eval_rewards/margins"] == pytest.approx(margin.item(), abs=1e-5)


@pytest.mark.parametrize("stage", MAKE)
def test_rows_of_alike_lengths(model_dir, tmp_path, stage):
    settings = {"train_sampling_strategy": "group_by_length", "eval_strategy": "epoch", "num_train_epochs": 1}
    settings |= {"loss_type": "apo_zero_unpaired"} if stage == "kto" else {}
    data = {"validation_split_percentage": 25}
    trainer, train, _ = MAKE[stage](model_dir, tmp_path, data=data, per_device_train_batch_size=3, **settings)
    batches = list(trainer.get_train_dataloader())
    assert (
        sorted(row for batch in batches for row in batch["row"].tolist()) == list(range(len(train))) == list(range(9))
    )
    trainer.train()
    assert any("eval_loss" in entry for entry in trainer.state.log_history)


@pytest.mark.parametrize("stage", MAKE)
def test_the_adapter_is_trained_and_nothing_else(model_dir, tmp_path, stage):
    trainer, _, _ = MAKE[stage](model_dir, tmp_path, max_steps=2)
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(before[name], weight) is ("lora_" not in name), name


@pytest.mark.parametrize("stage", MAKE)
def test_the_reference_has_no_dropout(model_dir, tmp_path, stage):
    trainer, _, _ = MAKE[stage](model_dir, tmp_path)
    batch = batch_of(trainer, [0, 1, 4])
    trainer.model.eval()
    expected = trainer.reference_log_probs(batch)
    for module in trainer.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    trainer.model.train()
    assert not torch.allclose(trainer.log_probs(trainer.model, batch), expected)
    assert torch.equal(trainer.reference_log_probs(batch), expected) and trainer.model.training


def test_prompts_get_the_answer_of_the_row_before(model_dir, tokenizer, tmp_path):
    trainer, _, _ = make_kto(model_dir, tmp_path, seed=3)
    rows = list(trainer.train_dataset)
    assert sorted(row["row"] for row in rows) == list(range(12)) != [row["row"] for row in rows]
    for number, row in enumerate(rows):
        own, other = ANSWERS[row["row"]], ANSWERS[rows[number - 1]["row"]]
        assert row["label"] is own["label"]
        ids = row["input_ids"][: row["prompt_length"]] + row["KL_input_ids"][row["KL_prompt_length"] :]
        whole = conversation(own["prompt"], other["completion"])
        assert ids == tokenizer.apply_chat_template(whole, return_dict=False)
    again, _, _ = make_kto(model_dir, tmp_path, seed=3)
    assert list(again.train_dataset) == rows
    without, _, _ = make_kto(model_dir, tmp_path, loss_type="apo_zero_unpaired")
    assert not any(name.startswith("KL_") for name in without.train_dataset.column_names)


def test_the_divergence_is_that_of_the_update(model_dir, tmp_path):
    """Of all its batches together; each by itself would have another."""
    trainer = stirred(make_kto(model_dir, tmp_path)[0])
    batches = [batch_of(trainer, range(start, start + 4)) for start in (0, 4)]
    found = [trainer._mismatched(batch) for batch in batches]
    assert not math.isclose(found[0].mean(), found[1].mean(), abs_tol=1e-2)
    trainer.get_batch_samples(iter(batches), 2, torch.device("cpu"))
    assert trainer._divergence.item() == pytest.approx(torch.cat(found).mean().clamp(min=0).item(), abs=1e-5)


def test_pairs_that_cannot_be_used_are_in_the_ledger(model_dir, tmp_path):
    bad = [
        {"prompt": "一", "chosen": "年龄", "rejected": "年龄"},
        {"prompt": "一", "chosen": "年龄", "rejected": None},
        {"prompt": "一", "chosen": "年龄" * 60, "rejected": "年龄"},
    ]
    _, train, ledger = make_pairs(model_dir, tmp_path, [*PAIRS, *bad], max_length=64, data={"max_drop_ratio": 0.5})
    assert len(train) == 12 and ledger.totals == {"read": 15, "kept": 12, "dropped": 3}
    found = {status.removeprefix("dropped: "): entry.locations[0][-2:] for (_, status), entry in ledger.reasons.items()}
    assert found == {
        "chosen and rejected are the same": "13",
        "no 'rejected'": "14",
        "a side is longer than 64 tokens": "15",
    }
    with pytest.raises(UserError, match=r"12 of 12 rows cannot be used:\n  .*rows.jsonl:1: no 'chosen'"):
        make_pairs(model_dir, tmp_path, [{"prompt": row["prompt"], "rejected": row["rejected"]} for row in PAIRS])


def test_answers_of_one_kind_alone(model_dir, tmp_path, capsys):
    for label, lacking in ((True, "bad"), (False, "good")):
        rows = [{**row, "label": label} for row in ANSWERS]
        with pytest.raises(UserError, match=f"none of the 12 answers is a {lacking} one"):
            make_kto(model_dir, tmp_path, rows)
    capsys.readouterr()
    make_kto(model_dir, tmp_path)
    assert (
        "the good ones weigh 2 times as much as the bad ones; --undesirable_weight 2 makes" in capsys.readouterr().out
    )
    make_kto(model_dir, tmp_path, undesirable_weight=2.0)
    assert "makes them equal" not in capsys.readouterr().out


def test_a_head_that_would_never_be_trained(model_dir, tmp_path):
    path = tmp_path / "lora.json"
    path.write_text(json.dumps({"lora_r": 4, "target_modules": ["q_proj", "lm_head"]}))
    with pytest.raises(UserError, match=r"LoRA on the output embeddings \(lm_head\) would not be trained"):
        make_pairs(model_dir, tmp_path, model={"lora_config": str(path)})


BAD = [
    (DPOArguments, {"loss_type": ["sigmod"]}, "--loss_type sigmod: no such loss (did you mean sigmoid?)"),
    (DPOArguments, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, "--loss_weights: 1 of them for 2"),
    (DPOArguments, {"f_divergence_type": "reverse"}, "no such divergence (did you mean reverse_kl?)"),
    (DPOArguments, {"f_divergence_type": "forward_kl", "loss_type": ["aot"]}, "not with --loss_type aot"),
    (DPOArguments, {"use_weighting": True, "loss_type": ["aot"]}, "--use_weighting does not go with --loss_type aot"),
    (DPOArguments, {"loss_type": ["exo_pair"]}, "--loss_type exo_pair needs --label_smoothing above 0"),
    (DPOArguments, {"loss_type": ["robust"], "label_smoothing": 0.5}, "--label_smoothing 0.5: expected 0 to below 0.5"),
    (DPOArguments, {"beta": 0.0}, "--beta 0: expected more than 0"),
    (DPOArguments, {"ld_alpha": 1.5}, "--ld_alpha 1.5: expected 0 to 1"),
    (DPOArguments, {"max_length": 0}, "--max_length 0: expected at least 1"),
    (DPOArguments, {"padding_free": True}, "--padding_free has no effect"),
    (DPOArguments, {"truncation_mode": "keep_end"}, "--truncation_mode has no effect here; use --max_length"),
    (DPOArguments, {"model_init_kwargs": {"dtype": "float32"}}, "--model_init_kwargs has no effect here; use --dtype"),
    (
        KTOArguments,
        {"sync_ref_model": True},
        "--sync_ref_model would leave a run that is resumed without the reference",
    ),
    (KTOArguments, {"loss_type": "kta"}, "--loss_type kta: no such loss (did you mean kto?)"),
    (
        KTOArguments,
        {"per_device_train_batch_size": 1},
        "--per_device_train_batch_size 1: the loss kto estimates the KL",
    ),
    (KTOArguments, {"train_sampling_strategy": "random"}, "--train_sampling_strategy random: --loss_type kto needs"),
    (KTOArguments, {"desirable_weight": -1.0}, "--desirable_weight -1: expected at least 0"),
]


@pytest.mark.parametrize(
    ("kind", "settings", "message"), BAD, ids=lambda value: "-".join(value) if isinstance(value, dict) else None
)
def test_settings_that_cannot_work_are_named_before_anything_is_loaded(tmp_path, kind, settings, message):
    with pytest.raises(ValueError) as raised:
        kind(output_dir=str(tmp_path), report_to="none", **settings)
    assert message in str(raised.value)


def test_a_batch_of_one_is_enough_without_a_divergence(tmp_path):
    how = {"loss_type": "apo_zero_unpaired", "per_device_train_batch_size": 1, "train_sampling_strategy": "random"}
    assert KTOArguments(output_dir=str(tmp_path), report_to="none", **how).loss_type == "apo_zero_unpaired"
    for low, message in ((1.0, "--label_low has no effect without"), (None, None)):
        if message:
            with pytest.raises(ValueError, match=message):
                UnpairedArguments(train_file=["x"], label_low=low)
    with pytest.raises(ValueError, match="--label_low 5: expected at most --label_threshold"):
        UnpairedArguments(train_file=["x"], label_threshold=3.0, label_low=5.0)
