"""Single-choice questions, scored by the probabilities of the option letters."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.language import Language
from hf_recipes.data.chat.templates.template import ChatTemplate
from hf_recipes.data.pretraining.document_encoder import leading_ids
from hf_recipes.evaluation.method import EvalContext, Method, Outcome, Record
from hf_recipes.evaluation.methods.questions import Question, read_question, read_rows
from hf_recipes.evaluation.reports.plots import draw_letters
from hf_recipes.metrics.intervals import wilson_interval
from hf_recipes.models.inference import forward
from hf_recipes.models.inference.batch_options import BatchOptions, ForwardPass

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHUNK = 64  # questions tokenized together
MIN_SHARED = 16  # tokens; for fewer, a separate forward pass costs more than it saves


class SingleChoice(Method):
    """Accuracy of the most probable option letter after a few-shot prompt.

    The prompt is plain text: the examples with their answers, an empty line after each, and the question. The letters
    are compared as continuations: the prompt is tokenized with each letter after it; the common prefix of these texts
    is the context, and the one token that follows it is the letter's (after "Answer: ", " A" where the tokenizer joins
    the space to the letter). Of letters with the same probability the first is the prediction.

    A prompt of more than `max_length` tokens loses its first examples until it fits, and a question that is itself an
    example is left out of its own examples. How many prompts have fewer examples for these reasons is printed, and is
    the metric `shortened`.

    Args:
        rows: see `read_question`; as `read_rows` gives them.
        few_shot_file: the examples, in the same forms. Those of the question's source are used where there are any
            (as in C-Eval and CMMLU), else those at the start of the file.
        few_shot: how many examples; without `few_shot_file` there are none.
        chat: put the whole prompt into a user turn of the tokenizer's chat template. The letters are compared where an
            answer without thoughts begins.
        max_length: the tokens that the model was made for.
    """

    name = suffix = "single_choice"
    forms: ClassVar = {"choice": ("single_choice",)}

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        tokenizer: "PreTrainedTokenizerBase",
        *,
        few_shot_file: str | None = None,
        few_shot: int = 5,
        chat: bool = False,
        max_length: int | None = None,
    ):
        if chat and tokenizer.chat_template is None:
            raise UserError("the tokenizer has no chat template; name one with --chat_template (chatml, …)")
        self.questions = [read_question(row) for row in rows]
        if not self.questions:
            raise UserError("there is no question to ask")
        self._tokenizer, self._max_length = tokenizer, max_length
        self._prefix = [] if chat else leading_ids(tokenizer)
        self._template = ChatTemplate(tokenizer) if chat else None
        self._before = _before_answer(self._template) if chat else ""
        if self._before.strip():
            say(f"the letters are compared after {self._before!r}, as it stands before an answer without thoughts")
        self._contexts: list[np.ndarray] = []
        self._letters: list[list[int]] = []
        examples, count = self._examples(few_shot_file, few_shot), few_shot if few_shot_file else 0
        self._groups: list[tuple[str, ...]] = []  # locations of each question's examples
        for start in range(0, len(self.questions), CHUNK):
            questions = self.questions[start : start + CHUNK]
            chosen = [[e for e in examples[q.source] if e.text != q.text][:count] for q in questions]
            for row in zip(questions, chosen, self._encode(questions, chosen), strict=True):
                self._add(*row)
        self.shortened = sum(len(group) < count for group in self._groups)
        if self.shortened:
            reason = f"they would be longer than {max_length} tokens, or an example is the question itself"
            say(f"{self.shortened} of {len(self)} prompts have fewer than {count} examples: {reason}")
        self._prefixes = self._common_prefixes()

    @classmethod
    def from_file(cls, path: str, form: str, names: Sequence[str] | None, context: EvalContext) -> "SingleChoice":
        examples = {"few_shot_file": context.arguments.few_shot_file, "few_shot": context.arguments.few_shot}
        rows = read_rows([path])[: context.rows.max_eval_samples]
        return cls(rows, context.tokenizer, **examples, max_length=context.max_length)

    def _examples(self, file: str | None, count: int) -> dict[str, list[Question]]:
        """The examples that may be used, by source of the question."""
        chosen: dict[str, list[Question]] = {question.source: [] for question in self.questions}
        if file is None or count == 0:
            return chosen
        examples = [read_question(row) for row in read_rows([file])]
        for source in chosen:
            chosen[source] = usable = [example for example in examples if example.source == source] or examples
            if len(usable) < count:
                of = f" of {source!r}" if len(usable) < len(examples) else ""
                raise UserError(f"{file}: {len(usable)} examples{of}, and --few_shot asks for {count}")
        return chosen

    def _encode(
        self, questions: Sequence[Question], examples: Sequence[Sequence[Question]]
    ) -> list[tuple[np.ndarray, list[int]]]:
        """For each question, the ids before the letter and the ids of its letters."""
        texts = []
        for question, chosen in zip(questions, examples, strict=True):
            prompt = "".join(f"{example.text}{example.answer}\n\n" for example in chosen) + question.text
            if self._template:
                prompt = self._template.prompt([{"role": "user", "content": prompt}]) + self._before
            texts += [prompt + letter for letter in question.letters]
        encoded = iter(self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])
        results = []
        for question in questions:
            rows = [np.array([*self._prefix, *next(encoded)], dtype=np.int32) for _ in question.letters]
            common = min(_common(rows[0], row) for row in rows[1:])
            ends = [row[common:].tolist() for row in rows]
            for letter, end in zip(question.letters, ends, strict=True):
                if len(end) != 1 or ends.count(end) > 1:
                    reason = "shares its token with another" if len(end) == 1 else "is not one token"
                    raise UserError(
                        f"{question.location}: with this tokenizer the letter {letter} {reason} after the prompt, so "
                        "its probability cannot be compared; use a generated answer instead"
                    )
            results.append((rows[0][:common], [end[0] for end in ends]))
        return results

    def _add(self, question: Question, examples: list[Question], encoded: tuple[np.ndarray, list[int]]) -> None:
        limit = self._max_length
        while limit is not None and len(encoded[0]) > limit:
            if not examples:
                raise UserError(
                    f"{question.location}: the question alone has {len(encoded[0]):,} tokens, more than the {limit:,} "
                    "that fit; a question is never cut: take it out or shorten it"
                )
            examples = examples[1:]
            [encoded] = self._encode([question], [examples])
        self._contexts.append(encoded[0])
        self._letters.append(encoded[1])
        self._groups.append(tuple(example.location for example in examples))

    def _common_prefixes(self) -> dict[tuple[str, ...], np.ndarray]:
        """The ids with which all prompts of a group begin, at least one token of each being left; perhaps none."""
        prefixes: dict[tuple[str, ...], np.ndarray] = {}
        sizes = Counter(self._groups)
        for group, ids in zip(self._groups, self._contexts, strict=True):
            common = prefixes.setdefault(group, ids)
            prefixes[group] = common[: _common(common, ids[:-1])]
        for group, common in prefixes.items():
            if sizes[group] == 1 or len(common) < MIN_SHARED:
                prefixes[group] = common[:0]
        return prefixes

    def __len__(self) -> int:
        return len(self.questions)

    def compute(self, model: "PreTrainedModel", items: Sequence[int], options: BatchOptions) -> list[Record]:
        """See `Method`; an item is a question.

        The prefix that prompts share is run once, and its keys and values are used for all of them, unless the model
        has other state. With `options.synced` this is done only where all prompts share one prefix, because each prefix
        is another forward pass.
        """
        records: list[Record] = [{}] * len(items)
        groups = [self._groups[item] for item in items]
        prefix, cache, cached_group = [], None, None
        reuse = not options.synced or len(self._prefixes) == 1
        with forward.evaluating(model):
            keys = [(group, -len(self._contexts[item])) for group, item in zip(groups, items, strict=True)]
            for batch in forward.batches(keys, options.batch_size, options):
                for group, members in groupby(batch, (lambda row: groups[row]) if reuse else (lambda row: None)):
                    if group is not None and group != cached_group:
                        prefix, cached_group = self._prefixes[group], group
                        cache = forward.prefix_cache(model, prefix) if len(prefix) else None
                    members = list(members)
                    skipped = len(prefix) if cache is not None else 0
                    longest = max(len(self._contexts[items[row]]) for row in members)
                    for part in forward.row_groups(len(members), longest):
                        logits = forward.last_logits(
                            model,
                            [self._contexts[items[row]][skipped:] for row in members[part]],
                            cache and forward.expanded(cache, len(members[part])),
                        )
                        for row, scores in zip(members[part], logits.log_softmax(-1), strict=True):
                            records[row] = self._record(items[row], scores[self._letters[items[row]]].double())
        return records

    def _record(self, item: int, scores) -> Record:
        question = self.questions[item]
        record = {
            "location": question.location,
            "source": question.source,
            "question": question.text,
            "answer": question.answer,
            "prediction": question.letters[int(scores.argmax())],
            "letters": dict(zip(question.letters, scores.log_softmax(-1).tolist(), strict=True)),
            "mass": float(scores.exp().sum()),
        }
        return record if scores.isfinite().all() else record | {"is_finite": False}

    def largest_pass(self, batch_size: int) -> ForwardPass:
        """As if no prefix were shared: a shared one is in memory for every row of the batch too."""
        largest = forward.scored_pass(min(batch_size, len(self)), max(map(len, self._contexts)))
        return replace(largest, new_tokens=0 if any(map(len, self._prefixes.values())) else None)

    def summarise(self, records: Sequence[Record]) -> dict[str, float]:
        """Shares in [0, 1].

        `accuracy` with its 95 % interval (`accuracy_low`, `accuracy_high`; Wilson), ``accuracy/<source>`` and the mean
        of these (`accuracy_macro`, the figure that C-Eval and CMMLU report); `chance`, the accuracy of guessing;
        `mass`, the mean probability of all letters together; for each letter its share of the predictions (`share_A`)
        and of the answers (`answers_A`); `questions`; and `shortened`, the prompts with fewer examples than --few_shot.
        """
        by_source: dict[str, list[bool]] = defaultdict(list)
        for record in records:
            by_source[record["source"]].append(record["prediction"] == record["answer"])
        count, hits = len(records), sum(map(sum, by_source.values()))
        sources = {source: sum(hits) / len(hits) for source, hits in sorted(by_source.items())}
        low, high = wilson_interval(hits, count)
        summary = {
            "accuracy": hits / count,
            "accuracy_low": low,
            "accuracy_high": high,
            "accuracy_macro": sum(sources.values()) / len(sources),
            "chance": sum(1 / len(record["letters"]) for record in records) / count,
            "mass": sum(record["mass"] for record in records) / count,
            "questions": count,
            "shortened": self.shortened,
        }
        for letter in sorted({letter for record in records for letter in record["letters"]}):
            for name, column in (("share", "prediction"), ("answers", "answer")):
                summary[f"{name}_{letter}"] = sum(record[column] == letter for record in records) / count
        return summary | {f"accuracy/{source}": accuracy for source, accuracy in sources.items()}

    def directions(self) -> dict[str, bool | None]:
        return dict.fromkeys(("accuracy", "accuracy_low", "accuracy_high", "accuracy_macro", "mass"), True)

    def values(self, records: Sequence[Record]) -> dict[str, list[float]]:
        return {"accuracy": [float(record["prediction"] == record["answer"]) for record in records]}

    def draw(self, folder: Path, name: str, outcomes: Mapping[str, Outcome], language: Language = "en") -> list[Path]:
        path = folder / f"{name}.png"
        draw_letters({who: outcome.metrics[name] for who, outcome in outcomes.items()}, path, language)
        return [path]


def _before_answer(template: ChatTemplate) -> str:
    """What a model has to write before an answer without thoughts, such as what closes those that the prompt opens."""
    question, answer = {"role": "user", "content": "PROBEquestion"}, {"role": "assistant", "content": "PROBEanswer"}
    return template.example([question, answer]).answer.partition("PROBEanswer")[0]


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """The length of the common prefix."""
    length = min(len(one), len(other))
    differing = (one[:length] != other[:length]).nonzero()[0]
    return int(differing[0]) if len(differing) else length
