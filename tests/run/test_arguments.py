"""Every setting that a stage inherits acts, or is refused in a sentence before anything is read."""

import ast
import dataclasses
import functools
import importlib
import inspect
import json
import pkgutil
import re
import sys
from contextlib import nullcontext
from itertools import chain
from pathlib import Path

import pytest
import transformers
import yaml
from transformers import TrainingArguments
from trl import DPOConfig, GRPOConfig, KTOConfig, RewardConfig, RLOOConfig, SFTConfig

import hf_recipes
from conftest import write_pairs
from hf_recipes.core.arguments.settings import DEFAULTS, Parser
from hf_recipes.core.errors import UserError
from hf_recipes.evaluation.registry import EvaluationArguments
from hf_recipes.run.arguments import FSDP_KEYS
from hf_recipes.run.inherited import UNUSABLE, unused_steps
from hf_recipes.stages.dpo import DPOArguments
from hf_recipes.stages.grpo import GRPOArguments
from hf_recipes.stages.kto import KTOArguments
from hf_recipes.stages.orpo import ORPOArguments
from hf_recipes.stages.pretrain import PretrainArguments
from hf_recipes.stages.reward import RewardArguments
from hf_recipes.stages.sft import SFTArguments
from hf_recipes.stages.table import STAGES as TABLE


def names(text: str) -> list[str]:
    return text.split()


# What acts in every stage: seen in transformers' Trainer (5.23) or in ours, which read it.
ACTS = names("""
    output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type
    lr_scheduler_kwargs warmup_steps optim weight_decay adam_beta1 adam_beta2 adam_epsilon gradient_accumulation_steps
    max_grad_norm bf16 fp16 tf32 activation_checkpointing gradient_checkpointing torch_compile torch_compile_backend
    torch_compile_mode torch_empty_cache_steps logging_strategy logging_steps logging_first_step log_on_each_node
    logging_nan_inf_filter log_level log_level_replica disable_tqdm report_to run_name eval_strategy eval_steps
    eval_delay per_device_eval_batch_size eval_on_start save_only_model save_strategy save_steps
    save_total_limit push_to_hub hub_token hub_private_repo hub_model_id hub_strategy load_best_model_at_end
    metric_for_best_model full_determinism seed use_cpu dataloader_num_workers dataloader_pin_memory
    ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout fsdp
    deepspeed debug skip_memory_metrics resume_from_checkpoint local_rank use_liger_kernel
""")
ROWS = names("data_seed train_sampling_strategy trust_remote_code")
PAIRS = names("disable_dropout max_length pad_to_multiple_of activation_offloading")
REFERENCE = names("precompute_ref_log_probs router_aux_loss_coef beta loss_type")
STAGES = {
    SFTArguments: (
        SFTConfig,
        ROWS,
        names("""eos_token label_smoothing_factor average_tokens_across_devices neftune_noise_alpha router_aux_loss_coef
        max_length packing padding_free pad_to_multiple_of loss_type activation_offloading"""),
    ),
    PretrainArguments: (TrainingArguments, names("average_tokens_across_devices neftune_noise_alpha")),
    RewardArguments: (RewardConfig, ROWS, PAIRS, names("eos_token neftune_noise_alpha center_rewards_coefficient")),
    DPOArguments: (
        DPOConfig,
        ROWS,
        PAIRS,
        REFERENCE,
        names("loss_weights ld_alpha f_divergence_type use_weighting"),
    ),
    KTOArguments: (KTOConfig, ROWS, PAIRS, REFERENCE, names("desirable_weight undesirable_weight")),
    ORPOArguments: (
        TrainingArguments,
        names("data_seed train_sampling_strategy neftune_noise_alpha"),
    ),
    GRPOArguments: (
        GRPOConfig,
        names("""chat_template_kwargs data_seed trust_remote_code router_aux_loss_coef
        disable_dropout
        cast_lm_head_to_fp32 num_generations max_completion_length ds3_gather_for_generation shuffle_dataset
        pad_to_multiple_of generation_batch_size steps_per_generation temperature top_p top_k repetition_penalty
        use_vllm beta num_iterations epsilon epsilon_high delta importance_sampling_level multi_objective_aggregation
        scale_rewards
        loss_type mask_truncated_completions top_entropy_quantile entropy_coef use_adaptive_entropy
        off_policy_mask_threshold use_bias_correction_kl log_completions
        use_transformers_continuous_batching use_transformers_paged"""),
    ),
}
NUMBERS = {"per_device_train_batch_size": 8, "report_to": "none"}


def other_than(value):
    """A value of the same type, where it has one."""
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int | float) else "other"


def shown(value) -> str:
    return "-".join(value) if isinstance(value, dict) else ""


def refusal(kind, **settings) -> str | None:
    """The sentence that says why `kind` does not take these, if it is about them."""
    try:
        kind(output_dir="run", **{**NUMBERS, **settings})
    except (ValueError, ImportError) as error:
        return str(error)
    return None


def names_read(module) -> set[str]:
    """Of the settings that a module's code reads: ``args.NAME``, ``self.args.NAME``, ``getattr(args, "NAME", …)``."""
    owner = ("args", "self") if module is transformers.training_args else ("args",)
    read = set()
    for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            read |= {node.attr} if ast.unparse(node.value).split(".")[-1] in owner else set()
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and len(node.args) > 1:
            of, name = node.args[:2]
            read |= {name.value} if ast.unparse(of) in owner and isinstance(name, ast.Constant) else set()
    return read


@functools.cache
def read_by_the_stage(kind) -> set[str]:
    """Settings that transformers, the classes of the stage's trainers, or ours read."""
    [stage] = [stage for stage in TABLE.values() if stage.arguments is kind]
    modules = {transformers.training_args, transformers.trainer, transformers.trainer_callback}
    ours = [name for _, name, _ in pkgutil.walk_packages(hf_recipes.__path__, "hf_recipes.")]
    modules |= {importlib.import_module(name) for name in ours if "templates" not in name or name.endswith("options")}
    trainers = [value for value in vars(sys.modules[stage.trainer.__module__]).values() if isinstance(value, type)]
    bases = {base for trainer in trainers if issubclass(trainer, transformers.Trainer) for base in trainer.__mro__}
    modules |= {sys.modules[base.__module__] for base in bases if base.__module__.startswith(("trl.", "transformers."))}
    return set().union(*map(names_read, modules))


def check_inherited(kind, config, acts: set[str]) -> set[str]:
    """Each field of `config` is named as one that acts, and is read; or it is refused. The latter are returned."""
    defaults = {one.name: one for one in dataclasses.fields(kind)}
    inherited = {one.name for one in dataclasses.fields(config)}
    assert acts <= inherited
    assert not acts & {*UNUSABLE, *kind.unusable}
    refused = inherited - acts
    for name in sorted(refused):
        one = defaults[name]
        default = one.default if one.default_factory is dataclasses.MISSING else one.default_factory()
        said = refusal(kind, **{name: other_than(default)})
        assert said and said.startswith(f"--{name} ") and len(said) < 250, f"{name}: {said}"
        assert kind(output_dir="run", **{**NUMBERS, name: default})
    return refused


@pytest.mark.parametrize("kind", STAGES, ids=lambda kind: kind.__name__)
def test_an_inherited_setting_acts_or_is_refused(kind):
    config, *more = STAGES[kind]
    acts = {*ACTS, *chain(*more)}
    assert acts - read_by_the_stage(kind) == {"local_rank"}  # DeepSpeed's launcher gives it to every script
    assert check_inherited(kind, config, acts) >= {"do_train", "ignore_data_skip", "use_cache"}
    new = [("next_version", bool, dataclasses.field(default=False))]
    kind, config = (dataclasses.make_dataclass(one.__name__, new, bases=(one,)) for one in (kind, config))
    with pytest.raises(AssertionError, match="next_version: None"):
        check_inherited(kind, config, acts)


def test_rloo_refuses_what_only_grpo_has():
    acts = {*ACTS, *STAGES[GRPOArguments][1]} - {one.name for one in dataclasses.fields(RLOOConfig)}
    defaults = {one.name: one.default for one in dataclasses.fields(GRPOArguments)}
    assert acts >= {"delta", "loss_type", "entropy_coef"}
    for name in acts:
        said = refusal(GRPOArguments, algorithm="rloo", **{name: other_than(defaults[name])})
        assert said == f"--{name} has no effect with --algorithm rloo"


ALLOWED = [
    (DPOArguments, {"label_smoothing": 0.1, "loss_type": ["sigmoid", "robust"]}),
    (DPOArguments, {"f_alpha_divergence_coef": 0.3, "f_divergence_type": "alpha_divergence"}),
    (DPOArguments, {"discopop_tau": 0.1, "loss_type": ["discopop"]}),
    (KTOArguments, {"precompute_ref_batch_size": 2, "precompute_ref_log_probs": True}),
    (SFTArguments, {"label_smoothing_factor": 0.1}),
    (SFTArguments, {"packing": True, "shuffle_dataset": True}),
    (SFTArguments, {"greater_is_better": True, "metric_for_best_model": "rougeL"}),
    (SFTArguments, {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}),
    (SFTArguments, {"optim": "sgd", "optim_args": "momentum=0.9"}),
    (SFTArguments, {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}),
    (SFTArguments, {"include_num_input_tokens_seen": "false"}),
    (SFTArguments, {"adam_beta2": 0.95, "optim": "adamw_torch"}),
    (SFTArguments, {"adam_beta2": 0.95, "optim": transformers.training_args.OptimizerNames.ADEMAMIX}),
    (SFTArguments, {"warmup_steps": 5, "lr_scheduler_type": "constant_with_warmup"}),
    (PretrainArguments, {"warmup_steps": 0, "lr_scheduler_type": "constant"}),
    (SFTArguments, {"eval_delay": 1, "eval_steps": 2}),
    (GRPOArguments, {"loss_type": "sapo", "sapo_temperature_pos": 2.0}),
    (GRPOArguments, {"use_adaptive_entropy": True, "entropy_target": 0.5}),
]


@pytest.mark.parametrize(
    ("kind", "settings"), ALLOWED, ids=lambda value: "-".join(value) if type(value) is dict else ""
)
def test_what_it_needs_makes_a_setting_act(kind, settings):
    assert refusal(kind, **settings) is None


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (SFTArguments, {"report_to": "none,swanlab"}, "--report_to none,swanlab: none stands alone"),
        (DPOArguments, {"report_to": ["tensorboard", "all"]}, "--report_to tensorboard,all: all stands alone"),
        (SFTArguments, {"loss_type": "nlll"}, "--loss_type nlll: no such loss; there are nll and dft"),
        (SFTArguments, {"loss_type": "dft", "label_smoothing_factor": 0.1}, "no effect without --loss_type nll"),
        (SFTArguments, {"use_liger_kernel": True}, "--use_liger_kernel: not installed"),
        (RewardArguments, {"max_new_tokens": 4}, "--max_new_tokens has no effect here"),
        (
            KTOArguments,
            {"warmup_steps": 5, "lr_scheduler_type": "constant"},
            "--warmup_steps has no effect without a --lr",
        ),
        (DPOArguments, {"adam_beta2": 0.9, "optim": "sgd"}, "--adam_beta2 has no effect without an --optim that has"),
        (SFTArguments, {"eval_delay": 1}, "--eval_delay has no effect without --eval_steps or --eval_strategy"),
        (SFTArguments, {"ddp_backend": "gloo"}, "--ddp_backend has no effect without a launcher of several processes"),
        (SFTArguments, {"hub_strategy": "every_save"}, "--hub_strategy has no effect without --push_to_hub"),
        (PretrainArguments, {"hub_private_repo": False}, "--hub_private_repo has no effect without --push_to_hub"),
        (GRPOArguments, {"hub_target": "modelscope"}, "--hub_target has no effect without --push_to_hub"),
        (
            SFTArguments,
            {"gradient_checkpointing": True, "activation_checkpointing": False},
            "--gradient_checkpointing and --activation_checkpointing contradict each other",
        ),
    ],
    ids=shown,
)
def test_settings_that_contradict_each_other(kind, settings, said, monkeypatch):
    monkeypatch.setattr("hf_recipes.run.arguments.find_spec", lambda name: None if "liger" in name else name)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert said in (refusal(kind, **settings) or "nothing was said")


@pytest.mark.parametrize("value", ["true", "all", "non_padding"])
def test_tokens_are_counted_once_whatever_is_asked_for(value, tmp_path):
    argv = ["--output_dir", str(tmp_path), "--report_to", "none", "--include_num_input_tokens_seen", value]
    with pytest.raises(UserError, match="--include_num_input_tokens_seen has no effect here; tokens without padding"):
        Parser([SFTArguments]).parse(argv)


def test_a_mixtures_balance_is_for_mixtures(sft, model_dir, pairs, tmp_path):
    argv = ["--model_name_or_path", model_dir, "--train_file", pairs / "train.json", "--output_dir", tmp_path / "run"]
    code, _, err = sft(*argv, "--router_aux_loss_coef", 0.1, "--dry_run")
    assert code == 1 and "--router_aux_loss_coef is for mixtures of experts; qwen3 is not one" in err


# Of all weights, and with an adapter: ten times as much, as in TRL's examples.
LEARNING_RATES = {
    "sft": (2e-5, 2e-4),
    "pretrain": (3e-4, 3e-4),
    "reward": (1e-5, 1e-4),
    "dpo": (1e-6, 1e-5),
    "orpo": (8e-6, 8e-5),
    "kto": (1e-6, 1e-5),
    "grpo": (1e-6, 1e-5),
}


def parsed(stage, *flags):
    one = TABLE[stage]
    parser = Parser([one.model, one.data, one.arguments, EvaluationArguments])
    needed = ["--model_name_or_path", "m", "--train_file", "t", "--output_dir", "o", "--report_to", "none"]
    needed += ["--rewards", "chinese", "--num_generations", "4"] if stage == "grpo" else []
    return parser, parser.parse([*needed, *map(str, flags)])[2]


@pytest.mark.parametrize("stage", TABLE)
def test_the_learning_rate_by_default_is_larger_with_an_adapter(tmp_path, stage):
    for use_lora, rate in zip((False, True), LEARNING_RATES[stage], strict=True):
        parser, args = parsed(stage, "--use_lora", use_lora)
        parser.save_settings(tmp_path / "run.yaml")
        _, _, defaults = (tmp_path / "run.yaml").read_text().partition(DEFAULTS)
        assert args.learning_rate == parser.recorded()["learning_rate"] == yaml.safe_load(defaults)["learning_rate"]
        assert args.learning_rate == rate
        trained = "with an adapter" if use_lora else "where all weights are trained"
        words = f"learning rate {rate:g}, the default {trained}; --learning_rate for another"
        assert args.learning_rate_by_default(use_lora) == words
        assert parsed(stage, "--config", tmp_path / "run.yaml")[1].learning_rate == rate


def test_a_learning_rate_that_is_given_wins(tmp_path):
    for rate in (2e-5, 2e-4):  # what is a default of the one or the other too
        (tmp_path / "run.yaml").write_text(f"learning_rate: {rate}\n")
        for flags in (["--learning_rate", rate], ["--config", tmp_path / "run.yaml"]):
            parser, args = parsed("sft", *flags)
            parser.save_settings(tmp_path / "saved.yaml")
            changed, _, _ = (tmp_path / "saved.yaml").read_text().partition(DEFAULTS)
            assert args.learning_rate == rate == yaml.safe_load(changed)["learning_rate"]


def test_keys_of_fsdp_are_those_that_transformers_reads(tmp_path):
    source = inspect.getsource(TrainingArguments)
    read = re.findall(r"self\.fsdp_config(?:\[|\.get\(|\.setdefault\(|\.pop\()\s*[\"'](\w+)[\"']", source)
    assert len(set(read)) > 10 and set(read) <= set(FSDP_KEYS.split())
    given = {"fsdp_version": 2, "cpu_offlod": True}
    with pytest.raises(ValueError, match=r"--fsdp_config: unknown key 'cpu_offlod' \(did you mean cpu_offload\?\)"):
        SFTArguments(output_dir=str(tmp_path), report_to="none", fsdp="full_shard", fsdp_config=given)


def test_deepspeeds_learning_rate_is_the_default(tmp_path, monkeypatch):
    path = tmp_path / "ds.json"
    for value, expected in ((3e-5, {"learning_rate": 3e-5}), ("auto", {"learning_rate": 2e-4})):
        path.write_text(json.dumps({"optimizer": {"type": "AdamW", "params": {"lr": value}}}))
        assert SFTArguments.dependent_defaults({"use_lora": True, "deepspeed": str(path)}) == expected
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
        assert SFTArguments.dependent_defaults({"use_lora": True, "deepspeed": None}) == expected
        monkeypatch.delenv("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    for text in ("{}", "[]", "{"):
        path.write_text(text)
        assert SFTArguments.dependent_defaults({"use_lora": False, "deepspeed": str(path)}) == {}


def test_a_run_says_which_learning_rate_it_takes(sft, model_dir, tmp_path):
    train = write_pairs(tmp_path / "data") / "train.json"
    flags = ["--model_name_or_path", model_dir, "--train_file", train, "--output_dir", tmp_path / "run", "--dry_run"]
    line = "learning rate 0.0002, the default with an adapter; --learning_rate for another"
    assert line in sft(*flags)[1].splitlines()
    assert "learning rate" not in sft(*flags, "--learning_rate", 1e-3)[1]


def test_the_precision_of_accelerates_file(tmp_path, monkeypatch):
    given = functools.partial(SFTArguments, output_dir=str(tmp_path), report_to="none", use_cpu=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert given().bf16 and given(bf16=True).bf16
    for flags in ({"bf16": False}, {"fp16": True}):
        with pytest.raises(ValueError, match="accelerate's mixed_precision is bf16, and the flags say otherwise"):
            given(**flags)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(ValueError, match="accelerate's mixed_precision is fp8"):
        given()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # also where the file names none
    assert given(bf16=True).bf16


def test_numbers_of_steps_that_the_strategy_has_no_use_for(tmp_path):
    given = functools.partial(SFTArguments, output_dir=str(tmp_path), report_to="none", use_cpu=True)
    assert unused_steps(given(save_strategy="epoch", eval_steps=3)) == []
    unused = ["--save_steps has no effect with --save_strategy epoch"]
    unused += ["--eval_steps has no effect with --eval_strategy epoch"]
    assert unused_steps(given(save_strategy="epoch", save_steps=7, eval_strategy="epoch", eval_steps=3)) == unused


@pytest.mark.parametrize(
    ("loss_type", "name", "acts"),
    [("sapo", "epsilon", False), ("vespo", "delta", False), ("cispo", "epsilon_high", True), ("dapo", "delta", True)],
)
def test_losses_that_clip_nothing(tmp_path, loss_type, name, acts):
    flags = {"loss_type": loss_type, name: 4, "per_device_train_batch_size": 8, "beta": 0.0}
    with nullcontext() if acts else pytest.raises(ValueError, match=f"--{name} has no effect without a --loss_type"):
        GRPOArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, **flags)
