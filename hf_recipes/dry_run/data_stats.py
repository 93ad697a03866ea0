"""What the dry run says of a stage's rows: their number, tokens, largest batch, and a digest."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from hf_recipes.core.ledger import Ledger
from hf_recipes.dry_run.simulate import Batch
from hf_recipes.models.checks.packing import joins_rows

if TYPE_CHECKING:
    from hf_recipes.stages.sft import SFTArguments

DIGEST_ROWS = 10_000  # at a time, on which the digest depends
COUNTED_ROWS = 1_000  # at a time


@dataclass
class DataStats:
    """A stage's rows, or packed blocks of them: numbers, tokens, and the largest batch."""

    rows: int
    tokens: int
    labelled: int | None  # tokens that carry loss; None where rows are scored as a whole
    longest: int
    batch: Batch
    digest: str  # of the data that is trained on, whatever its path
    truncated: float | None = None  # share of the rows; None where rows are never truncated
    blocks: int | None = None
    what: str = "rows"
    lengthen: str = "--max_length (or the two budgets)"  # the flag that limits a row's length


def rows_digest(rows: Dataset, *columns: str) -> str:
    """A digest of the values of `columns`, numbers or lists of them, in the order of the rows."""
    import xxhash

    digest = xxhash.xxh3_128()
    for table in rows.select_columns(list(columns)).with_format("arrow").iter(DIGEST_ROWS):
        for name in columns:
            values: pa.Array = table[name].combine_chunks()
            if pa.types.is_list(values.type):
                digest.update(pc.list_value_length(values).to_numpy())
                values = values.flatten()
            digest.update(np.ascontiguousarray(values.to_numpy(zero_copy_only=False)))
    return digest.hexdigest()


def row_lengths(rows: Dataset, column: str = "labels") -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each row, and how many of these are labelled in `column`: two (N,) arrays."""
    tokens, labelled = [], []
    for table in rows.select_columns([column]).with_format("arrow").iter(COUNTED_ROWS):
        labels: pa.Array = table[column].combine_chunks()
        sizes = pc.list_value_length(labels).to_numpy()
        ends = np.cumsum(sizes)
        counts = np.concatenate([[0], np.cumsum(labels.flatten().to_numpy() != -100)])
        tokens.append(sizes)
        labelled.append(counts[ends] - counts[ends - sizes])
    return np.concatenate(tokens), np.concatenate(labelled)


def largest_batch(tokens: np.ndarray, labelled: np.ndarray, args: "SFTArguments", joined: bool = False) -> Batch:
    """The batch of the longest rows, with logits where one of them has a label.

    Args:
        tokens, labelled: of each row or packed block, (N,).
        joined: a batch is one row.
    """
    longest = np.argsort(tokens, kind="stable")[-args.per_device_train_batch_size :]
    shape = (1, int(tokens[longest].sum())) if joined else (len(longest), int(tokens[longest].max()))
    packed = args.packing or args.padding_free
    return Batch(*shape, max(1, int(labelled[longest].sum())), packed=packed, fused_head=not args.use_cpu)


def row_stats(train: Dataset, ledger: Ledger, args: "SFTArguments", attention: str | None = None) -> DataStats:
    """The statistics of tokenized rows, packed or not, for this implementation of attention."""
    tokens, labelled = lengths = row_lengths(train)
    blocks = None
    if args.packing:
        from trl import pack_dataset

        packed = pack_dataset(train.select_columns(["input_ids", "labels"]), args.max_length, "bfd")
        blocks, lengths = len(packed), row_lengths(packed)
    read = ledger.totals["read"]
    return DataStats(
        rows=len(train),
        tokens=int(tokens.sum()),
        labelled=int(labelled.sum()),
        longest=int(tokens.max()),
        batch=largest_batch(*lengths, args, joined=(args.packing or args.padding_free) and joins_rows(attention)),
        digest=rows_digest(train, "input_ids", "labels"),
        truncated=ledger.totals["truncated"] / read if read else 0.0,
        blocks=blocks,
    )
