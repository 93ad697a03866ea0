"""What is taken along of jobs: the files that they made, and what repeats them without the page."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from hf_recipes.apps.jobs.jobs import Job
from hf_recipes.core.arguments.flags import as_settings
from hf_recipes.core.files import visible_files, write_text


def write_session(jobs: Sequence[Job], path: Path) -> None:
    """Write `path` with the endings .yaml and .sh."""
    commands = dict.fromkeys(tuple(line) for job in jobs for line in job.commands)
    lines = dict.fromkeys(line for job in jobs for line in job.command_lines())
    settings, lines = list(map(as_settings, commands)), ["#!/bin/sh", "set -e", *lines, ""]
    write_text(f"{path}.yaml", yaml.safe_dump(settings, allow_unicode=True, sort_keys=False))
    write_text(f"{path}.sh", "\n".join(lines))


def linked_files(root: Path, folders: Iterable[str], downloads: Path) -> list[Path]:
    """The files in those of `folders` in `root` that are there, by links to the folders in `downloads`."""
    links = [(downloads / Path(folder).name, root / folder) for folder in folders if (root / folder).is_dir()]
    for link, folder in links:
        if not link.is_symlink():
            link.symlink_to(folder)
    return [path for link, _ in links for path in visible_files(link)]
