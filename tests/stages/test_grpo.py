"""Learning from rewards: the order of the prompts, the reference, and the loss at any accumulation."""

import numpy as np
import pytest
import torch
from stage_runs import context_of

from conftest import same, tiny_model, weights, write_jsonl
from hf_recipes.data.chat.prompts import PromptReader, read_prompts
from hf_recipes.models.adapters.lora import attach_lora, read_lora_config
from hf_recipes.models.adapters.saved_adapter import load_adapter
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.rewards.settings import RewardArguments
from hf_recipes.rewards.weighted_sum import Rewards
from hf_recipes.stages.grpo import STAGE, GroupSampler, GRPOArguments, PromptData

LORA = "configs/lora_all_linear.json"


def test_a_prompt_stands_in_a_group_and_a_batch_is_repeated():
    sampler = GroupSampler(3, group=2, prompts=2, repeats=2, seed=0, shuffle=False)
    assert list(sampler) == [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 0, 0, 2, 2, 0, 0] and len(sampler) == 16


def test_the_order_depends_on_seed_and_epoch_alone():
    sampler = GroupSampler(7, group=3, prompts=4, repeats=1, seed=5)
    first = list(sampler)
    assert list(sampler) == first and set(first) == set(range(7))
    sampler.set_epoch(1)
    assert list(sampler) != first and set(sampler) == set(range(7))
    assert first == list(GroupSampler(7, group=3, prompts=4, repeats=1, seed=5))


@pytest.fixture
def prompts(tokenizer, tmp_path):
    rows = [{"prompt": f"第{i}个问题？", "response": "好的，我们去公园散步吧！"} for i in range(4)]
    reader = PromptReader([str(write_jsonl(tmp_path / "rows.jsonl", rows))], tokenizer)
    return read_prompts(reader)[0]


def made(tokenizer, prompts, folder, model=None, has_adapter=False, reference=None, **settings):
    defaults = {"num_generations": 4, "max_completion_length": 8, "learning_rate": 1e-2, "logging_steps": 1}
    defaults |= {"report_to": "none", "bf16": False, "max_steps": 2, "save_strategy": "no", "max_source_length": 64}
    args = GRPOArguments(output_dir=str(folder), **{**defaults, **settings})
    if model is None:
        torch.manual_seed(0)
        model = attach_lora(tiny_model(len(tokenizer)), read_lora_config(LORA), LORA, [])
    rewards = Rewards(RewardArguments(["chinese", "length:2-4=0.5"]))
    model_args = ModelArguments("M", peft_path="P" if has_adapter else None)
    context = context_of(STAGE, args, "asked.jsonl", tokenizer, model_args)
    return STAGE.trainer(context, PromptData(prompts, None, {}, rewards, []), model, {}, reference)


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def test_rewards_by_source_make_up_the_reward(tokenizer, prompts, tmp_path, capsys):
    for prompt, source in zip(prompts, ("a", "few", "a", "a"), strict=True):
        prompt.source = source
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    settings |= {"max_steps": -1, "num_train_epochs": 1, "save_strategy": "steps", "save_steps": 1, "num_iterations": 2}
    trainer = made(tokenizer, prompts, tmp_path, **settings)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "items_a" in entry or "items_few" in entry]
    for entry in entries:
        counts = {name: entry.get(f"items_{name}", 0) for name in ("a", "few")}
        assert sum(counts.values()) == 8
        total = sum(entry[f"reward/{name}"] * count for name, count in counts.items() if count)
        assert entry["reward"] == pytest.approx(total / 8)
    capsys.readouterr()
    metrics = trainer.training_metrics()["sources"]
    assert {name: (source["target"], source["items"]) for name, source in metrics.items()} == {
        "a": (0.75, 12),
        "few": (0.25, 4),
    }
    assert capsys.readouterr().out.splitlines()[-3].split() == ["source", "target", "realised", "items", "reward"]
    # Between the two updates of the same answers.
    resumed = made(tokenizer, prompts, tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.training_metrics()["sources"] == metrics


def test_prompts_know_their_source(tokenizer, tmp_path):
    files = [write_jsonl(tmp_path / f"{name}.jsonl", [{"prompt": "几点？", "response": "三点"}]) for name in "ab"]
    reader = PromptReader([str(files[0]), f"few={files[1]}"], tokenizer)
    assert [prompt.source for prompt in read_prompts(reader)[0]] == ["a", "few"]


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_the_loss_is_the_same_at_any_accumulation(tokenizer, prompts, tmp_path, algorithm):
    found = []
    for size, accumulated in ((8, 1), (1, 8)):
        batch = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}
        batch |= {"optim": "sgd", "learning_rate": 1.0}  # whose updates are as large as the gradients
        trainer = made(tokenizer, prompts, tmp_path / f"{size}", algorithm=algorithm, **batch)
        trainer.train()
        trainer.save_model()
        found.append((trainer, weights(tmp_path / f"{size}")))
    (one, own), (other, theirs) = found
    for key in ("reward", "rewards/chinese/mean", "num_tokens", "completions/mean_length"):
        assert logged(one, key) == pytest.approx(logged(other, key), abs=1e-5)
    assert all(torch.allclose(own[key], theirs[key], atol=1e-5) for key in own)
    assert max(own[key].abs().max() for key in own if "lora_B" in key) > 1e-3


@pytest.mark.parametrize("begins", [True, "pissa"])
def test_a_new_adapter_is_compared_with_the_model_without_it(tokenizer, prompts, tmp_path, begins):
    lora = read_lora_config(LORA)
    lora.init_lora_weights = begins
    model = attach_lora(tiny_model(len(tokenizer)), lora, LORA, [])
    trainer = made(tokenizer, prompts, tmp_path, model, per_device_train_batch_size=8, beta=1.0)
    assert list(trainer.model.peft_config) == ["default"]
    assert {name for name, p in trainer.model.named_parameters() if p.requires_grad} == {
        name for name, _ in trainer.model.named_parameters() if "lora_" in name
    }
    trainer.train()
    kl = logged(trainer, "kl")
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[1] > 1e-6


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_a_model_without_an_adapter_is_compared_with_its_twin(tokenizer, prompts, tmp_path, algorithm):
    models = [tiny_model(len(tokenizer)) for _ in range(2)]
    how = {"per_device_train_batch_size": 8, "beta": 0.5, "temperature": 0.6, "algorithm": algorithm}
    trainer = made(tokenizer, prompts, tmp_path, models[0], reference=models[1].requires_grad_(False), **how)
    trainer.train()
    kl = logged(trainer, "kl")
    assert kl[0] == pytest.approx(0, abs=1e-6) and abs(kl[1]) > 1e-6


def test_a_trained_adapter_is_compared_with_itself_at_the_start(tokenizer, prompts, tmp_path):
    torch.manual_seed(1)
    trained = attach_lora(tiny_model(len(tokenizer)), read_lora_config(LORA), LORA, [])
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    trained.save_pretrained(tmp_path / "start")
    start = weights(tmp_path / "start")
    model = load_adapter(tiny_model(len(tokenizer)), str(tmp_path / "start"), is_trainable=True)
    trainer = made(tokenizer, prompts, tmp_path / "run", model, True, per_device_train_batch_size=8, beta=1.0)
    frozen = {name: p.clone() for name, p in trainer.model.named_parameters() if not p.requires_grad}
    assert any(".ref." in name for name in frozen)
    trainer.train()
    kl = logged(trainer, "kl")
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[1] > 1e-6
    assert all(torch.equal(p, frozen[name]) for name, p in trainer.model.named_parameters() if name in frozen)
    trainer.save_model()
    assert not (tmp_path / "run" / "ref").exists()
    assert not same(start, weights(tmp_path / "run")) and start.keys() == weights(tmp_path / "run").keys()


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
@pytest.mark.parametrize("keeps_dropout", [False, True])
def test_dropout_is_measured_as_no_difference(tokenizer, prompts, tmp_path, algorithm, keeps_dropout):
    """In the first update policy, the policy that wrote the answers and the reference are one."""
    base, lora = tiny_model(len(tokenizer)), read_lora_config(LORA)
    lora.lora_dropout = 0.1
    model = attach_lora(base, lora, LORA, [])
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1
    settings = {"per_device_train_batch_size": 8, "beta": 1.0, "max_steps": 1, "algorithm": algorithm}
    settings |= {"num_iterations": 2} if algorithm == "grpo" else {}
    settings |= {"disable_dropout": False} if keeps_dropout else {}
    trainer = made(tokenizer, prompts, tmp_path, model, True, **settings)
    found, measure = [], trainer._get_per_token_logps_and_entropies

    def measured(*args, **kwargs):
        outputs = measure(*args, **kwargs)
        found.append(outputs[0].detach())
        return outputs

    trainer._get_per_token_logps_and_entropies = measured
    trainer.train()
    written, reference, policy = (log_probs.flatten().sort().values for log_probs in found)  # of shuffled answers
    assert torch.equal(written, reference) and torch.allclose(written, policy, atol=1e-5) is not keeps_dropout
    if not keeps_dropout:
        assert logged(trainer, "kl") == pytest.approx([0], abs=1e-6)


def test_rewards_are_of_answers_without_thoughts(tokenizer, prompts, tmp_path):
    trainer = made(tokenizer, prompts, tmp_path)
    texts = ["<think>abc</think>好好", "<think>好好", "好好"]
    ids = [tokenizer.encode(text) + [tokenizer.eos_token_id] * (index != 1) for index, text in enumerate(texts)]
    rewards = trainer._calculate_rewards([{"row": 0}] * 3, None, texts, ids)
    assert rewards.tolist() == [[1, 1], [0, 0], [1, 1]]
    columns = ("prediction", "reasoning_content", "cut_while_thinking")
    assert [tuple(sample.get(name) for name in columns) for sample in trainer._samples] == [
        ("好好", "abc", False),
        ("", "好好", True),
        ("好好", None, None),
    ]
    assert trainer._metrics["train"]["completions/cut_while_thinking"] == [pytest.approx(1 / 3)]


def test_answers_end_at_the_templates_end_of_turn(tokenizer, prompts, tmp_path):
    trainer = made(tokenizer, prompts, tmp_path, per_device_train_batch_size=8)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in trainer.eos_token_ids
    assert trainer._tokenize_prompts([list(prompts[0].ids)])[0] == [prompts[0].ids.tolist()]
    assert np.array_equal(trainer.train_dataset[0]["prompt"], prompts[0].ids)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per_device_train_batch_size": 6}, r"--num_generations 4 does not divide the 6 answers .*; 3 does"),
        ({"num_generations": 1}, "at least 2 answers"),
        ({"algorithm": "rloo", "loss_type": "grpo"}, "--loss_type has no effect with --algorithm rloo"),
        ({"reward_clip_range": [-1, 1]}, "are of --algorithm rloo"),
        ({"beta": -1}, "--beta -1: expected at least 0"),
        ({"temperature": 0}, "answers have to differ"),
        ({"top_p": 2}, "--top_p 2: expected more than 0, at most 1"),
        ({"top_k": -5}, "--top_k -5: expected at least 0"),
        ({"repetition_penalty": 0.0}, "--repetition_penalty 0: expected more than 0"),
        ({"epsilon": -1.0}, "--epsilon -1: expected at least 0"),
        ({"dataloader_num_workers": -1}, "--dataloader_num_workers -1: expected at least 0"),
        ({"weight_decay": -1.0}, "--weight_decay -1: expected at least 0"),
        ({"steps_per_generation": 0}, "--steps_per_generation 0: expected at least 1"),
        ({"logging_steps": -1}, "--logging_steps -1: expected more than 0"),
        ({"torch_compile_backend": "inducer"}, "no such backend .did you mean inductor"),
        ({"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"x": 1}}, "unknown key 'x'"),
        ({"max_grad_norm": -1.0}, "--max_grad_norm -1: expected at least 0"),
        ({"loss_type": "bnpo", "gradient_accumulation_steps": 4}, "bnpo divides by the tokens of each batch, .* has 4"),
        ({"top_entropy_quantile": 0.2, "gradient_accumulation_steps": 2}, "--per_device_train_batch_size to 16"),
        (
            {"entropy_coef": 0.1, "gradient_accumulation_steps": 2, "steps_per_generation": 3},
            "--steps_per_generation 3: --entropy_coef needs a multiple of --gradient_accumulation_steps 2",
        ),
        ({"reward_weights": [1.0]}, "use --rewards NAME=WEIGHT"),
        ({"use_vllm": True}, "--use_vllm: not installed"),
    ],
)
def test_settings_that_cannot_be(tmp_path, settings, message):
    defaults = {"num_generations": 4, "per_device_train_batch_size": 8, "report_to": "none"}
    with pytest.raises(ValueError, match=message):
        GRPOArguments(output_dir=str(tmp_path), **{**defaults, **settings})
