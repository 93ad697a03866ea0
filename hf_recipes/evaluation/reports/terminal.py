"""A report in the terminal."""

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.rule import Rule
from rich.table import Table as Grid
from rich.text import Text

from hf_recipes.evaluation.reports.report import (
    Example,
    Examples,
    Histogram,
    Report,
    Table,
    TokenSpan,
    as_text,
    is_number,
)

BARS = " ▁▂▃▄▅▆▇█"
# Tokens alternate between two styles, so that each can be told from the next.
LABELLED = ("bold black on green", "bold black on bright_green")
NOT_LABELLED = ("", "on grey23")
OMITTED = "italic dim"
MIN_TEXT_WIDTH = 12  # cells of a column of texts
OPEN, CLOSE = "⟦", "⟧"  # around labelled tokens, where there is no colour


def print_report(report: Report, console: Console, examples: int | None = None) -> None:
    """Print a report without its pictures, with at most `examples` examples."""
    console.print(Rule(Text(report.title)))
    for name, value in report.facts:
        console.print(Text(f"{name:17} {value}"))
    for warning in report.warnings:
        console.print(Text(warning, "bold red"))
    for section in report.sections:
        console.print()
        console.print(Rule(Text(section.title)))
        for block in section.blocks:
            if isinstance(block, Table):
                _print_table(block, console)
            elif isinstance(block, Histogram):
                console.print(histogram_line(block))
            elif isinstance(block, Examples):
                _print_examples(block, console, examples)


def _print_table(table: Table, console: Console) -> None:
    grid = Grid(title=Text(table.title, "bold"), title_justify="left", box=box.SIMPLE_HEAD)
    for title, *cells in zip(table.header, *table.rows, strict=True):
        if any(map(is_number, cells)):
            grid.add_column(Text(title), overflow="fold", justify="right", no_wrap=True)
        else:  # folded in a narrow terminal, but not squeezed out by the numbers
            widest = max((cell_len(as_text(cell)) for cell in cells), default=0)
            grid.add_column(Text(title), overflow="fold", min_width=min(widest, MIN_TEXT_WIDTH))
    for row in table.rows:
        grid.add_row(*(Text(as_text(cell)) for cell in row))
    if table.rows:
        console.print(grid)
    else:
        console.print(Text(table.title, "bold") + Text(": none", ""))
    if table.note:
        console.print(Text(table.note, "dim"))


def histogram_line(histogram: Histogram) -> Text:
    """The counts as bars, with ``│`` after the lengths that a budget allows; a bin that is not empty has a bar."""
    most = max(histogram.counts)
    bars = [BARS[-(-count * (len(BARS) - 1) // most)] for count in histogram.counts]
    for tokens in histogram.budgets.values():
        bars.insert(sum(edge <= tokens for edge in histogram.edges[:-1]), "│")
    legend = "".join(f"  │ {name}" for name in histogram.budgets)
    return Text(f"{histogram.title}: {histogram.edges[0]:,} {''.join(bars)} {histogram.edges[-1] - 1:,} tokens{legend}")


def _print_examples(examples: Examples, console: Console, count: int | None) -> None:
    console.print(Text(examples.note))
    for example in examples.rows[:count]:
        console.print()
        _print_example(example, console)
    left = len(examples.rows[count:]) if count is not None else 0
    if left:
        console.print(Text(f"\n{left:,} more are on the page", "dim"))


def _print_example(example: Example, console: Console) -> None:
    console.print(Text(f"{example.location}  ", "bold") + Text(f"({example.status})", "dim"))
    for fact in example.facts:
        console.print(Text(fact, "dim"))
    for sequence in example.sequences:
        if sequence.name:
            console.print(Text(sequence.name, "bold underline"))
        for index, document in enumerate(sequence.documents):
            if index or (document.location and len(sequence.documents) > 1):
                console.print(Rule(Text(document.location), style="cyan", characters="┄", align="left"))
            console.print(token_text(document.spans, in_colour=console.color_system is not None))


def token_text(spans: list[TokenSpan], in_colour: bool) -> Text:
    """Tokens, those that are labelled in colour or in brackets."""
    text, in_brackets = Text(), False
    for index, span in enumerate(spans):
        if not in_colour and bool(span.labelled) is not in_brackets:
            text.append(CLOSE if in_brackets else OPEN)
        in_brackets = bool(span.labelled)
        style = OMITTED if span.labelled is None else (LABELLED if span.labelled else NOT_LABELLED)[index % 2]
        text.append(span.text.replace("\n", "↵\n"), style if in_colour else "")
    return text.append(CLOSE) if in_brackets and not in_colour else text
