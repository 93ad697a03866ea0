"""The reward trainer: what it learns from, its loss, its head, and what is left of it when it is loaded again."""

import json

import pytest
import torch
import torch.nn.functional as F
from stage_runs import context_of, trainer_of
from transformers import AutoModelForSequenceClassification

from conftest import build_tokenizer, conversation, write_jsonl
from hf_recipes.core.errors import UserError
from hf_recipes.data.arguments import DataArguments
from hf_recipes.data.chat.preference import PairEncoder
from hf_recipes.data.examples import load_examples
from hf_recipes.evaluation.methods.preference_accuracy import PairAccuracy
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.inference.batch_options import BatchOptions
from hf_recipes.models.inference.loading import load_for_inference
from hf_recipes.models.loading import load_config
from hf_recipes.models.reward_head import load_reward_model
from hf_recipes.models.tokenizers.tokenizer import load_tokenizer
from hf_recipes.run.model import build_model
from hf_recipes.stages.reward import STAGE, RewardArguments
from hf_recipes.trainer.losses.collators import PairCollator

ROWS = [
    {"prompt": f"标准{i}：", "chosen": "年龄" * (i % 3 + 1), "rejected": "药物，睡眠" * (i % 2 + 1)} for i in range(12)
]


def make(model_dir, tmp_path, rows=ROWS, model=(), data=(), **settings):
    """Trainer, training rows and ledgers of a run on `rows`."""
    path = write_jsonl(tmp_path / "pairs.jsonl", rows)
    settings = {"report_to": "none", "bf16": False, "learning_rate": 1e-2, "save_strategy": "no", **settings}
    args = RewardArguments(output_dir=str(tmp_path / "run"), **settings)
    model_args = ModelArguments(model_dir, **dict(model))
    tokenizer, added = load_tokenizer(model_dir, or_plain=True)

    def load(*values, **kwargs):
        how = {"config": load_config(model_args, False), "initializer_range": args.initializer_range}
        return load_reward_model(*values, tokenizer=tokenizer, **how, **kwargs)

    built = build_model(model_args, args, tokenizer, added, make=load, task_type="SEQ_CLS")
    trainer, found = trainer_of(STAGE, args, DataArguments(train_file=[str(path)], **dict(data)), tokenizer, built)
    return trainer, found.train, found.ledgers["train"]


def test_pairs_are_the_conversations_of_the_template(tokenizer, tmp_path):
    talk = conversation("你好", "你好！", "几岁？")
    shapes = [
        {"prompt": "几岁？", "selected": "十八岁", "rejected": "年龄"},
        {"prompt": talk, "chosen": conversation("", "十八岁")[1:], "rejected": conversation("", "年龄")[1:]},
        {"chosen": [*talk, *conversation("", "十八岁")[1:]], "rejected": [*talk, *conversation("", "年龄")[1:]]},
        {"messages": talk, "chosen": conversation("", "十八岁")[1], "rejected": conversation("", "年龄")[1]},
        {
            "conversations": [{"from": "human", "value": "几岁？"}],
            "chosen": {"from": "gpt", "value": "十八岁"},
            "rejected": {"from": "gpt", "value": "年龄"},
        },
    ]  # fmt: skip
    for number, row in enumerate(shapes):
        [example] = load_examples([str(write_jsonl(tmp_path / f"{number}.jsonl", [row]))], form="preference")
        [pair] = PairEncoder(tokenizer).encode([example])
        before = conversation("几岁？") if number in (0, 4) else talk
        for side, answer in ((pair.chosen, "十八岁"), (pair.rejected, "年龄")):
            messages = [*before, {"role": "assistant", "content": answer}]
            assert side.input_ids.tolist() == tokenizer.apply_chat_template(messages, return_dict=False)
            assert tokenizer.decode(side.labels[side.labels != -100]) == f"{answer}<|im_end|>"


def test_a_pair_is_shown_with_its_tools(tmp_path):
    build_tokenizer(chat_template=None).save_pretrained(tmp_path)
    tokenizer, _ = load_tokenizer(str(tmp_path), "chatml")
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    row = {"prompt": "天气？", "chosen": "好", "rejected": "坏", "tools": tools}
    examples = load_examples([str(write_jsonl(tmp_path / "rows.jsonl", [row]))], form="preference")
    [pair] = PairEncoder(tokenizer).encode(list(examples))
    [text] = tokenizer.batch_decode([pair.chosen.input_ids])
    assert '"name": "weather"' in text
    table = PairEncoder(tokenizer).map_batch(examples.with_format("arrow")[:])
    assert table["chosen_ids"].to_pylist() == [pair.chosen.input_ids.tolist()]


def test_what_cannot_be_a_pair_is_in_the_ledger(model_dir, tmp_path):
    bad = [
        {"prompt": "一", "chosen": "年龄", "rejected": "年龄"},
        {"prompt": "一", "chosen": "", "rejected": "年龄"},
        {"prompt": "一", "chosen": "年龄", "rejected": None},
        {"prompt": "一", "chosen": "年龄" * 60, "rejected": "年龄"},
        {"prompt": "", "chosen": "年龄", "rejected": "药物"},
    ]
    _, train, ledger = make(model_dir, tmp_path, [*ROWS, *bad], max_length=64, data={"max_drop_ratio": 0.5})
    assert len(train) == 12 and ledger.totals == {"read": 17, "kept": 12, "dropped": 5}
    reasons = {status: entry.locations[0].rpartition(":")[2] for (_, status), entry in ledger.reasons.items()}
    found = {status.removeprefix("dropped: "): line for status, line in reasons.items()}
    assert found == {
        "chosen and rejected are the same": "13",
        "empty answer": "14",
        "no 'rejected'": "15",
        "a side is longer than 64 tokens": "16",
        "empty prompt": "17",
    }


def test_a_file_without_one_side_names_the_rows(model_dir, tmp_path):
    rows = [{"prompt": row["prompt"], "chosen": row["chosen"]} for row in ROWS]
    with pytest.raises(UserError, match=r"12 of 12 rows cannot be used:\n  .*pairs.jsonl:1: no 'rejected'"):
        make(model_dir, tmp_path, rows)


def test_a_batch_has_the_chosen_sides_first():
    pairs = [
        {"chosen_ids": [1, 2, 3], "rejected_ids": [4, 5], "row": 7},
        {"chosen_ids": [6, 7], "rejected_ids": [8], "row": -1},
    ]
    batch = PairCollator(0)(pairs)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [6, 7, 0], [4, 5, 0], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 0], [1, 0, 0]]
    assert batch["row"].tolist() == [7, -1]
    assert PairCollator(0, 4)(pairs)["input_ids"].shape == (4, 4)


def test_the_loss_is_the_mean_over_real_pairs(model_dir, tmp_path):
    trainer, _, _ = make(model_dir, tmp_path, center_rewards_coefficient=0.5, initializer_range=0.5)
    rows = [trainer.train_dataset[index] for index in (0, 1, 4)]
    batch = trainer.data_collator([*rows, trainer.padding_row(rows[0])])
    scores = []
    for row in rows:
        sides = [trainer.model(torch.tensor([row[f"{side}_ids"]])).logits.item() for side in ("chosen", "rejected")]
        scores.append(sides)
    chosen, rejected = torch.tensor(scores).T
    expected = (F.softplus(rejected - chosen) + 0.5 * (chosen + rejected) ** 2).mean()
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected.item(), abs=1e-5)
    assert trainer._get_num_items_in_batch([batch, batch], torch.device("cpu")).item() == 6
    half = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(6))
    assert half.item() == pytest.approx(expected.item() / 2, abs=1e-5)
    real = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    assert trainer.tokens_in(batch) == real
    assert [location.rpartition(":")[2] for location in trainer.locations_of([batch])] == ["1", "2", "5"]


def test_the_adapter_and_the_head_are_trained_and_nothing_else(model_dir, tmp_path):
    trainer, _, _ = make(model_dir, tmp_path, max_steps=2)
    model = trainer.model
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainer.train()
    for name, weight in model.named_parameters():
        assert torch.equal(before[name], weight) is ("lora_" not in name and "modules_to_save" not in name), name


def test_a_new_head_is_small_and_drawn_by_the_seed(model_dir, tmp_path):
    heads = {}
    for seed, width in ((1, 0.01), (1, 0.1), (2, 0.01)):
        trainer, _, _ = make(model_dir, tmp_path, seed=seed, initializer_range=width, model={"use_lora": False})
        heads[seed, width] = trainer.model.score.weight.detach()
        assert trainer.model.config.pad_token_id == 0
    assert heads[1, 0.01].std() == pytest.approx(0.01, rel=0.4)
    assert torch.allclose(heads[1, 0.1], heads[1, 0.01] * 10)
    assert not torch.equal(heads[1, 0.01], heads[2, 0.01])


def test_the_head_is_in_float32_beneath_bfloat16(model_dir, tmp_path):
    trainer, _, _ = make(model_dir, tmp_path, bf16=True)
    model = trainer.model
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16
    ids = torch.tensor([[5, 6, 7]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        score = model(ids).logits
    assert score.dtype == torch.float32 and score.item() != score.bfloat16().item()


@pytest.mark.parametrize("lora", [True, False])
def test_what_is_saved_scores_as_what_was_trained(model_dir, tmp_path, lora):
    trainer, train, _ = make(model_dir, tmp_path, max_steps=3, model={"use_lora": lora, "dtype": "float32"})
    trainer.train()
    trainer.save_model()
    folder = str(tmp_path / "run")
    expected = PairAccuracy.of_rows(train).compute(trainer.model, range(12), BatchOptions())
    where = (
        ModelArguments(model_dir, peft_path=folder, dtype="float32")
        if lora
        else ModelArguments(folder, dtype="float32")
    )
    tokenizer, _ = load_tokenizer(folder)
    again = load_for_inference(where, tokenizer, is_reward=True)
    records = PairAccuracy.of_rows(train).compute(again, range(12), BatchOptions())
    for one, two in zip(expected, records, strict=True):
        assert one["difference"] == pytest.approx(two["difference"], abs=1e-6)
    if not lora:
        plain = AutoModelForSequenceClassification.from_pretrained(folder)
        assert plain.config.num_labels == 1 and plain.config.pad_token_id == 0
        assert plain(torch.tensor([train[0]["chosen_ids"]])).logits.item() == pytest.approx(
            expected[0]["chosen"], abs=1e-5
        )


def test_a_head_that_the_adapter_lacks_is_named(model_dir, tmp_path):
    from safetensors.torch import load_file, save_file

    trainer, _, _ = make(model_dir, tmp_path)
    trainer.save_model()
    path = tmp_path / "run" / "adapter_model.safetensors"
    save_file({key: value for key, value in load_file(path).items() if "score" not in key}, path)
    with pytest.raises(UserError, match="a reward model's adapter without its head"):
        load_for_inference(
            ModelArguments(model_dir, peft_path=str(path.parent)), load_tokenizer(model_dir)[0], is_reward=True
        )


def test_models_that_do_not_fit_are_named(model_dir, tmp_path):
    reward = tmp_path / "reward"
    trainer, _, _ = make(model_dir, tmp_path, model={"use_lora": False})
    trainer.save_model(str(reward))
    larger = build_tokenizer()
    larger.add_tokens(["年龄性别", "药物睡眠"])
    with pytest.raises(UserError, match=r"the tokenizer has .* tokens and the reward model was trained with"):
        load_for_inference(ModelArguments(str(reward)), larger, is_reward=True)
    settings = json.loads((reward / "config.json").read_text())
    (reward / "config.json").write_text(
        json.dumps(settings | {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}})
    )
    with pytest.raises(UserError, match="a classifier with 2 labels"):
        make(str(reward), tmp_path)


def test_summary_of_scores():
    records = [{"source": "a", "chosen": 1.0, "rejected": 0.0}, {"source": "a", "chosen": -1.0, "rejected": 1.0}]
    found = PairAccuracy.summarise(None, records)
    assert found["accuracy"] == 0.5 and found["difference_mean"] == -0.5 and found["score_mean"] == 0.25
    assert found["loss"] == pytest.approx(F.softplus(torch.tensor([-1.0, 2.0])).mean().item())


def test_on_a_cpu_pairs_pass_one_by_one_with_the_gradients_of_the_batch(model_dir, tmp_path):
    """At most one pair's activations are held: every forward has two rows, as the dry run counts them."""
    flags = {"per_device_train_batch_size": 4, "initializer_range": 0.5, "center_rewards_coefficient": 0.5}
    trainer, _, _ = make(model_dir, tmp_path, model={"use_lora": False}, **flags)
    rows = [trainer.train_dataset[index] for index in (0, 1, 4)]
    batch = trainer.data_collator([*rows, trainer.padding_row(rows[0])])
    expected = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(3))
    expected.backward()
    gradients = {name: weight.grad.clone() for name, weight in trainer.model.named_parameters()}
    trainer.model.zero_grad()
    shapes = []
    trainer.model.model.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape)))
    trainer.create_optimizer()
    loss = trainer.training_step(trainer.model, batch, torch.tensor(3))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    for name, weight in trainer.model.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-4, atol=1e-6)
    longest = [max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows]
    assert shapes == [*((2, length) for length in longest), (2, 2)]
    args = RewardArguments(output_dir=str(tmp_path / "run"), report_to="none", per_device_train_batch_size=4)
    context = context_of(STAGE, args, tmp_path / "pairs.jsonl", load_tokenizer(model_dir, or_plain=True)[0])
    largest = STAGE.data_stats(context, STAGE.read(context)).batch
    assert (largest.rows, largest.accumulates) == (2, True)
