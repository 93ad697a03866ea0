"""A report as one HTML page that needs no other file."""

import base64
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hf_recipes.core.files import write_text
from hf_recipes.core.language import Language
from hf_recipes.evaluation.reports.phrases import Phrase, translated
from hf_recipes.evaluation.reports.plots import length_histogram
from hf_recipes.evaluation.reports.report import LINKED, Answers, Block, Examples, Report, Section, as_text, is_number

FOLDER = Path(__file__).parent
UNFOLDED = 5  # examples


def write_page(report: Report, path: str | os.PathLike, language: Language = "en") -> None:
    """Write the page; it is there whole or not at all."""
    write_text(path, render_page(report, language))


def render_page(report: Report, language: Language = "en") -> str:
    """All texts are escaped, and the page's policy runs no script but its own, which it names by its digest."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "cell": lambda cell: translated(as_text(cell), language),
        "label": lambda text: translated(Phrase(text), language),
        "unbroken": _unbroken,
        "base64": lambda content: base64.b64encode(content).decode(),
        "length_histogram": lambda histogram: length_histogram(histogram, language),
    }
    environment.tests["number"] = is_number
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.jinja").render(
        report=report,
        sections=_examples_first(report.sections),
        language=language,
        linked=LINKED,
        unfolded=UNFOLDED,
        more=lambda count: translated(Phrase("{count:,} more", count=count), language),
        script=script,
        script_digest=digest,
    )


def _unbroken(text: str) -> str:
    """Without line breaks between a number and its unit or sign."""
    return re.sub(r" (?=%)|(?<=[<=]) ", "\u00a0", text)


def _examples_first(sections: Sequence[Section]) -> list[Section]:
    """In a terminal they come last, as that is where people look first."""
    inner = [Section(section.title, sorted(section.blocks, key=_is_table)) for section in sections]
    return sorted(inner, key=lambda section: all(map(_is_table, section.blocks)))


def _is_table(block: Block) -> bool:
    return not isinstance(block, Examples | Answers)
