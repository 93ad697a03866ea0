"""A model's answers to the rows of a file."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hf_recipes.core.arguments.limits import PositiveInt
from hf_recipes.core.arguments.settings import setting
from hf_recipes.core.errors import UserError
from hf_recipes.core.files import write_jsonl
from hf_recipes.core.ledger import shown
from hf_recipes.data.chat.prompts import Prompt, PromptReader
from hf_recipes.data.chat.templates.dates import printed_date
from hf_recipes.data.files.source import Record
from hf_recipes.evaluation.over_file import FileArguments, settings_of_model
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.inference.decoding import Decoding
from hf_recipes.models.inference.generate import continue_batches, not_numbers, plan_batches, stop_tokens
from hf_recipes.models.inference.generation_settings import generation_config_of
from hf_recipes.models.inference.vllm_model import AnswerArguments

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

SAMPLING = {"temperature", "top_p", "top_k"}  # transformers warns of these where nothing is sampled
SUBMISSIONS = {"promptcblue": "test_predictions.json"}


@dataclass
class PredictArguments(FileArguments, AnswerArguments):
    """Which rows are answered, and where the answers are written."""

    prediction_column: str = setting("Name of the answer.", "prediction")
    max_source_length: PositiveInt | None = setting(
        "Tokens of a prompt at the most; by default what the model's context holds."
    )
    submission: Literal["promptcblue"] | None = setting("Also write the file that a benchmark wants.")
    text_as: Literal["continuation", "question"] = setting(
        "Rows of bare text are continued, or sent as a user's question.", "continuation"
    )

    def __post_init__(self):
        super().__post_init__()
        AnswerArguments.__post_init__(self)
        name = os.path.basename(self.output_file)
        if self.submission and name == SUBMISSIONS[self.submission]:
            raise ValueError(f"--output_file {name}: --submission writes this file beside it; choose another name")


def prompt_budget(config: "PretrainedConfig", max_new_tokens: int) -> int | None:
    """Tokens that a prompt may have so that the answer fits the model's context; None for a context without limit."""
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is None:
        return None
    if max_new_tokens >= context:
        raise UserError(
            f"--max_new_tokens {max_new_tokens}: the model's context is {context:,} tokens, prompt included"
        )
    return context - max_new_tokens


def problem_column(prediction_column: str) -> str:
    """The column with the reason why a row has no answer."""
    return f"{prediction_column}_problem"


def thoughts_columns(prediction_column: str) -> tuple[str, str]:
    """The columns with the thoughts before an answer, and with whether they were cut."""
    return f"{prediction_column}_reasoning_content", f"{prediction_column}_cut_while_thinking"


class Predict:
    """The step of `run_over_file` that answers prompts; the answer is `column`, without thoughts.

    Only rows with thoughts have `thoughts_columns`.
    """

    rename = "name another with --prediction_column"

    def __init__(self, reader: PromptReader, decoding: Decoding, batch_size: int, column: str):
        self.reader, self.decoding, self.batch_size, self.column = reader, decoding, batch_size, column
        self.columns = (column, problem_column(column), *thoughts_columns(column))
        self.of_dropped = f"{column} null and the reason as {problem_column(column)}"

    def result_of_dropped(self, record: Record, prompt: None, status: str) -> dict[str, Any]:
        reason = f"{record.location}: {shown(status).removeprefix('dropped: ')}"
        return {self.column: None, problem_column(self.column): reason}

    def __call__(
        self, model: "PreTrainedModel", prompts: Mapping[int, Prompt], written: int
    ) -> Iterator[dict[int, dict[str, Any]]]:
        rows = list(prompts)
        ids = [prompt.ids for prompt in prompts.values()]
        batches = [
            batch for batch in plan_batches(ids, self.batch_size) if any(rows[index] >= written for index in batch)
        ]
        options = {"stop_ids": self.reader.stop_ids, "marks": self.reader.marks, "keys": rows}
        for batch, continuations in continue_batches(
            model, self.reader.tokenizer, ids, batches, self.decoding, **options
        ):
            answers = {}
            for index, continuation in zip(batch, continuations, strict=True):
                prompt = prompts[rows[index]]
                if not continuation.is_finite:
                    raise not_numbers(prompt.location)
                answer = {self.column: prompt.trim(continuation.text)}
                if continuation.thoughts or continuation.cut_while_thinking:
                    thoughts = continuation.thoughts, continuation.cut_while_thinking
                    answer |= zip(thoughts_columns(self.column), thoughts, strict=True)
                answers[rows[index]] = answer
            yield answers


def predict_settings(
    args: PredictArguments,
    model_args: ModelArguments,
    decoding: Decoding,
    reader: PromptReader,
    config: "PretrainedConfig",
) -> dict[str, Any]:
    """All that the answers depend on.

    ``GenerationConfig.from_pretrained`` reads the file of it next to the answers: with it, `generate` gives the same
    greedy texts.
    """
    tokenizer, generation = reader.tokenizer, generation_config_of(model_args, config, cache_dir=args.cache_dir)
    return {
        **{name: value for name, value in asdict(decoding).items() if decoding.do_sample or name not in SAMPLING},
        "eos_token_id": sorted(stop_tokens(tokenizer, generation.eos_token_id, reader.stop_ids)),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        **settings_of_model(model_args, config),
        "chat_template": reader.template,
        "chat_template_date": printed_date(tokenizer) if reader.template else None,
        "max_source_length": reader.max_source_length,
        "text_as": args.text_as,
        "prediction_column": args.prediction_column,
        **({"engine": args.engine} if args.engine != "transformers" else {}),
        **({"vllm_args": args.vllm_args} if args.vllm_args else {}),
    }


def count_cut(path: str | os.PathLike, column: str) -> tuple[int, int]:
    """How many of the answers in the results at `path` were cut while thinking, and how many answers there are."""
    with open(path, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    answered = [row for row in rows if row[column] is not None]
    return sum(row.get(thoughts_columns(column)[1], False) for row in answered), len(answered)


def write_submission(path: str | os.PathLike, column: str) -> Path:
    """The input of PromptCBLUE's post-processing, next to the results at `path`: every row with its answer as `target`.

    A `target` is empty where a row has no answer.
    """
    target = Path(path).with_name(SUBMISSIONS["promptcblue"])

    def rows(lines):
        for line in lines:
            row = json.loads(line)
            for name in (problem_column(column), *thoughts_columns(column)):
                row.pop(name, None)
            row["target"] = row.pop(column) or ""
            yield row

    with open(path, encoding="utf-8") as lines:
        write_jsonl(target, rows(lines))
    return target
