"""The page, as it is seen in Chromium, against what the terminal says of the same rows."""

import errno
import os
import re
from pathlib import Path

import pytest

from conftest import conversation, write_jsonl
from hf_recipes.core.errors import UserError
from hf_recipes.core.files import writing
from hf_recipes.evaluation.reports.page import write_page
from hf_recipes.evaluation.reports.report import Report

LONG = "春天来了，公园里的花都开了，我们一起去看看吧。"
MARKUP = "<img src=x onerror=window.ran=1>"


@pytest.fixture
def inspected(script, tokens_only, monkeypatch, tmp_path):
    """What the terminal says, and where the page is."""
    rows = [{"messages": conversation(f"第{number}个问题？", f"{LONG}{number}")} for number in range(30)]
    rows += [rows[0], {"messages": conversation("问", f"{MARKUP}{LONG}")}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    monkeypatch.setenv("COLUMNS", "400")  # nothing is folded
    flags = ["--model_name_or_path", tokens_only, "--train_file", path, "--validation_split_percentage", 10]
    flags += ["--packing", "--max_length", 256, "--examples", 1, "--html", tmp_path / "report.html", "--language", "en"]
    code, out, err = script("inspect_data.py", *flags, light=False)
    assert code == 0, err
    return out[out.index("─") :], f"file://{tmp_path}/report.html"


def words(text: str) -> set[str]:
    """What is to be read, without lines, bars of histograms, and what stands for colour."""
    lines = [line for line in text.splitlines() if not re.search("[▁▂▃▄▅▆▇█]", line)]
    return set(re.sub("[─┄⟦⟧↵…]", " ", "\n".join(lines)).split())


def test_the_page_shows_what_the_terminal_shows(browser, inspected):
    out, url = inspected
    browser.viewport(1280, 900)
    browser.goto(url)
    terminal = out[: out.index("are on the page")].rpartition("\n")[0]
    assert words(terminal) - words(browser.text) == set()
    histograms = [line.partition(":")[0] for line in out.splitlines() if re.search("[▁▂▃▄▅▆▇█]", line)]
    assert browser.evaluate("[...document.images].map(image => image.alt)") == histograms
    assert browser.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 200)")

    drawn = out[out.index("In colour") :]
    labelled = "".join(re.findall("⟦(.*?)⟧", drawn, re.DOTALL))
    first = "document.querySelector('article')"
    assert browser.evaluate(f"[...{first}.querySelectorAll('b')].map(b => b.textContent).join('')") == labelled
    colours = browser.evaluate(
        f"['b', 'i'].map(tag => getComputedStyle({first}.querySelector(tag + ':nth-child(even)')).backgroundColor)"
    )
    assert colours == ["rgb(111, 207, 111)", "rgb(238, 238, 238)"]
    boundaries = browser.evaluate(f"[...{first}.querySelectorAll('.boundary')].map(line => line.textContent)")
    assert boundaries == re.findall(r"^(\S+rows\.jsonl:\d+) ┄", drawn, re.MULTILINE) and len(boundaries) > 1
    assert browser.evaluate("typeof window.ran") == "undefined" and MARKUP in browser.text
    assert [request for request in browser.requests if not request.startswith(("file://", "data:"))] == []


def test_rows_are_searched(browser, inspected):
    browser.viewport(1280, 900)
    browser.goto(inspected[1])
    count = browser.evaluate("document.querySelectorAll('tr:not([hidden]):has(td), article:not([hidden])').length")
    browser.type("#search", "LEFTOVER")
    browser.wait_for(f" of {count} rows")
    shown = browser.evaluate(
        "[...document.querySelectorAll('tr:has(td)')].filter(r => !r.hidden).map(r => r.innerText)"
    )
    assert len(shown) == 2 and all("leftover HTML" in row for row in shown)
    assert browser.evaluate("document.querySelector('#hits').textContent") == f"2 of {count} rows"
    browser.type("#search", " ")
    browser.wait_for(script="!document.querySelector('[hidden]')")


def test_on_a_telephone(browser, inspected):
    browser.viewport(390, 844, mobile=True)
    browser.goto(inspected[1])
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    widths = browser.evaluate("[...document.images].map(image => image.getBoundingClientRect().width)")
    assert max(widths) <= 390
    assert float(browser.evaluate("parseFloat(getComputedStyle(document.body).fontSize)")) >= 14
    browser.viewport(1280, 900)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_page_that_cannot_be_written(tmp_path, monkeypatch, code):
    path = tmp_path / "report.html"
    path.write_text("of yesterday")
    write = Path.write_text

    def begin(self, text, **kwargs):
        write(self, text[:10], **kwargs)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "write_text", begin)
    message = rf"^--html {path}: cannot be written \({os.strerror(code)}\); make room"
    with pytest.raises(UserError, match=message), writing(f"--html {path}"):
        write_page(Report("report"), path)
    assert os.listdir(tmp_path) == ["report.html"] and path.read_text() == "of yesterday"
