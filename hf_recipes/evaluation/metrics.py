"""Scores of generated Chinese text, as pure functions.

All scores lie in [0, 1]; an empty prediction counts and scores 0.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from functools import cache

# The opening tag may be part of the prompt.
_THOUGHTS = re.compile(r"\s*(?:<think>)?(?:(?!<think>).)*?</think>\s*", re.DOTALL)
PUNCTUATION = " \t\r\n。．.，,；;：:！!？?、\"'“”‘’"


@cache
def _jieba():
    import logging

    import jieba

    jieba.setLogLevel(logging.WARNING)
    return jieba


def words(text: str) -> list[str]:
    """`text` as jieba's words, white space left out."""
    return [word for word in _jieba().lcut(text) if word.strip()]


def without_thoughts(text: str) -> str:
    """`text` without the thoughts (``<think>…</think>``) that it begins with; thoughts without an end are the text."""
    thoughts = _THOUGHTS.match(text)
    return text[thoughts.end() :] if thoughts else text


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L over jieba words, as rouge-chinese computes them for each pair."""
    from rouge_chinese import Rouge

    scorer, names = Rouge(), {"rouge-1": "rouge1", "rouge-2": "rouge2", "rouge-l": "rougeL"}
    totals = dict.fromkeys(names.values(), 0.0)
    for prediction, reference in zip(predictions, references, strict=True):
        hypothesis, target = " ".join(words(prediction)), " ".join(words(reference))
        if hypothesis and target:
            scores = scorer.get_scores(hypothesis, target)[0]
            for theirs, ours in names.items():
                totals[ours] += scores[theirs]["f"]
    return {name: total / max(1, len(predictions)) for name, total in totals.items()}


def bleu4(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU up to 4-grams of sacrebleu's `zh` tokens (a Chinese character is one), exponential smoothing."""
    from sacrebleu.metrics import BLEU

    if not predictions:
        return 0.0
    return BLEU(tokenize="zh").corpus_score(list(predictions), [list(references)]).score / 100


def normalize_answer(text: str) -> str:
    """A short answer without what does not change it: width of characters, surrounding space and punctuation."""
    return unicodedata.normalize("NFKC", text).strip(PUNCTUATION)


def choice_accuracy(
    predictions: Sequence[str], references: Sequence[str], choices: Sequence[Sequence[str] | None]
) -> tuple[float, int] | None:
    """Share of rows answered with exactly the right choice, and how many rows it is over.

    Counted are the rows whose reference is one of their `choices`; a prediction that says more than the choice is
    wrong. None where no row has choices.
    """
    hits = [
        normalize_answer(prediction) == normalize_answer(reference)
        for prediction, reference, own in zip(predictions, references, choices, strict=True)
        if own and normalize_answer(reference) in map(normalize_answer, own)
    ]
    return (sum(hits) / len(hits), len(hits)) if hits else None


def wilson_interval(hits: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval for a share of which `hits` of `count` were seen; 95 % for the default z.

    Source: E. B. Wilson, Probable Inference, the Law of Succession, and Statistical Inference, JASA 22 (1927).
    """
    share, scale = hits / count, 1 + z * z / count
    middle = (share + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def score(
    predictions: Sequence[str], references: Sequence[str], choices: Sequence[Sequence[str] | None]
) -> dict[str, float]:
    """Every metric that fits the rows: `accuracy` where they have choices, ROUGE and BLEU-4 always.

    Scored are the answers: thoughts are taken off predictions and references alike.
    """
    predictions, references = ([without_thoughts(text) for text in texts] for texts in (predictions, references))
    found = choice_accuracy(predictions, references, choices)
    scores = {"accuracy": found[0]} if found else {}
    return scores | rouge(predictions, references) | {"bleu4": bleu4(predictions, references)}
