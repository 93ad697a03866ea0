"""Which data, and of what shape."""

import os
from dataclasses import dataclass
from typing import Annotated

from hf_recipes.core.arguments.limits import PositiveInt, Share, at, check_limits
from hf_recipes.core.arguments.settings import setting
from hf_recipes.data.files.specs import DATA_HELP, entries_of
from hf_recipes.data.schemas.registry import DOCUMENT_SCHEMAS, SCHEMAS, Columns


@dataclass
class SourceArguments:
    """Which data, and of what shape."""

    _schemas = DOCUMENT_SCHEMAS  # of pretraining

    train_file: list[str] | None = setting(f"{DATA_HELP}, each with #rows or *passes to draw of it.")
    validation_file: list[str] | None = setting("The same to evaluate on; of a hub's data set, its validation split.")
    dataset: str | None = setting("In place of --train_file, entries of a dataset_info.json, with commas between.")
    dataset_dir: str | None = setting("Folder of the dataset_info.json, as LLaMA-Factory has it; by default data.")
    schema: str | None = setting("Shape of the rows (docs/en/data.md); detected from the columns by default.")
    prompt_column: str | None = setting("Column of the question, or of the text.")
    ignore_columns: list[str] | None = setting(
        "Columns, and keys of turns as messages[].ts, to leave out, also those that usually carry meaning (context, …)."
    )
    encoding: str | None = setting("Encoding of text files (shift_jis, big5, euc_kr, …); detected by default.")
    max_drop_ratio: Share = setting("Stop when more than this share of the rows cannot be used.", 0.01)
    preprocessing_num_workers: PositiveInt | None = setting("Processes that tokenize.")
    cache_dir: str | None = setting("Where downloads and tokenized data are cached.")

    def __post_init__(self):
        if self.dataset and self.train_file:
            raise ValueError("--train_file and --dataset: give one of them")
        if self.dataset:
            self.train_file = entries_of(self.dataset, self.dataset_dir)
            info = self.train_file[0].partition(":")[0]
            if not os.path.isfile(info):
                raise ValueError(f"--dataset {self.dataset}: there is no {info}; name its folder with --dataset_dir")
        elif self.dataset_dir:
            raise ValueError("--dataset_dir has no effect without --dataset")
        if not self.train_file:
            raise ValueError("--train_file is missing: the rows to train on")
        if self.schema is not None and self.schema not in self._schemas:
            raise ValueError(f"--schema {self.schema}: expected one of {', '.join(self._schemas)}")
        check_limits(self)


@dataclass
class DataArguments(SourceArguments):
    """Which data, of what shape, and how much of it."""

    _schemas = SCHEMAS

    validation_split_percentage: Annotated[float | None, at(gt=0, lt=100, text="0 to 100")] = setting(
        "Without validation_file: hold out this share of the rows."
    )
    mixture: str | None = setting(
        "Policy file (configs/mixtures): by documents the share of each source, or by epochs its passes; in place of "
        "#rows and *passes."
    )
    response_column: str | None = setting("Column of the answer.")
    history_column: str | None = setting("Column of earlier [question, answer] pairs.")
    thoughts_column: str | None = setting(
        "Column of the thoughts before the answer; by default one named as such (cot, …); none for none."
    )
    system_prompt: str | None = setting("System turn for rows that have none.")
    max_train_samples: PositiveInt | None = setting("Use so many training rows, sampled from all sources with --seed.")
    max_eval_samples: PositiveInt | None = setting("Use so many evaluation rows, sampled from all, whatever the seed.")

    def __post_init__(self):
        super().__post_init__()
        if self.validation_file and self.validation_split_percentage:
            raise ValueError("--validation_file and --validation_split_percentage: give one of them")


@dataclass
class RowArguments:
    """How the rows of files are read that a model is applied to."""

    schema: str | None = setting(f"Shape of the rows ({', '.join(SCHEMAS)}); detected from the columns by default.")
    prompt_column: str | None = setting("Column of the question.")
    response_column: str | None = setting("Column of the answer.")
    history_column: str | None = setting("Column of earlier [question, answer] pairs.")
    thoughts_column: str | None = setting(
        "Column of the thoughts before the answer; by default one named as such (cot, …); none for none."
    )
    system_prompt: str | None = setting("System turn for rows that have none.")
    ignore_columns: list[str] | None = setting(
        "Columns, and keys of turns as messages[].ts, to leave out, also those that usually carry meaning (context, …)."
    )
    encoding: str | None = setting("Encoding of text files (shift_jis, big5, euc_kr, …); detected by default.")

    def __post_init__(self):
        if self.schema is not None and self.schema not in SCHEMAS:
            raise ValueError(f"--schema {self.schema}: expected one of {', '.join(SCHEMAS)}")
        check_limits(self)

    @property
    def columns(self) -> Columns:
        return columns_of(self)


@dataclass
class UnpairedArguments(DataArguments):
    """Which answers are good ones."""

    label_column: str = setting("Column of the label: true or false, or with label_threshold a number.", "label")
    label_threshold: float | None = setting("From this number on an answer is good.")
    label_low: float | None = setting(
        "Below this number (by default label_threshold) it is bad; rows between the two are dropped."
    )

    def __post_init__(self):
        super().__post_init__()
        if self.label_low is not None and self.label_threshold is None:
            raise ValueError("--label_low has no effect without --label_threshold")
        if self.label_low is not None and self.label_low > self.label_threshold:
            raise ValueError(f"--label_low {self.label_low:g}: expected at most --label_threshold")


def columns_of(data: DataArguments | RowArguments) -> Columns:
    return Columns(
        schema=data.schema,
        prompt=data.prompt_column,
        response=data.response_column,
        history=data.history_column,
        thoughts=data.thoughts_column,
        system_prompt=data.system_prompt or None,
        label=getattr(data, "label_column", None),
        threshold=getattr(data, "label_threshold", None),
        low=getattr(data, "label_low", None),
        ignored=tuple(data.ignore_columns or ()),
    )
