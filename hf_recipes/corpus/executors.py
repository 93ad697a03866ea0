"""datatrove's executors, which run steps on this machine, on Slurm or on Ray; tasks that are done are not repeated."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.utils.logging import logger

from hf_recipes.core.arguments.limits import PositiveInt, check_limits
from hf_recipes.core.arguments.settings import setting
from hf_recipes.core.distributed import forking
from hf_recipes.core.errors import UserError
from hf_recipes.core.files import disk_problem

POLL_SECONDS = 10.0  # between two queries of a Slurm job


@dataclass
class ExecutorArguments:
    """Where the tasks run."""

    workers: PositiveInt = setting("Number of tasks to run at a time, each on one core.", 1)
    executor: Literal["local", "slurm", "ray"] = setting("This machine, a Slurm cluster, or a Ray cluster.", "local")
    slurm_partition: str | None = setting("Partition of the jobs.")
    slurm_time: str = setting("Time limit of a job.", "24:00:00")
    sbatch_args: list[str] | None = setting("Further options of sbatch, such as account=me qos=high.")
    memory_gb: int = setting("Memory of a worker to request from Slurm or Ray.", 2)

    def __post_init__(self):
        check_limits(self)
        if self.executor == "slurm" and not self.slurm_partition:
            raise ValueError("--executor slurm: name the partition with --slurm_partition")
        if self.executor == "ray" and find_spec("ray") is None:
            raise ValueError("--executor ray: not installed; pip install ray")
        for item in self.sbatch_args or ():
            if "=" not in item:
                raise ValueError(f"--sbatch_args {item}: expected option=value")


@lru_cache(maxsize=1)
def _devnull():
    return open(os.devnull, "w")


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Hide datatrove's output on stderr; its log files have it all."""
    with contextlib.redirect_stderr(_devnull()):
        logger.remove()
        yield


class _RecordFailures:
    """Mixin of the three executors: the message of a `UserError` is written to a file for the main process."""

    cwd = None  # working directory of the run

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1):
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a worker has one core
        os.chdir(self.cwd)
        with _without_stderr():
            try:
                return super()._run_for_rank(rank, local_rank, node_rank)
            except Exception as error:
                problem = str(error) if isinstance(error, UserError) else disk_problem(error)
                if problem is None:
                    raise
                with contextlib.suppress(OSError), self.logging_dir.open(f"failures/{rank:05d}", "wb") as file:
                    file.write(problem.encode())
                raise


class Local(_RecordFailures, LocalPipelineExecutor):
    """As datatrove's, but the workers end whenever the main process ends, and a killed worker ends the run."""

    def run(self) -> None:
        ranks = self.get_incomplete_ranks()
        if self.workers == 1:
            for rank in ranks:
                deepcopy(self)._run_for_rank(rank)
            return
        # The parent's loaded tokenizer is theirs too.
        with ProcessPoolExecutor(self.workers, forking("--workers"), initializer=_end_with_parent) as pool:
            try:
                for done in as_completed([pool.submit(self._run_for_rank, rank) for rank in ranks]):
                    done.result()
            except BrokenProcessPool:
                raise UserError(
                    f"a worker was killed, most likely for lack of memory (logs in {self.logging_dir.path}/logs); the "
                    "same command resumes, with fewer --workers if need be"
                ) from None
            finally:
                pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


class Ray(_RecordFailures, RayPipelineExecutor):
    pass


class Slurm(_RecordFailures, SlurmPipelineExecutor):
    def launch_merge_stats(self) -> None:
        pass  # it would submit another job, for unused statistics


def build_executor(args: ExecutorArguments, steps: Sequence[Any], tasks: int, folder: Path) -> PipelineExecutor:
    """The executor that runs `steps` for each task, and keeps logs and completion marks in `folder`."""
    common = {"pipeline": list(steps), "tasks": tasks, "logging_dir": str(folder.resolve())}
    if args.executor == "local":
        return Local(**common, workers=min(args.workers, tasks))
    if args.executor == "ray":
        return Ray(**common, workers=args.workers, mem_per_cpu_gb=args.memory_gb)
    return Slurm(
        **common,
        workers=args.workers,
        time=args.slurm_time,
        partition=args.slurm_partition,
        mem_per_cpu_gb=args.memory_gb,
        job_name=f"corpus-{folder.name}",
        qos=None,
        with_srun=False,
        env_command=f'export PATH="{Path(sys.executable).parent}:$PATH"',
        sbatch_args=dict(item.split("=", 1) for item in args.sbatch_args or ()),
    )


def run_stage(args: ExecutorArguments, steps: Sequence[Any], tasks: int, folder: Path) -> None:
    """Run `steps` for each task that is not done yet, and wait for all; the first failure is raised as a UserError."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("failures/*"):
        path.unlink()
    executor = build_executor(args, steps, tasks, folder)
    executor.cwd = os.getcwd()
    if args.executor == "ray":
        import ray

        if not ray.is_initialized():
            ray.init(log_to_driver=False, logging_level="error")
    try:
        with _without_stderr():
            executor.run()
    except FileNotFoundError as error:
        if error.filename != "sbatch":
            raise
        raise UserError("--executor slurm: sbatch is not on this machine; start from a login node") from None
    except subprocess.CalledProcessError as error:
        raise UserError(f"sbatch refused the job (exit code {error.returncode}); see {folder}") from None
    if args.executor == "slurm":
        _wait_for(executor)
    if unfinished := executor.get_incomplete_ranks(skip_completed=True):
        message = f"task {unfinished[0]} of {folder.name} failed; its log is in {folder}/logs"
        failures = sorted(folder.glob("failures/*"))
        raise UserError(failures[0].read_text(encoding="utf-8") if failures else message)


def _wait_for(executor: Slurm) -> None:
    """Wait until all tasks are done, or the job has ended."""
    while executor.get_incomplete_ranks(skip_completed=True):
        job = subprocess.run(["squeue", "-h", "-j", str(executor.job_id)], capture_output=True, text=True)
        time.sleep(POLL_SECONDS)  # also for an ended job: a shared file system shows its last files late
        if job.returncode or not job.stdout.strip():
            return
