"""Scores of generated Chinese text, as pure functions.

All scores but `length_ratio` lie in [0, 1]. An empty prediction counts, and scores 0 wherever a score is a mean over
pairs; no pairs at all score 0. Lists of different lengths raise ValueError.
"""

import re
import unicodedata
from collections.abc import Sequence
from itertools import chain, pairwise

import numpy as np

from hf_recipes.data.conversations.thoughts import TAGS

# rouge-chinese ends a sentence after six full stops, and takes the rest of a longer word for another word.
_ELLIPSIS = re.compile(r"(\.{6})([^”’])")
PUNCTUATION = " \t\r\n。．.，,；;：:！!？?、\"'“”‘’"


def words(text: str) -> list[str]:
    """`text` as jieba's words, without white space."""
    from hf_recipes.metrics.segmentation import cut

    return cut([text])[0].split()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def _check(predictions: Sequence[str], references: Sequence[str]) -> None:
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions do not pair with {len(references)} references")


def without_thoughts(text: str) -> str:
    """`text` without the thoughts (``<think>…</think>``) that it begins with; of thoughts without an end nothing."""
    return TAGS.split(text)[1]


def _f1(overlap: int, predicted: int, expected: int) -> float:
    """F1 with rouge-chinese's 1e-8 in the denominator, against 0 / 0."""
    precision, recall = overlap / max(1, predicted), overlap / max(1, expected)
    return 2 * (precision * recall / (precision + recall + 1e-8))


def rouge_pairs(predictions: Sequence[str], references: Sequence[str]) -> list[dict[str, float]]:
    """F1 of ROUGE-1, ROUGE-2 and ROUGE-L of each pair over jieba words: equal to rouge-chinese 1.0.3.

    ROUGE-N compares the sets of different n-grams, not their counts, over the whole text; ROUGE-L is the longest
    common subsequence of the whole texts over their numbers of words. Words include punctuation, but no white space. An
    empty prediction, an empty reference and (ROUGE-2) a text of one word score 0.
    """
    from rapidfuzz.distance import LCSseq

    from hf_recipes.metrics.segmentation import cut

    _check(predictions, references)
    # A word in which rouge-chinese ends a sentence is two words.
    texts = [_ELLIPSIS.sub(r"\1 \2", text).split() for text in cut([*predictions, *references])]
    scores = []
    for ours, theirs in zip(texts[: len(predictions)], texts[len(predictions) :], strict=True):
        singles, doubles = (set(ours), set(theirs)), (set(pairwise(ours)), set(pairwise(theirs)))
        scores.append(
            {
                "rouge1": _f1(len(singles[0] & singles[1]), *map(len, singles)),
                "rouge2": _f1(len(doubles[0] & doubles[1]), *map(len, doubles)),
                "rougeL": _f1(LCSseq.similarity(ours, theirs), len(ours), len(theirs)),
            }
        )
    return scores


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Means of `rouge_pairs`; pairs without text count as 0."""
    rows = rouge_pairs(predictions, references)
    return {name: _mean([row[name] for row in rows]) for name in ("rouge1", "rouge2", "rougeL")}


def bleu4(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU up to 4-grams of sacrebleu's `zh` tokens (a Chinese character is one), exponential smoothing.

    Counts are summed over the pairs, so no single pair has a value. An empty prediction adds to the brevity penalty, an
    empty reference to the n-grams without a match. A corpus without any 4-gram scores 0.
    """
    from sacrebleu.metrics import BLEU

    _check(predictions, references)
    if not predictions:
        return 0.0
    return BLEU(tokenize="zh").corpus_score(list(predictions), [list(references)]).score / 100


def chrf(predictions: Sequence[str], references: Sequence[str]) -> float:
    """chrF of the corpus: F2 (recall weighs twice) over n-grams of 1 to 6 characters, without words or white space.

    N-grams are counted over all pairs, as sacrebleu does, without smoothing: orders longer than all texts are not in
    the mean.
    """
    from sacrebleu.metrics import CHRF

    _check(predictions, references)
    if not predictions:
        return 0.0
    metric = CHRF(char_order=6, word_order=0, beta=2)
    return metric.corpus_score(list(predictions), [list(references)]).score / 100


def exact_matches(predictions: Sequence[str], references: Sequence[str]) -> list[bool]:
    """Whether each prediction equals its reference after `normalize_answer`; empty texts match nothing."""
    pairs = zip(map(normalize_answer, predictions), map(normalize_answer, references), strict=True)
    return [bool(ours) and ours == theirs for ours, theirs in pairs]


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Share of `exact_matches`."""
    return _mean(exact_matches(predictions, references))


def distinct(predictions: Sequence[str]) -> dict[str, float]:
    """`distinct1` and `distinct2`: different n-grams of jieba words per n-gram, over all predictions.

    An n-gram lies within one prediction; an empty prediction has none, and without any the score is 0 (Li et al. 2016).
    """
    from hf_recipes.metrics.segmentation import cut

    texts = [text.split() for text in cut(predictions)]
    singles, doubles = list(chain.from_iterable(texts)), list(chain.from_iterable(map(pairwise, texts)))
    return {f"distinct{n}": len(set(grams)) / max(1, len(grams)) for n, grams in ((1, singles), (2, doubles))}


def length_ratio(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Characters of all predictions over those of all references, without surrounding white space: a ratio of sums.

    1 means as long as the references. References that are all empty give 0.
    """
    _check(predictions, references)
    ours, theirs = (sum(len(text.strip()) for text in texts) for texts in (predictions, references))
    return ours / theirs if theirs else 0.0


def normalize_answer(text: str) -> str:
    """A short answer in half-width characters, without surrounding space and punctuation."""
    return unicodedata.normalize("NFKC", text).strip(PUNCTUATION)


def is_choice(text: str, choices: Sequence[str]) -> bool:
    """Whether a text, without its thoughts, is one of the choices after `normalize_answer`."""
    return normalize_answer(without_thoughts(text)) in map(normalize_answer, choices)


def choice_accuracy(
    predictions: Sequence[str], references: Sequence[str], choices: Sequence[Sequence[str] | None]
) -> tuple[float, int] | None:
    """Share of rows answered with exactly the right choice, and how many rows it is over.

    Rows count whose reference is one of their `choices`; a prediction that says more than the choice is wrong. None
    where no row counts.
    """
    rows = zip(predictions, references, choices, strict=True)
    pairs = [(prediction, reference) for prediction, reference, offered in rows if is_choice(reference, offered or ())]
    return (exact_match(*zip(*pairs, strict=True)), len(pairs)) if pairs else None


def confusion(
    predictions: Sequence[str], references: Sequence[str], labels: Sequence[str] | None = None
) -> tuple[np.ndarray, list[str]]:
    """Counts of pairs of labels: int64 (L, L + 1), rows are references, columns predictions.

    The last column counts predictions that are none of the labels. Texts are compared after `normalize_answer`.

    Args:
        labels: in the order of the rows; by default those of the references, sorted.

    Returns:
        The matrix and the labels of its rows.
    """
    _check(predictions, references)
    predictions, references = ([normalize_answer(text) for text in texts] for texts in (predictions, references))
    labels = sorted(set(references)) if labels is None else list(dict.fromkeys(map(normalize_answer, labels)))
    index_of = {label: index for index, label in enumerate(labels)}
    if unknown := sorted(set(references) - set(index_of)):
        raise ValueError(f"the reference {unknown[0]!r} is none of the labels")
    matrix = np.zeros((len(labels), len(labels) + 1), dtype=np.int64)
    for prediction, reference in zip(predictions, references, strict=True):
        matrix[index_of[reference], index_of.get(prediction, len(labels)) if prediction else len(labels)] += 1
    return matrix, labels


def per_class(predictions: Sequence[str], references: Sequence[str]) -> dict[str, dict[str, float]]:
    """`precision`, `recall`, `f1` and `support` (rows) of each label of the references; 0 where undefined.

    A prediction that is none of them lowers the recall of the right label, and no label's precision.
    """
    matrix, labels = confusion(predictions, references)
    scores = {}
    for index, label in enumerate(labels):
        hits, predicted, support = (int(n) for n in (matrix[index, index], matrix[:, index].sum(), matrix[index].sum()))
        scores[label] = {
            "precision": hits / max(1, predicted),
            "recall": hits / max(1, support),
            "f1": 2 * hits / max(1, predicted + support),
            "support": support,
        }
    return scores


def macro_f1(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Mean F1 of `per_class`: each label of the references weighs the same."""
    return _mean([row["f1"] for row in per_class(predictions, references).values()])
