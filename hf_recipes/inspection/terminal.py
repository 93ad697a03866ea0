"""A report in the terminal."""

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.rule import Rule
from rich.table import Table as Grid
from rich.text import Text

from hf_recipes.inspection.report import Example, Examples, Histogram, Piece, Report, Table, as_text

BARS = " ▁▂▃▄▅▆▇█"
# Tokens take turns, so that each is seen.
LEARNED = ("bold black on green", "bold black on bright_green")
GIVEN = ("", "on grey23")
LEFT_OUT = "italic dim"
NARROWEST = 12  # cells of a column of texts
OPEN, CLOSE = "⟦", "⟧"  # around what is learned, where there is no colour


def print_report(report: Report, console: Console, examples: int | None = None) -> None:
    """Print all of a report, but for examples beyond the first so many."""
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
            else:
                _print_examples(block, console, examples)


def _print_table(table: Table, console: Console) -> None:
    grid = Grid(title=Text(table.title, "bold"), title_justify="left", box=box.SIMPLE_HEAD)
    for number, title in enumerate(table.head):
        is_number = any(isinstance(row[number], int) for row in table.rows)
        # In a narrow terminal texts are folded, but none is squeezed out by the numbers.
        widest = max((cell_len(as_text(row[number])) for row in table.rows), default=0)
        look = {"justify": "right", "no_wrap": True} if is_number else {"min_width": min(widest, NARROWEST)}
        grid.add_column(Text(title), overflow="fold", **look)
    for row in table.rows:
        grid.add_row(*(Text(as_text(cell)) for cell in row))
    if not table.rows:
        console.print(Text(table.title, "bold") + Text(": none", ""))
    else:
        console.print(grid)
    if table.note:
        console.print(Text(table.note, "dim"))


def histogram_line(histogram: Histogram) -> Text:
    """The counts as bars, the higher the more rows, with ``│`` after what a budget allows."""
    most = max(histogram.counts)
    # A bin that is not empty has a bar.
    bars = [BARS[-(-count * (len(BARS) - 1) // most)] for count in histogram.counts]
    for tokens in histogram.marks.values():
        bars.insert(sum(edge <= tokens for edge in histogram.edges[:-1]), "│")
    marks = "".join(f"  │ {name}" for name in histogram.marks)
    return Text(f"{histogram.title}: {histogram.edges[0]:,} {''.join(bars)} {histogram.edges[-1] - 1:,} tokens{marks}")


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
    for strip in example.strips:
        if strip.name:
            console.print(Text(strip.name, "bold underline"))
        for number, segment in enumerate(strip.segments):
            if number or (segment.location and len(strip.segments) > 1):
                console.print(Rule(Text(segment.location), style="cyan", characters="┄", align="left"))
            console.print(drawn(segment.pieces, in_colour=console.color_system is not None))


def drawn(pieces: list[Piece], in_colour: bool) -> Text:
    """Tokens in the colours of what is learned, or with what is learned in brackets."""
    text, before = Text(), False
    for number, piece in enumerate(pieces):
        if not in_colour and bool(piece.labelled) is not before:
            text.append(CLOSE if before else OPEN)
        before = bool(piece.labelled)
        style = LEFT_OUT if piece.labelled is None else (LEARNED if piece.labelled else GIVEN)[number % 2]
        text.append(piece.text.replace("\n", "↵\n"), style if in_colour else "")
    return text.append(CLOSE) if before and not in_colour else text
