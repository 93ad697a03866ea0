"""Which checkpoint a run resumes from."""

import os
from collections.abc import Callable
from pathlib import Path

from hf_recipes.core.errors import UserError, say
from hf_recipes.trainer.checkpoints.untrusted_code import what_would_run
from hf_recipes.trainer.checkpoints.whole import checkpoints, is_sharded, what_is_missing


def find_checkpoint(
    output_dir: str, wanted: str | None, *, world_size: int = 1, inexact: bool = False, trust: bool = False
) -> str | None:
    """The checkpoint to resume from; `wanted` is a path, ``"true"`` (the newest whole one in `output_dir`) or None."""
    if wanted is None:
        return None
    chosen = wanted
    if wanted.lower() != "true":
        if not os.path.isdir(wanted):
            raise UserError(f"--resume_from_checkpoint {wanted}: no such folder")
        problem = what_is_missing(wanted)
        if problem:
            raise UserError(f"--resume_from_checkpoint {wanted}: {problem}, so the run could not resume as it was")
    else:
        newest = newest_whole(output_dir, say)
        if newest is None:
            say(f"no checkpoint in {output_dir}: starting from the beginning")
            return None
        chosen = str(newest)
    _check_width(chosen, world_size, inexact)
    code = None if trust else what_would_run(chosen)
    if code:
        raise UserError(
            f"{chosen}: loading it would run code from its files ({code}); if you know who wrote it, allow that with "
            "--trust_checkpoint"
        )
    say(f"resuming from {chosen}")
    return chosen


def _check_width(checkpoint: str | os.PathLike, world_size: int, inexact: bool) -> None:
    path = Path(checkpoint)
    wrote = len(list(path.glob("rng_state*.pth")))
    if wrote == world_size:
        return
    if is_sharded(path):
        raise UserError(f"{path}: it is sharded over {wrote} processes, and this run has {world_size}; start {wrote}")
    if not inexact:
        raise UserError(
            f"{path} was written by {wrote} processes, and this run has {world_size}: it can resume with the same "
            f"rows, but not with the same random numbers (dropout). Start {wrote} processes, or allow that with "
            "--inexact_resume"
        )


def newest_whole(output_dir: str | os.PathLike, report: Callable[[str], None] = lambda line: None) -> Path | None:
    """The newest checkpoint that a run can resume from; `report` is called with why a newer one cannot be."""
    for _, path in reversed(checkpoints(output_dir)):
        problem = what_is_missing(path)
        if problem is None:
            return path
        report(f"{path} is left aside: {problem}")
    return None
