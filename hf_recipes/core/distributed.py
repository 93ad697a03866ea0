"""Being one of several processes: meeting at the start, also after a restart, and parting at the end."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

from hf_recipes.core.errors import say
from hf_recipes.core.files import locked

BUILD_TIME = 900.0  # seconds after which nobody compiles any more; a kernel takes about a minute


def be_one_process() -> None:
    """Without a launcher, be a launch of one process: DeepSpeed would look for MPI."""
    if "RANK" not in os.environ:
        own = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
        os.environ |= {name: str(value) for name, value in own.items()}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


def compile_kernels(names: Sequence[str]) -> None:
    """Compile DeepSpeed's kernels, one process after the other, under a lock that ends with its process.

    torch's own lock is a file. It stays where a compiler is killed, and later processes wait for it without an end.

    Args:
        names: of DeepSpeed's builders; those that the accelerator does not have are left out.
    """
    from deepspeed.accelerator import get_accelerator
    from deepspeed.ops import __compatible_ops__ as compatible
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    begun = root / "hf_recipes.compiling"  # stays where a process is killed meanwhile
    busy = f"waiting for another process that compiles DeepSpeed's kernels in {root}"
    with locked(root / ".hf_recipes.lock", busy, wait=-1):
        was_killed = begun.exists()
        for lock in (*root.glob("*/lock"), *root.glob("*/*/lock")):
            with contextlib.suppress(OSError):
                age = time.time() - lock.stat().st_mtime
                if was_killed or age > BUILD_TIME:
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
    """Around the start of DeepSpeed's communication, whose buffers of shared memory would outlive the processes.

    Each is 66 MB, has a name that is made of the run's address, and is opened by that name at the start alone. One that
    a killed run has left under the same name would be taken for another process's.
    """
    location = Path("/dev/shm")
    if not location.is_dir():
        yield
        return
    address, port, rank = (os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT", "RANK"))
    buffer = location / f"deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_{rank}"
    buffer.unlink(missing_ok=True)
    yield
    if buffer.exists():
        import torch.distributed as dist

        dist.barrier()  # until all have opened all
        buffer.unlink(missing_ok=True)


def rendezvous_after_restart(timeout: float) -> None:
    """Under torchrun, agree on a store that no earlier attempt of this launch has written to.

    torchrun keeps one store over its restarts, in which processes find the addresses of the dead and fail to connect
    (https://github.com/pytorch/pytorch/issues/135712); and it counts the restarts of each node apart. Here each process
    asks the first with a name that nobody had before, and gets the port of a store that the first is going to keep, and
    the number of restarts so far. Both are put into the environment, where torch looks for them.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    from torch.distributed import PrefixStore, TCPStore

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agents = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=timeout))
    store, own = PrefixStore("hf_recipes", agents), uuid4().hex
    if rank == 0:
        meeting = f"{_free_port()} {store.add('attempts', 1) - 1}"
        waiting = set(range(1, world))
        end = time.monotonic() + timeout
        while waiting and time.monotonic() < end:
            for other in list(waiting):
                if not store.check([f"asks/{other}"]):
                    continue
                name = store.get(f"asks/{other}").decode()  # of this attempt or of one before
                store.set(f"answer/{name}", meeting)
                if store.check([f"taken/{meeting}/{other}"]):
                    waiting.discard(other)
            time.sleep(0.02)
    else:
        store.set(f"asks/{rank}", own)
        meeting = store.get(f"answer/{own}").decode()
        store.set(f"taken/{meeting}/{rank}", "")
    os.environ["MASTER_PORT"], os.environ["TORCHELASTIC_RESTART_COUNT"] = meeting.split()
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"


def leave_process_group() -> None:
    """Meet the other processes a last time and let them end; nothing happens where there is one only."""
    # Without this, gloo's threads sometimes abort the process after a good run (2 of 20 on torch 2.13).
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        with contextlib.suppress(RuntimeError):
            dist.barrier()
