"""Texts to learn a vocabulary from, and held-out ones to measure it on: a random sample of bounded size."""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.ledger import KEPT, UNUSABLE, Ledger, row_status
from hf_recipes.data.character_scripts import SCRIPTS, scripts_of
from hf_recipes.data.pretraining.corpora import Corpus, find_corpora, open_reader, print_plan
from hf_recipes.data.pretraining.mixture import select_sources
from hf_recipes.data.pretraining.mixture_policy import Policy, read_policy
from hf_recipes.data.schemas.registry import Columns
from hf_recipes.vocabulary.arguments import TextArguments

HELD_OUT_BYTES = 2**20  # of each source, at most
MIN_CHINESE = 0.5  # share of the texts, below which a corpus for Chinese tokens is warned of


@dataclass
class Sample:
    """The texts of each source, in their order."""

    train: dict[str, list[str]] = field(default_factory=dict)
    held_out: dict[str, list[str]] = field(default_factory=dict)

    def texts(self) -> Iterator[str]:
        return chain.from_iterable(self.train.values())


class Reservoir:
    """Of all texts that are added, those with the smallest random keys that fit into `limit` bytes of UTF-8.

    Which these are depends on nothing but the keys, and no more than the limit is held at any time. At least one text
    stays.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.size = self.dropped = 0
        self._heap: list[tuple[float, int, str, str]] = []
        self._count = 0

    def add(self, key: float, source: str, text: str) -> None:
        size = len(text.encode("utf-8", "surrogatepass"))
        if self.size + size > self.limit and self._heap and key >= -self._heap[0][0]:
            self.dropped += size
            return
        heapq.heappush(self._heap, (-key, self._count, source, text))
        self._count += 1
        self.size += size
        while self.size > self.limit and len(self._heap) > 1:
            text = heapq.heappop(self._heap)[3]
            size = len(text.encode("utf-8", "surrogatepass"))
            self.size -= size
            self.dropped += size

    def by_source(self) -> dict[str, list[str]]:
        texts: dict[str, list[str]] = {}
        for _, _, source, text in sorted(self._heap, key=lambda entry: entry[1]):
            texts.setdefault(source, []).append(text)
        return texts


def read_sample(arguments: TextArguments) -> Sample:
    """A sample of `arguments.max_bytes` over all sources, by the shares of a mixture where there is one."""
    policy = read_policy(arguments.mixture) if arguments.mixture else None
    if policy is not None and policy.by != "bytes":
        raise UserError(f'--mixture {arguments.mixture}: a sample is of bytes; give {{"by": "bytes", "sources": …}}')
    corpora = find_corpora(arguments.train_file, arguments.cache_dir, encoding=arguments.encoding)
    selected = select_sources(policy, [corpus.name for corpus in corpora], f"--mixture {arguments.mixture}")
    corpora = [corpus for corpus in corpora if corpus.name in selected]
    for corpus in corpora:
        if corpus.shards:
            raise UserError(f"--train_file {corpus.shards}: tokens of another tokenizer; give the texts")
    ignored = tuple(arguments.ignore_columns or ())
    columns = Columns(schema=arguments.schema, prompt=arguments.prompt_column, ignored=ignored)
    readers = [[open_reader(source, columns) for source in corpus.files] for corpus in corpora]
    print_plan(corpora, readers)
    ledger = Ledger()
    kept = _reservoirs(corpora, policy, arguments.max_bytes)
    held_out = {corpus.name: Reservoir(HELD_OUT_BYTES) for corpus in corpora}
    for index, (corpus, files) in enumerate(zip(corpora, readers, strict=True)):
        random = np.random.default_rng([arguments.seed, index])
        for reader in files:
            for document in reader.read():
                if not document.text:
                    reason = UNUSABLE + document.problem if document.problem else "empty text"
                    ledger.add(document.location, row_status("dropped", reason))
                    continue
                ledger.add(document.location, KEPT)
                chance, key = random.random(2)
                pool = held_out if chance < arguments.held_out_share else kept
                pool[corpus.name].add(key, corpus.name, document.text)
    say(ledger.table())
    ledger.check(arguments.max_drop_ratio)
    sample = Sample()
    for reservoir in set(kept.values()):
        sample.train |= reservoir.by_source()
    for reservoir in held_out.values():
        sample.held_out |= reservoir.by_source()
    if not sample.train:
        raise UserError(f"--train_file {' '.join(arguments.train_file)}: no text in it")
    _say_sample(sample, set(kept.values()))
    return sample


def _reservoirs(corpora: Sequence[Corpus], policy: Policy | None, limit: int) -> dict[str, Reservoir]:
    """One for all sources, or with a policy one for each."""
    if policy is None:
        return dict.fromkeys((corpus.name for corpus in corpora), Reservoir(limit))
    return {corpus.name: Reservoir(round(limit * policy.sources[corpus.name])) for corpus in corpora}


def _say_sample(sample: Sample, reservoirs: set[Reservoir]) -> None:
    size, dropped = (sum(getattr(r, name) for r in reservoirs) for name in ("size", "dropped"))
    texts = sum(map(len, sample.train.values()))
    share = "" if not dropped else f", a random {size / (size + dropped):.1%} of what is there (--max_bytes)"
    say(f"{texts:,} texts, {size / 1e6:,.1f} MB, to learn from{share}")
    scripts = np.bincount(scripts_of(list(sample.texts())), minlength=len(SCRIPTS))
    judged = scripts[1:].sum()
    if judged and scripts[SCRIPTS.index("Chinese")] < MIN_CHINESE * judged:
        parts = ", ".join(f"{SCRIPTS[i]} {scripts[i] / judged:.0%}" for i in np.argsort(-scripts) if i and scripts[i])
        say(f"warning: most of these texts are not Chinese ({parts}); tokens are learned for what is there")
