"""From what is filled in on the page to command lines."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from hf_recipes.apps.jobs.jobs import FOLDER, settings_of_run
from hf_recipes.apps.jobs.roots import Roots
from hf_recipes.core.arguments.commands import recipes
from hf_recipes.core.arguments.flags import as_flags, as_taken, as_text
from hf_recipes.core.errors import UserError
from hf_recipes.core.files import SettingsLoader, read_mapping, write_jsonl
from hf_recipes.evaluation.reports.phrases import Phrase
from hf_recipes.importers.output import test_rows_of

Flags = Callable[[str], Mapping[str, Mapping[str, Any]]]  # of a command, as `CommandLine.of` takes them
STAGES = ("sft", "pretrain", "reward", "dpo", "orpo", "kto", "grpo")
# The settings that matter most; the page has the first fifteen of them that the stage has.
MAIN = (
    *("max_steps", "num_train_epochs", "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("rewards", "num_generations", "max_completion_length", "beta", "label_column", "max_length", "block_size"),
    *("use_lora", "lora_config", "load_in_4bit", "thinking", "validation_split_percentage", "eval_steps"),
    *("save_steps", "logging_steps", "packing", "warmup_steps", "lr_scheduler_type", "gradient_checkpointing", "seed"),
)
ELSEWHERE = {"model_name_or_path", "train_file", "output_dir", "dry_run", "json", "config", "overwrite_output_dir"}
REFUSED = {"hub_token", "resume_from_checkpoint", "push_to_hub"}
TRUST = {"trust_remote_code", "trust_checkpoint"}
COLUMNS = ("prompt_column", "response_column", "ignore_columns")  # chosen beside the data
TEXTS = {"system_prompt", *COLUMNS}  # settings that are no path, whatever they look like
TRIAL = 200  # rows
PLAN = (".hf_recipes/plan", "--dry_run", "--json")
SPLITS = {"validation_file", "validation_split_percentage"}
FORMS = {"lora": {}, "qlora": {"load_in_4bit": True}, "full": {"use_lora": False}}
CHECKED = {"max_length": 512, "per_device_train_batch_size": 1, "gradient_checkpointing": True}


def main_settings(flags: Flags, stage: str) -> list[str]:
    known = flags(stage)
    names = [name for name in MAIN if name in known and (name != "rewards" or "num_generations" in known)]
    return names[:15]


def recipe_settings(name: str) -> dict[str, Any]:
    """Of a recipe, without what the page asks for by itself."""
    values = read_mapping(str(recipes()[name]), "--config", as_yaml=True, as_text=False)
    return {key: value for key, value in values.items() if key not in ELSEWHERE | {"validation_file", "tokenizer_name"}}


def recipes_of(stage: str) -> list[str]:
    """Those of a stage: of SFT also those that are named after what they are for."""
    named = {name: next((one for one in STAGES if name.startswith(one)), "sft") for name in recipes()}
    return [name for name, of in named.items() if of == stage]


class Commands:
    """Command lines from a visitor's `form`; what leaves the roots is a UserError.

    Args:
        flags: see `Flags`.
        trusts: allow settings that run code of others.
    """

    def __init__(self, roots: Roots, flags: Flags, trusts: bool):
        self.roots, self.flags, self.trusts = roots, flags, trusts

    def model(self, form: Mapping[str, Any]) -> str:
        name = (form.get("model") or "").strip()
        if not name:
            raise UserError(Phrase("no model is named yet; name one under Model"))
        self.roots.check(name)
        return name

    def data(self, form: Mapping[str, Any]) -> list[str]:
        specs = [line.strip() for line in (form.get("data") or "").splitlines() if line.strip()]
        if not specs:
            raise UserError(Phrase("no data are named yet; upload or name some under Data"))
        if dashed := next((spec for spec in specs if spec.startswith("-")), None):
            raise UserError(Phrase("{name}: no name of data begins with a dash", name=dashed))
        self.roots.check(specs)
        return specs

    def settings(self, form: Mapping[str, Any]) -> dict[str, Any]:
        """What is set in the fields, and over it in the editor, where it differs from the defaults."""
        stage, known = form["stage"], self.flags(form["stage"])
        fields = {
            name: text for name, text in form.get("fields", {}).items() if name in main_settings(self.flags, stage)
        }
        try:
            more = yaml.load(form.get("yaml") or "", SettingsLoader) or {}
        except yaml.YAMLError as error:
            raise UserError(Phrase("the editor: not YAML ({error})", error=" ".join(str(error).split()))) from None
        if not isinstance(more, dict):
            raise UserError(Phrase("the editor: expected a line `name: value` for each setting"))
        for name in more:
            if name in ELSEWHERE:
                raise UserError(Phrase("the editor: {name} is set in another field of the page", name=name))
            if name in REFUSED or (name in TRUST and not self.trusts):
                hint = "; see --trust_remote_code of the studio" if name in TRUST else ""
                raise UserError(Phrase("the editor: {name} cannot be set on the page{hint}", name=name, hint=hint))
        more = {name: as_taken(value, known.get(name, {}).get("nargs") == "+") for name, value in more.items()}
        fields = {name: text for name, text in fields.items() if text and text != as_text(known[name].get("default"))}
        columns = {name: form[name] for name in COLUMNS if form.get(name) and name in known}
        settings = {**columns, **fields, **more}
        self.roots.check({name: value for name, value in settings.items() if name not in TEXTS})
        return settings

    def training(self, form: Mapping[str, Any], output_dir: str, *more: str) -> list[str]:
        stage = form["stage"]
        argv = [stage, f"--model_name_or_path={self.model(form)}", "--train_file", *self.data(form)]
        settings = self.settings(form)
        if not settings.keys() & SPLITS and (test := test_rows_of(self.data(form), self.roots.home)):
            settings["validation_file"] = test
        if form.get("trial") and "max_train_samples" in self.flags(stage):
            settings = {"max_train_samples": TRIAL, **settings}
        return [*argv, f"--output_dir={output_dir}", *as_flags(settings), *more]

    def inspection(self, form: Mapping[str, Any]) -> list[str]:
        stage, *argv = self.training(form, "inspection")
        argv.remove("--output_dir=inspection")
        return ["inspect", f"--stage={stage}", *argv, "--json", "--examples=3", f"--language={form['language']}"]

    def model_check(self, form: Mapping[str, Any]) -> list[list[str]]:
        """A dry run for each form of training, on a row of 512 tokens."""
        sample = self.roots.home / FOLDER / "sample.jsonl"
        turns = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "今天天气很好。" * 200}]
        write_jsonl(sample, [{"messages": turns}])
        model = ["sft", f"--model_name_or_path={self.model(form)}", "--train_file", self.roots.relative(sample)]
        end = ["--output_dir=.hf_recipes/check", "--dry_run", "--json"]
        return [[*model, *as_flags({**CHECKED, **settings}), *end] for settings in FORMS.values()]

    def convert(self, form: Mapping[str, Any], folder: str) -> list[str]:
        source, me, is_crawl = self.data(form), (form.get("me") or "").split(), form["import"] == "bilibili"
        argv = ["prepare-bilibili", "--input_dir"] if is_crawl else ["prepare-chat", "--input"]
        argv += [*source, f"--output_dir={folder}", *as_flags({"privacy": bool(form.get("privacy")), "test_size": 0.1})]
        return argv if is_crawl or not me else [*argv, "--me", *me]

    def evaluation(self, run: Path, held_out: str, form: Mapping[str, Any], output_dir: str) -> list[str]:
        """`held_out` is a file; empty for what the run held out."""
        models, compare = self.of_run(run)
        argv = ["evaluate", *models, *compare, f"--output_dir={output_dir}"]
        if held_out:
            self.roots.check(held_out)
            argv += ["--eval_files", f"held_out={held_out}"]
        argv += [f"--max_eval_samples={form['count']:.0f}", f"--language={form['language']}", "--json"]
        return [*argv, "--overwrite_output_dir=true"]

    def chat_models(self, run: Path) -> list[str]:
        models = self.of_run(run)[0]
        return [*models, "--compare_with=base"] if len(models) > 1 else models

    def of_run(self, run: Path) -> tuple[list[str], list[str]]:
        """Flags for the model of a run with its adapter, and for what to compare it with."""
        name, base = self.roots.relative(run), settings_of_run(run).get("model_name_or_path") or ""
        if (run / "adapter_config.json").is_file():
            return [f"--model_name_or_path={base}", f"--peft_path={name}"], ["--compare=base"]
        return [f"--model_name_or_path={name}"], [f"--compare={base}"] if base else []
