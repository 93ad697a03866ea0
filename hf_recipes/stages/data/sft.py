"""The rows of a fine-tuning that are encoded while training."""

import hashlib
import os
from dataclasses import dataclass

import numpy as np

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import to_json
from hf_recipes.core.ledger import Ledger
from hf_recipes.data.arguments import DataArguments, columns_of
from hf_recipes.data.chat.streamed_rows import (
    ConversationEncoder,
    ConversationReader,
    RowMixture,
    StreamedRows,
    first_rows,
)
from hf_recipes.data.examples import described, load_examples, schema_of, usable
from hf_recipes.data.files.source import Source
from hf_recipes.data.files.sources import find_sources, source_names
from hf_recipes.data.pretraining.mixture import select_sources
from hf_recipes.data.pretraining.mixture_policy import ENDLESS, read_policy, round_shares
from hf_recipes.data.pretraining.parallel_tokenizer import Tokenization
from hf_recipes.dry_run.data_stats import DataStats, largest_batch
from hf_recipes.models.checks.packing import joins_rows
from hf_recipes.run.data import limited_rows, tokenize_rows
from hf_recipes.stages.base import Context, Data
from hf_recipes.trainer.mixture_data import exchange_of, step_blocks


@dataclass
class StreamData(Data):
    """A `RowMixture`, and the tokens and labelled tokens of the first rows of each source, two (N,) arrays a source."""

    lengths: list[np.ndarray]


def read_stream(context: Context) -> StreamData:
    """The mixture of the training files, whose rows are encoded when they are trained on, and the validation rows."""
    data, args, stage = context.data_args, context.args, context.stage
    for name in ("validation_split_percentage", "max_train_samples"):
        if getattr(data, name):
            raise UserError(f"--{name} needs all rows, which --streaming does not read before; leave one of them out")
    settings = {"columns": columns_of(data), "cache_dir": data.cache_dir, "encoding": data.encoding, "seed": args.seed}
    validation, ledgers = None, {"train": Ledger()}
    if data.validation_file:
        with args.main_process_first(local=True, desc="data"):
            examples = load_examples(data.validation_file, split="validation", **settings)
            if chosen := limited_rows(data, args, "validation", len(examples)):
                examples = examples.select(chosen)
            encoder = stage.encoder(context.tokenizer, args, "validation")
            _, tokenized, ledgers["validation"] = tokenize_rows(examples, encoder, data)
        say(f"validation\n{ledgers['validation'].table()}")
        ledgers["validation"].check(data.max_drop_ratio)
        validation = usable(tokenized)
    encoder = stage.encoder(context.tokenizer, args, "train")
    readers = _readers(data, args.seed)
    texts = ConversationEncoder(encoder)
    process = args.dataloader_num_workers, args.process_index, args.world_size, exchange_of(args)
    shared = Tokenization(texts, *process)
    sources, sizes, lengths = [], [], []
    for name, files in readers.items():
        sources.append(StreamedRows(name, files, shared, args.seed, ledgers["train"].add))
        rows, bytes_of_row = first_rows(files, texts)
        if not rows:
            raise UserError(f"{name}: none of its first rows can be used; an inspection without --streaming shows why")
        labelled = [int((row.labels != -100).sum()) for row in rows]
        lengths.append(np.array([[len(row.input_ids) for row in rows], labelled]))
        sizes.append(sum(_rows_in(file.source, bytes_of_row) for file in files))
    policy = read_policy(data.mixture) if data.mixture else None
    if policy and policy.by != "documents":
        raise UserError(f"--mixture {data.mixture}: by {policy.by}; of a stream, shares are by documents")
    shares = np.array([policy.sources[name] for name in readers] if policy else sizes, float)
    mixture = RowMixture(sources, round_shares(shares, ENDLESS), args.seed, encoder)
    for name, share in zip(mixture.names, mixture.shares, strict=True):
        say(f"{name}: {share:.1%} of the rows, read while training")
    return StreamData(mixture, validation, ledgers, lengths)


def _readers(data: DataArguments, seed: int) -> dict[str, list[ConversationReader]]:
    """The readers of the files of each source."""
    names = source_names(data.train_file)
    if data.mixture:
        names = select_sources(read_policy(data.mixture), names, f"--mixture {data.mixture}")
    readers: dict[str, list[ConversationReader]] = {name: [] for name in names}
    settings = {"cache_dir": data.cache_dir, "sniff": True, "encoding": data.encoding, "seed": seed}
    for source in find_sources(data.train_file, **settings):
        if source.name in readers:
            schema = schema_of(source, columns_of(data))
            if schema.form != "messages":
                raise UserError(f"{source.path}: its schema is {schema.name}, of which no conversations can be made")
            say(f"{source.path}: {described(source, schema)}")
            readers[source.name].append(ConversationReader(source, schema))
    return {name: files for name, files in readers.items() if files}


def _rows_in(source: Source, bytes_of_row: float) -> float:
    """Rows of a file, estimated by its size where they are not known."""
    if source.draw:
        return source.draw.sampled
    return 1000.0 if source.split is not None else os.path.getsize(source.path) / bytes_of_row


def stream_stats(context: Context, data: StreamData) -> DataStats:
    """The sizes of the rows of a run, estimated from the first of each source."""
    args, mixture = context.args, data.train
    rows = args.max_steps * step_blocks(args)
    tokens, labelled = mixture.shares @ np.array([values.mean(1) for values in data.lengths])
    size, longest = args.per_device_train_batch_size, max(int(values[0].max()) for values in data.lengths)
    most = max(int(values[1].max()) for values in data.lengths)
    joined = args.padding_free and joins_rows(context.model_args.attn_implementation)
    batch = largest_batch(np.full(size, args.max_length), np.full(size, most), args, joined=joined)
    digest = hashlib.sha256(to_json(mixture.settings()).encode()).hexdigest()
    return DataStats(rows, round(rows * tokens), round(rows * labelled), longest, batch, digest)
