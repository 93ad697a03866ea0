"""What repeats jobs without the page: their settings as YAML, and their commands as a shell file."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from hf_recipes.apps.jobs.jobs import Job
from hf_recipes.core.arguments.flags import as_settings
from hf_recipes.core.files import write_text

AGAIN, DRY_RUN = "--resume_from_checkpoint=true", "--dry_run=true"


def write_session(jobs: Sequence[Job], path: Path) -> None:
    """Write `path` with the endings .yaml and .sh, without dry runs, and without what only went on with a run."""
    commands = {tuple(line): text for job in jobs for line, text in zip(job.commands, job.command_lines(), strict=True)}
    for line in list(commands):
        begun = tuple(item for item in line if item != AGAIN)
        if DRY_RUN in line or (begun != line and begun in commands):
            del commands[line]
    settings, lines = list(map(as_settings, commands)), ["#!/bin/sh", "set -e", *commands.values(), ""]
    write_text(f"{path}.yaml", yaml.safe_dump(settings, allow_unicode=True, sort_keys=False))
    write_text(f"{path}.sh", "\n".join(lines))
