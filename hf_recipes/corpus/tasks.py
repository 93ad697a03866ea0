"""Which parts of which files a task reads, for any number of workers, so that a run can resume with another number."""

import os
from collections.abc import Iterator, Sequence
from itertools import islice

from hf_recipes.data.files.file_io import CHUNK, COMPRESSED, open_binary
from hf_recipes.data.files.records import read_records
from hf_recipes.data.files.source import Source
from hf_recipes.data.pretraining.corpora import Corpus

MIN_TASK_BYTES, MAX_TASKS = 8 << 20, 512  # both about
MAX_SLICES = 8  # of a file that has to be read from the beginning to find its middle


def plan_tasks(corpora: Sequence[Corpus]) -> list[dict]:
    """What each task reads: parts [file, start, stop] of the files of one source."""
    sources = [(corpus.name, source) for corpus in corpora for source in corpus.files]
    sizes = [_size(source) for _, source in sources]
    task_size = max(MIN_TASK_BYTES, sum(sizes) // MAX_TASKS)
    tasks: list[dict] = []
    size_so_far = 0
    for number, ((corpus, source), size) in enumerate(zip(sources, sizes, strict=True)):
        positions = split_positions(source, size // task_size)
        part_size = size // (len(positions) + 1)
        for start, stop in zip([(0, 0), *positions], [*positions, None], strict=True):
            if not tasks or tasks[-1]["corpus"] != corpus or size_so_far + part_size // 2 >= task_size:
                tasks.append({"corpus": corpus, "parts": []})
                size_so_far = 0
            tasks[-1]["parts"].append([number, start, stop])
            size_so_far += part_size
    return tasks


def _size(source: Source) -> int:
    """Bytes of text, estimated."""
    if source.split is not None:
        return 0
    is_compressed = source.path.endswith((*COMPRESSED, ".parquet"))
    return os.path.getsize(source.path) * (4 if is_compressed else 1)


def split_positions(source: Source, slices: int) -> list[tuple[int, int]]:
    """Positions, as of `read_records`, that split a file into up to `slices` slices of about the same size."""
    if slices < 2:
        return []
    first = next(read_records(source))
    is_line = first.after[1] > 0 and source.txt == "lines"
    if is_line and not source.path.endswith(COMPRESSED):
        return list(_line_positions(source, slices))
    slices = min(slices, MAX_SLICES)
    if is_line:
        return list(_line_positions(source, slices))
    positions = [record.after for record in islice(read_records(source), 9, None, 10)]
    return [positions[len(positions) * part // slices] for part in range(1, slices)] if len(positions) > slices else []


def _line_positions(source: Source, slices: int) -> Iterator[tuple[int, int]]:
    step = max(1, _size(source) // slices)
    line = offset = 0
    position = None
    with open_binary(source.path) as stream:
        while chunk := stream.read(min(CHUNK, step)):
            if position is not None:
                yield position
            is_due = offset // step < (offset + len(chunk)) // step
            end = chunk.rfind(b"\n") + 1 if is_due else 0
            position = (line + chunk.count(b"\n"), offset + end) if end else None
            line, offset = line + chunk.count(b"\n"), offset + len(chunk)
    if position is not None and position[1] < offset:
        yield position
