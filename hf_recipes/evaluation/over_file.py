"""A model applied to every row of a file: results are written as they come, and an interrupted run is resumed."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from hf_recipes.core.arguments.limits import PositiveInt
from hf_recipes.core.arguments.settings import setting
from hf_recipes.core.errors import UserError, say
from hf_recipes.core.ledger import Ledger, is_dropped
from hf_recipes.data.arguments import RowArguments
from hf_recipes.data.files.source import Record
from hf_recipes.data.files.specs import DATA_HELP
from hf_recipes.evaluation.method import versions
from hf_recipes.evaluation.resumable_output import Results, recorded_settings
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.inference.loading import computes_bf16
from hf_recipes.models.loading import weight_dtype
from hf_recipes.models.quantization.settings import read_bnb_config
from hf_recipes.models.weight_files import digest

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

WINDOW = 16  # batches of rows that are sorted by length together
MESSAGE_SECONDS = 10.0  # between messages of progress


@dataclass
class FileArguments(RowArguments):
    """Which rows are read, and where the results go."""

    input_file: list[str] = field(kw_only=True, metadata={"help": f"{DATA_HELP}."})
    output_file: str = field(
        kw_only=True, metadata={"help": "A jsonl file: every row with its result, in the order of the input."}
    )
    overwrite_output: bool = setting("Start over where the output file is there already.", False)
    batch_size: PositiveInt = setting("Conversations in a forward pass.", 8)
    trust_remote_code: bool = setting("Run code that comes with the model.", False)
    cache_dir: str | None = setting("Where downloads are cached.")


class Step(Protocol):
    """What is computed for the rows.

    Attributes:
        columns: that it adds to a row.
        rename: what to do where a row has one of them already, for people.
        of_dropped: what a dropped row has in them, for people.
    """

    columns: tuple[str, ...]
    rename: str
    of_dropped: str

    def result_of_dropped(self, record: Record, item: Any, status: str) -> dict[str, Any]: ...

    def __call__(
        self, model: "PreTrainedModel", items: Mapping[int, Any], written: int
    ) -> Iterator[dict[int, dict[str, Any]]]:
        """After each batch, the columns of the rows that are finished, by row index.

        Args:
            items: the inputs of a window of rows, by row index.
            written: rows below this index are in the file; a batch of only such rows is skipped.
        """
        ...


def run_over_file(
    args: FileArguments,
    reader: Iterable,
    step: Step,
    settings: Mapping[str, Any],
    open_model: Callable[[], "PreTrainedModel"],
) -> Results:
    """Write each row of `reader` with the result of `step`, after those that an interrupted run has written.

    Resuming with another batch size is allowed: it changes a result by no more than rounding in bfloat16 does.

    Args:
        reader: yields the record of each row, the step's input and the status, in the same order each time; `files`
            are its sources and their schemas.
        settings: all else that the results depend on.
    """
    ledger = read_ledger(reader, step)
    total = ledger.totals["read"]
    settings = {
        **settings,
        "input_file": {source.path: source.digest for source, _ in reader.files},
        "rows_are": [[schema.name, asdict(schema.columns)] for _, schema in reader.files],
    }
    notes = {"batch_size": args.batch_size, "versions": versions(), "ledger": ledger.to_dict()}
    with Results(args.output_file, settings, notes, args.overwrite_output) as results:
        if results.count:
            say(f"{results.path}: {results.count:,} of {total:,} rows are there")
        if results.count < total:
            model = open_model()
            try:
                write_rows(model, reader, step, results, args.batch_size, total)
            except KeyboardInterrupt:
                say(f"\ninterrupted after {results.count:,} of {total:,} rows; the same command continues")
                sys.exit(130)
    say(f"{total:,} rows in {args.output_file}, their settings in {results.sidecar}")
    return results


def read_ledger(reader: Iterable, step: Step) -> Ledger:
    """The status of every row, which is printed; a row that has a column of the output is a UserError."""
    ledger = Ledger()
    for record, _, status in reader:
        if taken := next((name for name in step.columns if name in (record.value or ())), None):
            raise UserError(f"{record.location}: there is a column {taken!r} already; {step.rename}")
        ledger.add(record.location, status)
    say(ledger.table())
    ledger.check(max_drop_ratio=1)
    if dropped := ledger.totals["dropped"]:
        say(f"the {dropped:,} dropped rows are kept in the output, with {step.of_dropped}")
    return ledger


def write_rows(
    model: "PreTrainedModel", reader: Iterable, step: Step, results: Results, batch_size: int, total: int
) -> None:
    """Append to `results` each row of `reader` that is not there yet.

    Rows are sorted by length within windows of `WINDOW` batches, counted from the first row. After each batch, rows are
    written up to the first that is not finished. A resumed run forms the same batches again and skips those that are
    written, so that its results equal those of a run without interruption bit by bit.
    """
    rows, first, done = enumerate(reader), results.count, 0
    start = last_message = time.monotonic()
    while window := dict(islice(rows, WINDOW * batch_size)):
        records = {index: record for index, (record, _, _) in window.items()}
        items = {index: item for index, (_, item, status) in window.items() if not is_dropped(status)}
        ready = {index: step.result_of_dropped(*row) for index, row in window.items() if index not in items}
        _append_ready(results, records, ready)
        for batch in step(model, items, results.count):
            ready |= batch
            _append_ready(results, records, ready)
            done += len(batch)
            if time.monotonic() - last_message > MESSAGE_SECONDS and done:
                last_message = time.monotonic()
                rate = done / (last_message - start)
                left = max(0, total - first - done) / rate
                say(f"{first + done:,} of {total:,} rows, {rate:.2f} a second, {left / 60:.0f} minutes left")


def _append_ready(results: Results, records: Mapping[int, Record], ready: Mapping[int, Mapping[str, Any]]) -> None:
    """Write the rows from the first unwritten one up to the first that is not ready."""
    rows: list[dict[str, Any]] = []
    while (index := results.count + len(rows)) in ready:
        rows.append({**(records[index].value or {}), **ready[index]})
    if rows:
        results.append(rows)


def date_of(args: FileArguments) -> str | None:
    """The date in the prompts of the results that are continued."""
    return None if args.overwrite_output else recorded_settings(args.output_file).get("chat_template_date")


def settings_of_model(model_args: ModelArguments, config: "PretrainedConfig") -> dict[str, Any]:
    """The settings of a model that its outputs depend on."""
    bf16 = computes_bf16()
    quantization = read_bnb_config(
        model_args.bnb_config,
        load_in_4bit=model_args.load_in_4bit,
        load_in_8bit=model_args.load_in_8bit,
        compute_dtype="bfloat16" if bf16 else "float32",
    )
    return {
        "model_name_or_path": model_args.model_name_or_path,
        "model_revision": model_args.model_revision,
        "model_commit": getattr(config, "_commit_hash", None),
        "model_digest": digest(model_args.model_name_or_path),
        "peft_path": model_args.peft_path,
        "peft_digest": digest(model_args.peft_path) if model_args.peft_path else None,
        "dtype": str(weight_dtype(model_args, trains_all=False, bf16=bf16)).removeprefix("torch."),
        "quantization": quantization.to_dict() if quantization else None,
    }
