"""DeepSpeed's file of settings: what it leaves out, and what is wrong in it."""

import re
from contextlib import nullcontext

import pytest
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from hf_recipes.core.errors import UserError
from hf_recipes.stages.table import STAGES
from hf_recipes.trainer.deepspeed_config import (
    KNOWN,
    check_agrees,
    check_deepspeed_values,
    check_replaced,
    read_deepspeed,
)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"zero_optimization": {"stage": 2, "offload_optimiser": {"device": "cpu"}}},
            'zero_optimization.offload_optimiser is {"device": "cpu"}: Extra inputs are not permitted',
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "gpu"}}},
            'zero_optimization.offload_optimizer.device is "gpu": Input should be',
        ),
        ({"optimizer": {"type": "AdamWW"}}, 'optimizer.type is "AdamWW", which DeepSpeed has not'),
        ({"optimizer": {"params": {"lr": 1}}}, "optimizer.type is null"),
        ({"scheduler": {"type": "WarmUp"}}, 'scheduler.type is "WarmUp"'),
    ],
)
def test_a_deepspeed_file_of_values_that_deepspeed_lacks(settings, message):
    config = {"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}}
    config |= {"optimizer": {"type": "AdamW"}, "scheduler": {"type": "WarmupLR"}}
    check_deepspeed_values("--deepspeed ds.json", config)
    with pytest.raises(UserError, match=re.escape(f"--deepspeed ds.json: {message}")):
        check_deepspeed_values("--deepspeed ds.json", config | settings)


def test_a_deepspeed_file_of_a_windows_editor(tmp_path):
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 2}}', encoding="utf-8-sig")
    assert read_deepspeed(str(tmp_path / "ds.json"))["zero_optimization"] == {"stage": 2}


def test_what_a_deepspeed_file_leaves_out_follows_the_flags(tmp_path):
    """DeepSpeed would clip no gradient, and compute in float32."""
    flags = {"bf16": True, "max_grad_norm": 0.5, "gradient_accumulation_steps": 3, "per_device_train_batch_size": 2}
    args = STAGES["sft"].arguments(output_dir=str(tmp_path), report_to="none", **flags)
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 2}, "bfloat16": {"enabled": true}}')
    config = HfTrainerDeepSpeedConfig(read_deepspeed(str(tmp_path / "ds.json")))
    config.trainer_config_process(args)
    assert config.config == {
        "zero_optimization": {"stage": 2},
        "bf16": {"enabled": True},
        "fp16": {"enabled": False},
        "gradient_clipping": 0.5,
        "gradient_accumulation_steps": 3,
        "train_micro_batch_size_per_gpu": 2,
        "train_batch_size": 6,
    }


@pytest.mark.parametrize(
    ("section", "kind", "flags", "message"),
    [
        ("optimizer", "AdamW", {"optim": "adafactor"}, "--optim has no effect with the optimizer in ds.json"),
        ("optimizer", "AdamW", {"optim": "adamw_torch"}, None),
        ("scheduler", "WarmupLR", {"lr_scheduler_type": "cosine"}, "--lr_scheduler_type has no effect with the sched"),
        ("scheduler", "WarmupCosineLR", {"lr_scheduler_type": "cosine"}, None),
        ("scheduler", "WarmupLR", {"learning_rate": 1e-3}, None),
    ],
)
def test_an_optimizer_or_schedule_of_the_flags_that_deepspeeds_file_replaces(tmp_path, section, kind, flags, message):
    args = STAGES["sft"].arguments(output_dir=str(tmp_path), report_to="none", **flags)
    check_replaced("ds.json", {}, args)
    with pytest.raises(UserError, match=message) if message else nullcontext():
        check_replaced("ds.json", {section: {"type": kind}}, args)


def test_a_misspelled_key_of_a_deepspeed_file(tmp_path):
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 2}, "gradient_cliping": 1.0}')
    message = "ds.json: gradient_cliping: DeepSpeed reads no such key (did you mean gradient_clipping?)"
    with pytest.raises(UserError, match=re.escape(message)):
        read_deepspeed(str(tmp_path / "ds.json"))


def test_known_keys_of_deepspeed_are_those_that_it_looks_for(monkeypatch):
    import deepspeed
    from deepspeed.runtime.config import DeepSpeedConfig

    class Recorder(dict):
        def get(self, key, default=None):
            asked.add(key)
            return super().get(key, default)

        def __contains__(self, key):
            asked.add(key)
            return super().__contains__(key)

        def __getitem__(self, key):
            asked.add(key)
            return super().__getitem__(key)

    asked = set()
    monkeypatch.setattr(deepspeed.comm, "get_world_size", lambda: 1)
    DeepSpeedConfig(Recorder(train_batch_size=1, zero_optimization={"stage": 2}))
    assert len(asked) > 40
    assert asked - set(KNOWN.split()) == set()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_batch_size": 64}, "train_batch_size is 64, and 8 by the flags"),
        ({"train_micro_batch_size_per_gpu": 3}, "train_micro_batch_size_per_gpu is 3, and 8 by the flags"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 0.5}}}, "optimizer.params.lr is 0.5, and 0.001 by the flags"),
        ({"bf16": {"enabled": True}}, "bf16.enabled is True, and False by the flags"),
    ],
)
def test_a_deepspeed_file_that_says_otherwise_than_the_flags(tmp_path, settings, message):
    args = STAGES["sft"].arguments(output_dir=str(tmp_path), report_to="none", bf16=False, learning_rate=1e-3)
    config = HfTrainerDeepSpeedConfig({"zero_optimization": {"stage": 2}, **settings})
    config.trainer_config_process(args)
    with pytest.raises(UserError, match=f"--deepspeed ds.json: {message}"):
        check_agrees("--deepspeed ds.json", config)
