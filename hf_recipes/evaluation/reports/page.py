"""A report as one HTML page that needs no other file."""

import base64
import hashlib
import os
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hf_recipes.core.files import write_text
from hf_recipes.evaluation.reports.plots import length_histogram
from hf_recipes.evaluation.reports.report import Report, as_text, is_number

FOLDER = Path(__file__).parent


def write_page(report: Report, path: str | os.PathLike) -> None:
    """Write the page; it is there whole or not at all."""
    write_text(path, render_page(report))


def render_page(report: Report) -> str:
    """All texts are escaped, and the page's policy runs no script but its own, which it names by its digest."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "as_text": as_text,
        "base64": lambda content: base64.b64encode(content).decode(),
        "length_histogram": length_histogram,
    }
    environment.tests["number"] = is_number
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = environment.get_template("page.html.jinja")
    return template.render(report=report, script=script, script_digest=digest)
