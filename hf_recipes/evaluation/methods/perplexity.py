"""How well a model predicts given texts: loss, perplexity and bits per character."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from datasets import Dataset

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.ledger import KEPT, Ledger, is_dropped, row_status
from hf_recipes.data.chat.encoder import ChatEncoder
from hf_recipes.data.pretraining.document_encoder import leading_ids
from hf_recipes.evaluation.method import EvalContext, Method, Record
from hf_recipes.models.inference import forward
from hf_recipes.models.inference.batch_options import BatchOptions, ForwardPass

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHUNK = 256  # rows tokenized together


@dataclass
class _Window:
    """Tokens [begin, end) of a text or a conversation, of which those from `scored` on count.

    With `labels`, only the labelled ones of them count.
    """

    location: str
    source: str
    ids: np.ndarray
    characters: int
    begin: int
    end: int
    scored: int
    labels: np.ndarray | None = None

    def row(self) -> tuple[np.ndarray, np.ndarray]:
        ids = self.ids[self.begin : self.end]
        if self.labels is not None:
            return ids, self.labels
        labels = ids.astype(np.int64)
        labels[: self.scored - self.begin] = -100
        return ids, labels


class NLL(Method):
    """Loss, perplexity and bits per character, all from sums over the tokens of all items.

    Texts (examples of the form text) are tokenized with the special tokens that the tokenizer puts before a text (BOS),
    without an end token, and go through the model in windows of `max_length` tokens that begin `stride` apart; an item
    is a window. Every token of the text counts exactly once, but for the first where the tokenizer puts no BOS before a
    text: nothing predicts it. In the first window all count, each after all tokens before it; in a later window those
    that the one before did not reach, each after at least ``max_length - stride`` tokens of the text and at most
    ``max_length - 1``. Later windows have no BOS. The characters are those of the counted tokens; one that is split
    between two tokens belongs to the later.

    With a `prefix_token` each text begins with that in place of the tokenizer's own special tokens, so that every token
    counts: for a text that fits a window, the definition of lm-eval's ``loglikelihood_rolling``, whose prefix is the
    BOS, or without one the EOS.

    Of conversations (examples of the form messages), the tokens count that carry loss in training: the assistant's
    turns and the tokens that end them; an item is a row. The characters are those of the turns as rendered: bits per
    character include the bits of the end tokens, which have no characters.

    Args:
        examples: as `load_examples` gives them, with the rows that were dropped.
        max_length: of a window (1,024 if not given); a longer conversation is dropped.
        stride: at most ``max_length - 1``; half of `max_length` if not given.
        train_on: ``"all"`` assistant turns count, or only the ``"last"``.
        budgets: of conversations, other keywords of `ChatEncoder` with which a run was trained.
        max_drop_ratio: the share of rows that may be dropped.
        prefix_token: ``"bos"``, ``"eos"`` or a token of the vocabulary, before texts.

    Attributes:
        ledger: the status of every row.
        note: whether the first token of a text counts; None for conversations.
    """

    name = suffix = "nll"
    forms: ClassVar = {"text": ("nll",), "messages": ("nll",)}

    def __init__(
        self,
        examples: Dataset,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        max_length: int | None = None,
        stride: int | None = None,
        train_on: str = "all",
        budgets: Mapping[str, Any] | None = None,
        max_drop_ratio: float = 0.01,
        prefix_token: str | None = None,
    ):
        self.note = None
        of_texts = "text" in examples.column_names
        if of_texts:
            max_length = max_length or 1024
            stride = stride or max(1, max_length // 2)
            if not 0 < stride < max_length:
                raise UserError(f"stride {stride}: expected 1 to {max_length - 1}, less than the window's length")
            encode = _Texts(tokenizer, max_length, stride, prefix_token)
            self.note = encode.note
        else:
            encode = _Conversations(tokenizer, max_length, {"train_on": train_on, **(budgets or {})})
        self._windows: list[_Window] = []
        self.ledger = Ledger()
        for columns in examples.iter(CHUNK):
            rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
            usable = [row for row in rows if not is_dropped(row["status"])]
            encoded = iter(encode(usable) if usable else [])
            for row in rows:
                windows, status = ([], row["status"]) if is_dropped(row["status"]) else next(encoded)
                self._windows += windows
                self.ledger.add(row["location"], row["status"] if status == KEPT else status)
        self.ledger.check(max_drop_ratio)
        if not self._windows:
            raise UserError("there is no text to score")

    @classmethod
    def from_file(cls, path: str, form: str, names: Sequence[str] | None, context: EvalContext) -> "NLL":
        length = context.max_length
        method = cls(
            context.rows.load(path, form, context.cache_dir),
            context.tokenizer,
            max_length=min(length or 2048, 2048) if form == "text" else length,
            max_drop_ratio=context.max_drop_ratio,
            prefix_token=context.arguments.nll_prefix_token,
            budgets=context.rows.budgets,
        )
        say(method.ledger.table())
        return method

    @classmethod
    def of_rows(cls, rows: "Dataset") -> "NLL":
        """Of tokenized conversations, with `input_ids`, `labels` and `location`; their characters are not counted."""
        method, locations = cls.__new__(cls), rows["location"][:]
        method.note, method.ledger = None, Ledger().add_all((location, KEPT) for location in locations)
        method._windows = [
            _Window(location, _file(location), np.array(ids), 0, 0, len(ids), 0, np.array(labels))
            for location, ids, labels in zip(locations, rows["input_ids"][:], rows["labels"][:], strict=True)
        ]
        return method

    def __len__(self) -> int:
        return len(self._windows)

    def compute(self, model: "PreTrainedModel", items: Sequence[int], options: BatchOptions) -> list[Record]:
        """See `Method`; a record holds the sums of one item: nats, tokens, hits and characters."""
        chosen = [self._windows[item] for item in items]
        records: list[Record] = [{}] * len(chosen)
        with forward.evaluating(model):
            for batch in forward.batches([window.begin - window.end for window in chosen], options.batch_size, options):
                losses = forward.row_losses(model, [chosen[row].row() for row in batch])
                for row, (nats, tokens, hits) in zip(batch, losses, strict=True):
                    window = chosen[row]
                    sums = {"nats": nats, "tokens": tokens, "hits": hits, "characters": window.characters}
                    records[row] = {"location": window.location, "source": window.source, **sums}
        return records

    def largest_pass(self, batch_size: int) -> ForwardPass:
        longest = max(window.end - window.begin for window in self._windows)
        return forward.scored_pass(min(batch_size, len(self)), longest)

    def summarise(self, records: Sequence[Record]) -> dict[str, float]:
        """`loss` (nats per token), `perplexity`, `bits_per_character`, `token_accuracy` (share of tokens that had the
        highest probability), and the numbers of `tokens` and `characters`.

        The first three also as ``loss/<name>`` for each file name, and for each source that the rows name, where there
        are several.
        """
        groups: dict[str, list[Record]] = defaultdict(list)
        for record in records:
            for name in {_file(record["location"]), record["source"]}:
                groups[name].append(record)
        total = _rates(records)
        hits, tokens, characters = (sum(record[key] for record in records) for key in ("hits", "tokens", "characters"))
        total |= {"token_accuracy": hits / tokens, "tokens": tokens, "characters": characters}
        if len(groups) > 1:
            for name, group in sorted(groups.items()):
                total |= {f"{key}/{name}": value for key, value in _rates(group).items()}
        return total

    def directions(self) -> dict[str, bool | None]:
        return {**dict.fromkeys(("loss", "perplexity", "bits_per_character"), False), "token_accuracy": True}

    def values(self, records: Sequence[Record]) -> dict[str, list[float]]:
        """No metric is a mean over records: all are ratios of sums."""
        return {}


def _rates(records: Sequence[Record]) -> dict[str, float]:
    nats = math.fsum(record["nats"] for record in records)
    tokens, characters = (sum(record[key] for record in records) for key in ("tokens", "characters"))
    loss = nats / tokens
    return {
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 709 else math.inf,  # the largest float is e**709.8
        "bits_per_character": nats / math.log(2) / characters if characters else math.nan,
    }


def _file(location: str) -> str:
    return Path(location.rpartition(":")[0]).name


def source_of(row: dict) -> str:
    """The source that a row of `load_examples` names, else its file's name."""
    return str((row["meta"] or {}).get("source") or _file(row["location"]))


def prefix_id(tokenizer: "PreTrainedTokenizerBase", token: str) -> int:
    """The id of ``"bos"``, ``"eos"`` or a token of the vocabulary."""
    special = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}
    token_id = special[token] if token in special else tokenizer.get_vocab().get(token)
    if token_id is None:
        raise UserError(
            f"--nll_prefix_token {token}: the tokenizer has no such token; give bos, eos or one that it has"
        )
    return token_id


class _Texts:
    """Texts → windows."""

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", max_length: int, stride: int, prefix_token: str | None = None
    ):
        self.tokenizer, self.max_length, self.stride = tokenizer, max_length, stride
        self.prefix = leading_ids(tokenizer) if prefix_token is None else [prefix_id(tokenizer, prefix_token)]

    @property
    def note(self) -> str:
        if not self.prefix:
            return "the first token of each text is not counted, since the tokenizer puts no BOS before it"
        return f"every token of a text is counted, the first after {self.tokenizer.decode(self.prefix)}"

    def __call__(self, rows: list[dict]) -> list[tuple[list[_Window], str]]:
        fast = self.tokenizer.is_fast
        texts = [row["text"] for row in rows]
        encoded = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
        offsets = encoded["offset_mapping"] if fast else [None] * len(rows)
        return [self._split(*row) for row in zip(rows, encoded["input_ids"], offsets, strict=True)]

    def _split(self, row: dict, ids: list[int], offsets: list[tuple[int, int]] | None) -> tuple[list[_Window], str]:
        prefix, text = len(self.prefix), row["text"]
        ids = np.array([*self.prefix, *ids], dtype=np.int32)
        windows, reached, begin = [], max(1, prefix), 0
        if len(ids) <= reached:
            return [], row_status("dropped", "no token has another before it")

        def before(token: int) -> int:
            """How many characters end before this token."""
            token -= prefix
            if token <= 0:
                return 0
            if token == len(ids) - prefix:
                return len(text)
            if offsets is not None:
                return min(offsets[token][0], offsets[token - 1][1])
            return min(len(text), len(self.tokenizer.decode(ids[prefix : prefix + token]).rstrip("\ufffd")))

        while reached < len(ids):
            end = min(begin + self.max_length, len(ids))
            if end > reached:
                characters = before(end) - before(reached)
                windows.append(_Window(row["location"], source_of(row), ids, characters, begin, end, reached))
                reached = end
            begin += self.stride
        return windows, KEPT


class _Conversations:
    """Conversations → rows whose labels are those of training."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", max_length: int | None, budgets: Mapping[str, Any]):
        # With budgets of answers as in the validation of a training, where rows are kept or dropped as a whole.
        self.encoder = ChatEncoder(tokenizer, keep_text="max_length" in budgets, **budgets)
        self.max_length = max_length

    def __call__(self, rows: list[dict]) -> list[tuple[list[_Window], str]]:
        conversations, tools = ([row[name] for row in rows] for name in ("messages", "tools"))
        results: list[tuple[list[_Window], str]] = [([], KEPT) for _ in rows]
        for encoded in self.encoder.encode(conversations, tools):
            row, (windows, _) = rows[encoded.conversation], results[encoded.conversation]
            length, status = len(encoded.input_ids), encoded.status
            if not is_dropped(status) and self.max_length is not None and length > self.max_length:
                status = row_status("dropped", f"longer than {self.max_length} tokens")
            if not is_dropped(status):
                columns = encoded.input_ids, encoded.characters, 0, length, 0, encoded.labels
                windows.append(_Window(row["location"], source_of(row), *columns))
            results[encoded.conversation] = windows, KEPT if windows and is_dropped(status) else status
        return results
