"""An inspection from its settings to its report."""

import json
import os
from collections.abc import Callable, Sequence

from hf_recipes.core.errors import say
from hf_recipes.core.ledger import LEDGER, Ledger, details_hidden, without_values
from hf_recipes.inspection.checks import Checks, duplicate_tables, overlap_table
from hf_recipes.inspection.input_files import read_sets
from hf_recipes.inspection.lengths import histogram, length_tables
from hf_recipes.inspection.report import Examples, Report, Section, Table, clip
from hf_recipes.inspection.rows import Rows
from hf_recipes.inspection.stages import Settings
from hf_recipes.inspection.token_view import Pen
from hf_recipes.privacy.redactor import Redactor

ON_PAGE = 10  # times as many rows as in the terminal
RUN_ON = "In colour: the tokens that carry loss; documents are not kept apart, and a block is one text to the model."


def inspect(settings: Settings) -> Report:
    """Look at all that a stage is going to learn from.

    Raises:
        UserError: as `Context.load_tokenizer` and `read_sets`.
    """
    with details_hidden(settings.look.privacy):
        return _inspect(settings)


def _inspect(settings: Settings) -> Report:
    look, stage = settings.look, settings.stage
    settings.load_tokenizer()
    tokenizer = settings.tokenizer
    pen = Pen(tokenizer, Redactor() if look.privacy else None)
    sets, warnings = read_sets(settings)
    data, files = settings.data_args, ", ".join(settings.data_args.train_file)
    held_out = getattr(data, "validation_split_percentage", None)
    facts = [
        ("stage", f"{stage.name}, {settings.reason}"),
        ("training rows", files),
        ("validation rows", f"{held_out:g} % of them" if held_out else ", ".join(data.validation_file or ["–"])),
        ("tokenizer", f"{settings.model_args.tokenizer_source}, {len(tokenizer):,} tokens"),
    ]
    report = Report(files, facts, warnings, _made(data.train_file, look.privacy))
    # A literal special token is text to pretraining, and a token of its own to every other stage.
    special = [] if stage.data_form == "text" else list(map(str, tokenizer.all_special_tokens))
    keys = {}
    for rows in sets:
        say(f"looking at the {rows.name} rows")
        checks = Checks(special, pen.mask)
        locations: list[str] = []
        for texts in rows.texts():
            checks.add(texts)
            locations += texts.locations if rows.name != "train" else []
        keys[rows.name] = checks.keys
        section = _section(rows, checks, pen)
        if rows.name != "train":
            section.blocks.append(overlap_table(keys["train"], keys[rows.name], locations, rows.has_answers))
        report.sections.append(section)
    count = look.examples * (ON_PAGE if look.html else 1)
    if count or look.show:
        drawn = sets[0].draw(pen, count, settings.args.seed, look.show or ())
        alone = getattr(settings.args, "document_attention", True)
        note = stage.legend.format(**vars(settings.args)) if alone else RUN_ON
        report.sections.append(Section("Examples", [Examples("Drawn token by token", note, drawn)]))
    return report


def _section(rows: Rows, checks: Checks, pen: Pen) -> Section:
    lengths = {name: values for name, values in rows.lengths().items() if len(values)}
    blocks = [*_ledger_tables(rows.ledger), *rows.tables()]
    blocks += length_tables(lengths, rows.budgets, "Lengths, before any budget")
    blocks += [histogram(name, values, rows.budgets.get(name)) for name, values in lengths.items()]
    if checks.rows:
        blocks.append(checks.language_table())

        def find(numbers):
            return [(location, clip(pen.mask(text))) for location, text in rows.find(numbers)]

        blocks += checks.suspicion_tables()
        blocks += duplicate_tables(checks.keys, find, rows.has_answers)
        blocks += checks.answer_tables()
    return Section(f"{rows.name} rows", blocks)


def _made(specs: Sequence[str], privacy: bool) -> list[Section]:
    """The ledgers that lie beside the files: of the importer, or of the corpus, that wrote them."""
    mask = without_values if privacy else str
    folders = dict.fromkeys(
        folder for spec in specs for path in [spec.rpartition("=")[2]] for folder in (path, os.path.dirname(path))
    )
    sections = []
    for path in (os.path.join(folder, LEDGER) for folder in folders):
        if not os.path.isfile(path):
            continue
        try:
            with open(path, encoding="utf-8") as file:
                ledgers = {name: Ledger.from_dict(found) for name, found in json.load(file).items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # not one of ours
        tables = [table for name, ledger in ledgers.items() for table in _ledger_tables(ledger, f": {name}", mask)]
        sections.append(Section(f"made with {path}", tables))
    return sections


def _ledger_tables(ledger: Ledger, of: str = "", mask: Callable[[str], str] = str) -> list[Table]:
    found = ledger.to_dict()
    extra = [name for name in ("split", "repaired") if found["total"].get(name)]
    names = ["read", "kept", "truncated", *extra, "dropped"]
    counts = {**found["sources"], **({"all": found["total"]} if len(found["sources"]) > 1 else {})}
    rows = [[source, *(own.get(name, 0) for name in names)] for source, own in counts.items()]
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
        tables.append(Table(f"Reasons{of}", ["rows", "what became of them", "first"], reasons))
    return tables
