"""Which parts of which files a task reads; the same for any number of workers, so that a run can go on with another."""

import os
from collections.abc import Iterator, Sequence
from itertools import islice

from hf_recipes.data.files.file_io import CHUNK, COMPRESSED, open_binary
from hf_recipes.data.files.records import read_records
from hf_recipes.data.files.sources import Source
from hf_recipes.data.pretraining.corpora import Corpus

TASK_BYTES, TASKS = 8 << 20, 512  # a task has so many bytes at least; there are about so many tasks at the most
SLICES = 8  # at the most, of a file whose middle is found by reading it from the beginning


def plan_tasks(corpora: Sequence[Corpus]) -> list[dict]:
    """What each task reads: parts, [file, start, stop], of the files of one source."""
    sources = [(corpus.name, source) for corpus in corpora for source in corpus.files]
    sizes = [_size(source) for _, source in sources]
    least = max(TASK_BYTES, sum(sizes) // TASKS)
    tasks: list[dict] = []
    filled = 0
    for number, ((corpus, source), size) in enumerate(zip(sources, sizes, strict=True)):
        marks = find_marks(source, size // least)
        part = size // (len(marks) + 1)
        for start, stop in zip([(0, 0), *marks], [*marks, None], strict=True):
            if not tasks or tasks[-1]["corpus"] != corpus or filled + part // 2 >= least:
                tasks.append({"corpus": corpus, "parts": []})
                filled = 0
            tasks[-1]["parts"].append([number, start, stop])
            filled += part
    return tasks


def _size(source: Source) -> int:
    """Bytes of text, about."""
    if source.split is not None:
        return 0
    packed = source.path.endswith((*COMPRESSED, ".parquet"))
    return os.path.getsize(source.path) * (4 if packed else 1)


def find_marks(source: Source, slices: int) -> list[tuple[int, int]]:
    """Places that part a file into up to `slices` pieces of about one size, as `read_records` takes them."""
    if slices < 2:
        return []
    first = next(read_records(source))
    is_line = first.after[1] > 0 and source.txt == "lines"
    if is_line and not source.path.endswith(COMPRESSED):
        return list(_line_marks(source, slices))
    slices = min(slices, SLICES)
    if is_line:
        return list(_line_marks(source, slices))
    locations = [record.after for record in islice(read_records(source), 9, None, 10)]
    return [locations[len(locations) * part // slices] for part in range(1, slices)] if len(locations) > slices else []


def _line_marks(source: Source, slices: int) -> Iterator[tuple[int, int]]:
    step = max(1, _size(source) // slices)
    line = offset = 0
    mark = None
    with open_binary(source.path) as stream:
        while chunk := stream.read(min(CHUNK, step)):
            if mark is not None:
                yield mark
            is_due = offset // step < (offset + len(chunk)) // step
            end = chunk.rfind(b"\n") + 1 if is_due else 0
            mark = (line + chunk.count(b"\n"), offset + end) if end else None
            line, offset = line + chunk.count(b"\n"), offset + len(chunk)
    if mark is not None and mark[1] < offset:
        yield mark
