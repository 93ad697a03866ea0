"""What takes half of a tiny run's time and trains nothing, left out of the tests' runs."""

import math
from collections.abc import Callable


def lighten(argv, set_attribute: Callable = setattr) -> None:
    """Have a run with these flags draw its curves once, at its end, and estimate memory for --dry_run alone."""
    from hf_recipes.dry_run import plan
    from hf_recipes.trainer.reports import progress

    set_attribute(progress, "CURVES_EVERY", math.inf)
    if "--dry_run" not in argv:
        set_attribute(plan, "estimate", lambda *args, **kwargs: None)
