"""Row 10 for every loss of every stage: an update is the same as 8 × 1, as 2 × 4 and in two processes."""

import json
import math
from functools import cache

import pytest
import torch
from accumulation_runs import BALANCED, CASES, PAIRS, labelled
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from conftest import build_tokenizer, tiny_model, write_jsonl

# Losses over the tokens of all pairs, over sorted pairs, and over the tokens of all answers.
COMPARING = ["dpo sigmoid sft", "dpo weighted", "dpo aot", "dpo three", "dpo aot_unpaired", "grpo entropy", "orpo"]
COMPARING += ["reward centred"]
SCRIPT = {"script": "tests/accumulation_runs.py"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found, tokenizer = tmp_path_factory.mktemp("accumulation"), build_tokenizer()
    dense = tiny_model(len(tokenizer))
    sizes = {
        name: getattr(dense.config, name) for name in ("vocab_size", "hidden_size", "num_hidden_layers", "head_dim")
    }
    experts = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    mixture = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **experts, num_key_value_heads=2, eos_token_id=2))
    for name, model in (("model", dense), ("mixture", mixture)):
        model.save_pretrained(found / name)
        tokenizer.save_pretrained(found / name)
    return found


@pytest.fixture(scope="module")
def in_one_batch(folder):
    """A case → its losses and the change of its weights, with each update in one batch."""
    return cache(lambda case: labelled(case, folder, 8, 1))


def check_same(one, other) -> None:
    (losses, change), (others, other_change) = one, other
    assert len(losses) == 2 and losses == pytest.approx(others, rel=1e-5, abs=1e-5)
    assert change.abs().max() > 1e-5 and torch.allclose(change, other_change, rtol=1e-3, atol=1e-3 * change.abs().max())


@pytest.mark.parametrize("case", [*COMPARING, *BALANCED])
def test_an_update_is_the_same_in_one_batch_and_in_four(folder, in_one_batch, case):
    check_same(in_one_batch(case), labelled(case, folder, 2, 4))


def test_an_update_is_the_same_in_two_processes(forks, folder, in_one_batch):
    run = forks.run(folder, 2, 2, "dpo three", "grpo entropy", "orpo", world=2, **SCRIPT)
    assert run.codes == [0, 0], run.err
    found = torch.load(folder / "2-2-2.pt")
    for case, one in found.items():
        check_same(in_one_batch(case), one)


def test_pairs_are_evaluated_without_the_balance_of_experts(script, folder, tmp_path):
    pairs = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    flags = ["--model_name_or_path", folder / "mixture", "--train_file", pairs, "--validation_file", pairs]
    flags += [
        "--eval_on_start",
        "--max_steps",
        2,
        "--learning_rate",
        1e-2,
        "--report_to",
        "none",
        "--output_dir",
        tmp_path / "run",
    ]
    code, _, err = script("dpo.py", *flags)
    assert code == 0, err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["before"]["loss"] == pytest.approx(math.log(2)) and metrics["after"]["loss"] < math.log(2)


@pytest.mark.slow
@pytest.mark.parametrize("stage", dict.fromkeys(stage for stage, _ in CASES.values()))
def test_every_update_is_the_same_at_any_width(forks, folder, stage):
    cases = [case for case, (its, _) in CASES.items() if its == stage]
    found = {}
    for batch, accumulation, world in ((8, 1, 1), (2, 4, 1), (4, 1, 2), (2, 2, 2)):
        run = forks.run(folder, batch, accumulation, *cases, world=world, **SCRIPT)
        assert set(run.codes) == {0}, run.err
        found[batch, accumulation, world] = torch.load(folder / f"{batch}-{accumulation}-{world}.pt")
    one, *others = found.values()
    for case in cases:
        for other in others:
            check_same(one[case], other[case])
