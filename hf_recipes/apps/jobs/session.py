"""What repeats jobs without the page: their settings as YAML, and their commands as a shell file."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from hf_recipes.apps.jobs.jobs import Job
from hf_recipes.core.arguments.flags import as_settings
from hf_recipes.core.files import write_text


def write_session(jobs: Sequence[Job], path: Path) -> None:
    """Write `path` with the endings .yaml and .sh."""
    commands = dict.fromkeys(tuple(line) for job in jobs for line in job.commands)
    lines = dict.fromkeys(line for job in jobs for line in job.command_lines())
    settings, lines = list(map(as_settings, commands)), ["#!/bin/sh", "set -e", *lines, ""]
    write_text(f"{path}.yaml", yaml.safe_dump(settings, allow_unicode=True, sort_keys=False))
    write_text(f"{path}.sh", "\n".join(lines))
