"""From the settings of a run to its data sets."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from hf_recipes.core.errors import UserError
from hf_recipes.evaluation.reports.phrases import Phrase
from hf_recipes.inspection.rows.base import Rows
from hf_recipes.inspection.rows.conversations import Conversations
from hf_recipes.inspection.rows.documents import MixtureRows
from hf_recipes.inspection.rows.preference import PreferenceRows, UnpairedRows
from hf_recipes.inspection.rows.prompts import PromptRows
from hf_recipes.stages.base import Context

# By the form of the examples that a stage reads.
ROWS: dict[str, type[Rows]] = {
    "messages": Conversations,
    "preference": PreferenceRows,
    "unpaired": UnpairedRows,
    "prompt": PromptRows,
    "text": MixtureRows,
}


WOULD_STOP = "the run would stop: {error}"


def read_sets(context: Context) -> tuple[list[Rows], list[str]]:
    """The data sets of a run, the training rows first, and what to know before the run.

    Raises:
        UserError: data that cannot be read, or of which no row can be used.
    """
    allowed = context.data_args.max_drop_ratio
    context = replace(context, data_args=replace(context.data_args, max_drop_ratio=1.0))
    sets = ROWS[context.stage.data_form].read(context)
    checks = [*(partial(rows.ledger.check, allowed) for rows in sets), partial(sets[0].check, context)]
    return sets, [warning for check in checks if (warning := _warning(check))]


def _warning(check: Callable[[], str | None]) -> str | None:
    try:
        return check()
    except UserError as error:
        return Phrase(WOULD_STOP, error=error)
