"""Every command of the pages, run by the shell in its page's order: tiny models and files stand where the pages name
some, and one update of a few rows is training. `make check-docs` runs it."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
import yaml
from models.tiny_families import FAMILIES, SIZES, make_base
from old_checkpoints import write_old
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForSequenceClassification

from conftest import build_tokenizer, tiny_model, write_jsonl
from doc_pages import ROOT, TWINS, commands, name_of, read
from hf_recipes.command.flags import flags_of
from hf_recipes.core.arguments.commands import find_recipe
from hf_recipes.stages.table import STAGES

pytestmark = pytest.mark.pages

# What is not run, and why.
ELSEWHERE = {
    r"pip install|python3 -m venv|\. \.venv|git clone|make |python docs/": "sets the checkout up, or is a check itself",
    r"ollama |vllm |transformers serve|sbatch |docker ": "programs that do not come with the project",
    r".* --(nnodes|machine_rank|hostfile|executor (slurm|ray)) ?": "several machines",
    r"hf-recipes (download|push(?!.*--dry_run))|.*--push_to_hub": "the network",
    r"hf-recipes (chat(?!.*--cli)|mixture|serve|studio)": "a server, which goes on until it is stopped",
    r".*--outtype q[45]_k_m": "llama.cpp's quantizer, which is compiled: tests/scripts/test_quantize.py",
    r".*--engine vllm": "a package that brings its own torch: tests/models/inference/test_vllm_model.py",
    r".*--judge http": "somebody's endpoint",
    r".*--verify True": "a model with code of its own: tests/models/conversions",
    r"hf-recipes COMMAND|hf-recipes import-config llamafactory": "a placeholder",
}
ANY_TRAINING = "--model_name_or_path MODEL --train_file train.json --validation_file dev.json --output_dir runs/x"
MODELS = (
    "MODEL",
    "JUDGE",
    "Qwen/Qwen3-0.6B",
    "Qwen/Qwen3-4B",
    "models/mine",
    "runs/base",
    "extended",
    "runs/embeddings",
)
DEMO_MODELS = (".cache/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-360M", "internlm/internlm3-8b-instruct")
DEMO_ADAPTERS = ("runs/demo-dpo", "runs/demo-reviews")
ADAPTERS = ("runs/mine", "runs/sft", "runs/dpo")
QUESTIONS = [f"第{number}问：今天的天气怎么样？" for number in range(24)]
SFT = [
    {"instruction": text, "output": "很好，适合散步。", "like_count": 20 * (number % 2)}
    for number, text in enumerate(QUESTIONS)
]
PAIRS = [{"prompt": text, "chosen": "很好。", "rejected": "不知道。"} for text in QUESTIONS]
PROMPTS = [{"input": text, "target": "好", "answer_choices": ["好", "不好"]} for text in QUESTIONS]
TEXTS = [{"text": f"{text}一条大河波浪宽，风吹稻花香两岸。" * 12} for text in QUESTIONS]
NEWS = [{"text": f"本报讯，第{number}届运动会昨日开幕，来自各地的选手参加了比赛。" * 12} for number in range(24)]
BAIKE = [{"text": f"第{number}号行星绕太阳运行，轨道接近圆形，表面有环形山和平原。" * 12} for number in range(24)]
ROWS = {
    "news/a.jsonl": NEWS,
    "news.jsonl": BAIKE,
    **dict.fromkeys(
        ("my_data.jsonl", "my_test.jsonl", "train.json", "dev.json", "test.json", "sft.json", "sft.jsonl"), SFT
    ),
    **dict.fromkeys(("runs/viewers-data/train.jsonl", "runs/bilibili-data/train.jsonl", "qq/train.jsonl"), SFT),
    **dict.fromkeys(("runs/viewers-data/test.jsonl", "runs/bilibili-data/test.jsonl", "answers.jsonl"), SFT),
    **dict.fromkeys(("PromptCBLUE/train.json", "PromptCBLUE/dev.json", "data/train.json", "data/dev.json"), PROMPTS),
    **dict.fromkeys(("questions.jsonl", "prompts.jsonl"), PROMPTS),
    **dict.fromkeys(("pairs.jsonl", ".cache/reviews/train.jsonl", ".cache/reviews/test.jsonl"), PAIRS),
    ".cache/reviews/reviews.jsonl": [{"prompt": row["prompt"], "response": row["chosen"]} for row in PAIRS],
    ".cache/reviews/continuations.jsonl": [{"prompt": row["prompt"]} for row in PAIRS],
    ".cache/reviews/long_texts.jsonl": TEXTS,
    ".cache/reviews/long_test.jsonl": [{"text": "这家酒店离车站很近，早餐的种类多，服务员热情，下次还来。"}] * 4,
    **dict.fromkeys(("wiki.jsonl", "corpus.jsonl", "held_out.jsonl", "wiki/a.jsonl"), TEXTS),
    **dict.fromkeys(("corpus/zh.jsonl", "corpus-text/zh.jsonl", "wikipedia-cn-20230720-filtered.json"), TEXTS),
}
EXAM = "question,A,B,C,D,answer\n今天天气怎么样？,好,坏,冷,热,A\n明天呢？,好,坏,冷,热,B\n"


def adapt(base: Path, folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, LoraConfig(r=2, target_modules="all-linear")).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)


@pytest.fixture(scope="session")
def materials(tmp_path_factory) -> Path:
    """A folder with all that the pages name and do not make."""
    folder = tmp_path_factory.mktemp("materials")
    tokenizer = build_tokenizer()
    model = tiny_model(len(tokenizer))
    for name in MODELS:
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for name in DEMO_MODELS:  # of as many layers as the files of LoRA name
        config = AutoConfig.for_model("llama", **SIZES | {"num_hidden_layers": 30, "vocab_size": len(tokenizer)})
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    make_base(folder / "zai-org" / "GLM-4-9B-0414", FAMILIES["GLM-4-0414"])
    write_old(folder / "zai-org" / "chatglm3-6b", "chatglm3")
    write_old(folder / "models" / "Baichuan2-7B-Chat", "baichuan2")
    reward = {**model.config.to_dict(), "num_labels": 1}
    Qwen3ForSequenceClassification(Qwen3Config(**reward)).save_pretrained(folder / "runs" / "reward")
    tokenizer.save_pretrained(folder / "runs" / "reward")
    for name in ADAPTERS:
        adapt(folder / "MODEL", folder / name)
    for name in DEMO_ADAPTERS:
        adapt(folder / DEMO_MODELS[0], folder / name)
    for name, rows in ROWS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".json"):
            (folder / name).write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        else:
            write_jsonl(folder / name, rows)
    (folder / "ceval_val.csv").write_text(EXAM, encoding="utf-8")
    for name in ("news.jsonl.zst", "baike.jsonl.zst"):
        (folder / name).write_bytes(pyarrow.compress((folder / "news.jsonl").read_bytes(), "zstd", asbytes=True))
    shutil.copytree(ROOT / "datasets" / "bilibili", folder / "data", dirs_exist_ok=True)
    export = (ROOT / "datasets" / "qq" / "全部消息记录.txt").read_bytes()
    (folder / "EXPORTS").mkdir()
    (folder / "EXPORTS" / "全部消息记录.txt").write_bytes(export.replace("豆包不加糖".encode(), b"NICKNAME"))
    for name in ("configs", "datasets", "scripts", ".cache/llama.cpp"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def outputs(command: str) -> list[str]:
    """The folders that the command makes, by its flags or those of its recipe."""
    if " --output_dir " in command:
        return re.findall(r" --output_dir (\S+)", command)
    recipes = re.findall(r" --config (\S+)", command)
    return [yaml.safe_load((ROOT / find_recipe(name)).read_text(encoding="utf-8"))["output_dir"] for name in recipes]


def is_elsewhere(command: str) -> bool:
    return any(re.match(pattern, command) for pattern in ELSEWHERE)


def shortened(command: str) -> str:
    """The command with less to do: flags behind its own."""
    match = re.search(r"scripts/(\w+)\.py|hf-recipes ([a-z-]+)", command)
    name = (match[1] or match[2]).replace("_", "-")
    known, words = flags_of(name), shlex.split(command)
    flags = {}
    if name in STAGES:
        flags |= {"max_steps": 1, "report_to": "none", "use_cpu": "true", "gradient_accumulation_steps": 1}
        flags |= {flag: 1 for flag in ("save_steps", "eval_steps", "max_eval_samples") if f"--{flag}" in words}
    if "max_new_tokens" in known and name not in ("reward", "inspect"):
        flags["max_new_tokens"] = 2
    if "pretrain_scratch" in command:  # whose schedule is of thousands of steps
        flags |= {"warmup_steps": 0, "lr_scheduler_kwargs": "'{\"num_decay_steps\": 1}'"}
    if "--block_size" in words:
        flags["block_size"] = 16
    if name == "grpo":
        flags |= {"num_generations": 2, "per_device_train_batch_size": 2, "max_completion_length": 2}
    if "--nproc_per_node" in words:
        command = re.sub(r"--nproc_per_node \d", "--nproc_per_node 2", command)
    end = match.end() + re.match(r"[^|&]*", command[match.end() :]).end()
    more = "".join(f" --{flag} {value}" for flag, value in flags.items())
    return f"{command[:end].rstrip()}{more} {command[end:]}"


@pytest.mark.parametrize("page", TWINS, ids=name_of)
def test_commands_run(page, materials, tmp_path):
    shutil.copytree(materials, tmp_path / "here", symlinks=True)
    bin_path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = os.environ | {"PATH": bin_path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    source = "corpus-text" if page.stem == "tutorial_english_to_chinese" else "corpus"
    (tmp_path / "here" / "mixture.json").write_text(json.dumps({source: 1.0}), encoding="utf-8")
    failures = []
    for command in commands(read(page)):
        if is_elsewhere(command):
            continue
        command = command.replace("…", ANY_TRAINING)
        if re.match(r"(python|hf-recipes|torchrun|accelerate|deepspeed|echo .* \|)", command):
            line = shortened(command)
        else:
            line = command
        for target in outputs(command):
            shutil.rmtree(tmp_path / "here" / target, ignore_errors=True)
        run = subprocess.run(
            line, shell=True, cwd=tmp_path / "here", env=env, capture_output=True, text=True, timeout=900
        )
        if run.returncode:
            failures.append(f"$ {line}\n{run.stdout[-600:]}{run.stderr[-1500:]}")
    assert not failures, "\n\n".join(failures)
