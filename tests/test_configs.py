"""Every file under configs/ is read by what it is for."""

import json
import subprocess

import pytest
import torch
from accelerate.commands.config.config_args import ClusterConfig
from models.tiny_families import FAMILIES as TINY
from old_checkpoints import FAMILIES
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig, unset_hf_deepspeed_config

from conftest import ROOT, tiny_model
from hf_recipes.apps.mixture.sizes import folder_sizes
from hf_recipes.core.arguments.settings import Parser
from hf_recipes.data.pretraining.mixture_policy import read_policy
from hf_recipes.evaluation.judging.arguments import JudgeArguments, JudgePrompt
from hf_recipes.evaluation.registry import EvaluationArguments
from hf_recipes.models.adapters.lora import read_lora_config
from hf_recipes.models.from_config import PretrainModelArguments, read_model_config
from hf_recipes.models.quantization.settings import read_bnb_config
from hf_recipes.models.tokenizers.special_tokens import read_special_tokens
from hf_recipes.models.tokenizers.tokenizer import load_tokenizer
from hf_recipes.stages.sft import SFTArguments
from hf_recipes.stages.table import STAGES

CONFIGS = ROOT / "configs"


def read_lora(path):
    assert read_lora_config(str(path)).r > 0


def read_bnb(path):
    config = read_bnb_config(str(path))
    assert config.load_in_4bit is (path.stem == "bnb_nf4") and config.load_in_8bit is not config.load_in_4bit


def read_recipe(path):
    stage = STAGES.get(path.stem.partition("_")[0], STAGES["sft"])
    flags = ["--config", str(path), "--output_dir", "O", "--report_to", "none"]
    flags += ["--tokenizer_name", "M"] if stage.name == "pretrain" else ["--model_name_or_path", "M"]
    flags += [] if stage.name == "pretrain" else ["--reward_model", "R"]  # of demos, those that make names
    kinds = [stage.model, stage.data, stage.arguments, EvaluationArguments]
    _, data, _, evaluation = Parser(kinds).parse(flags)
    files = [*data.train_file, *(data.validation_file or ()), *evaluation.named_files().values()]
    yours = {"train.jsonl", "pairs.jsonl", "rated.jsonl", "prompts.jsonl", "corpus"}  # of recipes to start from
    files = set(files) - yours
    assert all((ROOT / name).exists() for name in files if not name.startswith(("runs/", ".cache/")))


def read_model(path, tokenizer):
    """A shape of about as many weights as it is called, with a vocabulary as large as theirs are."""
    arguments = PretrainModelArguments(config_name=str(path), tokenizer_name="M")
    config = read_model_config(arguments, tokenizer)
    config.vocab_size = 49_152
    with torch.device("meta"):
        count = AutoModelForCausalLM.from_config(config).num_parameters()
    named = {"qwen3_17m": 17e6, "qwen3_30m": 30e6, "qwen3_120m": 120e6, "qwen3_1b4": 1.4e9}[path.stem]
    assert 0.9 < count / named < 1.1


def read_deepspeed(path):
    """As the Trainer does: what is "auto" gets its value, and DeepSpeed accepts the whole."""
    from deepspeed.runtime.config import DeepSpeedConfig

    settings = HfTrainerDeepSpeedConfig(str(path))
    try:
        args = SFTArguments(output_dir="O", report_to="none", per_device_train_batch_size=3, max_grad_norm=0.5)
        settings.trainer_config_process(args)
        settings.trainer_config_finalize(args, tiny_model(64), 10)
    finally:
        unset_hf_deepspeed_config()
    assert "auto" not in json.dumps(settings.config)
    config = DeepSpeedConfig(settings.config | {"train_batch_size": 3})
    assert config.zero_optimization_stage == int(path.stem.removeprefix("zero")[0])
    assert (config.zero_config.offload_optimizer is not None) is path.stem.endswith("offload")
    assert (config.zero_config.offload_param is not None) is (path.stem == "zero3_offload")
    assert (config.train_micro_batch_size_per_gpu, config.gradient_clipping) == (3, 0.5)


def read_accelerate(path):
    config = ClusterConfig.from_yaml_file(str(path))  # refuses unknown keys
    assert config.num_processes >= 1 and config.use_cpu is (path.stem == "cpu")
    if file := (config.deepspeed_config or {}).get("deepspeed_config_file"):
        stage = json.loads((ROOT / file).read_text())["zero_optimization"]["stage"]
        assert path.stem.startswith(f"ds_stage{stage}")
        assert config.deepspeed_config["zero3_init_flag"] is (stage == 3)


def read_slurm(path):
    subprocess.run(["bash", "-n", path], check=True)
    assert "#SBATCH --signal=TERM@" in path.read_text()


def read_mixture(path):
    """Its shares sum to one as they stand, and its sources are there."""
    policy = read_policy(str(path))
    assert dict(policy.sources) == json.loads(path.read_text())["sources"]
    assert set(policy.sources) == set(folder_sizes(str(ROOT / "datasets" / "pretrain")).amounts)


def read_special(path, tokens_only):
    """A tokenizer gets the tokens, and its new template writes them."""
    special = read_special_tokens(str(path))
    tokenizer, added = load_tokenizer(tokens_only, special_tokens=str(path))
    assert set(added) <= set(special.tokens) and all(special.tokens.values())
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "问"}], tokenize=False)
    assert tokenizer.eos_token == special.roles["eos_token"] and tokenizer.eos_token in rendered


def read_judge(path):
    """All that the judge needs is in it."""
    prompt = JudgePrompt(JudgeArguments(judge="M", judge_prompt=str(path)), "pairwise", ["评论"])
    assert prompt.fields == ["question", "answer_a", "answer_b", "reference"]
    assert all(f"[[{verdict}]]" in prompt.text for verdict in "ABC")


KINDS = {
    "lora_*.json": read_lora,
    "bnb_*.json": read_bnb,
    "recipes/*.yaml": read_recipe,
    "deepspeed/*.json": read_deepspeed,
    "accelerate/*.yaml": read_accelerate,
    "slurm/*.slurm": read_slurm,
    "mixtures/*.json": read_mixture,
    "judge/*.txt": read_judge,
    "models/*.json": read_model,
    "special_tokens/*.json": read_special,
}
FILES = sorted(path.relative_to(CONFIGS) for path in CONFIGS.rglob("*") if path.is_file())


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_configuration_is_read(path, tokenizer, tokens_only):
    [read] = [function for pattern, function in KINDS.items() if path.match(pattern)]
    more = {read_model: [tokenizer], read_special: [tokens_only]}
    read(CONFIGS / path, *more.get(read, []))


def test_each_lora_file_is_held_against_a_family():
    """Those of the table are held against each layer in tests/models/test_families.py; ChatGLM is a Glm, converted."""
    files = {path.stem.removeprefix("lora_") for path in CONFIGS.glob("lora_*.json")}
    assert files - {family.lora for family in TINY.values()} == {"chatglm", "baichuan", "demo", "reviews"}
    with torch.device("meta"):
        glm, llama = (
            AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, num_hidden_layers=1))
            for kind in ("glm", "llama")
        )
    names = {
        "chatglm": [name for name, _ in glm.named_modules()],
        **{key: [name for name, _ in llama.named_modules()] for key in ("demo", "reviews")},
        "baichuan": [name.format(0).removesuffix(".weight") for name in FAMILIES["baichuan2"].sizes],  # its own code
    }
    for file, layers in names.items():
        targets = read_lora_config(str(CONFIGS / f"lora_{file}.json")).target_modules
        assert all(sum(name.endswith(f".{target}") for name in layers) == 1 for target in targets)
