"""Sources of documents → a clean corpus in shards, in stages that a killed run resumes.

    read                                 rows → documents → repairs and rules → .work/documents, and their signatures
    find_exact, find_near, clusters      signatures → duplicates
    write                                documents without duplicates → shards

All work is in ``.work``; a source's folder is moved into place when all its shards are complete.
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
from hf_recipes.core.files import move_folder, write_json, writing
from hf_recipes.core.ledger import LEDGER, UNUSABLE, Ledger, write_ledgers
from hf_recipes.corpus import tasks as corpus_tasks
from hf_recipes.corpus.arguments import CorpusArguments
from hf_recipes.corpus.decontamination import Decontaminate, index_evaluation
from hf_recipes.corpus.dedup import EXACT, KeepFirst, SignExactly, SignNearly
from hf_recipes.corpus.executors import run_stage
from hf_recipes.corpus.export import Export, plan_shards, save_tokenizer
from hf_recipes.corpus.folder import cached_json, clear_work, corpus_folder
from hf_recipes.corpus.steps import REMARKS, Keep, LedgerWriter, ReadDocuments, Repair, Rules
from hf_recipes.corpus.tasks import plan_tasks
from hf_recipes.data.files.source import Source
from hf_recipes.data.files.sources import find_sources
from hf_recipes.data.pretraining.corpora import Corpus, Reader, find_corpora, open_reader, print_plan
from hf_recipes.data.pretraining.document_encoder import DocumentEncoder
from hf_recipes.data.pretraining.token_shards import Shard, write_manifest
from hf_recipes.data.schemas.registry import Columns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FINDERS = 8  # tasks that search for exact duplicates
MAX_DIGESTED = 1 << 30  # bytes of input up to which digests are of the content, else of size and date
# Settings that may differ when a run is resumed, since the corpus does not depend on them.
CHANGEABLE = {"workers", "executor", "slurm_partition", "slurm_time", "sbatch_args", "memory_gb"}
CHANGEABLE |= {"output_dir", "overwrite_output_dir", "cache_dir", "max_drop_ratio"}
RESUME_HINT = "make room or check the permissions; the same command resumes"


def prepare_corpus(
    args: CorpusArguments, recorded: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase | None"
) -> None:
    """Make the corpus, or resume it.

    Args:
        recorded: the settings as the user gave them.
    """
    logger.remove()  # datatrove's output on stderr; the log files of the stages have it all
    out = Path(args.output_dir)
    work = out.resolve() / ".work"
    encoder = DocumentEncoder(tokenizer, args.document_end_token) if args.tokenize else None
    corpora = _find_sources(args)
    columns = Columns(
        schema=args.schema,
        prompt=args.prompt_column,
        response=args.response_column,
        ignored=tuple(args.ignore_columns or ()),
    )
    readers = [[open_reader(source, columns, args.drop_repeats) for source in corpus.files] for corpus in corpora]
    print_plan(corpora, readers)
    settings = {name: value for name, value in recorded.items() if name not in CHANGEABLE}
    settings["tokenizer"] = encoder.settings["tokenizer"] if encoder else None
    files = [source for corpus in corpora for source in corpus.files] + find_sources(
        args.decontaminate or [], all_splits=True
    )
    inputs = {source.path: f"{source.digest} {source.encoding}" for source in files}
    state = {"settings": settings, "inputs": inputs}
    with writing(f"--output_dir {out}", RESUME_HINT), corpus_folder(out, work, state, args.overwrite_output_dir):
        if (out / LEDGER).exists():
            clear_work(work)
            say(f"{out}: the corpus is here already, made from the same files with the same settings")
            return
        tasks = cached_json(work / "tasks.json", lambda: plan_tasks(corpora))
        _read(args, work, [reader for group in readers for reader in group], tasks)
        counts = [_load_json(work / "documents" / f"{task:05d}.json") for task in range(len(tasks))]
        kept = sum(count["documents"] for count in counts)
        ledger = Ledger({_path_of(source): Counter() for corpus in corpora for source in corpus.files})
        for count in counts:
            ledger.merge(Ledger.from_dict(count["dropped"]))
        # Only unusable rows count; dropping documents is what the rules are for.
        Ledger({"documents": Counter(read=kept, kept=kept)}).merge(ledger).check(args.max_drop_ratio, UNUSABLE)
        _find_duplicates(args, work)
        characters = sum(count["characters"] for count in counts)
        group_characters = max(corpus_tasks.MIN_TASK_BYTES // 3, characters // corpus_tasks.MAX_TASKS)
        groups = plan_shards(counts, tasks, work, args.shard_size, group_characters)
        if encoder:
            save_tokenizer(encoder, work / "tokenizer")
        tokens = (str(work / "tokenizer"), args.document_end_token, args.trust_remote_code) if encoder else None
        if groups:
            run_stage(args, [Export(groups, work, tokens)], len(groups), work / "write")
        shards: dict[str, list[Shard]] = {corpus.name: [] for corpus in corpora}
        for group in range(len(groups)):
            written = _load_json(work / "write" / f"{group:05d}.json")
            ledger.merge(Ledger.from_dict(written["ledger"]))
            for name, shard in written["shards"]:
                shards[name].append(Shard(**shard))
        _move_sources(out, work, _by_source(corpora, ledger), shards, encoder)
        write_ledgers(out / LEDGER, corpus=ledger)
        clear_work(work)


def _load_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _find_sources(args: CorpusArguments) -> list[Corpus]:
    options = {"cache_dir": args.cache_dir, "txt": args.txt_documents, "encoding": args.encoding}
    corpora = find_corpora(args.input_files, sniff=True, **options)
    sizes = [os.path.getsize(source.path) for corpus in corpora for source in corpus.files if source.split is None]
    if sum(sizes) <= MAX_DIGESTED:
        corpora = find_corpora(args.input_files, **options)
    out = Path(args.output_dir).resolve()
    for corpus in corpora:
        if corpus.shards:
            raise UserError(f"{corpus.shards}: these are token shards already; name the text that they come from")
        if Path(corpus.name).name != corpus.name or corpus.name.startswith("."):
            raise UserError(f"{corpus.name}=: a source's name is that of a folder; remove / and the leading dot")
        for source in corpus.files:
            if out in Path(source.path).resolve().parents:
                raise UserError(f"--output_dir {out}: {source.path} is in it; name a folder without input")
    return corpora


def _read(args: CorpusArguments, work: Path, readers: Sequence[Reader], tasks: Sequence[Mapping]) -> None:
    writer = LedgerWriter()
    files = [(reader.source, reader.schema.name, reader.schema.columns) for reader in readers]
    steps: list[Any] = [
        ReadDocuments(files, tasks, writer, args.drop_repeats),
        Repair(args.repairs, remarks=not args.wiki_markup),
    ]
    min_chinese = args.min_chinese if args.quality else None
    steps.append(Rules(writer, args.min_chars, args.max_chars, min_chinese))
    if args.decontaminate:
        folder = work / "evaluation"
        if not (folder / "complete").exists():
            index_evaluation(args.decontaminate, args.decontamination_ngram, folder, args.repairs)
            (folder / "complete").touch()
        steps.append(Decontaminate(folder, args.decontamination_ngram, writer))
    if args.privacy:
        steps.append(Repair([], args.privacy_names or []))
    steps.append(Keep(work / "documents", writer))
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
    result = Ledger()
    for corpus in corpora:
        for path in map(_path_of, corpus.files):
            reasons = {(corpus.name, status): entry for (file, status), entry in ledger.reasons.items() if file == path}
            result.merge(Ledger({corpus.name: ledger.sources[path]}, reasons))
    return result


def _path_of(source: Source) -> str:
    """The path of a source's file in the ledger."""
    return f"{source.path}/{source.split}" if source.split else source.path


def _move_sources(
    out: Path, work: Path, ledger: Ledger, shards: Mapping[str, Sequence[Shard]], encoder: DocumentEncoder | None
) -> None:
    """Move the folders of complete sources into place, and print the counts."""
    say(ledger.table())
    for status, message in REMARKS.items():
        if count := sum(entry.count for (_, reason), entry in ledger.reasons.items() if reason == status):
            say(f"kept, {message.format(count)}")
    for name in shards:
        counts = ledger.sources[name]
        if not counts["kept"]:
            reasons = [f"{entry.count:,} {why}" for (source, why), entry in ledger.reasons.items() if source == name]
            raise UserError(f"source {name}: no document is left of {counts['read']:,} ({'; '.join(reasons[:3])})")
    write_json(work / "state.json", {**_load_json(work / "state.json"), "sources": list(shards)}, indent=1)
    for name, written in shards.items():
        folder = work / "shards" / name
        if folder.exists():
            if encoder:
                write_manifest(folder, name, encoder, written)
            move_folder(folder, out / name)
        total = {key: sum(getattr(shard, key) for shard in written) for key in ("documents", "tokens", "bytes")}
        tokens = f"{total['tokens']:,} tokens, " if encoder else ""
        files = f"{len(written):,} file{'s' * (len(written) > 1)}"
        lines = "documents" if encoder else "lines"
        say(f"{out / name}: {total['documents']:,} {lines}, {tokens}{total['bytes']:,} bytes of text, {files}")
