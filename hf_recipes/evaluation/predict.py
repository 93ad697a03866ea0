"""Answers to every row of a file, written as they come and gone on with after an interruption."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import write_jsonl
from hf_recipes.core.ledger import Ledger, shown
from hf_recipes.core.settings import PositiveInt, check_limits, setting
from hf_recipes.data.chat.prompts import PromptReader
from hf_recipes.data.files.records import Record
from hf_recipes.data.schemas.registry import SCHEMAS, Columns
from hf_recipes.evaluation.resumable_output import Results, digest
from hf_recipes.metrics.text import without_thoughts
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.generation_settings import own_generation_config
from hf_recipes.models.inference.decoding import Decoding
from hf_recipes.models.inference.generate import continue_batches, not_numbers, plan_batches, stop_tokens
from hf_recipes.models.inference.opening import computes_bf16
from hf_recipes.models.loading import weight_dtype

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

WINDOW = 16  # batches of rows that are sorted by length together
SAY_EVERY = 10.0  # seconds
DRAWS = {"temperature", "top_p", "top_k"}  # settings that transformers warns of where nothing is drawn
SUBMISSIONS = {"promptcblue": "test_predictions.json"}


@dataclass
class PredictArguments:
    """Which rows are answered, and where the answers go."""

    input_file: list[str] = field(metadata={"help": "Files, globs, folders or Hub ids (owner/name[:split])."})
    output_file: str = field(metadata={"help": "A jsonl file: every row with its answer, in the order of the input."})
    overwrite_output: bool = setting("Start over where the output file is there already.", False)
    prediction_column: str = setting("Name of the answer.", "prediction")
    batch_size: PositiveInt = setting("Rows answered together.", 8)
    max_source_length: PositiveInt | None = setting(
        "Tokens of a prompt at the most; by default what the model's context holds."
    )
    submission: Literal["promptcblue"] | None = setting("Also write the file that a benchmark wants.")
    chat_template: str | None = setting("A bundled template (chatml, llama2, vicuna, …) or a jinja file.")
    schema: str | None = setting(f"Shape of the rows ({', '.join(SCHEMAS)}); detected from the columns by default.")
    prompt_column: str | None = setting("Column of the question.")
    response_column: str | None = setting("Column of the answer, where there is one.")
    history_column: str | None = setting("Column of earlier [question, answer] pairs.")
    system_prompt: str | None = setting("System turn for rows that have none.")
    text_as: Literal["continuation", "question"] = setting(
        "Rows of bare text are continued, or asked as a user's question.", "continuation"
    )
    trust_remote_code: bool = setting("Run code that comes with the model.", False)
    cache_dir: str | None = setting("Where downloads are cached.")

    def __post_init__(self):
        if self.schema is not None and self.schema not in SCHEMAS:
            raise ValueError(f"--schema {self.schema}: expected one of {', '.join(SCHEMAS)}")
        check_limits(self)
        name = os.path.basename(self.output_file)
        if self.submission and name == SUBMISSIONS[self.submission]:
            raise ValueError(f"--output_file {name}: --submission writes this file beside it; choose another name")

    @property
    def columns(self) -> Columns:
        return Columns(self.schema, self.prompt_column, self.response_column, self.history_column, self.system_prompt)


def prompt_budget(config: "PretrainedConfig", max_new_tokens: int) -> int | None:
    """Tokens that a prompt may have so that the answer fits the model's context; None where that has no bound.

    Raises:
        UserError: the answer alone fills it.
    """
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is None:
        return None
    if max_new_tokens >= context:
        raise UserError(
            f"--max_new_tokens {max_new_tokens}: the model's context is {context:,} tokens, prompt included"
        )
    return context - max_new_tokens


def read_ledger(reader: PromptReader, prediction_column: str) -> Ledger:
    """What becomes of every row, which is printed.

    Raises:
        UserError: no row has a prompt that can be used, or one has a column that the output adds.
    """
    ledger = Ledger()
    for record, _, row_fate in reader:
        for name in (prediction_column, problem_column(prediction_column)):
            if name in (record.value or ()):
                raise UserError(
                    f"{record.place}: there is a column {name!r} already; name another with --prediction_column"
                )
        ledger.add(record.place, row_fate)
    say(ledger.table())
    ledger.check(max_drop_ratio=1)
    if dropped := ledger.totals["dropped"]:
        say(
            f"the {dropped:,} dropped rows are kept in the output, with {prediction_column} null and the reason as "
            f"{problem_column(prediction_column)}"
        )
    return ledger


def problem_column(prediction_column: str) -> str:
    """Where a row that has no answer says why."""
    return f"{prediction_column}_problem"


def _unanswered(column: str, place: str, row_fate: str) -> dict[str, str | None]:
    return {column: None, problem_column(column): f"{place}: {shown(row_fate).removeprefix('dropped: ')}"}


def open_results(
    args: PredictArguments,
    model_args: ModelArguments,
    decoding: Decoding,
    reader: PromptReader,
    ledger: Ledger,
    config: "PretrainedConfig",
) -> Results:
    """The output file, with what decides its rows and, as notes, what only describes the run.

    The batch size is a note: it changes an answer by no more than rounding in bfloat16 does. What stands beside the
    file is read back by ``GenerationConfig.from_pretrained``: with it, `generate` gives the same greedy texts.

    Raises:
        UserError: as `Results`.
    """
    of_model, versions = settings_of_model(model_args, config)
    tokenizer, own = reader.tokenizer, own_generation_config(model_args, config, cache_dir=args.cache_dir)
    settings = {
        **{name: value for name, value in asdict(decoding).items() if decoding.do_sample or name not in DRAWS},
        "eos_token_id": sorted(stop_tokens(tokenizer, own.eos_token_id, reader.stop_ids)),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        **of_model,
        "chat_template": reader.template,
        "max_source_length": reader.max_source_length,
        "input_file": {source.path: source.digest for source, _, _ in reader.planned},
        "rows_are": [[schema.name, asdict(columns)] for _, schema, columns in reader.planned],
        "text_as": args.text_as,
        "prediction_column": args.prediction_column,
    }
    notes = {"batch_size": args.batch_size, "versions": versions, "ledger": ledger.to_dict()}
    return Results(args.output_file, settings, notes, args.overwrite_output)


def settings_of_model(model_args: ModelArguments, config: "PretrainedConfig") -> tuple[dict[str, Any], dict[str, str]]:
    """What of a model decides what it gives, and the versions that it ran under."""
    from hf_recipes.evaluation.method import versions
    from hf_recipes.models.quantization import read_bnb_config

    bf16 = computes_bf16()
    quantization = read_bnb_config(
        model_args.bnb_config,
        load_in_4bit=model_args.load_in_4bit,
        load_in_8bit=model_args.load_in_8bit,
        compute_dtype="bfloat16" if bf16 else "float32",
    )
    settings = {
        "model_name_or_path": model_args.model_name_or_path,
        "model_revision": model_args.model_revision,
        "model_commit": getattr(config, "_commit_hash", None),
        "model_digest": digest(model_args.model_name_or_path),
        "peft_path": model_args.peft_path,
        "peft_digest": digest(model_args.peft_path) if model_args.peft_path else None,
        "dtype": str(weight_dtype(model_args, trains_all=False, bf16=bf16)).removeprefix("torch."),
        "quantization": quantization.to_dict() if quantization else None,
    }
    return settings, versions()


def predict(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    reader: PromptReader,
    results: Results,
    decoding: Decoding,
    batch_size: int,
    column: str,
    total: int,
) -> None:
    """Append to `results` each row of `reader` that is not there yet, its answer as `column`.

    A row without a prompt that can be used has None there, and the reason in `problem_column`.

    Rows are sorted by length within windows of `WINDOW` batches, counted from the first row, and each batch writes the
    rows that are then done without a gap. What goes on after an interruption forms the same batches again and leaves
    out those that are written, so that the answers are those of a run without one, to the last bit.
    """
    rows, start, answered, first = iter(reader), 0, 0, results.count
    began = said = time.monotonic()
    while window := list(islice(rows, WINDOW * batch_size)):
        records = [record for record, _, _ in window]
        asked = [index for index, (_, prompt, _) in enumerate(window) if prompt is not None]
        prompts = [window[index][1] for index in asked]
        answers: dict[int, dict[str, Any]] = {
            index: _unanswered(column, record.place, row_fate)
            for index, (record, prompt, row_fate) in enumerate(window)
            if prompt is None
        }
        ids = [prompt.ids for prompt in prompts]
        batches = [
            batch
            for batch in plan_batches(ids, batch_size)
            if any(start + asked[place] >= results.count for place in batch)
        ]
        keys = [start + index for index in asked]
        append_ready(results, records, answers, start)
        for batch, found in continue_batches(
            model, tokenizer, ids, batches, decoding, stop_ids=reader.stop_ids, keys=keys
        ):
            for place, continuation in zip(batch, found, strict=True):
                if not continuation.is_finite:
                    raise not_numbers(records[asked[place]].place)
                answers[asked[place]] = {column: prompts[place].trim(continuation.text)}
            append_ready(results, records, answers, start)
            answered += len(batch)
            if time.monotonic() - said > SAY_EVERY:
                said = time.monotonic()
                rate = answered / (said - began)
                left = max(0, total - first - answered) / rate
                say(f"{first + answered:,} of {total:,} rows, {rate:.2f} a second, {left / 60:.0f} minutes left")
        start += len(window)


def append_ready(
    results: Results, records: Sequence[Record], found: Mapping[int, Mapping[str, Any]], start: int
) -> None:
    """Write the rows, with what was `found` of them, from the first unwritten one up to the first without it yet."""
    rows: list[dict[str, Any]] = []
    while 0 <= (index := results.count + len(rows) - start) < len(records) and index in found:
        rows.append({**(records[index].value or {}), **found[index]})
    if rows:
        results.append(rows)


def write_submission(path: str | os.PathLike, column: str) -> Path:
    """PromptCBLUE's input of its post-processing, beside the results at `path`: every row, its `target` the answer.

    Thoughts are taken off an answer, and a row without one has an empty `target`.
    """
    target = Path(path).with_name(SUBMISSIONS["promptcblue"])
    with open(path, encoding="utf-8") as source:
        rows = map(json.loads, source)
        write_jsonl(target, (_submitted(row, column) for row in rows))
    return target


def _submitted(row: dict[str, Any], column: str) -> dict[str, Any]:
    row.pop(problem_column(column), None)
    row["target"] = without_thoughts(row.pop(column) or "")
    return row
