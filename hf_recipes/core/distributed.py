"""Distributed runs: rendezvous, also after a restart of torchrun, DeepSpeed's kernels and buffers, and the end."""

import contextlib
import hashlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import locked

# The requests to end; SIGHUP comes where the terminal or the connection is gone, and Windows has none.
STOPS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))
BUILD_SECONDS = 900.0  # after which a lock is stale; a kernel compiles in about a minute


def set_single_process_env() -> None:
    """Without a launcher, set the environment of one process; without it DeepSpeed would look for MPI."""
    if "RANK" not in os.environ:
        values = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
        os.environ |= {name: str(value) for name, value in values.items()}


def forking(flag: str) -> multiprocessing.context.BaseContext:
    """How processes are begun that share what is loaded; `flag` asks for several."""
    if "fork" not in multiprocessing.get_all_start_methods():
        raise UserError(f"{flag}: several processes need fork, which this system lacks (Windows outside WSL); give 1")
    return multiprocessing.get_context("fork")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


def compile_kernels(names: Sequence[str]) -> None:
    """Compile DeepSpeed's kernels, one process after the other, under a lock that is released when its process ends.

    torch's own lock is a file that a killed compiler leaves, and later processes would wait for it forever. Its default
    folder is that of all environments, each of which would compile the kernels of the one before anew: the build files
    hold an environment's paths. So each has a folder there, unless TORCH_EXTENSIONS_DIR names one.

    Args:
        names: DeepSpeed's builders; those that the accelerator does not have are skipped.
    """
    from deepspeed.accelerator import get_accelerator
    from deepspeed.ops import __compatible_ops__ as compatible
    from torch.utils.cpp_extension import get_default_build_root

    environment = hashlib.sha256(sys.prefix.encode()).hexdigest()[:8]
    root = Path(os.environ.setdefault("TORCH_EXTENSIONS_DIR", os.path.join(get_default_build_root(), environment)))
    begun = root / "hf_recipes.compiling"  # a killed process leaves it
    busy = f"waiting for another process, which compiles DeepSpeed's kernels in {root}"
    with locked(root / ".hf_recipes.lock", busy, wait=-1):
        was_killed = begun.exists()
        for lock in (*root.glob("*/lock"), *root.glob("*/*/lock")):
            with contextlib.suppress(OSError):
                age = time.time() - lock.stat().st_mtime
                if was_killed or age > BUILD_SECONDS:
                    lock.unlink()
                elif age > 5:
                    say(f"waiting for a compiler that has {lock}; if none is running, delete that file")
        begun.touch()
        for name in names:
            builder = get_accelerator().create_op_builder(name)
            if builder is not None and compatible.get(builder.NAME):
                builder.load(verbose=False)
        begun.unlink()


@contextlib.contextmanager
def private_shared_memory() -> Iterator[None]:
    """Unlink the shared memory of DeepSpeed's communication, started within, so that it ends with the processes.

    A buffer of 66 MB is opened once, by a name made of the run's address and the rank. One that a killed run has left
    under the same name would be taken for another process's, so it is deleted before.
    """
    folder = Path("/dev/shm")
    if not folder.is_dir():
        yield
        return
    address, port, rank = (os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT", "RANK"))
    buffer = folder / f"deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_{rank}"
    buffer.unlink(missing_ok=True)
    yield
    if buffer.exists():
        import torch.distributed as dist

        dist.barrier()  # until all processes have opened all buffers
        buffer.unlink(missing_ok=True)


def rendezvous_after_restart(timeout: float) -> None:
    """Under torchrun, agree on a store that no earlier attempt of this launch has written to.

    torchrun keeps one store over its restarts, in which processes find the addresses of ended ones and fail to connect
    (https://github.com/pytorch/pytorch/issues/135712), and it counts the restarts per node. Here each process sends a
    new random name to the first one, and receives the port of a store that the first one will open, and the number of
    restarts. Both go into the environment, where torch reads them.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    from torch.distributed import PrefixStore, TCPStore

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agents = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=timeout))
    store, name = PrefixStore("hf_recipes", agents), uuid4().hex
    if rank == 0:
        reply = f"{_free_port()} {store.add('attempts', 1) - 1}"
        waiting = set(range(1, world))
        end = time.monotonic() + timeout
        while waiting and time.monotonic() < end:
            for other in list(waiting):
                if not store.check([f"request/{other}"]):
                    continue
                other_name = store.get(f"request/{other}").decode()  # of this attempt or of an earlier one
                store.set(f"reply/{other_name}", reply)
                if store.check([f"received/{reply}/{other}"]):
                    waiting.discard(other)
            time.sleep(0.02)
    else:
        store.set(f"request/{rank}", name)
        reply = store.get(f"reply/{name}").decode()
        store.set(f"received/{reply}/{rank}", "")
    os.environ["MASTER_PORT"], os.environ["TORCHELASTIC_RESTART_COUNT"] = reply.split()
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"


def leave_process_group() -> None:
    """Wait for the other processes, so that all end together."""
    # Without this, gloo's threads sometimes abort the process after a successful run (2 of 20 on torch 2.13).
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        with contextlib.suppress(RuntimeError):
            dist.barrier()
