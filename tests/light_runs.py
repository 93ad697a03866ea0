"""What takes most of a tiny run's time and trains nothing, left out of the tests' runs or done once for many."""

import math
from base64 import b64decode
from collections.abc import Callable

# A PNG of one white pixel.
BLANK = b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg==")


def lighten(argv, set_attribute: Callable = setattr) -> None:
    """Have a run with these flags draw its curves once and as no picture, and estimate memory for --dry_run alone."""
    from hf_recipes.dry_run import plan
    from hf_recipes.evaluation.reports import plots
    from hf_recipes.trainer.reports import progress

    set_attribute(progress, "CURVES_EVERY", math.inf)
    set_attribute(plots, "png_of", _blank)
    if "--dry_run" not in argv:
        set_attribute(plan, "estimate", lambda *args, **kwargs: None)


def _blank(figure) -> bytes:
    from matplotlib import pyplot

    pyplot.close(figure)
    return BLANK


def warm() -> None:
    """Import and cache what every run would by itself."""
    from matplotlib import pyplot
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    from hf_recipes.metrics.text import rouge

    pyplot.close(pyplot.figure())
    get_checkpoint_conversion_mapping("qwen3")
    rouge(["今天天气"], ["今天天气"])
