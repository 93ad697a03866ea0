"""The report of an evaluation: rows, the worst first, metrics by their unit, and pictures."""

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from hf_recipes.evaluation.method import Method, Outcome, Record, worst_first
from hf_recipes.evaluation.reports import tables
from hf_recipes.evaluation.reports.phrases import Phrase
from hf_recipes.evaluation.reports.plots import NO_FONT
from hf_recipes.evaluation.reports.report import Answer, Answers, Block, Number, Picture, Report, Section, Table, Tabs
from hf_recipes.metrics.intervals import Paired

ROWS = 50  # of each evaluation
# Keys of a record, whatever the model.
SAME_FOR_ALL = ("question", "reference", "answer", "verdict", "chosen_text", "rejected_text")
OF_MODEL = ("prediction", "letters", "chosen", "rejected")
LABELS = {"chosen": "chosen score", "rejected": "rejected score", "chosen_text": "chosen", "rejected_text": "rejected"}
COLOURS = Phrase("Green: better, red: worse, where the interval leaves out 0.")


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
        text = "compared with thinking {setting}; main score {scores}"
        report.facts.append(("base", Phrase(text, setting=chosen["compared"], scores=chosen["main_score"])))
    models, main = list(reversed(outcomes)), []  # the model to compare with comes first, as in the terminal
    for name, method in methods.items():
        metrics = {model: outcomes[model].metrics[name] for model in models}
        prefix = f"{name}_"
        of_name = {key.removeprefix(prefix): change for key, change in changes.items() if key.startswith(prefix)}
        of_name = {key: change for key, change in of_name.items() if key in metrics[models[-1]]}
        main.append(verdict_of(next(iter(of_name.values()), None)))
        blocks: list[Block] = _metrics_tables(metrics, of_name)
        blocks[-1].note = method.note or blocks[-1].note
        blocks += _judge_tables(judged[name], list(outcomes)) if name in judged else []
        blocks += _pictures(name, pictures.get(name, ()))
        rows = worst_first(method, [outcome.records[name] for outcome in outcomes.values()])
        report.sections.append(Section(name, [_answers(rows, models), *blocks]))
    report.verdict, report.tone = _verdict(list(outcomes), main)
    return report


def _pictures(evaluation: str, paths: Sequence[Path]) -> list[Block]:
    """Those of several models, one at a time."""
    pictures = []
    for path in paths:
        legend = path.with_suffix(".txt")
        text = legend.read_text(encoding="utf-8") if legend.is_file() else ""
        title = Phrase(path.stem.removeprefix(f"{evaluation}_")) if len(paths) > 1 else evaluation
        pictures.append(
            Picture(title, path.read_bytes(), Phrase("{why}\n{legend}", why=NO_FONT, legend=text) if text else "")
        )
    return [Tabs("Confusion of the classes", pictures)] if len(pictures) > 1 else pictures


def _metrics_tables(metrics: Mapping[str, Mapping[str, float]], changes: Mapping[str, Paired]) -> list[Table]:
    """A table for each unit; `metrics` are by model. The main change is a finding, without any the first metric."""
    by_unit: dict[str, Table] = {}
    keys = dict.fromkeys(chain(*metrics.values()))
    main = next(iter(changes or keys), None)
    for key in keys:
        values = [of_model.get(key) for of_model in metrics.values()]
        unit = tables.unit(key, next(value for value in values if value is not None))
        table = by_unit.setdefault(unit, Table(unit, ["metric", *metrics], []))
        texts = [tables.in_unit(unit, value) for value in values]
        row = [_metric_name(key), *map(Number, texts)]
        change = changes.get(key)
        row += [Number(tables.change_text(key, change)), Number(p_text(change.p_value))] if change else []
        table.rows.append(row)
        table.verdicts.append(verdict_of(change))
        if key == main:
            table.findings.append(_finding(row[0], texts, change))
    for table in by_unit.values():
        if any(table.verdicts):
            table.note = COLOURS
        if width := max(map(len, table.rows)) - len(table.header):
            change = "change in points (95 %)" if table.title == tables.PERCENT else "change (95 %)"
            table.header += [change, "p"]
            table.rows = [row if len(row) == len(table.header) else [*row, *[Number()] * width] for row in table.rows]
    return list(by_unit.values())


def _metric_name(key: str) -> Phrase:
    metric, _, source = key.partition("/")
    kind, _, letter = key.partition("_")
    if source and metric != "rewards":
        return Phrase("{metric}, {source}", metric=Phrase(tables.title(metric)), source=source)
    if kind == "share":
        return Phrase("answered {letter}", letter=letter)
    return Phrase("right answer {letter}", letter=letter) if kind == "answers" else Phrase(tables.title(key))


def verdict_of(change: Paired | None) -> str:
    """A change is better or worse where its interval leaves out 0."""
    return "" if change is None or change.low <= 0 <= change.high else "better" if change.low > 0 else "worse"


def p_text(p_value: float | None) -> str:
    return "–" if p_value is None else "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _finding(metric: str, values: Sequence[str], change: Paired | None) -> Phrase:
    text = Phrase("{metric} {values}", metric=metric, values=" → ".join(values))
    if change is None:
        return text
    p = p_text(change.p_value)
    judgement = Phrase(verdict_of(change) or "no difference beyond chance")
    return Phrase("{text}, {judgement} (p {p})", text=text, judgement=judgement, p=p if "<" in p else f"= {p}")


def _verdict(models: Sequence[str], main: Sequence[str]) -> tuple[Phrase, str]:
    """`main` are the verdicts of each evaluation's main metric."""
    if len(models) == 1:
        return Phrase("Evaluations: {count}", count=len(main)), ""
    better, worse = main.count("better"), main.count("worse")
    text = "{one} against {other}: better in {better} of {all} evaluations, worse in {worse}, undecided in {rest}"
    names = dict(zip(("one", "other"), map(Phrase, models), strict=True))
    counts = {"better": better, "worse": worse, "all": len(main), "rest": len(main) - better - worse}
    return Phrase(text, **names, **counts), "bad" if worse > better else "good" if better and not worse else ""


def _judge_tables(summary: Mapping[str, Any], models: Sequence[str]) -> list[Table]:
    """A judge's verdicts for the first of `models`, with what counts as half a win in a note."""
    title = Phrase("Judge: {one} against {other}", **dict(zip(("one", "other"), map(Phrase, models), strict=True)))
    shares = {key: summary[key] for key in ("win_rate", "low", "high", "contradictory_share")}
    texts = {key: "–" if share is None else f"{share * 100:.1f} %" for key, share in shares.items()}
    rate, p = f"{texts['win_rate']} [{texts['low']}, {texts['high']}]", p_text(summary["p_value"])
    rates = Table(title, ["win rate (95 %)", "p", "share of contradictory verdicts"], [])
    rates.rows.append([Number(rate), Number(p), Number(texts["contradictory_share"])])
    kinds = ("wins", "losses", "ties", "identical", "contradictory", "unparsable")
    finding = Phrase("the judge: win rate {rate}", rate=rate)
    if count := summary["unparsable"]:
        all_rows = sum(summary[key] for key in kinds)
        finding = Phrase("{text}; no verdict on {count:,} of {all:,} rows", text=finding, count=count, all=all_rows)
    rates.findings.append(finding)
    counts = Table("Verdicts of the judge", ["verdict", "rows"], [[Phrase(key), summary[key]] for key in kinds])
    counts.note = (
        "Each row is judged in both orders; a win or a loss is what both agree on. Ties, identical answers and "
        "contradictory verdicts are half a win, unparsable ones do not count."
    )
    return [rates, counts]


def _answers(rows: Sequence[tuple[float | None, list[Record]]], models: Sequence[str]) -> Answers:
    """`rows` have the records of all models, in the reverse of the order of `models`."""
    is_sorted = bool(rows) and rows[0][0] is not None
    text = "{shown:,} of {all:,} rows, the worst first" if is_sorted else "{shown:,} of {all:,} rows"
    answers = Answers("Rows", Phrase(text, shown=min(ROWS, len(rows)), all=len(rows)), [])
    if not rows:
        return answers
    first = rows[0][1][0]
    same = [key for key in SAME_FOR_ALL if key in first]
    keys = [key for key in OF_MODEL if key in first]
    if keys:
        answers.title = "Answers"
    else:  # records of likelihoods have numbers alone, of which some are the row's
        keys = [key for key, value in first.items() if key not in same and isinstance(value, int | float)]
    for value, records in rows[:ROWS]:
        texts = [(_label(key), _plain(records[0][key])) for key in same if records[0][key] is not None]
        for key in keys:
            values = [_plain(record[key]) for record in reversed(records)]
            if len(models) == 1 or (key not in OF_MODEL and len(set(values)) == 1):
                texts.append((_label(key), values[0] or Phrase("(empty)")))
                continue
            for model, text in zip(models, values, strict=True):
                name = Phrase("{key} ({model})", key=_label(key), model=Phrase(model))
                texts.append((name, text or Phrase("(empty)")))
        status = "" if value is None else Phrase("score {value}", value=f"{value:.3f}")
        answers.rows.append(Answer(str(records[0]["location"]), status, texts))
    return answers


def _label(key: str) -> Phrase:
    return Phrase(LABELS.get(key, key))


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items())
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
