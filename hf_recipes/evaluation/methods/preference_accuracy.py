"""Pairs of a better and a worse answer: how often, and by how much, a model prefers the better one."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from datasets import Dataset

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.language import Language
from hf_recipes.core.ledger import KEPT, Ledger, is_dropped
from hf_recipes.data.chat.preference import TOO_LONG, PairEncoder, budget_of
from hf_recipes.data.schemas.registry import SIDES
from hf_recipes.evaluation.method import EvalContext, Method, Outcome, Record
from hf_recipes.evaluation.methods.perplexity import source_of
from hf_recipes.evaluation.reports.plots import draw_histogram
from hf_recipes.metrics.intervals import wilson_interval
from hf_recipes.models.inference import forward
from hf_recipes.models.inference.batch_options import BatchOptions, ForwardPass
from hf_recipes.models.reward_head import rewards, scores_conversations

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

QUANTILES = (5, 25, 50, 75, 95)
CHUNK = 256  # pairs tokenized together


@dataclass
class _Pair:
    """The ids of both sides, their labels on the turns of the answer, and texts for who reads the records."""

    location: str
    source: str
    sides: list[tuple[np.ndarray, np.ndarray]]
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return max(len(ids) for ids, _ in self.sides)


class PairAccuracy(Method):
    """Share of pairs whose chosen side scores higher than the rejected one; equal scores count half.

    The score of a side is

    - with a reward model (a sequence classifier with one label), its output for the whole conversation as the chat
      template renders it;
    - with a causal language model, the log-probability of the answer after the prompt, in nats: the assistant's turns
      that the two sides do not share, with the tokens that end them. This sum favours short answers, so the metrics
      are also given per token. It is the preference that DPO trains, without a reference model.

    An item is a pair; both of its sides are in the same batch, which holds at least one pair whatever the batch size.

    Args:
        examples: as `load_examples` gives them with the form preference, with the rows that were dropped.
        max_length: tokens of a side; a pair with a longer one is dropped, because a cut answer is another answer.
        max_drop_ratio: the share of pairs that may be dropped.
        flag: what sets max_length; None where it is the model's.

    Attributes:
        ledger: the status of every row.
        hint: how many pairs are longer, and what would keep them.
    """

    name = suffix = "pair_accuracy"
    forms: ClassVar = {"preference": ("pair_accuracy",)}
    scores_reward_models = True
    change_picture = "differences"

    def __init__(
        self,
        examples: Dataset,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        max_length: int | None = None,
        max_drop_ratio: float = 0.01,
        flag: str | None = "--max_pair_length",
    ):
        encoder = PairEncoder(tokenizer, max_length)
        self._pairs: list[_Pair] = []
        self.ledger, lengths = Ledger(), []
        for columns in examples.iter(CHUNK):
            rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
            for row, pair in zip(rows, encoder.encode(rows), strict=True):
                self.ledger.add(row["location"], pair.status)
                if not is_dropped(pair.status) or TOO_LONG in pair.status:
                    lengths.append(pair.length)
                if not is_dropped(pair.status):
                    sides = [(side.input_ids, side.labels) for side in (pair.chosen, pair.rejected)]
                    texts = {f"{side}_text": _text(row[side]) for side in SIDES}
                    texts = {"question": _text(row["prompt"][-1:]), **texts}
                    self._pairs.append(_Pair(row["location"], source_of(row), sides, texts))
        limited = max_length is not None and lengths
        self.hint = budget_of(lengths, max_length, self.ledger.totals["read"], flag) if limited else ""
        self.ledger.check(max_drop_ratio, hint=self.hint)
        if not self._pairs:
            raise UserError("there is no pair to compare")

    @classmethod
    def from_file(cls, path: str, form: str, names: Sequence[str] | None, context: EvalContext) -> "PairAccuracy":
        limits = {None: context.max_length, context.pair_flag: context.rows.max_pair_length}
        flag = min((name for name, size in limits.items() if size), key=limits.get, default=None)
        settings = {"max_length": limits[flag], "max_drop_ratio": context.max_drop_ratio, "flag": flag}
        method = cls(context.rows.load(path, form, context.cache_dir), context.tokenizer, **settings)
        say(method.ledger.table())
        if method.hint:
            say(f"note: {path}: {method.hint}")
        return method

    @classmethod
    def of_rows(cls, rows: Dataset) -> "PairAccuracy":
        """From tokenized pairs: `chosen_ids`, `rejected_ids`, `location`, and for a causal model the labels of both."""
        method = cls.__new__(cls)
        locations = rows["location"][:]
        ids, labels = ([f"{side}_{name}" for side in SIDES] for name in ("ids", "labels"))
        labels = labels if set(labels) <= set(rows.column_names) else ids
        columns = (zip(rows[one][:], rows[other][:], strict=True) for one, other in zip(ids, labels, strict=True))
        method._pairs = [
            _Pair(location, source_of({"location": location, "meta": None}), list(sides))
            for location, sides in zip(locations, zip(*columns, strict=True), strict=True)
        ]
        method.ledger = Ledger().add_all((location, KEPT) for location in locations)
        return method

    def __len__(self) -> int:
        return len(self._pairs)

    def compute(self, model: "PreTrainedModel", items: Sequence[int], options: BatchOptions) -> list[Record]:
        """See `Method`. A record holds the texts and the scores, `chosen` and `rejected`; of a reward model also their
        `difference`, of a causal model the numbers of tokens, `chosen_tokens` and `rejected_tokens`.
        """
        classifies = scores_conversations(model)
        chosen = [self._pairs[item] for item in items]
        records: list[Record] = [{}] * len(chosen)
        with forward.evaluating(model):
            for batch in forward.batches([-pair.length for pair in chosen], max(1, options.batch_size // 2), options):
                sides = [side for row in batch for side in chosen[row].sides]
                if classifies:
                    scores, counts = rewards(model, [ids for ids, _ in sides]), None
                else:
                    losses = forward.row_losses(model, sides)
                    scores, counts = [-nats for nats, _, _ in losses], [count for _, count, _ in losses]
                for index, row in enumerate(batch):
                    pair = slice(2 * index, 2 * index + 2)
                    record = {"location": chosen[row].location, "source": chosen[row].source}
                    record |= chosen[row].texts
                    record |= dict(zip(SIDES, scores[pair], strict=True))
                    if counts is None:
                        record["difference"] = record["chosen"] - record["rejected"]
                    else:
                        record |= {f"{side}_tokens": count for side, count in zip(SIDES, counts[pair], strict=True)}
                    records[row] = record
        return records

    def largest_pass(self, batch_size: int) -> ForwardPass:
        pairs = min(max(1, batch_size // 2), len(self))
        return forward.scored_pass(2 * pairs, max(pair.length for pair in self._pairs))

    def summarise(self, records: Sequence[Record]) -> dict[str, float]:
        """`accuracy` with its 95 % interval (Wilson) and ``accuracy/<source>``; of the differences chosen - rejected
        `difference_mean`, `difference_std` (with n - 1; 0 for one pair) and quantiles (`difference_q05` …); `pairs` and
        `ties`. For a causal model also `accuracy_per_token`, `difference_per_token_mean` and `_std`; for a reward model
        `loss` (what training minimises: the mean of -log sigmoid of the difference, in nats) and `score_mean`.
        """
        all_pairs, count = differences(records), len(records)
        low, high = wilson_interval(_wins(all_pairs), count)
        summary = {"accuracy": _wins(all_pairs) / count, "accuracy_low": low, "accuracy_high": high}
        summary |= {f"difference_{name}": value for name, value in _spread(all_pairs).items()}
        summary |= {"pairs": count, "ties": all_pairs.count(0)}
        if "chosen_tokens" in records[0]:
            per_token = differences(records, per_token=True)
            spread = _spread(per_token)
            summary["accuracy_per_token"] = _wins(per_token) / count
            summary |= {f"difference_per_token_{name}": spread[name] for name in ("mean", "std")}
        else:
            losses = (max(-one, 0.0) + math.log1p(math.exp(-abs(one))) for one in all_pairs)
            summary["loss"] = math.fsum(losses) / count
            summary["score_mean"] = math.fsum(record[side] for record in records for side in SIDES) / count / 2
        by_source = defaultdict(list)
        for record, difference in zip(records, all_pairs, strict=True):
            by_source[record["source"]].append(difference)
        return summary | {
            f"accuracy/{source}": _wins(group) / len(group) for source, group in sorted(by_source.items())
        }

    def directions(self) -> dict[str, bool | None]:
        larger = ("accuracy", "accuracy_low", "accuracy_high", "accuracy_per_token")
        larger += ("difference_mean", "difference_per_token_mean")
        return {**dict.fromkeys(larger, True), "loss": False, "difference_std": None, "score_mean": None}

    def values(self, records: Sequence[Record]) -> dict[str, list[float]]:
        return {"accuracy": [_wins([difference]) for difference in differences(records)]}

    def draw(self, folder: Path, name: str, outcomes: Mapping[str, Outcome], language: Language = "en") -> list[Path]:
        path = folder / f"{name}.png"
        sets = [differences(outcome.records[name]) for outcome in outcomes.values()]
        draw_histogram(sets, path, list(outcomes), language=language)
        return [path]


def differences(records: Sequence[Record], per_token: bool = False) -> list[float]:
    """Score of the chosen side less that of the rejected one, for each pair; of a causal model also `per_token`."""
    sides = [[record[side] / (record[f"{side}_tokens"] if per_token else 1) for side in SIDES] for record in records]
    return [chosen - rejected for chosen, rejected in sides]


def _text(messages: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(message["content"] for message in messages if message.get("content"))


def _wins(differences: Sequence[float]) -> float:
    return sum(1.0 if difference > 0 else 0.5 if difference == 0 else 0.0 for difference in differences)


def _spread(differences: Sequence[float]) -> dict[str, float]:
    std = float(np.std(differences, ddof=1)) if len(differences) > 1 else 0.0
    quantiles = np.percentile(differences, QUANTILES).tolist()
    spread = {"mean": math.fsum(differences) / len(differences), "std": std}
    return spread | {f"q{percent:02d}": value for percent, value in zip(QUANTILES, quantiles, strict=True)}
