"""The mixture of a pretraining run: files, folders and token shards → blocks."""

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import lock_of, locked, write_json, writing
from hf_recipes.core.ledger import Ledger
from hf_recipes.data.arguments import SourceArguments
from hf_recipes.data.examples import ROWS_CODE, fingerprint
from hf_recipes.data.files.hub_data import cache_root
from hf_recipes.data.pretraining import corpora, token_shards, tokenize_corpus
from hf_recipes.data.pretraining.corpora import Corpus, Reader, find_corpora, open_reader, print_plan
from hf_recipes.data.pretraining.document_encoder import DocumentEncoder
from hf_recipes.data.pretraining.document_stream import Cursor, read_chunks
from hf_recipes.data.pretraining.mixture import Mixture, quotas_of, select_sources
from hf_recipes.data.pretraining.mixture_policy import Policy, read_policy
from hf_recipes.data.pretraining.packing import Blocking, BlockSource
from hf_recipes.data.pretraining.parallel_tokenizer import Tokenization
from hf_recipes.data.pretraining.stored_blocks import StoredBlocks
from hf_recipes.data.pretraining.streamed_blocks import StreamedBlocks
from hf_recipes.data.pretraining.token_shards import Damaged, TokenShards, open_shards
from hf_recipes.data.pretraining.tokenize_corpus import store
from hf_recipes.data.schemas.registry import Columns
from hf_recipes.trainer.mixture_data import exchange_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_recipes.stages.pretrain import PretrainArguments

LEDGER = "ledger.json"  # with the shards of a source that was tokenized for a run
# Of stored tokens that are absent, or cut, or not what this version writes.
DAMAGED = (Damaged, OSError, ValueError, KeyError, TypeError, AttributeError)


def prepare_mixture(
    data: SourceArguments, args: "PretrainArguments", tokenizer: "PreTrainedTokenizerBase"
) -> tuple[Mixture, Ledger]:
    """The blocks that a run is trained on, and the data ledger.

    Files are tokenized once, into the cache; with `streaming`, while training. Token shards are used as they are.
    """
    encoder = DocumentEncoder(tokenizer, args.document_end_token)
    policy = read_policy(args.mixture) if args.mixture else None
    opened, readers = open_corpora(data, args, policy)
    print_plan(opened, readers)
    blocking = Blocking(args.block_size, args.sequence_sample_mode, args.drop_last, args.seed)
    ledger = Ledger()
    sources: list[BlockSource] = []
    rates: dict[str, dict[str, float]] = {}
    shared = Tokenization(
        encoder,
        args.dataloader_num_workers,
        args.process_index,
        args.world_size,
        exchange_of(args),
        workers_flag="--dataloader_num_workers",
    )
    for corpus, files in zip(opened, readers, strict=True):
        if args.streaming and not corpus.shards:
            seed = args.seed if args.shuffle else None
            sources.append(StreamedBlocks(corpus.name, files, blocking, shared, seed, ledger.add))
            rates[corpus.name] = _sampled_rates(files, encoder)
            continue
        with args.main_process_first(local=True, desc="tokens"):
            stored = open_shards(corpus.shards, corpus.name, encoder) if corpus.shards else None
            stored = stored or _tokenized(corpus, files, encoder, data, ledger)
        source = StoredBlocks(stored, blocking)
        if not len(source):
            raise UserError(
                f"{corpus.name}: {source.tokens:,} tokens are less than one block of {blocking.size}; lower "
                "--block_size or leave --drop_last out"
            )
        sources.append(source)
        rates[corpus.name] = _rates(stored.manifest)
    if ledger.totals["read"]:
        say(ledger.table())
        ledger.check(data.max_drop_ratio)
    quotas = quotas_of(policy, sources, rates)
    mixture = Mixture(
        sources,
        quotas,
        blocking,
        None if args.streaming else _epoch_blocks(policy, sources, quotas),
        shuffle=args.shuffle,
        mask_documents=args.document_attention,
        pad=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else encoder.end,
    )
    _say_mixture(mixture, policy, args)
    return mixture, ledger


def open_corpora(
    data: SourceArguments, args: "PretrainArguments", policy: Policy | None = None
) -> tuple[list[Corpus], list[list[Reader]]]:
    """The sources to which `policy` gives something, and the readers of their files; token shards have none."""
    kwargs = {"sniff": args.streaming, "encoding": data.encoding, "seed": args.seed}
    all_corpora = find_corpora(data.train_file, data.cache_dir, **kwargs)
    names = select_sources(policy, [corpus.name for corpus in all_corpora], f"--mixture {args.mixture}")
    chosen_corpora = [corpus for corpus in all_corpora if corpus.name in names]
    columns = Columns(schema=data.schema, prompt=data.prompt_column, ignored=tuple(data.ignore_columns or ()))
    return chosen_corpora, [[open_reader(file, columns) for file in corpus.files] for corpus in chosen_corpora]


def _epoch_blocks(policy: Policy | None, sources: Sequence[BlockSource], quotas: np.ndarray) -> int:
    """Blocks of an epoch: with shares as many as the sources have, with numbers of epochs as many as these make."""
    return int(quotas.sum()) if policy and policy.by == "epochs" else sum(len(source) for source in sources)


def _rates(counts: dict[str, Any]) -> dict[str, float]:
    tokens = counts["tokens"]
    by = {name: tokens / max(1, counts[name]) for name in ("documents", "bytes")}
    return {**by, "size": float(tokens)}


def _sampled_rates(readers: Sequence[Reader], encoder: DocumentEncoder) -> dict[str, float]:
    """`_rates` of a stream, from its first chunk of documents and the sizes of its files."""
    chunk = next(read_chunks(readers, Cursor()))
    counts = {
        "tokens": sum(map(len, encoder.encode(chunk.texts))),
        "documents": len(chunk.texts),
        "bytes": sum(len(text.encode()) for text in chunk.texts),
    }
    sizes = (os.path.getsize(r.source.path) if r.source.split is None else counts["bytes"] for r in readers)
    return {**_rates(counts), "size": float(sum(sizes))}


def _tokenized(
    corpus: Corpus, readers: Sequence[Reader], encoder: DocumentEncoder, data: SourceArguments, ledger: Ledger
) -> TokenShards:
    """The shards of a source in the cache, tokenized where they are not there yet."""
    key = fingerprint(
        [[r.source.path, r.source.digest, r.source.encoding, r.schema.name, asdict(r.schema.columns)] for r in readers],
        encoder.settings,
        code=(corpora, token_shards, tokenize_corpus, *ROWS_CODE),
    )
    root = cache_root(data.cache_dir)
    folder = root / "hf_recipes_tokens" / key
    with suppress(*DAMAGED):
        return _open(folder, corpus, encoder, ledger)
    busy = f"{folder}: another process makes it; waiting"
    with writing(f"--cache_dir {root}"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(lock_of(folder), busy, wait=-1):
            try:
                return _open(folder, corpus, encoder, ledger)  # another process was quicker
            except DAMAGED as error:
                if folder.exists():
                    say(f"{folder}: damaged ({error}); its documents are tokenized anew")
                    shutil.rmtree(folder)
            say(f"{corpus.name}: tokenizing into {folder}")
            corpus_ledger = Ledger()

            def keep_ledger(building: Path) -> None:
                write_json(building / LEDGER, corpus_ledger.to_dict(), indent=None)

            workers, chunks = data.preprocessing_num_workers or 0, read_chunks(readers, Cursor())
            store(corpus.name, chunks, encoder, str(folder), workers, corpus_ledger.add, keep_ledger)
            return _open(folder, corpus, encoder, ledger)


def _open(folder: Path, corpus: Corpus, encoder: DocumentEncoder, ledger: Ledger) -> TokenShards:
    stored = Ledger.from_dict(json.loads((folder / LEDGER).read_text(encoding="utf-8")))
    shards = open_shards(str(folder), corpus.name, encoder)
    ledger.sources |= stored.sources
    ledger.reasons |= stored.reasons
    return shards


def _say_mixture(mixture: Mixture, policy: Policy | None, args: "PretrainArguments") -> None:
    by = "" if policy is None or policy.by == "tokens" else f" (given by {policy.by})"
    for source, share in zip(mixture.sources, mixture.shares, strict=True):
        if source.is_stream:
            say(f"{source.name}: {share:.1%} of the tokens{by}, read while training")
            continue
        epochs = share * mixture.blocks * max(args.num_train_epochs, 0) / len(source) if mixture.blocks else None
        if args.max_steps > 0:
            step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
            epochs = share * args.max_steps * step / len(source)
        say(
            f"{source.name}: {share:.1%} of the tokens{by}; {source.tokens:,} tokens of {source.shards.documents:,} "
            f"documents in {len(source):,} blocks"
            + (f", {epochs:.2f} epochs in this run" if epochs is not None else "")
            + ("; repeated more than 4 times, which teaches little more" if (epochs or 0) > 4 else "")
        )
        cut = len(source.shards) - source.tokens
        if cut:
            say(f"  {cut:,} tokens ({cut / len(source.shards):.1%}) are left out by --sequence_sample_mode")
        if mixture.blocking.drop_last and (rest := source.tokens % mixture.blocking.size):
            say(f"  {rest:,} tokens at the end are left out by --drop_last")
