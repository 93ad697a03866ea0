"""An inspection from its settings to its report."""

import json
import os
from collections.abc import Callable, Iterator, Sequence

from hf_recipes.core.errors import say
from hf_recipes.core.ledger import LEDGER, Ledger, details_hidden, without_quoted_values
from hf_recipes.data.arguments import columns_of
from hf_recipes.data.examples import schema_of, thoughts_from
from hf_recipes.data.files.sources import find_sources
from hf_recipes.data.files.specs import parse_spec
from hf_recipes.evaluation.reports.phrases import Phrase
from hf_recipes.evaluation.reports.report import Examples, Report, Section, Table, clip
from hf_recipes.inspection.checks import Checks
from hf_recipes.inspection.duplicates import RowHashes, duplicate_tables, overlap_table
from hf_recipes.inspection.lengths import histogram, length_tables
from hf_recipes.inspection.prompts import prompt_tables
from hf_recipes.inspection.rows.base import Rows
from hf_recipes.inspection.rows.read import WOULD_STOP, read_sets
from hf_recipes.inspection.settings import InspectContext
from hf_recipes.inspection.token_renderer import TokenRenderer
from hf_recipes.privacy.redactor import Redactor

ON_PAGE = 10  # times as many examples as in the terminal
NO_DOCUMENT_MASK = Phrase(
    "In colour: the tokens that carry loss; documents are not masked from each other, and a block is one text to the "
    "model."
)


def inspect(context: InspectContext) -> Report:
    """Report on all rows that a stage is going to train on.

    Raises:
        UserError: as `Context.load_tokenizer` and `read_sets`.
    """
    with details_hidden(context.inspection.privacy):
        return _inspect(context)


def _inspect(context: InspectContext) -> Report:
    arguments, stage = context.inspection, context.stage
    context.load_tokenizer()
    renderer = TokenRenderer(context.tokenizer, Redactor() if arguments.privacy else None)
    sets, warnings = read_sets(context)
    report = Report(", ".join(context.data_args.train_file), _facts(context), warnings)
    report.sections += _ledgers_of_files(context.data_args.train_file, arguments.privacy)
    # A literal special token is text to pretraining, and a token of its own to every other stage.
    special = [] if stage.data_form == "text" else list(map(str, context.tokenizer.all_special_tokens))
    train_hashes = None
    for rows in sets:
        say(f"checking the {rows.name} rows")
        section, hashes, locations = _check_rows(rows, special, renderer)
        if train_hashes is None:
            train_hashes = hashes
        else:
            section.blocks.append(overlap_table(train_hashes, hashes, locations, rows.has_answers))
        report.sections.append(section)
    count = arguments.examples * (ON_PAGE if arguments.html else 1)
    if count or arguments.show:
        examples = sets[0].render(renderer, count, context.args.seed, arguments.show or ())
        masks_documents = getattr(context.args, "document_attention", True)
        note = Phrase(stage.legend, **vars(context.args)) if masks_documents else NO_DOCUMENT_MASK
        report.sections.append(Section(Phrase("Examples"), [Examples("Token by token", note, examples)]))
    report.verdict, report.tone = _verdict(report, sets[0].ledger)
    return report


def _verdict(report: Report, ledger: Ledger) -> tuple[str, str]:
    read, findings = ledger.totals["read"], [finding for table in _tables(report) for finding in table.findings]
    used = Phrase("{used:,} of {read:,} rows are trained on", used=read - ledger.totals["dropped"], read=read)
    if any(getattr(warning, "template", "") == WOULD_STOP for warning in report.warnings):
        return "", "bad"  # the warning is the verdict
    if findings:
        return Phrase("{used}; {count:,} things to look at:", used=used, count=len(findings)), ""
    return Phrase("{used}; nothing looks wrong.", used=used), "" if report.warnings else "good"


def _tables(report: Report) -> Iterator[Table]:
    return (block for section in report.sections for block in section.blocks if isinstance(block, Table))


def _facts(context: InspectContext) -> list[tuple[str, str]]:
    data = context.data_args
    held_out, source = getattr(data, "validation_split_percentage", None), context.model_args.tokenizer_source
    return [
        ("stage", Phrase("{stage}, {reason}", stage=context.stage.name, reason=context.reason)),
        ("training rows", ", ".join(data.train_file)),
        (
            "validation rows",
            Phrase("{share:g} % of them", share=held_out) if held_out else ", ".join(data.validation_file or ["–"]),
        ),
        *(
            (Phrase("thoughts of {path}", path=path), Phrase("the column {name}", name=name))
            for path, name in _thoughts_columns(context)
        ),
        ("tokenizer", Phrase("{name}, {count:,} tokens", name=source, count=len(context.tokenizer))),
    ]


def _thoughts_columns(context: InspectContext) -> Iterator[tuple[str, str]]:
    """The files to train on with columns of thoughts, and these."""
    data = context.data_args
    if context.stage.data_form not in ("messages", "preference", "unpaired"):
        return
    settings = {"sniff": True, "encoding": data.encoding, "seed": context.args.seed}
    for source in find_sources(data.train_file, "train", data.cache_dir, **settings):
        if names := thoughts_from(schema_of(source, columns_of(data)).columns):
            yield source.path, names


def _check_rows(
    rows: Rows, special_tokens: Sequence[str], renderer: TokenRenderer
) -> tuple[Section, RowHashes, list[str]]:
    """The section of one data set, and the hashes and locations of its rows."""
    checks = Checks(special_tokens, renderer.mask)
    locations: list[str] = []
    for texts in rows.texts():
        checks.add(texts)
        locations += texts.locations
    lengths = {name: values for name, values in rows.lengths().items() if len(values)}
    blocks = [*_ledger_tables(rows.ledger), *rows.tables()]
    blocks += prompt_tables(rows, renderer.mask)
    blocks += length_tables(lengths, rows.budgets, "Lengths in tokens, before any budget")
    blocks += [histogram(name, values, rows.budgets.get(name)) for name, values in lengths.items()]
    if checks.rows:

        def locate(indices):
            return [(location, clip(renderer.mask(text))) for location, text in rows.locate(indices)]

        blocks += [checks.script_table(), *checks.finding_tables()]
        blocks += [*duplicate_tables(checks.hashes, locations, locate, rows.has_answers), *checks.answer_tables()]
    return Section(Phrase("{set} rows", set=Phrase(rows.name)), blocks), checks.hashes, locations


def _ledgers_of_files(specs: Sequence[str], privacy: bool) -> list[Section]:
    """The ledgers of the importer or the corpus pipeline that wrote the files, which lie in or next to them."""
    mask = without_quoted_values if privacy else str
    paths = [parse_spec(spec).path for spec in specs]
    folders = dict.fromkeys(folder for path in paths for folder in (path, os.path.dirname(path)))
    sections = []
    for path in (os.path.join(folder, LEDGER) for folder in folders):
        if not os.path.isfile(path):
            continue
        try:
            with open(path, encoding="utf-8") as file:
                ledgers = {name: Ledger.from_dict(ledger) for name, ledger in json.load(file).items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # another program's file
        tables = [table for name, ledger in ledgers.items() for table in _ledger_tables(ledger, name, mask)]
        sections.append(Section(Phrase("made with {path}", path=path), tables))
    return sections


def _status(text: str) -> Phrase:
    """A status of the ledger, whose reason has its Chinese where it is among the usual ones."""
    action, colon, reason = text.partition(": ")
    return Phrase("{action}: {reason}", action=Phrase(action), reason=Phrase(reason)) if colon else Phrase(action)


def _ledger_tables(ledger: Ledger, of: str = "", mask: Callable[[str], str] = str) -> list[Table]:
    totals = ledger.totals
    extra = [name for name in ("split", "repaired") if totals[name]]
    names = ["read", "kept", "truncated", *extra, "dropped"]
    counts = ledger.sources | ({Phrase("all"): totals} if len(ledger.sources) > 1 else {})
    rows = [[source, *(count[name] for name in names)] for source, count in counts.items()]
    title = Phrase("Ledger: {of}", of=Phrase(of)) if of else "Ledger"
    tables = [Table(title, ["source", *names], rows)] if rows else []
    reasons = [
        [
            entry.count,
            _status(mask(status)),
            ", ".join(entry.shown(location, location) for location in entry.locations[:3]) + "…" * (entry.count > 3),
        ]
        for (_, status), entry in ledger.reasons.items()
    ]
    if reasons:
        title = Phrase("Reasons: {of}", of=Phrase(of)) if of else "Reasons"
        tables.append(Table(title, ["rows", "status", "first"], reasons))
    return tables
