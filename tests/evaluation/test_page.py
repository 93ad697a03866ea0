"""The page of an evaluation: its verdict, order, units, tabs and languages."""

import ast
import json
import re
import string
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from matplotlib import font_manager

from conftest import ROOT
from hf_recipes.core.language import locale_language
from hf_recipes.data.character_scripts import SCRIPTS
from hf_recipes.evaluation.method import Outcome
from hf_recipes.evaluation.reports import plots
from hf_recipes.evaluation.reports.page import render_page
from hf_recipes.evaluation.reports.phrases import Phrase, translated
from hf_recipes.evaluation.reports.report import Answer, Answers, Section, report_values
from hf_recipes.evaluation.reports.results import evaluation_report, p_text
from hf_recipes.inspection.rows.read import WOULD_STOP
from hf_recipes.inspection.settings import GUESSED
from hf_recipes.metrics.intervals import Paired
from hf_recipes.stages.table import STAGES

REPORTS = ROOT / "hf_recipes" / "evaluation" / "reports"
CHINESE = json.loads((REPORTS / "page.zh.json").read_text(encoding="utf-8"))
SETTINGS = {"model": {"model_name_or_path": "base-model", "peft_path": "runs/mine"}}


class Accuracy:
    note = None

    def values(self, records):
        return {"accuracy": [float(record["prediction"] == record["reference"]) for record in records]}


class Losses:
    note = None

    def values(self, records):
        return {}


def records(*predictions):
    return [
        {"location": f"dev.json:{row}", "question": f"问{row}", "reference": "年龄", "prediction": prediction}
        for row, prediction in enumerate(predictions, 1)
    ]


@pytest.fixture
def page(tmp_path):
    """Renders seven rows of two models in a language."""
    predictions = {"adapted": ["年龄"] * 6 + ["性别"], "base": ["性别"] * 7}
    metrics = {
        "adapted": {"accuracy": 6 / 7, "chrf": 0.5, "loss": 1.25, "perplexity": 3.5, "new_tokens": 4.0, "questions": 7},
        "base": {"accuracy": 0.0, "chrf": 0.25, "loss": 2.5, "perplexity": 12.2, "new_tokens": 9.5, "questions": 7},
    }
    outcomes = {
        name: Outcome({"pairs": records(*predictions[name])}, {"pairs": metrics[name]}) for name in ("adapted", "base")
    }
    paths = [tmp_path / f"pairs_{name}.png" for name in outcomes]
    for path in paths:
        plots.draw_confusion(np.eye(2, 3, dtype=np.int64), ["年龄", "性别"], path)
    changes = {"pairs_accuracy": Paired(6 / 7, 0.5, 1.0, 0.0002)}
    judged = {"wins": 5, "losses": 1, "ties": 1, "identical": 0, "contradictory": 0, "unparsable": 0}
    judged |= {"contradictory_share": 0.0, "win_rate": 0.75, "low": 0.5, "high": 1.0, "p_value": 0.0312}
    report = evaluation_report(SETTINGS, {"pairs": Accuracy()}, outcomes, changes, {"pairs": paths}, {"pairs": judged})
    return lambda language: render_page(report, language)


def texts(page: str, tag: str) -> list[str]:
    contents = re.findall(rf"<{tag}[ >].*?</{tag}>", page, re.DOTALL)
    return [" ".join(unescape(re.sub("<[^>]*>", " ", content)).split()) for content in contents]


@pytest.mark.parametrize(("p_value", "text"), [(0.0002, "< 0.001"), (0.001, "0.001"), (0.0499, "0.050"), (None, "–")])
def test_no_p_value_reads_zero(p_value, text):
    assert p_text(p_value) == text


def test_a_page_begins_with_its_verdict(page):
    top = page("en").partition('<div class="verdict good">')[2].partition("</div>")[0]
    assert texts(top, "p") == ["adapted against base: better in 1 of 1 evaluations, worse in 0, undecided in 0"]
    assert texts(top, "li") == [
        "pairs : accuracy 0.0 % → 85.7 %, better (p < 0.001)",
        "pairs : the judge: win rate 75.0 % [50.0 %, 100.0 %]",
    ]
    links = re.findall('href="#([^"]+)"', page("en"))
    assert len(links) == 12 and set(links) <= set(re.findall(' id="([^"]+)"', page("en")))


def test_examples_come_before_tables_of_one_unit_each(page):
    html = page("en")
    assert texts(html, "h3") == [
        "Answers",
        "Metrics in %",
        "Metrics in nats",
        "Metrics without a unit",
        "Metrics in tokens",
        "Counts",
        "Judge: adapted against base",
        "Verdicts of the judge",
        "Confusion of the classes",
    ]
    cells = [texts(table, "td") for table in re.findall("<table>.*?</table>", html, re.DOTALL)]
    assert cells[0][:5] == ["accuracy", "0.0 %", "85.7 %", "+85.7 [+50.0, +100.0]", "< 0.001"]
    assert cells[0][5:] == ["chrF", "25.0 %", "50.0 %", "", ""]
    assert cells[1:6] == [
        ["loss", "2.5000", "1.2500"],
        ["perplexity", "12.2000", "3.5000"],
        ["new tokens", "9.5000", "4.0000"],
        ["questions", "7", "7"],
        ["75.0 % [50.0 %, 100.0 %]", "0.031", "0.0 %"],
    ]
    first, folded = html.partition("<details>")[::2]
    assert (first.count("<article>"), folded.count("<article>")) == (5, 2)
    assert texts(first, "article")[0] == (
        "dev.json:7 (score 0.000) question 问7 reference 年龄 prediction (base) 性别 prediction (adapted) 性别"
    )


def test_what_is_of_the_row_stands_once_and_a_judge_without_verdicts_says_so():
    records = {
        name: [{"location": "a.txt:1", "nats": nats, "tokens": 3}] for name, nats in (("adapted", 1.5), ("base", 2.5))
    }
    outcomes = {name: Outcome({"held": rows}, {"held": {"loss": 1.0}}) for name, rows in records.items()}
    judged = dict.fromkeys(("wins", "losses", "ties", "identical", "contradictory"), 0) | {"ties": 1, "unparsable": 9}
    judged |= {"contradictory_share": None, "win_rate": 0.5, "low": 0.5, "high": 0.5, "p_value": 1.0}
    report = evaluation_report(SETTINGS, {"held": Losses()}, outcomes, {}, {}, {"held": judged})
    html = render_page(report, "en")
    assert texts(html, "article") == ["a.txt:1 nats (base) 2.500 nats (adapted) 1.500 tokens 3"]
    assert texts(html, "h3")[0] == "Rows"
    assert "held : the judge: win rate 50.0 % [50.0 %, 50.0 %]; no verdict on 9 of 10 rows" in texts(html, "li")


def test_a_page_in_chinese(page):
    html = page("zh")
    assert '<html lang="zh-CN">' in html and '<html lang="en">' in page("en")
    assert texts(html, "h1") == ["runs/mine"] and texts(html, "h2") == ["目录", "pairs"]  # names of data stay
    assert texts(html, "h3") == [
        "回答",
        "指标（%）",
        "指标（nat）",
        "指标（无单位）",
        "指标（词元）",
        "计数",
        "评委：微调后对比基座",
        "评委的结论",
        "各类别的混淆矩阵",
    ]
    assert texts(html, "li")[0] == "pairs ：准确率 0.0 % → 85.7 %，更好（p < 0.001）"
    assert texts(html, "label") == ["微调后", "基座"] and texts(html, "summary") == ["另外 2 条", "设置"]
    english = {text for tag in ("th", "dt", "p") for text in texts(html, tag) if re.fullmatch("[A-Za-z ,.:;]+", text)}
    assert english == {"p"}


def test_one_matrix_a_tab(page, browser, tmp_path):
    (tmp_path / "page.html").write_text(page("en"), encoding="utf-8")
    browser.viewport(390, 844, mobile=True)
    browser.goto(f"file://{tmp_path}/page.html")
    shown = "[...document.querySelectorAll('figure')].map(figure => figure.getClientRects().length)"
    assert browser.evaluate(shown) == [1, 0]
    browser.evaluate("document.querySelectorAll('.tabs label')[1].click()")
    assert browser.evaluate(shown) == [0, 1]
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    browser.type("#search", "问7")
    browser.wait_for("1 of 20 rows")
    browser.type("#search", "dev.json:1")
    browser.wait_for(script="document.querySelector('details').open")
    browser.viewport(1280, 900)


def test_every_phrase_has_its_chinese():
    def literals(node):
        if isinstance(node, ast.Constant):
            return {node.value} if isinstance(node.value, str) and node.value else set()
        parts = node.elts if isinstance(node, ast.List) else []
        parts += [node.body, node.orelse] if isinstance(node, ast.IfExp) else []
        return {text for part in parts for text in literals(part)}

    phrases = {stage.legend for stage in STAGES.values()} | {GUESSED, WOULD_STOP, *SCRIPTS}
    for path in (REPORTS, *(ROOT / "hf_recipes" / room for room in ("inspection", "apps", "dry_run"))):
        for file in path.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Phrase" and node.args:
                    phrases |= literals(node.args[0])
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Table", "count_table", "words"):
                    phrases |= {text for part in node.args[:2] for text in literals(part)}
    template = (REPORTS / "page.html.jinja").read_text(encoding="utf-8")
    phrases |= set(re.findall(r'"([^"]+)" \| label', template)) - {" · "}
    assert phrases - CHINESE.keys() == set()
    for english, chinese in CHINESE.items():
        fields = [sorted(name for _, name, *_ in string.Formatter().parse(text) if name) for text in (english, chinese)]
        assert fields[0] == fields[1], english


def test_names_of_an_answers_texts_are_labels():
    answers = Answers("Answers", "", [Answer("a.json:1", "", [("question", "question"), ("reference", "x")])])
    [row] = report_values(answers, "zh")["rows"]
    assert row["texts"] == [["提问", "question"], ["参考答案", "x"]]


def test_texts_of_the_data_are_never_translated():
    assert translated(Phrase("{side} rows", side="train"), "zh") == "train rows"
    assert translated("train", "zh") == "train" and translated(Phrase("train"), "zh") == "训练"
    assert translated(Phrase("{set} rows", set=Phrase("train")), "zh") == "训练数据"
    assert Section("pairs", []).title == translated("pairs", "zh")


@pytest.mark.parametrize(
    ("variables", "language"),
    [
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C.UTF-8"}, "en"),
        ({"LC_MESSAGES": "zh_TW.UTF-8", "LANG": "en_US.UTF-8"}, "zh"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"HF_RECIPES_LANGUAGE": "zh", "LC_ALL": "C.UTF-8"}, "zh"),
    ],
)
def test_the_language_is_the_locales(monkeypatch, variables, language):
    for name in ("HF_RECIPES_LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert locale_language() == language


def test_a_font_that_was_installed_since_is_used(monkeypatch):
    chinese = Path(plots._font("中文"))
    fonts = [font for font in font_manager.fontManager.ttflist if font.name.startswith("DejaVu")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", fonts)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(chinese)])
    assert plots._font("中文") == str(chinese)


def test_the_absence_of_a_font_is_said_with_what_to_install(monkeypatch, capsys):
    fonts = [font for font in font_manager.fontManager.ttflist if font.name.startswith("DejaVu")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", fonts)
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    plots._say_once.cache_clear()
    assert plots._words("zh")("tokens") == "tokens" and plots._words("zh")("rows") == "rows"
    assert capsys.readouterr().out.count("fonts-noto-cjk on Debian and Ubuntu") == 1
