"""The documents and blocks of pretraining."""

from collections.abc import Iterator, Sequence

import numpy as np

from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import KEPT, Ledger
from hf_recipes.data.pretraining.corpora import Reader
from hf_recipes.data.pretraining.document_stream import Cursor, read_chunks
from hf_recipes.data.pretraining.mixture import Blocks, Mixture
from hf_recipes.data.pretraining.stored_blocks import StoredBlocks
from hf_recipes.inspection.checks import DOCUMENT, Texts
from hf_recipes.inspection.lengths import Budget
from hf_recipes.inspection.report import Example, Strip, Table, share
from hf_recipes.inspection.rows import Rows
from hf_recipes.stages.pretrain import PretrainArguments

SAMPLED = 10_000  # documents of a stream that are looked at
# What becomes of a document that is longer than a block.
EFFECTS = {
    "none": "running on in the next block",
    "truncate": "cut",
    "sample": "cut to a window",
    "split": "parted",
}


class MixtureRows(Rows):
    """The documents of a run's sources, and the blocks that they fill.

    Args:
        readers: of the files of each source of `mixture`; of token shards none.
    """

    has_answers = False

    def __init__(self, mixture: Mixture, readers: Sequence[Sequence[Reader]], ledger: Ledger, args: PretrainArguments):
        self.name, self.mixture, self.readers, self.ledger, self.args = "train", mixture, readers, ledger, args
        budget = Budget("--block_size", args.block_size, EFFECTS[args.sequence_sample_mode])
        self.budgets = dict.fromkeys(map(self._title, mixture.sources), budget)

    @staticmethod
    def _title(source: Blocks) -> str:
        stream = "" if isinstance(source, StoredBlocks) else f" (the first {SAMPLED:,})"
        return f"documents of {source.name}{stream}"

    def _batches(self, source: Blocks, readers: Sequence[Reader]) -> Iterator[tuple[list[str], list[str]]]:
        """Places and texts of the documents of an epoch; of a stream, of the first `SAMPLED`."""
        left = None if isinstance(source, StoredBlocks) else SAMPLED
        for chunk in read_chunks(readers, Cursor()):
            locations = [location for location, status in chunk.statuses if status == KEPT]
            yield locations[:left], chunk.texts[:left]
            left = None if left is None else left - len(locations)
            if chunk.ends_epoch or (left is not None and left <= 0):
                return

    def texts(self, rows=None):
        wanted, before = None if rows is None else np.asarray(rows), 0
        for source, readers in zip(self.mixture.sources, self.readers, strict=True):
            for locations, texts in self._batches(source, readers) if readers else ():
                if wanted is not None:
                    own = wanted[(wanted >= before) & (wanted < before + len(locations))] - before
                    before += len(locations)
                    locations, texts = [locations[row] for row in own], [texts[row] for row in own]
                none = [""] * len(locations)
                yield Texts(locations, none, none, {DOCUMENT: texts}, [None] * len(locations))

    def lengths(self):
        found = {}
        for source, readers in zip(self.mixture.sources, self.readers, strict=True):
            if isinstance(source, StoredBlocks):
                each = [np.diff(ends, prepend=0) for ends in source.shards.ends]
            else:
                encode = source.tokenization.encoder.encode
                each = [np.array([len(ids) for ids in encode(texts)]) for _, texts in self._batches(source, readers)]
            found[self._title(source)] = np.concatenate(each)
        return found

    def tables(self):
        rows = []
        for source, part in zip(self.mixture.sources, self.mixture.shares, strict=True):
            counts = [None] * 5
            if isinstance(source, StoredBlocks):
                out = source.left_out
                counts = [source.shards.documents, source.tokens, len(source), out, share(out, len(source.shards))]
            rows.append([source.name, f"{part:.1%}".replace("%", " %"), *counts])
        head = ["source", "share of the tokens", "documents", "tokens", "blocks", "tokens left out", "share"]
        shards = [s.name for s, readers in zip(self.mixture.sources, self.readers, strict=True) if not readers]
        note = f"{', '.join(shards)}: token shards, whose texts are not looked at." if shards else ""
        return [Table("Counts", head, rows, note)]

    def draw(self, pen, count, seed, locations):
        if locations:
            raise UserError(
                f"--show {locations[0]}: what pretraining learns from are blocks, not rows; leave --show out"
            )
        blocks, numbers = self.mixture.blocks, range(count)
        if blocks is not None and not self.mixture.streams:
            numbers = sorted(np.random.default_rng(seed).choice(blocks, min(count, blocks), replace=False).tolist())
        drawn = []
        for number in numbers:
            block = self.mixture[number]
            ids, labels, positions = (
                block[name][: block["tokens"]] for name in ("input_ids", "labels", "position_ids")
            )
            segments = pen.draw_apart(ids, labels, positions, block["location"])
            facts = [f"{self.mixture.names[block['source']]}, {block['tokens']:,} of {self.args.block_size:,} tokens"]
            drawn.append(Example(f"block {number + 1:,}", KEPT, facts, [Strip("", segments)]))
        return drawn
