"""Sources of documents → a clean corpus in shards, in stages that a killed run takes up where it was.

    read      rows → documents → repairs and rules → .work/documents, with signatures of what they say
    exact, buckets, clusters      which of them are duplicates
    write     what is left → shards

Everything happens in ``.work``; a source's folder comes to be when all its shards are whole.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datatrove.pipeline.dedup.exact_dedup import ExactFindDedups
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
from datatrove.utils.logging import logger

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import write_json, writing
from hf_recipes.core.ledger import LEDGER, MAX_LOCATIONS, UNUSABLE, Entry, Ledger, write_ledgers
from hf_recipes.corpus import tasks as corpus_tasks
from hf_recipes.corpus.arguments import CorpusArguments
from hf_recipes.corpus.decontamination import Decontaminate, index_evaluation
from hf_recipes.corpus.dedup import EXACT, KeepFirst, SignExactly, SignNearly
from hf_recipes.corpus.executors import run_stage
from hf_recipes.corpus.export import Export, plan_shards, save_tokenizer
from hf_recipes.corpus.folder import clear, entered, once
from hf_recipes.corpus.steps import Book, Keep, ReadDocuments, Repair, Rules
from hf_recipes.corpus.tasks import plan_tasks
from hf_recipes.data.files.sources import find_sources
from hf_recipes.data.pretraining.corpora import Corpus, Reader, find_corpora, open_reader, say_plan
from hf_recipes.data.pretraining.document_encoder import DocumentEncoder
from hf_recipes.data.pretraining.token_shards import Shard, write_manifest
from hf_recipes.data.schemas.registry import Columns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FINDERS = 8  # parts in which exact duplicates are looked for
READ_WHOLE = 1 << 30  # bytes of input up to which digests are of the content, beyond of size and date
# What may differ when a run goes on: it changes where and when the work is done, not what comes out.
FREE = {"workers", "executor", "slurm_partition", "slurm_time", "sbatch_args", "memory_gb", "overwrite_output_dir"}
FREE |= {"output_dir", "cache_dir", "max_drop_ratio"}
RESUME_HINT = "make room, or see to whose it is, and the same command goes on"


def prepare_corpus(
    args: CorpusArguments, recorded: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase | None"
) -> None:
    """Make the corpus, or go on with it.

    Args:
        recorded: the settings as the user gave them.

    Raises:
        UserError: sources that cannot be read, of which too many rows cannot, or of which nothing is left; a folder
            that holds something else, a run with other settings, or one that is going on.
    """
    logger.remove()  # loguru's, which datatrove writes to stderr with; the log files of the stages have all of it
    out = Path(args.output_dir)
    work = out.resolve() / ".work"
    encoder = DocumentEncoder(tokenizer, args.document_end_token) if args.tokenize else None
    corpora = _find(args)
    columns = Columns(schema=args.schema, prompt=args.prompt_column, response=args.response_column)
    readers = [[open_reader(source, columns) for source in corpus.files] for corpus in corpora]
    say_plan(corpora, readers)
    settings = {name: value for name, value in recorded.items() if name not in FREE}
    settings["tokenizer"] = encoder.settings["tokenizer"] if encoder else None
    files = [source for corpus in corpora for source in corpus.files] + find_sources(args.decontaminate or [])
    inputs = {source.path: f"{source.digest} {source.encoding}" for source in files}
    own = {"settings": settings, "inputs": inputs}
    with writing(f"--output_dir {out}", RESUME_HINT), entered(out, work, own, args.overwrite_output_dir):
        if (out / LEDGER).exists():
            clear(work)
            say(f"{out}: the corpus is here already, made from the same files with the same settings")
            return
        tasks = once(work / "tasks.json", lambda: plan_tasks(corpora))
        _read(args, work, [reader for own in readers for reader in own], tasks)
        counts = [json.loads((work / "documents" / f"{task:05d}.json").read_text()) for task in range(len(tasks))]
        ledger = Ledger()
        for count in counts:
            ledger.merge(Ledger.from_dict(count.pop("ledger")))
        ledger.check(args.max_drop_ratio, UNUSABLE)  # what rules drop is what they are for
        _find_duplicates(args, work)
        average = max(corpus_tasks.TASK_BYTES // 3, sum(count["characters"] for count in counts) // corpus_tasks.TASKS)
        groups = plan_shards(counts, tasks, work, args.shard_size, average)
        if encoder:
            save_tokenizer(encoder, work / "tokenizer")
        tokens = (str(work / "tokenizer"), args.document_end_token, args.trust_remote_code) if encoder else None
        if groups:
            run_stage(args, [Export(groups, work, tokens)], len(groups), work / "write")
        shards: dict[str, list[Shard]] = {corpus.name: [] for corpus in corpora}
        for group in range(len(groups)):
            done = json.loads((work / "write" / f"{group:05d}.json").read_text(encoding="utf-8"))
            for location, statuses, reason in done["dropped"]:
                ledger.drop(location, statuses, reason)
            for corpus, figures in done["shards"]:
                shards[corpus].append(Shard(**figures))
        _finish(out, work, _by_source(corpora, ledger), shards, encoder)
        write_ledgers(out / LEDGER, corpus=ledger)
        clear(work)


def _find(args: CorpusArguments) -> list[Corpus]:
    options = {"cache_dir": args.cache_dir, "txt": args.txt_documents}
    corpora = find_corpora(args.input_files, sniff=True, **options)
    sizes = [os.path.getsize(source.path) for corpus in corpora for source in corpus.files if source.split is None]
    if sum(sizes) <= READ_WHOLE:
        corpora = find_corpora(args.input_files, **options)
    out = Path(args.output_dir).resolve()
    for corpus in corpora:
        if corpus.shards:
            raise UserError(f"{corpus.shards}: these are token shards already; name the text that they come from")
        if Path(corpus.name).name != corpus.name or corpus.name.startswith("."):
            raise UserError(f"{corpus.name}=: a source's name is that of a folder; leave out / and the leading dot")
        for source in corpus.files:
            if out in Path(source.path).resolve().parents:
                raise UserError(f"--output_dir {out}: {source.path} is in it; name a folder without input")
    return corpora


def _read(args: CorpusArguments, work: Path, readers: Sequence[Reader], tasks: Sequence[Mapping]) -> None:
    book = Book()
    files = [(reader.source, reader.schema.name, reader.schema.columns) for reader in readers]
    steps: list[Any] = [ReadDocuments(files, tasks, book), Repair(args.repairs)]
    min_chinese = args.min_chinese if args.quality else None
    steps.append(Rules(book, args.min_chars, args.max_chars, min_chinese))
    if args.decontaminate:
        folder = work / "evaluation"
        if not (folder / "whole").exists():
            index_evaluation(args.decontaminate, args.decontamination_ngram, folder, args.repairs)
            (folder / "whole").touch()
        steps.append(Decontaminate(folder, args.decontamination_ngram, book))
    if args.privacy:
        steps.append(Repair([], args.privacy_names or []))
    steps.append(Keep(work / "documents", book))
    if args.exact_dedup:
        steps.append(SignExactly(str(work / "exact_signatures"), EXACT, finder_workers=FINDERS))
    if args.near_dedup:
        steps.append(SignNearly(work / "near_signatures"))
    run_stage(args, steps, len(tasks), work / "read")


def _find_duplicates(args: CorpusArguments, work: Path) -> None:
    if args.exact_dedup:
        find = ExactFindDedups(str(work / "exact_signatures"), str(work / "exact"), EXACT, lines_to_buffer=4096)
        run_stage(args, [find], FINDERS, work / "find_exact")
    if args.near_dedup:
        buckets = MinhashDedupBuckets(str(work / "near_signatures"), str(work / "near_pairs"), lines_to_buffer=1024)
        run_stage(args, [buckets], MinhashConfig().num_buckets, work / "find_near")
        run_stage(args, [KeepFirst(str(work / "near_pairs"), str(work / "near"))], 1, work / "clusters")


def _by_source(corpora: Sequence[Corpus], ledger: Ledger) -> Ledger:
    """The ledger of files as one of sources."""
    names = {
        f"{file.path}/{file.split}" if file.split else file.path: own.name for own in corpora for file in own.files
    }
    found = Ledger()
    for file, counts in ledger.sources.items():
        found.sources.setdefault(names[file], Counter()).update(counts)
    for (file, status), entry in ledger.reasons.items():
        own = found.reasons.setdefault((names[file], status), Entry())
        own.count += entry.count
        own.locations += entry.locations[: MAX_LOCATIONS - len(own.locations)]
    return found


def _finish(
    out: Path, work: Path, ledger: Ledger, shards: Mapping[str, Sequence[Shard]], encoder: DocumentEncoder | None
) -> None:
    """Move whole sources into place, and tell what there is."""
    say(ledger.table())
    for name in shards:
        counts = ledger.sources[name]
        if not counts["kept"]:
            reasons = [f"{entry.count:,} {why}" for (own, why), entry in ledger.reasons.items() if own == name]
            raise UserError(f"source {name}: no document is left of {counts['read']:,} ({'; '.join(reasons[:3])})")
    state = json.loads((work / "state.json").read_text(encoding="utf-8"))
    write_json(work / "state.json", {**state, "sources": list(shards)}, indent=1)
    for name, own in shards.items():
        staged = work / "shards" / name
        if staged.exists():
            if encoder:
                write_manifest(staged, name, encoder, own)
            os.replace(staged, out / name)
        total = {figure: sum(getattr(shard, figure) for shard in own) for figure in ("documents", "tokens", "bytes")}
        tokens = f"{total['tokens']:,} tokens, " if encoder else ""
        files = f"{len(own):,} file{'s' * (len(own) > 1)}"
        lines = "documents" if encoder else "lines"
        say(f"{out / name}: {total['documents']:,} {lines}, {tokens}{total['bytes']:,} bytes of text, {files}")
