"""Data sets of the Hugging Face Hub and of ModelScope, from the cache where they are in it."""

import logging
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import disk_problem
from hf_recipes.data.files.specs import MODELSCOPE
from hf_recipes.hub.download import download_data

if TYPE_CHECKING:
    from datasets import Dataset


def load_hub(path: str, split: str, cache_dir: str | None) -> "Dataset":
    """The rows of a split of ``owner/name[/subset]``, in ModelScope with ``modelscope:`` in front.

    The network is asked for what is not in the cache alone.
    """
    name, subset = _name_and_subset(path)
    try:
        if path.startswith(MODELSCOPE):
            splits, load = _of_folder(str(download_data(name, cache_root(cache_dir))), subset, cache_dir, path)
        else:
            splits, load = _cached(name, subset, cache_dir) or _of_folder(name, subset, cache_dir, path)
        if split in splits:
            return load(split=split)
    except UserError:
        raise
    except Exception as error:  # the clients raise a dozen kinds; all mean the same to the user
        if problem := disk_problem(error):
            raise UserError(f"{path}: cannot be kept in the cache ({problem}); see to --cache_dir") from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: neither a local file or folder, nor to be had from the Hub ({reason})") from None
    raise UserError(f"{path}: it has no split {split!r}; there are {', '.join(splits)}: name one as {path}:{splits[0]}")


Splits = tuple[list[str], Callable[..., "Dataset"]]


def _of_folder(name: str, subset: str | None, cache_dir: str | None, path: str) -> Splits:
    """The splits of a data set on the Hub or in a folder, and what loads one of them."""
    import datasets

    config = [subset] if subset else []
    try:
        splits = datasets.get_dataset_split_names(name, *config)
    except ValueError:
        subsets = datasets.get_dataset_config_names(name)
        if subset in subsets:
            raise
        problem = f"it has no subset {subset!r}" if subset else "it has several subsets"
        example = f"{path.removesuffix(f'/{subset}')}/{subsets[0]}"
        raise UserError(f"{path}: {problem}; there are {', '.join(subsets)}: name one as {example}") from None
    return splits, partial(datasets.load_dataset, name, *config, cache_dir=cache_dir)


def _cached(name: str, subset: str | None, cache_dir: str | None) -> Splits | None:
    """The same of a data set of the Hub that was fetched before; None where it was not.

    Without a subset this is the default one, or without the network the only one.
    """
    import datasets
    from datasets.packaged_modules.cache.cache import Cache

    logging.getLogger(Cache.__module__).setLevel(logging.ERROR)
    offline = datasets.config.HF_HUB_OFFLINE and not subset
    for config in ["default", None] if offline else [subset or "default"]:
        try:
            builder = Cache(cache_dir, name.split("/")[1], config, "auto", "auto", repo_id=name)
        except (ValueError, OSError):  # of a download that was interrupted
            continue
        _say_cached(name, builder.cache_dir)
        return list(builder.info.splits), builder.as_dataset
    return None


def _name_and_subset(path: str) -> tuple[str, str | None]:
    owner, name, *subset = path.removeprefix(MODELSCOPE).split("/")
    return f"{owner}/{name}", subset[0] if subset else None


def cache_root(cache_dir: str | None) -> Path:
    import datasets

    return Path(cache_dir or datasets.config.HF_DATASETS_CACHE)


@cache
def _say_cached(name: str, folder: str) -> None:
    say(f"{name}: as it is in the cache; delete {folder} to fetch it anew")
