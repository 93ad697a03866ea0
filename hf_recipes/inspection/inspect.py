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
from hf_recipes.evaluation.reports.report import Examples, Report, Section, Table, clip
from hf_recipes.inspection.checks import Checks
from hf_recipes.inspection.duplicates import RowHashes, duplicate_tables, overlap_table
from hf_recipes.inspection.lengths import histogram, length_tables
from hf_recipes.inspection.prompts import prompt_tables
from hf_recipes.inspection.rows.base import Rows
from hf_recipes.inspection.rows.read import read_sets
from hf_recipes.inspection.settings import InspectContext
from hf_recipes.inspection.token_renderer import TokenRenderer
from hf_recipes.privacy.redactor import Redactor

ON_PAGE = 10  # times as many examples as in the terminal
NO_DOCUMENT_MASK = (
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
        note = stage.legend.format(**vars(context.args)) if masks_documents else NO_DOCUMENT_MASK
        report.sections.append(Section("Examples", [Examples("Token by token", note, examples)]))
    return report


def _facts(context: InspectContext) -> list[tuple[str, str]]:
    data = context.data_args
    held_out = getattr(data, "validation_split_percentage", None)
    return [
        ("stage", f"{context.stage.name}, {context.reason}"),
        ("training rows", ", ".join(data.train_file)),
        ("validation rows", f"{held_out:g} % of them" if held_out else ", ".join(data.validation_file or ["–"])),
        *((f"thoughts of {path}", f"the column {name}") for path, name in _thoughts_columns(context)),
        ("tokenizer", f"{context.model_args.tokenizer_source}, {len(context.tokenizer):,} tokens"),
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
    blocks += length_tables(lengths, rows.budgets, "Lengths, before any budget")
    blocks += [histogram(name, values, rows.budgets.get(name)) for name, values in lengths.items()]
    if checks.rows:

        def locate(indices):
            return [(location, clip(renderer.mask(text))) for location, text in rows.locate(indices)]

        blocks += [checks.script_table(), *checks.finding_tables()]
        blocks += [*duplicate_tables(checks.hashes, locate, rows.has_answers), *checks.answer_tables()]
    return Section(f"{rows.name} rows", blocks), checks.hashes, locations


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
        tables = [table for name, ledger in ledgers.items() for table in _ledger_tables(ledger, f": {name}", mask)]
        sections.append(Section(f"made with {path}", tables))
    return sections


def _ledger_tables(ledger: Ledger, of: str = "", mask: Callable[[str], str] = str) -> list[Table]:
    totals = ledger.totals
    extra = [name for name in ("split", "repaired") if totals[name]]
    names = ["read", "kept", "truncated", *extra, "dropped"]
    counts = ledger.sources | ({"all": totals} if len(ledger.sources) > 1 else {})
    rows = [[source, *(count[name] for name in names)] for source, count in counts.items()]
    tables = [Table(f"Ledger{of}", ["source", *names], rows)] if rows else []
    reasons = [
        [
            entry.count,
            mask(status),
            ", ".join(entry.shown(location, location) for location in entry.locations[:3]) + "…" * (entry.count > 3),
        ]
        for (_, status), entry in ledger.reasons.items()
    ]
    if reasons:
        tables.append(Table(f"Reasons{of}", ["rows", "status", "first"], reasons))
    return tables
