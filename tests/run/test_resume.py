"""What a run that resumes may change, and what not; whole runs of it are in tests/stages/test_contract.py."""

import dataclasses
import json
import shutil

import pytest

from hf_recipes.core.arguments.settings import Parser
from hf_recipes.core.errors import UserError
from hf_recipes.evaluation.registry import EvaluationArguments
from hf_recipes.run.resume import (
    CONTENTS,
    EVALUATED,
    MAY_CHANGE,
    OTHERWISE,
    begun_with,
    compare_data,
    compare_settings,
    read_begun_with,
)
from hf_recipes.stages.table import STAGES

ONE = ("--model_name_or_path", "a/model", "--train_file", "a.json", "--output_dir", "run", "--report_to", "none")
ONE += ("--learning_rate", 1e-4)  # else it follows --use_lora


@pytest.fixture
def checkpoint(tmp_path) -> str:
    folder = tmp_path / "run" / "checkpoint-30"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text('{"global_step": 30}')
    (folder / "adapter_config.json").touch()
    return str(folder)


def begin(*flags, stage="sft", steps=60, digest="d", processes=1):
    kinds = STAGES[stage]
    parser = Parser([kinds.model, kinds.data, kinds.arguments, EvaluationArguments])
    more = ("--rewards", "chinese", "--num_generations", 2) if stage == "grpo" else ()
    values = (*ONE, *more)
    others = [item for pair in zip(values[::2], values[1::2], strict=True) if pair[0] not in flags for item in pair]
    _, _, args, _ = parser.parse(list(map(str, (*others, *flags))))
    data = {"what": "rows", "rows": 40, "tokens": 1000, "digest": digest}
    return {**begun_with(parser, args), "data": data, "steps": steps, "processes": processes}, args


def compare(checkpoint, one, two, **both):
    (was, _), (now, args) = begin(*one, **both), begin(*two, **both)
    compare_settings(checkpoint, was, now, args)


REFUSED = [
    ("learning_rate", 1e-4, 1e-3),
    ("lr_scheduler_type", "linear", "cosine"),
    ("warmup_steps", 0.0, 5.0),
    ("seed", 42, 1),
    ("data_seed", None, 1),
    ("max_length", 256, 512),
    ("packing", False, True),
    ("optim", "adamw_torch", "adafactor"),
    ("weight_decay", 0.0, 0.1),
    ("max_grad_norm", 1.0, 0.5),
    ("neftune_noise_alpha", None, 5.0),
    ("chat_template", "chatml", "vicuna"),
    ("train_on", "all", "last"),
    ("max_train_samples", None, 10),
    ("validation_split_percentage", None, 10.0),
    ("train_sampling_strategy", "random", "sequential"),
    ("use_lora", True, False),
    ("peft_path", None, "b/adapter"),
    ("bf16", False, True),
]


@pytest.mark.parametrize(("name", "before", "after"), REFUSED)
def test_what_would_have_no_effect_or_lose_rows_is_refused(checkpoint, name, before, after):
    one, two = ([] if value is None else [f"--{name}", value] for value in (before, after))
    with pytest.raises(UserError) as error:
        compare(checkpoint, one, two)
    assert str(error.value) == (
        f"{checkpoint} was written with other settings: --{name} {after}, was {before}. Resume with what it was "
        f"written with, or start a new run from its weights with --peft_path {checkpoint} and another --output_dir"
    )
    compare(checkpoint, two, two)


def test_what_may_change_is_said_in_one_line(checkpoint, capsys):
    flags = ("--logging_steps", 5, "--save_steps", 7, "--eval_files", "dev=b.json", "--dataloader_num_workers", 2)
    compare(checkpoint, (), (*flags, "--output_dir", "other", "--gradient_accumulation_steps", 1))
    assert capsys.readouterr().out == (
        "changed since step 30: --logging_steps 5.0, was 10; --save_steps 7.0, was 500; --dataloader_num_workers 2, "
        "was 0; --eval_files ['dev=b.json'], was None\n"
    )
    best = ("--metric_for_best_model", "dev_loss")
    with pytest.raises(UserError, match=r"other settings: --eval_files \['dev=b.json'\], was None\."):
        compare(checkpoint, best, (*best, *flags))  # figures of two evaluations would be compared


@pytest.mark.parametrize("stage", STAGES)
def test_every_setting_that_is_not_known_is_refused(stage):
    kinds = STAGES[stage]
    types = (kinds.model, kinds.data, kinds.arguments, EvaluationArguments)
    names = {field.name for kind in types for field in dataclasses.fields(kind)}
    denied = names - MAY_CHANGE - OTHERWISE
    assert {"learning_rate", "seed", "model_name_or_path", "optim", "warmup_steps", "use_lora"} <= denied
    assert not (names & MAY_CHANGE & {"beta", "loss_type", "temperature", "mixture", "block_size", "rewards"})
    every = {
        field.name
        for one in STAGES.values()
        for kind in (one.model, one.data, one.arguments, EvaluationArguments)
        for field in dataclasses.fields(kind)
    }
    assert every >= MAY_CHANGE | OTHERWISE | CONTENTS and EVALUATED < MAY_CHANGE  # no name is misspelt


def test_rewards_are_evaluations_except_where_they_are_what_is_learned(checkpoint, capsys):
    two = ("--rewards", "rouge", "--eval_files", "dev=b.json")
    compare(checkpoint, (), two)
    assert "--rewards ['rouge'], was None" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--rewards \['rouge'\], was \['chinese'\]"):
        compare(checkpoint, (), ("--rewards", "rouge"), stage="grpo")
    with pytest.raises(UserError, match=r"is of a run of SFT, and this is one of DPO. Resume"):
        compare_settings(checkpoint, begin()[0], *begin(stage="dpo"))


def test_files_and_folders_count_by_what_they_hold(checkpoint, tmp_path, capsys):
    lora, reward, model = tmp_path / "lora.json", tmp_path / "reward.py", tmp_path / "model"
    special = tmp_path / "special.json"
    model.mkdir()

    def write(alpha=16, code="a", config="{}", token="<a>"):
        special.write_text(json.dumps({"tokens": [token]}))
        lora.write_text(json.dumps({"lora_r": 8, "lora_alpha": alpha}))
        reward.write_text(code)
        (model / "config.json").write_text(config)

    flags = ("--lora_config", lora, "--model_name_or_path", model, "--add_special_tokens", special)
    flags += ("--rewards", f"{reward}:f=0.5", "--num_generations", 2)
    write()
    was, _ = begin(*flags, stage="grpo")
    for change, message in (
        ({"alpha": 64}, f"--lora_config {lora}: lora_alpha 64, was 16."),
        ({"code": "b"}, f"--rewards ['{reward}:f=0.5'], whose contents were others."),
        ({"config": '{"a": 1}'}, f"--model_name_or_path {model}, whose contents were others."),
        ({"token": "<b>"}, f"--add_special_tokens {special}: tokens ['<b>'], was ['<a>']."),
    ):
        write(**change)
        now, args = begin(*flags, stage="grpo")
        with pytest.raises(UserError) as error:
            compare_settings(checkpoint, was, now, args)
        assert f"was written with other settings: {message} Resume" in str(error.value)
    write()
    shutil.copytree(model, tmp_path / "moved")
    lora.write_text('{"lora_alpha": 16,\n "lora_r": 8}')
    now, args = begin(*flags, "--model_name_or_path", tmp_path / "moved", stage="grpo")
    compare_settings(checkpoint, was, now, args)
    said = f"--model_name_or_path {tmp_path}/moved (the same contents), was {model}"
    assert capsys.readouterr().out == f"changed since step 30: {said}\n"


@pytest.mark.parametrize("name", ["validation_file", "eval_files", "few_shot_file"])
def test_rows_to_evaluate_on_count_by_what_they_hold(checkpoint, tmp_path, capsys, name):
    data = tmp_path / "data" if name == "validation_file" else tmp_path / "data.json"
    file = data / "dev.json" if name == "validation_file" else data
    file.parent.mkdir(exist_ok=True)
    flags = [f"--{name}", f"dev={data}" if name == "eval_files" else data]
    flags += ["--few_shot", 1] if name == "few_shot_file" else []
    file.write_text('{"a": 1}')
    (was, _), (best, _) = begin(*flags), begin(*flags, "--metric_for_best_model", "loss")
    assert '"a"' not in json.dumps(was)  # rows may be personal
    file.write_text('{"a": 2}')
    now, args = begin(*flags)
    compare_settings(checkpoint, was, now, args)
    assert "whose contents were others" in capsys.readouterr().out
    now, args = begin(*flags, "--metric_for_best_model", "loss")
    with pytest.raises(UserError, match=rf"other settings: --{name} .*, whose contents were others\. Resume"):
        compare_settings(checkpoint, best, now, args)
    file.write_text('{"a": 1}')
    data.rename(tmp_path / f"moved{data.suffix}")
    flags[1] = str(flags[1]).replace("data", "moved")
    now, args = begin(*flags, "--metric_for_best_model", "loss")
    compare_settings(checkpoint, best, now, args)
    assert "(the same contents), was" in capsys.readouterr().out


def test_the_rows_of_an_update(checkpoint, capsys):
    def widths(one, two, *flags, stage="sft"):
        (was, _), (now, args) = (
            begin(
                "--per_device_train_batch_size", b, "--gradient_accumulation_steps", a, *flags, stage=stage, processes=p
            )
            for b, a, p in (one, two)
        )
        compare_settings(checkpoint, was, now, args)

    with pytest.raises(
        UserError, match=r"--per_device_train_batch_size 2 × --gradient_accumulation_steps 2 × 1 process, was"
    ):
        widths((8, 1, 1), (2, 2, 1), "--inexact_resume")
    with pytest.raises(
        UserError, match=r"4 × --gradient_accumulation_steps 2 × 1 process, .*\(--inexact_resume allows"
    ):
        widths((8, 1, 1), (4, 2, 1))
    widths((8, 1, 1), (4, 2, 1), "--inexact_resume")
    widths((2, 2, 2), (4, 2, 1), "--inexact_resume")
    assert capsys.readouterr().out.count("changed since step 30: --per_device_train_batch_size 4 × ") == 2
    with pytest.raises(UserError, match="--gradient_accumulation_steps 2 × 1 process, was"):
        widths((2, 2, 2), (2, 2, 1), "--inexact_resume")
    widths((2, 2, 2), (2, 2, 1), stage="pretrain")  # each document once, at any width
    with pytest.raises(UserError, match="× 1 process, was"):
        widths((2, 2, 1), (2, 4, 1), stage="pretrain")


STABLE = ("--lr_scheduler_type", "warmup_stable_decay", "--decay_ratio", 0.2)


@pytest.mark.parametrize(
    ("flags", "total", "is_allowed"),
    [
        (("--lr_scheduler_type", "constant"), 90, True),
        (("--lr_scheduler_type", "constant_with_warmup", "--warmup_steps", 10), 90, True),
        (("--lr_scheduler_type", "constant_with_warmup", "--warmup_steps", 0.2), 90, False),
        (("--lr_scheduler_type", "inverse_sqrt"), 90, True),
        (("--lr_scheduler_type", "linear"), 90, False),
        (("--lr_scheduler_type", "linear", "--warmup_steps", 30), 90, True),  # it has not begun to fall
        (("--lr_scheduler_type", "cosine"), 90, False),
        (("--lr_scheduler_type", "cosine"), 30, True),  # nothing is left to train
        (STABLE, 90, True),
        (STABLE, 36, False),  # it would have begun to fall before step 30
    ],
)
def test_more_steps_where_the_learning_rate_does_not_jump(checkpoint, flags, total, is_allowed, capsys):
    stage = "pretrain" if flags is STABLE else "sft"
    was, _ = begin(*flags, "--max_steps", 60, "--warmup_steps", 0, *flags, stage=stage)
    now, args = begin(*flags, "--max_steps", total, "--warmup_steps", 0, *flags, stage=stage, steps=total)
    compare_settings(checkpoint, was, now, args)
    if is_allowed:
        compare_data(checkpoint, was, now, args)
        assert capsys.readouterr().out == f"changed since step 30: {total} steps, was 60\n"
        return
    with pytest.raises(UserError) as error:
        compare_data(checkpoint, was, now, args)
    assert (
        f"is of a run of 60 steps, and this one has {total} (--max_steps {total}, was 60): the learning rate of "
        f"--lr_scheduler_type {flags[1]} follows their number and would jump. Resume with" in str(error.value)
    )


def test_the_data_by_its_digest(checkpoint, capsys):
    was, args = begin()
    compare_data(checkpoint, was, begin("--train_file", "b.json")[0], args)
    assert capsys.readouterr().out == "changed since step 30: --train_file b.json, was a.json (the same rows)\n"
    with pytest.raises(
        UserError, match=r"\(--train_file a.json\): again 40 rows with 1,000 tokens, but others\. Resume"
    ):
        compare_data(checkpoint, was, begin(digest="e")[0], args)


def test_a_checkpoint_of_a_former_version_says_nothing(checkpoint, capsys):
    assert read_begun_with(checkpoint) is None
    assert f"{checkpoint} does not say with which settings and data it was written" in capsys.readouterr().out
