"""Single-choice questions, scored by the probabilities of the option letters."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hf_recipes.core.errors import UserError, say
from hf_recipes.evaluation.method import EvalContext, Method, Outcome, Record
from hf_recipes.evaluation.methods.questions import Question, read_question, read_rows
from hf_recipes.evaluation.reports.plots import draw_letters
from hf_recipes.metrics.intervals import wilson_interval
from hf_recipes.models.inference.batch_options import Compute, ForwardPass

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHUNK = 64  # questions tokenized together
MIN_SHARED = 16  # tokens; for fewer, a forward pass of their own costs more than it saves


class SingleChoice(Method):
    """Accuracy of the most probable option letter after a few-shot prompt.

    The prompt is plain text: the examples with their answers, an empty line after each, and the question. The letters
    are compared as they continue it: the prompt is tokenized with each letter behind it; what these texts have in
    common is the context, and the one token that each has more is the letter's (after "Answer: ", " A" where the
    tokenizer joins the space to the letter). Of letters with the same probability the first is the prediction.

    A prompt of more than `max_length` tokens loses examples from its front until it fits, and a question that is itself
    an example is not shown its own answer; how many prompts have fewer examples for it is printed, and is the metric
    `shortened`.

    Args:
        rows: see `read_question`; as `read_rows` gives them.
        few_shot_file: the examples, in the same forms. Those of a question's own source are used where there are any
            (as C-Eval and CMMLU are meant), else those at the start of the file.
        few_shot: how many examples; without `few_shot_file` there are none.
        chat: put the whole prompt into a user turn of the tokenizer's chat template.
        max_length: the tokens that the model was made for.

    Raises:
        UserError: as `read_question`; too few examples; a question that alone is longer than `max_length`; or a
            tokenizer with which a letter is not one token, or two letters are the same.
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
        from hf_recipes.data.chat.encoder import leading_ids

        if chat and tokenizer.chat_template is None:
            raise UserError("the tokenizer has no chat template; name one with --chat_template (chatml, …)")
        self.questions = [read_question(row) for row in rows]
        if not self.questions:
            raise UserError("there is no question to ask")
        self._tokenizer, self._chat, self._max_length = tokenizer, chat, max_length
        self._lead = [] if chat else leading_ids(tokenizer)
        self._contexts: list[np.ndarray] = []
        self._letters: list[list[int]] = []
        examples, count = self._examples(few_shot_file, few_shot), few_shot if few_shot_file else 0
        self._groups: list[tuple[str, ...]] = []  # the places of each question's examples
        for start in range(0, len(self.questions), CHUNK):
            questions = self.questions[start : start + CHUNK]
            own = [[e for e in examples[q.source] if e.text != q.text][:count] for q in questions]
            for question, shown, encoded in zip(questions, own, self._encode(questions, own), strict=True):
                self._add(question, shown, encoded)
        self.shortened = sum(len(group) < count for group in self._groups)
        if self.shortened:
            reason = f"they would be longer than {max_length} tokens, or an example is the question itself"
            say(f"{self.shortened} of {len(self)} prompts have fewer than {count} examples: {reason}")
        self._prefixes = self._common_prefixes()

    @classmethod
    def from_file(cls, path: str, form: str, names: Sequence[str] | None, context: EvalContext) -> "SingleChoice":
        shown = {"few_shot_file": context.arguments.few_shot_file, "few_shot": context.arguments.few_shot}
        return cls(read_rows([path]), context.tokenizer, **shown, max_length=context.max_length)

    def _examples(self, file: str | None, count: int) -> dict[str, list[Question]]:
        """The examples that may be shown, by source of the question."""
        chosen: dict[str, list[Question]] = {question.source: [] for question in self.questions}
        if file is None or count == 0:
            return chosen
        examples = [read_question(row) for row in read_rows([file])]
        for source in chosen:
            chosen[source] = own = [example for example in examples if example.source == source] or examples
            if len(own) < count:
                of = f" of {source!r}" if len(own) < len(examples) else ""
                raise UserError(f"{file}: {len(own)} examples{of}, and --few_shot asks for {count}")
        return chosen

    def _encode(
        self, questions: Sequence[Question], examples: Sequence[Sequence[Question]]
    ) -> list[tuple["np.ndarray", list[int]]]:
        """For each question, the ids before the letter and the ids of its letters."""
        import numpy as np

        texts = []
        for question, shown in zip(questions, examples, strict=True):
            prompt = "".join(f"{example.text}{example.answer}\n\n" for example in shown) + question.text
            if self._chat:
                turn = [{"role": "user", "content": prompt}]
                prompt = self._tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
            texts += [prompt + letter for letter in question.letters]
        encoded = iter(self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])
        found = []
        for question in questions:
            rows = [np.array([*self._lead, *next(encoded)], dtype=np.int32) for _ in question.letters]
            common = min(_common(rows[0], row) for row in rows[1:])
            ends = [row[common:].tolist() for row in rows]
            for letter, end in zip(question.letters, ends, strict=True):
                if len(end) != 1 or ends.count(end) > 1:
                    reason = "shares its token with another" if len(end) == 1 else "is not one token"
                    raise UserError(
                        f"{question.location}: with this tokenizer the letter {letter} {reason} after the prompt, so "
                        "its probability cannot be compared; use a generated answer instead"
                    )
            found.append((rows[0][:common], [end[0] for end in ends]))
        return found

    def _add(self, question: Question, examples: list[Question], encoded: tuple["np.ndarray", list[int]]) -> None:
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

    def _common_prefixes(self) -> dict[tuple[str, ...], "np.ndarray"]:
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

    def compute(self, model: "PreTrainedModel", units: Sequence[int], how: Compute) -> list[Record]:
        """See `Method`; a unit is a question.

        The part that prompts begin with is run once, and its keys and values are used for all of them, where the
        model's state is keys and values alone. With `how.synced` this is done only where all prompts share that part,
        because each such part is a forward pass of its own.
        """
        from hf_recipes.models.inference import forward

        records: list[Record] = [{}] * len(units)
        groups = [self._groups[unit] for unit in units]
        prefix, cache, cached_group = [], None, None
        reuse = not how.synced or len(self._prefixes) == 1
        with forward.evaluating(model):
            keys = [(group, -len(self._contexts[unit])) for group, unit in zip(groups, units, strict=True)]
            for batch in forward.batches(keys, how.batch_size, how):
                for group, members in groupby(batch, (lambda row: groups[row]) if reuse else (lambda row: None)):
                    if group is not None and group != cached_group:
                        prefix, cached_group = self._prefixes[group], group
                        cache = forward.prefix_cache(model, prefix) if len(prefix) else None
                    members = list(members)
                    skipped = len(prefix) if cache is not None else 0
                    longest = max(len(self._contexts[units[row]]) for row in members)
                    for part in forward.row_groups(len(members), longest):
                        logits = forward.last_logits(
                            model,
                            [self._contexts[units[row]][skipped:] for row in members[part]],
                            cache and forward.expanded(cache, len(members[part])),
                        )
                        for row, scores in zip(members[part], logits.log_softmax(-1), strict=True):
                            records[row] = self._record(units[row], scores[self._letters[units[row]]].double())
        return records

    def _record(self, unit: int, scores) -> Record:
        question = self.questions[unit]
        if not scores.isfinite().all():
            raise UserError(f"{question.location}: the model's probabilities of the letters are not finite numbers")
        return {
            "location": question.location,
            "source": question.source,
            "question": question.text,
            "answer": question.answer,
            "prediction": question.letters[int(scores.argmax())],
            "letters": dict(zip(question.letters, scores.log_softmax(-1).tolist(), strict=True)),
            "mass": float(scores.exp().sum()),
        }

    def largest_pass(self, batch_size: int) -> ForwardPass:
        """Counted as if no part were shared: a shared one is kept for every row of the batch too."""
        from dataclasses import replace

        from hf_recipes.models.inference.forward import scored_pass

        found = scored_pass(min(batch_size, len(self)), max(map(len, self._contexts)))
        return replace(found, new_tokens=0 if any(map(len, self._prefixes.values())) else None)

    def summarise(self, records: Sequence[Record]) -> dict[str, float]:
        """Shares in [0, 1].

        `accuracy` with its 95 % interval (`accuracy_low`, `accuracy_high`; Wilson), ``accuracy/<source>`` and the mean
        of these (`accuracy_macro`, the figure that C-Eval and CMMLU report); `chance`, the accuracy of guessing;
        `mass`, the mean probability of all letters together; for each letter its share of the predictions (`share_A`)
        and of the answers (`answers_A`); `questions`, and `shortened`, how many prompts have fewer examples than asked
        for.
        """
        by_source: dict[str, list[bool]] = defaultdict(list)
        for record in records:
            by_source[record["source"]].append(record["prediction"] == record["answer"])
        count, hits = len(records), sum(map(sum, by_source.values()))
        sources = {source: sum(own) / len(own) for source, own in sorted(by_source.items())}
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

    def draw(self, folder: Path, name: str, outcomes: Mapping[str, Outcome]) -> list[Path]:
        path = folder / f"{name}.png"
        draw_letters({who: outcome.metrics[name] for who, outcome in outcomes.items()}, path)
        return [path]


def _common(one: "np.ndarray", other: "np.ndarray") -> int:
    """With how many same ids the two begin."""
    length = min(len(one), len(other))
    differing = (one[:length] != other[:length]).nonzero()[0]
    return int(differing[0]) if len(differing) else length
