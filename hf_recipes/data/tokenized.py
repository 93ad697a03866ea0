"""Tokenized rows as a data set: encoded once, cached by content."""

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from datasets import Dataset, List, Value

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import disk_problem, writing
from hf_recipes.core.ledger import KEPT
from hf_recipes.data.examples import fingerprint

FEATURES = {
    "input_ids": List(Value("int32")),
    "labels": List(Value("int32")),
    "prompt_length": Value("int32"),
    "status": Value("string"),
}


@dataclass
class Encoded:
    """One example: `input_ids` and `labels` of one length; the last answer begins at `prompt_length`.

    `full_prompt_length` is that before truncation; `characters` are those of the labelled answers, without what ends
    them; `reference` is, with `keep_text`, the answer without thoughts. `conversation` is the index of the conversation
    in the batch, and `following` how many examples of it come after this one.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    prompt_length: int
    status: str = KEPT
    reference: str | None = None
    full_prompt_length: int = 0
    characters: int = 0
    conversation: int = 0
    following: int = 0


def tokenize_dataset(examples: Dataset, encoder, num_proc: int | None = None) -> Dataset:
    """Encode every row of `examples` (those of `load_examples`), cached by content.

    Args:
        encoder: a `ChatEncoder` for the form messages, a `PairEncoder` for preference, an `UnpairedEncoder` for
            unpaired.
    """
    if len(examples) == 0:
        raise UserError("there is no row left to train on")
    # Full garbage collections need not walk the million objects of torch and transformers: a tenth less time.
    frozen = gc.get_freeze_count() > 0  # by the caller, who would not get it back
    if not frozen:
        gc.freeze()
    encode = partial(
        examples.with_format("arrow").map,
        encoder.map_batch,
        batched=True,
        num_proc=num_proc if num_proc and num_proc > 1 else None,
        remove_columns=examples.column_names,
        features=encoder.features,
        new_fingerprint=fingerprint(examples._fingerprint, encoder.fingerprint),
        desc="Tokenizing",
    )
    cache = next((os.path.dirname(file["filename"]) for file in examples.cache_files), "memory")
    try:
        with _same_environ(), writing(f"the cache in {cache}", "make room there or name another with --cache_dir"):
            try:
                tokenized = encode()
            except (pa.ArrowException, OSError) as error:
                if disk_problem(error):
                    raise
                say(f"{cache}: tokenized rows are damaged ({' '.join(str(error).split())[:100]}); they are made anew")
                tokenized = encode(load_from_cache_file=False)
    except RuntimeError as error:
        if "abruptly died" not in str(error):  # of datasets
            raise
        raise UserError(
            "a process that tokenizes was killed (out of memory?); lower --preprocessing_num_workers"
        ) from None
    finally:
        if not frozen:
            gc.unfreeze()
    return tokenized.with_format(None)


@contextmanager
def _same_environ() -> Iterator[None]:
    """datasets leaves a copy in the place of `os.environ` where it starts processes; libraries that are loaded already
    keep the first one, and would not see what is set later."""
    environ, before = os.environ, dict(os.environ)
    try:
        yield
    finally:
        os.environ = environ  # noqa: B003 (the object itself is put back)
        for name in environ.keys() - before.keys():
            del environ[name]
        environ.update(before)


def table_of(rows: Sequence[Encoded]) -> dict[str, pa.Array]:
    """The columns of `FEATURES`."""
    return {
        "input_ids": list_array([row.input_ids for row in rows]),
        "labels": list_array([row.labels for row in rows]),
        "prompt_length": pa.array([row.prompt_length for row in rows], pa.int32()),
        "status": pa.array([row.status for row in rows], pa.string()),
    }


def list_array(rows: list[np.ndarray]) -> pa.ListArray:
    offsets = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    values = np.concatenate(rows) if rows else np.empty(0, np.int32)
    return pa.ListArray.from_arrays(offsets, values)
