"""What every script has in common: one line for a mistake, output that any terminal takes, quiet libraries."""

import gc
import io
import os
import select
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any, TextIO

from hf_recipes.core.distributed import leave_process_group
from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import disk_problem, to_json
from hf_recipes.core.heap import map_large_blocks

# What a script holds until its end, such as the lock of its folder; `run_script` closes it.
at_end = ExitStack()


def run_script(main: Callable[[], None], resume_hint: str = "the same command starts again") -> None:
    """Run a script's `main`; a `UserError`, or a full or forbidden disk, is one line on stderr and exit code 1."""
    gc.freeze()  # what the libraries define is never garbage
    gc.enable()
    map_large_blocks()
    print_any_text()
    _hush_libraries()
    with errors_in_one_line(resume_hint), at_end:
        main()
        leave_process_group()
        sys.stdout.flush()  # into a pipe that no one reads any more it fails here, not while Python ends


@contextmanager
def errors_in_one_line(resume_hint: str = "the same command starts again") -> Iterator[None]:
    """End the program with one line where the user can help it, and without one where nobody reads its output."""
    try:
        yield
    except BrokenPipeError:
        unread = [stream.fileno() for stream in (sys.stdout, sys.stderr) if _lacks_reader(stream)]
        if not unread:
            raise
        # Whoever read the output, such as head, has enough; else Python would flush what is left once more, and fail.
        for number in unread:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        sys.exit(141)  # as of a process that SIGPIPE ends
    except KeyboardInterrupt:
        say(f"\ninterrupted; {resume_hint}")
        sys.exit(130)
    except Exception as error:
        text = str(error)
        if not isinstance(error, UserError):
            problem = disk_problem(error)
            if problem is None:
                raise
            text = f"a file cannot be read or written ({problem}); make room or check the permissions"
        rank = int(os.environ.get("RANK", 0))
        print(f"error{f' (rank {rank})' if rank else ''}: {text}", file=sys.stderr, flush=True)
        sys.exit(1)


def json_to_stdout(wanted: bool) -> Callable[[Any], None]:
    """Until the script ends, stdout takes nothing but the one document that the returned function prints to it.

    Messages go to stderr, also those of libraries in C (gloo's) and of other processes. Without `wanted` all stays as
    it is, and the function prints nothing.
    """
    if not wanted:
        return lambda value: None
    try:
        descriptor = sys.stdout.fileno()
        document = os.fdopen(os.dup(descriptor), "w", encoding="utf-8")
        before = os.dup(descriptor)
        sys.stdout.flush()
        os.dup2(sys.stderr.fileno(), descriptor)
        at_end.callback(os.close, before)
        at_end.callback(os.dup2, before, descriptor)
        at_end.callback(document.close)
    except OSError:  # a stream of no file, as tests have it
        document = sys.stdout
    at_end.enter_context(redirect_stdout(sys.stderr))
    return lambda value: print(to_json(value, indent=1), file=document, flush=True)


def print_any_text() -> None:
    """Print characters that the terminal's encoding lacks as escapes: output never ends a run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _lacks_reader(stream: TextIO) -> bool:
    """Whether the stream is a pipe whose other end is closed."""
    if not hasattr(select, "poll"):  # Windows
        return True
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _hush_libraries() -> None:
    """Hide warnings that only the libraries' authors can act on, and progress bars where there is no terminal."""
    import datasets
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft|accelerate|torch)\b")
    # PEFT 0.21 compares these keys with modules, and not with experts' weights; `attach_lora` compares them with both.
    warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys")
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()
