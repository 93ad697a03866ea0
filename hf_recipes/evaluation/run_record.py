"""What a run was trained with, by its record: evaluations and answers after it are those in its course."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hf_recipes.core.arguments.limits import PositiveInt
from hf_recipes.core.arguments.settings import setting
from hf_recipes.core.errors import say
from hf_recipes.core.files import read_mapping
from hf_recipes.data.arguments import RowArguments
from hf_recipes.data.chat.encoder import SplitTurns, Truncation
from hf_recipes.data.chat.truncation import total_length
from hf_recipes.data.examples import load_examples
from hf_recipes.data.schemas.registry import SCHEMAS
from hf_recipes.models.devices import cpu_computes_bf16
from hf_recipes.models.inference.loading import computes_bf16

if TYPE_CHECKING:
    from datasets import Dataset

RECORD = "run_config.yaml"
ROWS = tuple(field.name for field in fields(RowArguments))
BUDGETS = ("train_on", "split_turns", "max_source_length", "max_target_length", "max_length", "truncation_side")
BUDGETS += ("truncation",)
BEFORE = {"few_shot_file": "choice", "few_shot": "choice", "nll_prefix_token": "text"}  # which rows, by their form
SHAPE = {"schema", *(name for name in ROWS if name.endswith("_column"))}
SHOWN = 40  # characters of a value in a message


@dataclass
class EvaluatedRows(RowArguments):
    """How the rows of --eval_files are read, and cut; by default as in the run that made the model or the adapter."""

    max_eval_samples: PositiveInt | None = setting("Evaluate on the first so many rows of each file.")
    max_source_length: PositiveInt | None = setting("Tokens of a prompt at the most.")
    max_target_length: PositiveInt | None = setting("Tokens of a reference answer that nll counts at the most.")
    max_length: PositiveInt | None = setting("Tokens of a prompt and its reference answer at the most.")
    max_pair_length: PositiveInt | None = setting(
        "Tokens of a side of a pair; pairs with a longer one are left out, which is counted."
    )
    train_on: Literal["all", "last"] | None = setting("Assistant turns that nll counts; by default all.")
    split_turns: SplitTurns | None = setting("When turns are rows of their own, as in training.")
    truncation_side: Literal["left", "right"] | None = setting("Side on which an over-long question is cut.")
    truncation: Truncation | None = setting("Cut reference answers over their budget that nll counts, or drop the row.")
    text_as: Literal["continuation", "question"] | None = setting(
        "Rows of bare text are continued (the default), or sent as a user's question."
    )

    @property
    def budgets(self) -> dict[str, Any]:
        """The keywords of `ChatEncoder` that are set."""
        return {name: value for name in BUDGETS if (value := getattr(self, name)) is not None}

    def load(self, path: str, form: str, cache_dir: str | None) -> "Dataset":
        """The first `max_eval_samples` examples of a file; see `load_examples`."""
        settings = {"form": form, "cache_dir": cache_dir, "encoding": self.encoding}
        examples = load_examples([path], self.columns, split="test", **settings)
        count = min(len(examples), self.max_eval_samples or len(examples))
        return examples.select(range(count)) if count < len(examples) else examples


def settings_after(run: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an evaluation that gives the figures of a run with these settings, by the evaluation's names."""
    names = (*ROWS, *BUDGETS, *BEFORE, "text_as", "max_drop_ratio", "chat_template_date", "dtype")
    settings = {name: run[name] for name in names if run.get(name) is not None}
    if settings.get("schema") not in SCHEMAS:  # of documents
        settings.pop("schema", None)
    if "train_on" in run:
        settings["max_length"] = total_length(*(run.get(name) for name in BUDGETS[2:5]))
    elif "max_length" in settings:
        settings["max_pair_length"] = settings.pop("max_length")
    if settings.get("dtype", "auto") == "auto" and (run.get("bf16") is False or not run.get("use_lora", True)):
        settings["dtype"] = "float32"  # that of weights that are all trained, too
    lengths = (run.get(name) for name in ("max_new_tokens", "max_completion_length", "max_target_length"))
    settings["max_new_tokens"] = next(filter(None, lengths), 256)
    settings |= {name: run[name] for name in ("max_thinking_tokens",) if name in run}
    temperature = run.get("eval_temperature") or ("max_completion_length" in run and run.get("temperature"))
    settings |= {"do_sample": True, "temperature": temperature} if temperature else {}
    settings |= {"batch_size": size} if (size := run.get("per_device_eval_batch_size")) else {}
    return settings


def rows_of(*arguments: Any) -> EvaluatedRows:
    """How a run with these arguments reads rows to evaluate on."""
    settings = settings_after({name: value for one in arguments for name, value in vars(one).items()})
    names = {field.name for field in fields(EvaluatedRows)}
    return EvaluatedRows(**{name: value for name, value in settings.items() if name in names})


def _bf16_by_default(run: Mapping[str, Any]) -> bool:
    return not run.get("fp16") and (cpu_computes_bf16() if run.get("use_cpu") else computes_bf16())


class RunRecord:
    """The settings that a run leaves to what comes after it.

    Args:
        folder: of an adapter or a model: a run's, or a checkpoint in it. Others have no record.
        given: names of the settings that the user gave, which win; a column or the schema stands for all of `SHAPE`.

    Attributes:
        may_lack: whether no column or schema was named for the files themselves.
    """

    def __init__(self, folder: str, given: Collection[str] = ()):
        self.folder = folder
        self.path, self.run, self.settings = None, {}, {}
        self.given = set(given)
        self.may_lack = not self.given & SHAPE
        if not self.may_lack:
            self.given |= SHAPE
        if self.given & {"num_beams", "do_sample"}:
            self.given |= {"do_sample", "temperature"}
        above = [Path(folder).parent] if os.path.isfile(os.path.join(folder, "trainer_state.json")) else []
        for candidate in (Path(folder), *above):
            if (candidate / RECORD).is_file():
                self.path = candidate / RECORD
                self.run = read_mapping(str(self.path), "the run's record", as_yaml=True, as_text=False)
                self.settings = settings_after(self.run)
                break

    def apply(self, *arguments: Any) -> list[Any]:
        """`arguments` with the run's settings where the user gave none; what was taken is printed."""
        taken, applied = {}, []
        for one in arguments:
            values = {
                field.name: self.settings[field.name]
                for field in fields(one)
                if field.name in self.settings.keys() - self.given
                and self.settings[field.name] != getattr(one, field.name)
            }
            taken |= values
            applied.append(replace(one, **values) if values else one)
        if taken:
            texts = (
                f"no {name}" if value is None else f"{name} {' '.join(str(value).split())}"
                for name, value in taken.items()
            )
            shown = ", ".join(text if len(text) <= SHOWN else f"{text[:SHOWN]}…" for text in texts)
            say(f"{self.path}: as in the run, {shown} (flags win)")
        return applied

    @property
    def autocast(self) -> bool:
        """Whether the run computed in bfloat16 by autocast, and no flag says otherwise."""
        bf16 = self.run.get("bf16")
        return bool(self.run) and "dtype" not in self.given and (bf16 or (bf16 is None and _bf16_by_default(self.run)))
