"""The rows that a run held out, as a file to evaluate on."""

from pathlib import Path
from typing import Any

from hf_recipes.core.files import read_mapping, write_jsonl
from hf_recipes.data.files.records import read_records
from hf_recipes.data.files.sources import find_sources
from hf_recipes.evaluation.reports.tables import read_predictions


def settings_of_run(run: Path) -> dict[str, Any]:
    """What `run_config.yaml` in the folder of a run has; empty where there is none."""
    path = run / "run_config.yaml"
    return read_mapping(str(path), "--config", as_yaml=True, as_text=False) if path.is_file() else {}


def held_out_file(run: Path, started_in: Path) -> str | None:
    """The run's validation file, or `held_out.jsonl` in its folder, of the rows that its evaluations answered.

    Args:
        started_in: the folder that the run's paths are relative to.
    """
    settings = settings_of_run(run)
    if files := settings.get("validation_file"):
        return files if isinstance(files, str) else files[0]
    answered = next(iter(sorted((run / "predictions").glob("step-*.jsonl"))), None)
    if answered is None:
        return None
    locations = {row["location"].rpartition("/")[2] for row in read_predictions(answered)}
    sources = find_sources([str(started_in / name) for name in settings.get("train_file") or ()], "train")
    records = (record for source in sources for record in read_records(source))
    rows = [record.value for record in records if record.location.rpartition("/")[2] in locations]
    write_jsonl(run / "held_out.jsonl", rows)
    return str(run / "held_out.jsonl") if rows else None
