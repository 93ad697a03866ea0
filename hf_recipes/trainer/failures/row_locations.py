"""Where the rows of a batch come from, to name those that are to blame."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow.compute as pc
import torch

if TYPE_CHECKING:
    from datasets import Dataset


def sequences(inputs: Mapping[str, torch.Tensor]) -> list[list[int]]:
    """The token ids of each row of a batch, without padding; a packed row is split where its positions restart."""
    ids = inputs["input_ids"]
    positions, mask = inputs.get("position_ids"), inputs.get("attention_mask")
    rows = []
    for index, row in enumerate(ids):
        if mask is not None:
            rows.append(row[mask[index].bool()].tolist())
        elif positions is not None:
            starts = (positions[index] == 0).nonzero().flatten().tolist()
            rows += [row[a:b].tolist() for a, b in zip(starts, [*starts[1:], len(row)], strict=True)]
        else:
            rows.append(row.tolist())
    return rows


def row_locations(rows: "Dataset", wanted: Iterable[Sequence[int]]) -> list[str]:
    """The locations (file:line) of the `rows` whose `input_ids` are among `wanted`, in the order of the data."""
    columns = rows.select_columns(["input_ids", "location"]).with_format("arrow")[:]
    lengths = pc.list_value_length(columns["input_ids"])
    matches: set[int] = set()
    for ids in wanted:
        for index in pc.indices_nonzero(pc.equal(lengths, len(ids))).to_pylist():
            if columns["input_ids"][index].as_py() == list(ids):
                matches.add(index)
    return [columns["location"][index].as_py() for index in sorted(matches)]
