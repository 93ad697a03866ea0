"""The commands, and where their scripts and the configurations that come with them are."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import hf_recipes

PACKAGE = Path(hf_recipes.__file__).parent


@dataclass(frozen=True)
class Command:
    """A script, and what its ``--help`` shows."""

    script: str
    # Headings, and the flags under them that matter; none where all flags are shown.
    main_flags: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)  # scripts in its place, by the flag that asks for them

    def script_for(self, argv: Sequence[str]) -> Path:
        flags = {item.split("=")[0].lstrip("-").replace("-", "_") for item in argv if item.startswith("--")}
        return bundled(f"scripts/{next((self.others[name] for name in self.others if name in flags), self.script)}")

    @property
    def scripts(self) -> list[str]:
        return [self.script, *self.others.values()]

    @property
    def sentence(self) -> str:
        return " ".join(self._paragraphs()[0].split())

    @property
    def examples(self) -> list[str]:
        """Command lines of the script, each with its continuations."""
        lines = "\n".join(self._paragraphs()[1:]).replace("\\\n", "\0").splitlines()
        return [line.replace("\0", "\\\n") for line in lines if line]

    def _paragraphs(self) -> list[str]:
        text = bundled(f"scripts/{self.script}").read_text(encoding="utf-8")
        return ast.get_docstring(ast.parse(text)).split("\n\n")


def bundled(name: str) -> Path:
    """A file or folder of scripts/ or configs/, which an installation has within the package, a checkout beside it."""
    path = PACKAGE / name
    return path if path.exists() else PACKAGE.parent / name


def config_path(name: str) -> str:
    """`name`, or the file that comes with the package, where `name` begins with configs/ and is not here."""
    is_bundled = name.startswith("configs/") and not Path(name).exists() and bundled(name).exists()
    return str(bundled(name)) if is_bundled else name


def recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return {path.stem: path for path in sorted(bundled("configs/recipes").glob("*.yaml"))}


def find_recipe(name: str) -> str:
    """A recipe: `name` as a path, else the one of that name that comes with the package."""
    path = recipes().get(name.removesuffix(".yaml"))
    return name if path is None or Path(name).is_file() else str(path)


def _training(data: str, training: str = "", model: str = "model_name_or_path lora_config load_in_4bit") -> dict:
    steps = "learning_rate num_train_epochs per_device_train_batch_size gradient_accumulation_steps"
    return {
        "Model": model,
        "Data": data,
        "Training": f"{training} {steps}",
        "Run": "output_dir eval_files config dry_run resume_from_checkpoint",
    }


_ANSWERS = "max_new_tokens temperature batch_size"
COMMANDS = {
    "pretrain": Command(
        "pretrain.py",
        _training("train_file mixture block_size", model="model_name_or_path config_name tokenizer_name"),
    ),
    "sft": Command("sft.py", _training("train_file validation_split_percentage max_length")),
    "reward": Command("reward.py", _training("train_file validation_split_percentage max_length")),
    "dpo": Command("dpo.py", _training("train_file max_length", "beta")),
    "orpo": Command("orpo.py", _training("train_file max_length", "beta")),
    "kto": Command("kto.py", _training("train_file max_length", "beta")),
    "grpo": Command(
        "grpo.py",
        _training(
            "train_file max_completion_length",
            "rewards reward_model",
            model="model_name_or_path peft_path",
        ),
    ),
    "prepare-corpus": Command(
        "prepare_corpus.py",
        {
            "Data": "input_files schema prompt_column output_dir",
            "Cleaning": "control_characters nfkc quality exact_dedup near_dedup privacy",
            "Tokens": "tokenize model_name_or_path",
            "Run": "workers config overwrite_output_dir",
        },
    ),
    "prepare-bilibili": Command(
        "prepare_bilibili.py",
        {
            "Data": "input_dir output_dir total test_size max_turns",
            "Conversations": "thread title_template parent_template system_prompt",
            "Cleaning": "privacy reply_loops emoji_only near_dedup",
            "Run": "config overwrite_output_dir",
        },
    ),
    "prepare-chat": Command(
        "prepare_qq.py",
        {
            "Data": "input format me output_dir total test_size",
            "Conversations": "session_gap max_turns speakers system_prompt",
            "Cleaning": "privacy recalled media_marks",
            "Run": "config overwrite_output_dir",
        },
    ),
    "inspect": Command(
        "inspect_data.py",
        {
            "Model": "model_name_or_path chat_template thinking",
            "Data": "train_file schema max_length stage config",
            "Report": "html examples show",
            "Others": "tokenizer text score judge",
        },
    ),
    "evaluate": Command(
        "evaluate.py",
        {
            "Model": "model_name_or_path peft_path load_in_4bit compare",
            "Data": "eval_files eval_methods max_eval_samples",
            "Answers": f"{_ANSWERS} thinking",
            "Run": "output_dir judge config overwrite_output_dir",
        },
    ),
    "predict": Command(
        "predict.py",
        {
            "Model": "model_name_or_path peft_path load_in_4bit",
            "Data": "input_file output_file prompt_column system_prompt max_source_length",
            "Answers": f"{_ANSWERS} thinking",
            "Run": "submission config overwrite_output",
        },
    ),
    "score": Command(
        "score.py",
        {
            "Model": "model_name_or_path peft_path load_in_4bit",
            "Data": "input_file output_file schema prompt_column response_column max_length",
            "Run": "batch_size config overwrite_output",
        },
    ),
    "merge": Command("merge_adapter.py"),
    "export": Command("export.py"),
    "push": Command("push.py"),
    "download": Command("download.py"),
    "convert": Command("convert_checkpoint.py", others={"gguf_file": "convert_gguf.py"}),
    "train-tokenizer": Command(
        "train_tokenizer.py",
        {
            "Data": "train_file mixture prompt_column max_bytes held_out_share",
            "Tokenizer": "model_type vocab_size character_coverage split_digits byte_fallback special_tokens",
            "Run": "output_dir seed config",
        },
    ),
    "extend-tokenizer": Command(
        "extend_tokenizer.py",
        {
            "Data": "train_file mixture prompt_column max_bytes held_out_share",
            "Tokenizer": "tokenizer_name num_new_tokens words special_tokens max_token_length",
            "Run": "output_dir seed config",
        },
    ),
    "extend-model": Command("extend_model.py"),
    "chat": Command(
        "chat.py",
        {
            "Model": "model_name_or_path peft_path load_in_4bit gpus",
            "Answers": "system_prompt thinking temperature max_new_tokens",
            "Page": "cli language host port auth max_waiting config",
        },
    ),
    "serve": Command(
        "serve.py",
        {
            "Model": "model_name_or_path peft_path load_in_4bit gpus engine",
            "Answers": "system_prompt thinking temperature max_new_tokens batch_size",
            "Server": "host port api_key_file allow_origin config",
        },
    ),
    "mixture": Command("mixture_viewer.py"),
    "studio": Command("studio.py"),
}
OTHER_NAMES = {"prepare-qq": "prepare-chat", "merge-adapter": "merge", "inspect-data": "inspect"}
