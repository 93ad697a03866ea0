"""Generated answers, compared with references."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.language import Language
from hf_recipes.data.chat.prompts import Prompt, PromptReader, read_prompts
from hf_recipes.data.chat.templates.template import thought_marks
from hf_recipes.evaluation.method import EvalContext, Method, Outcome, Record
from hf_recipes.evaluation.reports.plots import draw_confusion
from hf_recipes.metrics import text as metrics
from hf_recipes.models.inference.batch_options import BatchOptions, ForwardPass
from hf_recipes.models.inference.decoding import Decoding
from hf_recipes.models.inference.generate import continue_batches, plan_batches
from hf_recipes.models.inference.thinking import cut_message
from hf_recipes.rewards.weighted_sum import Rewards, summarise_rewards

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TO_PREDICT = "scripts/predict.py writes the model's answers to a file"
MAX_LABELS = 60  # of a confusion matrix; a larger one is not legible


class GenerationMethod(Method):
    """Answers prompts and compares the answers with the references of rows that have one.

    Args:
        prompts: as `read_prompts` or a `PromptReader` gives them.
        stop_ids: tokens that end an answer, in addition to those of model and tokenizer (`PromptReader.stop_ids`).
        scores: ``rouge`` (ROUGE-1/2/L, BLEU-4, chrF, exact match, distinct-1/2, length ratio), ``accuracy`` (over the
            rows' answer choices, with macro-F1), ``promptcblue`` (the benchmark's score of each task, and a lenient
            one), ``generation`` (length and share of finished answers, and ROUGE of rows with a reference); by default
            those that fit. A score for which no row has a reference, choices or a task is a UserError.
        rewards: of the answers, in addition to the scores.
    """

    name, suffix = "generation", "answers"
    forms: ClassVar = {
        "messages": ("rouge", "accuracy", "generation", "promptcblue"),
        "unpaired": ("generation",),
        "content": ("generation",),
        "preference": ("rouge", "generation"),
        "text": ("generation",),
    }

    def __init__(
        self,
        prompts: Sequence[Prompt],
        tokenizer: "PreTrainedTokenizerBase",
        decoding: Decoding | None = None,
        stop_ids: Sequence[int] = (),
        *,
        scores: Sequence[str] | None = None,
        rewards: Rewards | None = None,
    ):
        self.prompts, self.tokenizer, self.stop_ids = prompts, tokenizer, stop_ids
        self.decoding, self.rewards = decoding or Decoding(), rewards
        if not prompts:
            raise UserError("there is no prompt to answer")
        self.marks = thought_marks(tokenizer) if any(prompt.is_chat for prompt in prompts) else None
        compared = [prompt for prompt in prompts if prompt.reference is not None]
        if scores is None:
            chooses = any(metrics.is_choice(p.reference, choices_of(p.meta) or ()) for p in compared)
            scores = ("rouge",) + ("accuracy",) * chooses if compared else ("generation",)
        self.scores = tuple(scores)
        if not compared and set(scores) != {"generation"}:
            raise UserError(
                f"{prompts[0].location}: no reference to compare answers with, which {scores[0]} needs; {TO_PREDICT}"
            )
        if not compared and not rewards:
            say(f"{prompts[0].location.rpartition(':')[0]}: no row has an answer to compare with; {TO_PREDICT}")
        if len(compared) < len(prompts) and compared:
            say(f"{len(prompts) - len(compared)} rows have no reference and are answered, not scored")
        if "accuracy" in scores:
            chosen = [prompt for prompt in compared if choices_of(prompt.meta)]
            outside = [p.location for p in chosen if not metrics.is_choice(p.reference, choices_of(p.meta))]
            if len(outside) == len(chosen):
                where = outside[0] if outside else prompts[0].location
                what = "the reference is not among the answer_choices" if outside else "no answer_choices"
                raise UserError(f"{where}: {what}, over which accuracy is counted; no row can be used")
            if outside:
                say(f"accuracy leaves out {len(outside)} rows whose reference is not a choice (first {outside[0]})")
        if "promptcblue" in scores and not all((prompt.meta or {}).get("task_dataset") for prompt in compared):
            raise UserError(f"promptcblue of {prompts[0].location.rpartition(':')[0]}: rows without task_dataset")

    @classmethod
    def from_file(cls, path: str, form: str, names: Sequence[str] | None, context: EvalContext) -> "GenerationMethod":
        answer = context.decoding.max_new_tokens
        budget = context.max_length - answer if context.max_length else None
        if budget is not None and budget < 1:
            raise UserError(f"--max_new_tokens {answer}: the model's context is {context.max_length:,} tokens")
        rows = context.rows
        reader = PromptReader(
            [path],
            context.tokenizer,
            replace(rows.columns, thoughts=None),
            text_as=rows.text_as or "continuation",
            max_source_length=min(filter(None, (budget, rows.max_source_length)), default=None),
            budgets=rows.budgets,
            cache_dir=context.cache_dir,
            encoding=rows.encoding,
        )
        prompts, _ = read_prompts(reader, context.max_drop_ratio, rows.max_eval_samples)
        if context.rewards:
            context.rewards.check(prompts)
        settings = {"scores": names, "rewards": context.rewards}
        return cls(prompts, context.tokenizer, context.decoding, reader.stop_ids, **settings)

    def __len__(self) -> int:
        return len(self.prompts)

    def compute(self, model: "PreTrainedModel", items: Sequence[int], options: BatchOptions) -> list[Record]:
        """Records `location`, `question`, `reference` (or None), `prediction`, `choices`, `meta`, `tokens`, `finished`;
        `reasoning_content` and `cut_while_thinking` where there are thoughts; `is_finite` where it is False (see
        `Continuation`); with rewards `rewards`, by name, and their sum `reward`."""
        ids = [self.prompts[item].ids for item in items]
        records: list[Record] = [{}] * len(items)
        for batch, continuations in continue_batches(
            model,
            self.tokenizer,
            ids,
            plan_batches(ids, options.batch_size),
            self.decoding,
            stop_ids=self.stop_ids,
            marks=self.marks,
            keys=items,
            before_batch=options.before_batch,
            synced=options.synced,
        ):
            for index, continuation in zip(batch, continuations, strict=True):
                prompt = self.prompts[items[index]]
                records[index] = {
                    "location": prompt.location,
                    "question": prompt.question,
                    "reference": prompt.reference,
                    "prediction": prompt.trim(continuation.text),
                    "choices": (prompt.meta or {}).get("answer_choices"),
                    "meta": prompt.meta,
                    "tokens": continuation.tokens,
                    "finished": continuation.finished,
                }
                if continuation.thoughts or continuation.cut_while_thinking:
                    records[index]["reasoning_content"] = continuation.thoughts
                    records[index]["cut_while_thinking"] = continuation.cut_while_thinking
                if not continuation.is_finite:
                    records[index]["is_finite"] = False
        if self.rewards:
            answers = [record["prediction"] for record in records]
            thoughts = [record.get("reasoning_content", "") for record in records]
            values = self.rewards([self.prompts[item] for item in items], answers, thoughts)
            for record, row in zip(records, zip(*values, strict=True), strict=True):
                record["rewards"] = dict(zip(self.rewards.names, row, strict=True))
                record["reward"] = self.rewards.total(row)
        return records

    def largest_pass(self, batch_size: int) -> ForwardPass:
        rows = min(batch_size, len(self)) * self.decoding.num_beams
        thoughts = (self.decoding.max_thinking_tokens or 0) if self.marks and self.marks.expected else 0
        longest = max(len(prompt.ids) for prompt in self.prompts)
        return ForwardPass(rows, longest, thoughts + self.decoding.max_new_tokens)

    def summarise(self, records: Sequence[Record]) -> dict[str, float]:
        """The scores; where the model or the template thinks, also the numbers of answers `thinking` and
        `cut_while_thinking`."""
        compared = [record for record in records if record["reference"] is not None]
        predictions, references = texts_of(compared)
        summary: dict[str, float] = {}
        if "accuracy" in self.scores and (rows := with_choices(compared)):
            pairs = texts_of(rows)
            summary |= {"accuracy": metrics.exact_match(*pairs), "macro_f1": metrics.macro_f1(*pairs)}
        if compared and {"rouge", "generation"} & set(self.scores):
            summary |= metrics.rouge(predictions, references) | {"bleu4": metrics.bleu4(predictions, references)}
        if "rouge" in self.scores:
            summary |= {
                "chrf": metrics.chrf(predictions, references),
                "exact_match": metrics.exact_match(predictions, references),
                **metrics.distinct(predictions),
                "length_ratio": metrics.length_ratio(predictions, references),
            }
        if "promptcblue" in self.scores:
            from hf_recipes.metrics.promptcblue.score import score_rows

            keys = {"target": "reference", "prediction": "prediction", "location": "location"}
            result = score_rows([{**r["meta"], **{name: r[key] for name, key in keys.items()}} for r in compared])
            summary |= {"promptcblue": result.average, "promptcblue_lenient": result.lenient_average}
            for name, task in result.tasks.items():
                summary |= {f"promptcblue/{name}": task.score, f"promptcblue_lenient/{name}": task.lenient}
        if "generation" in self.scores and records:
            for name, key in (("new_tokens", "tokens"), ("finished", "finished")):
                summary[name] = sum(record[key] for record in records) / len(records)
        thinking = [record["cut_while_thinking"] for record in records if "cut_while_thinking" in record]
        if thinking or (self.marks and self.marks.expected):
            summary |= {"thinking": len(thinking), "cut_while_thinking": sum(thinking)}
        if any(thinking):
            say(cut_message(sum(thinking), len(records)))
        if self.rewards:
            summary |= summarise_rewards(self.rewards.names, records)
        return summary

    def directions(self) -> dict[str, bool | None]:
        compared = any(prompt.reference is not None for prompt in self.prompts)
        larger = ["accuracy", "macro_f1"] if "accuracy" in self.scores else []
        if compared and {"rouge", "generation"} & set(self.scores):
            larger += ["rouge1", "rouge2", "rougeL", "bleu4"]
        if "rouge" in self.scores:
            larger += ["chrf", "exact_match", "distinct1", "distinct2"]
        larger += ["promptcblue"] if "promptcblue" in self.scores else []
        larger += ["finished"] if "generation" in self.scores else []
        neither = {"rouge": "length_ratio", "generation": "new_tokens"}
        directions = dict.fromkeys(larger, True)
        directions |= {name: None for score, name in neither.items() if score in self.scores}
        return directions | (self.rewards.directions() if self.rewards else {})

    def values(self, records: Sequence[Record]) -> dict[str, list[float | None]]:
        """The scores that have a value for each record; where one lacks a reference, only the reward has (or None)."""
        values: dict[str, list[float | None]] = {}
        if self.rewards and any(record["reward"] is not None for record in records):
            values["reward"] = [record["reward"] for record in records]
        if any(record["reference"] is None for record in records):
            return values
        predictions, references = texts_of(records)
        if "accuracy" in self.scores and len(with_choices(records)) == len(records):
            values["accuracy"] = [float(hit) for hit in metrics.exact_matches(predictions, references)]
        if {"rouge", "generation"} & set(self.scores):
            pairs = metrics.rouge_pairs(predictions, references)
            values |= {name: [pair[name] for pair in pairs] for name in ("rougeL", "rouge1", "rouge2")}
        return values

    def draw(self, folder: Path, name: str, outcomes: Mapping[str, Outcome], language: Language = "en") -> list[Path]:
        paths = []
        for who, outcome in outcomes.items() if "accuracy" in self.scores else ():
            matrix, labels = metrics.confusion(*texts_of(with_choices(outcome.records[name])))
            if len(labels) <= MAX_LABELS:
                paths.append(folder / f"{name}_{who}.png")
                draw_confusion(matrix, labels, paths[-1], language)
        return paths


def choices_of(meta: dict | None) -> list[str] | None:
    """The answer choices of a row's `schemas.metadata`; None where it has none."""
    return (meta or {}).get("answer_choices") or None


def with_choices(records: Sequence[Record]) -> list[Record]:
    """The records over which accuracy is counted: those whose reference is one of their choices."""
    return [r for r in records if r["reference"] and r["choices"] and metrics.is_choice(r["reference"], r["choices"])]


def texts_of(records: Sequence[Record]) -> tuple[list[str], list[str]]:
    return [record["prediction"] for record in records], [record["reference"] for record in records]
