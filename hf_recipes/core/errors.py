"""The exception for mistakes of users, and output for them."""

from typing import TextIO


class UserError(Exception):
    """A mistake that the user can correct: one sentence that says what is wrong, where, and what to do."""


def say(message: str, file: TextIO | None = None) -> None:
    """Print one line, to `file` or stdout, from the first process of each node only."""
    import os

    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        print(message, file=file, flush=True)
