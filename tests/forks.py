"""Runs of scripts/sft.py in processes of their own, forked from one interpreter that has the imports behind it.

A run takes a second or two instead of ten; it can be killed, and several processes can train together.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
HANGS = 240.0  # seconds after which a run that has not ended is taken to hang

SERVER = """
import contextlib, faulthandler, gc, json, os, runpy, sys, traceback
import hf_recipes.stages.table, light_runs
import deepspeed, bitsandbytes
from hf_recipes.core.distributed import compile_kernels

light_runs.warm()
gc.collect(), gc.freeze()

def child(job, rank):
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{job['logs']}/{name}{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    faulthandler.enable()
    os.environ.update(job["env"])
    if job["world"] > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(job["world"]), MASTER_ADDR="127.0.0.1")
    sys.argv = [job["script"], *job["argv"]]
    light_runs.lighten(sys.argv)
    try:
        exec(job["before"], {"rank": rank})
        runpy.run_path(job["script"], run_name="__main__")
        return 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else bool(stop.code)
    except BaseException:
        traceback.print_exc()
        return 70

for line in sys.stdin:
    job, pids = json.loads(line), []
    if "--deepspeed" in job["argv"]:
        # It takes minutes in a new environment, which are no run's that hangs; stdout is for the two lines of each run.
        with contextlib.redirect_stdout(sys.stderr):
            compile_kernels(["ShareMemCommBuilder"])
    for rank in range(job["world"]):
        pid = os.fork()
        if pid == 0:
            code = child(job, rank)
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
        pids.append(pid)
    print(json.dumps(pids), flush=True)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)
"""


@dataclass
class Run:
    """A run that was started; `wait` for its exit codes (one a process, negative for a signal)."""

    server: "Server"
    pids: list[int]
    logs: Path
    codes: list[int] | None = None

    def wait(self) -> "Run":
        """Until it has ended; one that hangs is aborted, and fails with what each thread was doing."""
        if self.codes is None and not self.server.has_line(HANGS):
            self.signal(signal.SIGABRT)
            self.codes = self.server.read()
            raise AssertionError(f"the run hung:\n{self.out[-3000:]}\n{self.err[-20000:]}")
        if self.codes is None:
            self.codes = self.server.read()
        return self

    @property
    def code(self) -> int:
        return max(self.wait().codes, key=abs)

    def read(self, name: str) -> str:
        paths = sorted(self.logs.glob(f"{name}*"))
        return "".join(path.read_text(errors="replace") for path in paths)

    @property
    def out(self) -> str:
        return self.read("out")

    @property
    def err(self) -> str:
        return self.read("err")

    def wait_for(self, text: str, of: str = "out") -> None:
        """Until the output, or that `of` errors, has `text`."""
        end = time.monotonic() + HANGS
        while text not in self.read(of):
            assert time.monotonic() < end, f"no {text!r} in\n{self.out}\n{self.err[-3000:]}"
            time.sleep(0.02)

    def signal(self, number: int = signal.SIGKILL, ranks: slice = slice(None)) -> None:
        for pid in self.pids[ranks]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def losses(self) -> list[float]:
        """The training losses that it printed."""
        lines = [line.split() for line in self.out.splitlines() if line.startswith("step ")]
        return [float(words[words.index("loss") + 1]) for words in lines if "loss" in words]


class Server:
    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0
        self.last: Run | None = None
        settings = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        settings |= {"TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_CACHE": str(folder / "datasets")}
        self.log = folder / "server.log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,  # so that a line which is there can be seen from outside
                cwd=ROOT,
                env={**os.environ, **settings},
            )

    def start(self, *argv, world: int = 1, before: str = "", script: str = "scripts/sft.py", **env: str) -> Run:
        """Begin a run of `script` with `argv` in `world` processes; `before` is Python that each executes first."""
        self._end_last()
        self.count += 1
        logs = self.folder / f"run-{self.count}"
        logs.mkdir()
        env = {"MASTER_PORT": str(self._port()), **env} if world > 1 else env
        job = {"argv": list(map(str, argv)), "world": world, "before": before, "script": script, "env": env}
        self.process.stdin.write((json.dumps({**job, "logs": str(logs)}) + "\n").encode())
        self.last = Run(self, self.read(), logs)
        return self.last

    def _end_last(self) -> None:
        """Kill a run that its test left when it failed: its exit codes would be read as those of the next one."""
        if self.last and self.last.codes is None:
            self.last.signal()
            self.last.wait()

    def _port(self) -> int:
        """One that nobody is given before the run is there to take it: below those that the system gives.

        Another session of tests on the same machine begins elsewhere.
        """
        first = os.getpid() * 101 + self.count
        for number in range(first, first + 1000):
            port = 20000 + number % 10000
            with socket.socket() as free, contextlib.suppress(OSError):
                free.bind(("127.0.0.1", port))
                return port
        raise AssertionError("no port is free")

    def has_line(self, seconds: float) -> bool:
        return bool(select.select([self.process.stdout], [], [], seconds)[0])

    def read(self) -> list[int]:
        line = self.process.stdout.readline()
        assert line, f"the server of forked runs has ended:\n{self.log.read_text()[-3000:]}"
        return json.loads(line)

    def run(self, *argv, **kwargs) -> Run:
        return self.start(*argv, **kwargs).wait()

    def close(self) -> None:
        self._end_last()
        self.process.stdin.close()
        self.process.wait(30)
