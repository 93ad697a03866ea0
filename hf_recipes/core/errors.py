"""The exception for mistakes of users, and output for them."""


class UserError(Exception):
    """A mistake that the user can correct: one sentence that says what is wrong, where, and what to do."""


def say(message: str) -> None:
    """Print one line, from the first process of each node only."""
    import os

    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        print(message, flush=True)
