"""Texts that repeat an earlier one."""

from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from hf_recipes.core.errors import UserError


def exact_duplicates(texts: Iterable[str]) -> Iterator[int]:
    """Indices of texts that equal an earlier one, whitespace aside."""
    import xxhash

    seen: set[int] = set()
    for index, text in enumerate(texts):
        digest = xxhash.xxh3_64_intdigest("".join(text.split()).encode())
        if digest in seen:
            yield index
        seen.add(digest)


def check_near_duplicates() -> None:
    if find_spec("datatrove") is None:
        raise UserError("--near_dedup: datatrove is not installed; pip install -e '.[corpus]'")


def near_duplicates(texts: Iterable[str], work: Path) -> Sequence[int]:
    """Indices of texts that nearly equal an earlier one, by MinHash, with the settings of `prepare_corpus`.

    Args:
        work: folder for the signatures, 1 KB a text.
    """
    import numpy as np
    from datatrove.data import Document
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
    from datatrove.utils.logging import logger

    from hf_recipes.corpus.dedup import KeepFirst, SignNearly

    logger.remove()  # what datatrove writes to stderr
    signatures, pairs, clusters = (work / name for name in ("signatures", "pairs", "clusters"))
    SignNearly(signatures).run(Document(text, str(index)) for index, text in enumerate(texts))
    buckets = MinhashConfig().num_buckets
    for bucket in range(buckets):
        step = MinhashDedupBuckets(str(signatures), str(pairs), lines_to_buffer=1024)
        step.run(rank=bucket, world_size=buckets)
    KeepFirst(str(pairs), str(clusters)).run()
    path = clusters / "000000.remove"
    return np.fromfile(path, np.uint32).tolist() if path.exists() else []
