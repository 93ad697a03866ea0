"""The documents and blocks of pretraining."""

from collections.abc import Iterator, Sequence

import numpy as np

from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import KEPT, Ledger
from hf_recipes.data.pretraining.corpora import Reader
from hf_recipes.data.pretraining.document_stream import Cursor, read_chunks
from hf_recipes.data.pretraining.mixture import Mixture
from hf_recipes.data.pretraining.mixture_policy import read_policy
from hf_recipes.data.pretraining.packing import BlockSource
from hf_recipes.evaluation.reports.phrases import Phrase
from hf_recipes.evaluation.reports.report import Example, Table, TokenSequence, share
from hf_recipes.inspection.checks import DOCUMENT, RowTexts
from hf_recipes.inspection.lengths import Budget
from hf_recipes.inspection.rows.base import Rows
from hf_recipes.stages.data.pretrain import open_corpora, prepare_mixture
from hf_recipes.stages.pretrain import PretrainArguments

SAMPLED = 10_000  # documents of a stream that are read
# By --sequence_sample_mode: what becomes of a document that is longer than a block.
EFFECTS = {
    "none": "continued in the next block",
    "truncate": "cut",
    "sample": "cut to a window",
    "split": "split",
}


class MixtureRows(Rows):
    """The documents of a run's sources, and the blocks that they fill.

    Args:
        readers: of the files of each source of `mixture`; a source of token shards has none.
    """

    has_answers = False

    @classmethod
    def read(cls, context):
        data, args = context.data_args, context.args
        mixture, ledger = prepare_mixture(data, args, context.tokenizer)
        _, readers = open_corpora(data, args, read_policy(args.mixture) if args.mixture else None)
        return [cls(mixture, readers, ledger, args)]

    def __init__(self, mixture: Mixture, readers: Sequence[Sequence[Reader]], ledger: Ledger, args: PretrainArguments):
        self.name, self.mixture, self.readers, self.ledger, self.args = "train", mixture, readers, ledger, args
        budget = Budget("--block_size", args.block_size, EFFECTS[args.sequence_sample_mode])
        self.budgets = dict.fromkeys(map(self._title, mixture.sources), budget)

    @staticmethod
    def _title(source: BlockSource) -> str:
        if source.is_stream:
            return Phrase("documents of {source} (the first {count:,})", source=source.name, count=SAMPLED)
        return Phrase("documents of {source}", source=source.name)

    def _batches(self, source: BlockSource, readers: Sequence[Reader]) -> Iterator[tuple[list[str], list[str]]]:
        """Locations and texts of the documents of an epoch; of a stream, of the first `SAMPLED`."""
        left = SAMPLED if source.is_stream else None
        for chunk in read_chunks(readers, Cursor()):
            locations = [location for location, status in chunk.statuses if status == KEPT]
            yield locations[:left], chunk.texts[:left]
            left = None if left is None else left - len(locations)
            if chunk.ends_epoch or (left is not None and left <= 0):
                return

    def texts(self, rows=None):
        wanted, start = None if rows is None else np.asarray(rows), 0
        for source, readers in zip(self.mixture.sources, self.readers, strict=True):
            for locations, texts in self._batches(source, readers) if readers else ():
                if wanted is not None:
                    end = start + len(locations)
                    indices = wanted[(wanted >= start) & (wanted < end)] - start
                    locations, texts = [locations[row] for row in indices], [texts[row] for row in indices]
                    start = end
                none = [""] * len(locations)
                yield RowTexts(locations, none, none, {DOCUMENT: texts}, [None] * len(locations))

    def lengths(self):
        lengths = {}
        for source, readers in zip(self.mixture.sources, self.readers, strict=True):
            if source.is_stream:
                encode = source.tokenization.encoder.encode
                each = [np.array([len(ids) for ids in encode(texts)]) for _, texts in self._batches(source, readers)]
            else:
                each = [np.diff(ends, prepend=0) for ends in source.shards.ends]
            lengths[self._title(source)] = np.concatenate(each)
        return lengths

    def tables(self):
        rows = []
        for source, part in zip(self.mixture.sources, self.mixture.shares, strict=True):
            counts = [None] * 5
            if not source.is_stream:
                skipped = source.skipped_tokens(1)
                counts = [source.shards.documents, source.tokens, len(source), skipped]
                counts.append(share(skipped, len(source.shards)))
            rows.append([source.name, share(part, 1), *counts])
        header = ["source", "share of the tokens", "documents", "tokens", "blocks", "tokens left out", "share"]
        shards = [s.name for s, readers in zip(self.mixture.sources, self.readers, strict=True) if not readers]
        note = Phrase("{names}: token shards, whose texts are not read.", names=", ".join(shards)) if shards else ""
        return [Table("Counts", header, rows, note)]

    def render(self, renderer, count, seed, locations):
        if locations:
            raise UserError(f"--show {locations[0]}: pretraining trains on blocks, not on rows; leave --show out")
        blocks, indices = self.mixture.blocks, range(count)
        if blocks is not None and not self.mixture.streams:
            indices = sorted(np.random.default_rng(seed).choice(blocks, min(count, blocks), replace=False).tolist())
        examples = []
        for index in indices:
            block = self.mixture[index]
            columns = (block[name][: block["tokens"]] for name in ("input_ids", "labels", "position_ids"))
            documents = renderer.render_documents(*columns, block["location"])
            values = {"source": self.mixture.names[block["source"]], "tokens": block["tokens"]}
            fact = Phrase("{source}, {tokens:,} of {all:,} tokens", **values, all=self.args.block_size)
            name = Phrase("block {number:,}", number=index + 1)
            examples.append(Example(name, KEPT, [fact], [TokenSequence("", documents)]))
        return examples
