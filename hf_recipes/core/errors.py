"""The one exception that a user is meant to read."""


class UserError(Exception):
    """A mistake that the user can mend: one sentence saying what is wrong, where, and what to do."""


def say(message: str) -> None:
    """Print one line of progress, from the first process of each node only."""
    import os

    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        print(message, flush=True)
