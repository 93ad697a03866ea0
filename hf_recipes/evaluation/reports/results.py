"""The report of an evaluation: metrics, pictures, and the rows, the worst first."""

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from hf_recipes.evaluation.method import Method, Outcome, Record, worst_first
from hf_recipes.evaluation.reports import tables
from hf_recipes.evaluation.reports.report import Number, Picture, Report, Section, Table
from hf_recipes.metrics.intervals import Paired

ROWS = 50  # of each evaluation
SAME_FOR_ALL = ("question", "reference", "answer", "verdict")  # keys of a record, whatever the model
OF_MODEL = ("prediction", "letters", "chosen", "rejected")


def evaluation_report(
    settings: Mapping[str, Any],
    methods: Mapping[str, Method],
    outcomes: Mapping[str, Outcome],
    changes: Mapping[str, Paired],
    pictures: Mapping[str, Sequence[Path]],
    judged: Mapping[str, Mapping[str, Any]],
) -> Report:
    """See `compare.write_results`; pictures and judged are by evaluation."""
    model = settings["model"]
    report = Report(str(model["peft_path"] or model["model_name_or_path"]))
    report.settings = json.dumps(settings, ensure_ascii=False, indent=2)
    if chosen := settings.get("base_thinking"):
        report.facts.append(("base", f"compared with thinking {chosen['compared']}; main score {chosen['main_score']}"))
    models = list(reversed(outcomes))  # the model to compare with comes first, as in the terminal
    for name, method in methods.items():
        metrics = _metrics_table(name, {model: outcomes[model].metrics[name] for model in models}, changes)
        metrics.note = method.note or ""
        blocks = [metrics, *map(_picture, pictures.get(name, ()))]
        if name in judged:
            blocks.insert(1, _judge_table(judged[name], list(outcomes)))
        rows = worst_first(method, [outcome.records[name] for outcome in outcomes.values()])
        report.sections.append(Section(name, [*blocks, _rows_table(rows, models)]))
    return report


def _picture(path: Path) -> Picture:
    legend = path.with_suffix(".txt")
    return Picture(path.stem, path.read_bytes(), legend.read_text(encoding="utf-8") if legend.is_file() else "")


def _metrics_table(evaluation: str, metrics: Mapping[str, Mapping[str, float]], changes: Mapping[str, Paired]) -> Table:
    """`metrics` are by model; with two models, a change is better or worse where its interval leaves out 0."""
    compares = len(metrics) > 1
    table = Table("Metrics", ["metric", *metrics, *(["change (95 %)", "p"] if compares else [])], [])
    for key in dict.fromkeys(chain(*metrics.values())):
        values = [of_model.get(key) for of_model in metrics.values()]
        row = [tables.title(key), *(Number(tables.as_text(key, value)) for value in values)]
        verdict = ""
        if change := changes.get(f"{evaluation}_{key}"):
            row += [Number(tables.change_text(key, change)), Number(f"{change.p_value:.3f}")]
            verdict = "better" if change.low > 0 else "worse" if change.high < 0 else ""
        elif compares:
            row += [Number(), Number()]
        table.rows.append(row)
        table.verdicts.append(verdict)
    return table


def _judge_table(summary: Mapping[str, Any], models: Sequence[str]) -> Table:
    """A judge's verdicts for the first of `models`, with what counts as half a win in a note."""
    table = Table(f"Judge: {' against '.join(models)}", ["", "value"], [])
    shares = {key: summary[key] for key in ("win_rate", "low", "high", "contradictory_share")}
    texts = {key: "–" if share is None else f"{share * 100:.1f} %" for key, share in shares.items()}
    table.rows.append(["win rate (95 %)", Number(f"{texts['win_rate']} [{texts['low']}, {texts['high']}]")])
    table.rows.append(["p", Number("–" if summary["p_value"] is None else f"{summary['p_value']:.3f}")])
    table.rows.append(["share of contradictory verdicts", Number(texts["contradictory_share"])])
    for key in ("wins", "losses", "ties", "identical", "contradictory", "unparsable"):
        table.rows.append([key, summary[key]])
    table.note = (
        "Each row is judged in both orders; a win or a loss is what both agree on. Ties, identical answers and "
        "contradictory verdicts are half a win, unparsable ones do not count."
    )
    return table


def _rows_table(rows: Sequence[tuple[float | None, list[Record]]], models: Sequence[str]) -> Table:
    """`rows` have the records of all models, in the reverse of the order of `models`."""
    order = ", the worst first" if rows and rows[0][0] is not None else ""
    table = Table(f"{min(ROWS, len(rows)):,} of {len(rows):,} rows{order}", [], [])
    if not rows:
        return table
    first = rows[0][1][0]
    same = [key for key in SAME_FOR_ALL if key in first]
    # Records of likelihoods have numbers alone.
    keys = [key for key in OF_MODEL if key in first] or [
        key for key, value in first.items() if key not in same and isinstance(value, int | float)
    ]
    of_model = [f"{key} ({model})" if len(models) > 1 else key for key in keys for model in models]
    table.header = ["location", *same, *of_model, "value"]
    for value, records in rows[:ROWS]:
        texts = [records[0][key] for key in ("location", *same)]
        texts += [record[key] for key in keys for record in reversed(records)]
        table.rows.append([*map(_plain, texts), Number("" if value is None else f"{value:.3f}")])
    return table


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{key} {_plain(part)}" for key, part in value.items())
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
