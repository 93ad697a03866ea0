"""The folder that an importer writes (whole or absent), its train and test examples, and their ledgers."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from tqdm import tqdm

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import is_empty, lock_of, locked, move_files, move_folder, temporary_folder, to_json
from hf_recipes.core.folders import RECORD
from hf_recipes.core.ledger import LEDGER, UNUSABLE, Ledger, write_ledgers
from hf_recipes.importers.arguments import ImportArguments
from hf_recipes.importers.train_test_split import TEST, TRAIN, split_examples

SPLITS = {TRAIN: "train", TEST: "test"}
# In the order in which they are moved: where the ledger is, all the others are.
FILES = (*(f"{name}.jsonl" for name in SPLITS.values()), "run_config.yaml", LEDGER)
WORK = "work"  # folder within the output folder for temporary files, deleted at the end

Example = TypeVar("Example")


def test_rows_of(data: Sequence[str], home: Path) -> str | None:
    """The path of the rows that an import held out, where its other rows alone are `data`; all are in `home`."""
    folder = Path(data[0]).parent
    train, test = (str(folder / name) for name in FILES[:2])
    return test if list(data) == [train] and all((home / path).is_file() for path in (test, folder / LEDGER)) else None


@contextlib.contextmanager
def output_folder(output_dir: str, overwrite: bool) -> Iterator[Path]:
    """A temporary folder next to `output_dir` to write `FILES` to; it becomes `output_dir` when nothing was raised.

    With `overwrite`, the files of an earlier run in `output_dir` are replaced, and others stay.
    """
    out = Path(output_dir).resolve()
    if out.exists() and not out.is_dir():
        raise UserError(f"--output_dir {output_dir}: this is a file")
    if out.is_dir() and not is_empty(out) and not overwrite:
        raise UserError(
            f"--output_dir {output_dir}: the folder is not empty; name another, or replace what an earlier run wrote "
            "with --overwrite_output_dir"
        )
    busy = f"--output_dir {output_dir}: another process is writing it; wait for it, or name another folder"
    try:
        for name in set(FILES) - _written_by_import(out):
            if os.path.lexists(out / name):
                raise UserError(f"--output_dir {output_dir}: no earlier run wrote {name} there; name another folder")
        with locked(lock_of(out), busy), temporary_folder(out) as partial:
            (partial / WORK).mkdir()
            yield partial
            shutil.rmtree(partial / WORK)
            if not out.exists() or is_empty(out):
                move_folder(partial, out)
            else:
                move_files(partial, out, FILES)
    except OSError as error:
        raise UserError(f"{error.filename or output_dir}: {error.strerror}") from None


def _written_by_import(out: Path) -> set[str]:
    """The files of an earlier import into `out`, which its ledger proves and its settings describe."""
    if (out / RECORD).exists() or not (out / LEDGER).is_file():  # with a record, it is a training run's ledger
        return set()
    try:
        settings = yaml.safe_load((out / "run_config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        settings = None
    settings = settings if isinstance(settings, dict) else {}
    if settings and "test_size" not in settings:  # a corpus has a ledger and settings too
        return set()
    return set(FILES) - ({"test.jsonl"} if settings.get("test_size") == 0 else set())


def write_examples(
    folder: Path,
    args: ImportArguments,
    examples: Sequence[Example],
    groups: Sequence[int],
    group_name: str,
    to_row: Callable[[Example], Mapping[str, Any]],
) -> bytearray:
    """Split `examples` by their `groups`, and write the rows of the chosen ones, group after group.

    Returns the split of each example, see `split_examples`. A file is there if it has an example.
    """
    if not examples:
        return bytearray()
    splits = split_examples(groups, args.total, args.test_size, args.seed, group_name)
    chosen = [index for index, split in enumerate(splits) if split in SPLITS]
    chosen.sort(key=groups.__getitem__)
    with contextlib.ExitStack() as stack:
        files = {
            split: stack.enter_context(open(folder / f"{name}.jsonl", "w", encoding="utf-8"))
            for split, name in SPLITS.items()
            if split in splits
        }
        for index in tqdm(chosen, "examples", unit_scale=True, disable=None):
            files[splits[index]].write(to_json(to_row(examples[index])) + "\n")
    return splits


def finish_ledgers(folder: Path, args: ImportArguments, nothing_left: str | None, **ledgers: Ledger) -> None:
    """Show and check the ledgers, and write them to `folder`, unless no example is left (the message says why)."""
    for ledger in ledgers.values():
        say(ledger.table())
        ledger.check(args.max_drop_ratio, UNUSABLE)
    if nothing_left:
        raise UserError(nothing_left)
    write_ledgers(folder / LEDGER, **ledgers)


def print_counts(output_dir: str, splits: bytearray) -> None:
    for split, name in SPLITS.items():
        if count := splits.count(split):
            say(f"{os.path.join(output_dir, name)}.jsonl: {count:,} example{'s' * (count > 1)}")
