"""The rows that a run held out, to evaluate on after it."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from hf_recipes.core.errors import UserError
from hf_recipes.core.files import write_json, write_jsonl, writing
from hf_recipes.core.folders import OutputFolder
from hf_recipes.core.ledger import HELD_OUT
from hf_recipes.data.files.records import read_records
from hf_recipes.data.files.sources import find_sources
from hf_recipes.data.pretraining.corpora import named_paths
from hf_recipes.evaluation.registry import EvaluationArguments

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.data.chat.prompts import Prompt
    from hf_recipes.evaluation.run_record import RunRecord

HeldOut: TypeAlias = "Dataset | list[Prompt] | None"
ROWS = "held_out.jsonl"  # in the folder of an evaluation: these rows


def write_held_out(run: Path, rows: HeldOut) -> None:
    """Write or delete `HELD_OUT`, by which `with_held_out` finds the rows again."""
    if rows is None:
        (run / HELD_OUT).unlink(missing_ok=True)
    else:
        write_json(run / HELD_OUT, [row.location for row in rows] if isinstance(rows, list) else rows["location"][:])


def with_validation(arguments: EvaluationArguments, files: Sequence[str] | None) -> EvaluationArguments:
    """`arguments` with each of `files`, and each source that a folder of them holds, under its own name."""
    if not files:
        return arguments
    named = [f"{_metric_word(name)}={path}" for spec in files for name, path in named_paths(spec)]
    try:
        return replace(arguments, eval_files=[*(arguments.eval_files or ()), *named])
    except ValueError as error:
        hint = "name the files of --validation_file, as other=path"
        raise UserError(f"{str(error).replace('--eval_files', '--validation_file')}; {hint}") from None


def _metric_word(name: str) -> str:
    """The name of a file in the names of its metrics: of letters, digits, _ and -."""
    return re.sub(r"[^\w-]+", "_", name).strip("_-") or "validation"


def with_held_out(
    arguments: EvaluationArguments, record: "RunRecord", folder: OutputFolder
) -> tuple[EvaluationArguments, list[str]]:
    """`arguments`, without files with the rows that the run of `record` was validated on; and files made in `folder`.

    They are its validation files, or ``held_out.jsonl`` with what it held out, as it is in the training files.
    """
    if arguments.eval_files:
        return arguments, []
    run, here = record.run, record.path and record.path.parent
    reading = {name: run.get(name) for name in ("cache_dir", "encoding")}
    if files := run.get("validation_file"):
        files = [files] if isinstance(files, str) else files
        if (
            "validation_split_percentage" in run
        ):  # the run read their validation split, of which an evaluation knows not
            by_split = [find_sources(files, split, sniff=True, **reading) for split in ("validation", "test")]
            if len({tuple((source.path, source.split) for source in sources) for sources in by_split}) > 1:
                raise UserError(f"--eval_files is missing: {', '.join(files)} has several splits; name the one to take")
        return with_validation(arguments, files), []
    if here is None or not (here / HELD_OUT).is_file():
        why = f"; the run in {here} held no rows out" if here else ""
        raise UserError(f"--eval_files is missing: name=path of what to evaluate on{why}")
    target = folder.path / ROWS
    if ROWS in folder.others([re.escape(ROWS)]):
        raise UserError(f"--output_dir {folder.path}: {ROWS} was not written by an evaluation; name another folder")
    locations = json.loads((here / HELD_OUT).read_text(encoding="utf-8"))
    sources = find_sources(run["train_file"], seed=run["seed"], **reading)
    rows = {record.location: record.value for source in sources for record in read_records(source)}
    if lost := [location for location in locations if rows.get(location) is None]:
        raise UserError(f"{here / HELD_OUT}: {lost[0]} is not there any more; name what to evaluate on by --eval_files")
    with writing(f"--output_dir {folder.path}"):
        folder.claim([re.escape(ROWS)])
        write_jsonl(target, [rows[location] for location in locations])
    return replace(arguments, eval_files=[f"held_out={target}"]), [ROWS]
