"""The record, beside an extended model's weights, of the tokens whose embeddings were never trained."""

import json
from collections.abc import Sequence
from pathlib import Path

from hf_recipes.core.errors import UserError
from hf_recipes.core.files import write_json

RECORD = "new_tokens.json"


def write_new_tokens(folder: Path, ids: Sequence[int]) -> None:
    write_json(folder / RECORD, {"ids": [ids[0], ids[-1] + 1]})


def read_new_tokens(name: str, revision: str | None = None, cache_dir: str | None = None) -> range:
    """The ids in the record of a model's folder or Hub id; empty where there is none.

    A model that was trained whole is saved without the record.
    """
    from transformers.utils import cached_file

    path = Path(name) / RECORD
    if not path.parent.is_dir():
        cached = cached_file(
            name, RECORD, revision=revision, cache_dir=cache_dir, _raise_exceptions_for_missing_entries=False
        )
        path = Path(cached or RECORD + ".missing")
    if not path.is_file():
        return range(0)
    try:
        first, end = json.loads(path.read_text(encoding="utf-8-sig"))["ids"]
        return range(first, end)
    except (ValueError, TypeError, KeyError):
        raise UserError(f'{path}: not a record of new tokens; expected {{"ids": [first, end]}}') from None
