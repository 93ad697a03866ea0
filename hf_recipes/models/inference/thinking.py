"""A budget of its own for a model's thoughts, and its answer apart from them."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hf_recipes.data.conversations.thoughts import ThoughtMarks

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from hf_recipes.models.inference.decoding import Decoding

PROMPT_TAIL = 16  # tokens at the end of a prompt, which may open thoughts


def opens_thoughts(tokenizer: "PreTrainedTokenizerBase", marks: ThoughtMarks, prompt: Sequence[int]) -> bool:
    return marks.opened_by(tokenizer.decode(list(map(int, prompt[-PROMPT_TAIL:]))))


def split_ids(
    tokenizer: "PreTrainedTokenizerBase", marks: ThoughtMarks, ids: Sequence[int], opened: bool
) -> tuple[str, str, int | None]:
    """The thoughts of generated `ids`, the answer without special tokens, and its first token's index.

    The index is None, and the answer empty, where the ids end within thoughts. Thoughts are found by the template's
    marks before special tokens are removed, because the marks may be such tokens.
    """

    text = tokenizer.decode(ids)
    start = marks.answer_start(text, opened)
    if not start:
        answer = "" if start is None else tokenizer.decode(ids, skip_special_tokens=True)
        return marks.split(text, opened)[0], answer, start
    index = bisect_left(range(len(ids) + 1), start, key=lambda count: len(tokenizer.decode(ids[:count])))
    rest = tokenizer.decode(ids[:index])[start:]  # a token may hold the end of the mark and more
    return (
        marks.split(text, opened)[0],
        (rest + tokenizer.decode(ids[index:], skip_special_tokens=True)).lstrip(),
        index,
    )


def cut_message(cut: int, answers: int) -> str:
    return f"cut while thinking: {cut:,} of {answers:,} answers (--max_thinking_tokens, --max_new_tokens)"


class Thinking:
    """The thoughts of a batch while it is generated.

    Thoughts that reach their budget are closed with the template's own text, as vLLM's `thinking_token_budget` does,
    and an answer ends after `max_new_tokens` from there. The budget is `max_thinking_tokens`, or less where the prompt
    leaves less of the `context`; where it leaves none, and with None, thoughts and answer share `max_new_tokens`.

    Args:
        rows: each with the ids of its `prompt`, and those that were generated before (`begun`).
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        marks: ThoughtMarks,
        rows: Sequence,
        decodings: Sequence["Decoding"],
        context: int | None,
    ):
        self._tokenizer, self._marks = tokenizer, marks
        self._opened = [opens_thoughts(tokenizer, marks, row.prompt) for row in rows]
        self._begun = [np.asarray(row.begun, dtype=np.int64) for row in rows]
        self._close = tokenizer.encode(marks.close, add_special_tokens=False)
        self._most = [decoding.max_new_tokens for decoding in decodings]  # tokens of an answer
        self._budgets: list[int | None] = [None] * len(rows)
        for number, (row, decoding) in enumerate(zip(rows, decodings, strict=True)):
            if (budget := decoding.max_thinking_tokens) is not None:
                rest = decoding.max_new_tokens + len(self._close)
                room = budget if context is None else context - len(row.prompt) - rest
                self._budgets[number] = min(budget, room) if room >= 0 else None
        self._window = len(marks.end.encode()) + 8  # tokens that hold the end of thoughts
        self._width = max(len(row.prompt) + len(row.begun) for row in rows)
        # Where answers begin, by row of this length and of the last; beams change their order from step to step.
        self._length = 0
        self._starts: dict[tuple[bool, bytes], int | None] = {}
        self._starts_before: dict[tuple[bool, bytes], int | None] = {}

    @property
    def max_tokens(self) -> int:
        """New tokens of the longest row, without those that it was begun with."""
        return max(self._longest(row) - len(begun) for row, begun in enumerate(self._begun))

    def close(self, ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        """A logits processor: the next token of what closes thoughts, where they have reached their budget."""
        scores = scores.clone()
        for index, (row, length, start) in enumerate(self._rows(ids)):
            over = length - (self._budgets[row] or 0)
            if start is None and self._budgets[row] is not None and 0 <= over < len(self._close):
                scores[index] = float("-inf")
                scores[index, self._close[over]] = 0
        return scores

    def stop(self, ids: "torch.Tensor", scores: "torch.Tensor", **kwargs) -> "torch.Tensor":
        """A stopping criterion: whether each row has all its tokens."""
        ended = [length >= self._limit(row, start) for row, length, start in self._rows(ids)]
        return ids.new_tensor(ended, dtype=bool)

    def first(self, row: int) -> int:
        """How many tokens to write before `rest` is asked."""
        budget = self._budgets[row]
        return self._most[row] if budget is None else budget

    def rest(self, row: int, new: list[int]) -> tuple[list[int], int]:
        """What is to follow the tokens `new`, as many as `first` says, and how many more may be written then."""
        if self._budgets[row] is None:
            return [], 0
        start = split_ids(self._tokenizer, self._marks, new, self._opened[row])[2]
        return (self._close, self._most[row]) if start is None else ([], start + self._most[row] - len(new))

    def _longest(self, row: int) -> int:
        budget = self._budgets[row]
        return (0 if budget is None else budget + len(self._close)) + self._most[row]

    def _limit(self, row: int, start: int | None) -> int:
        """How many tokens a row may have whose answer begins at the token `start`."""
        return self._longest(row) if self._budgets[row] is None or start is None else start + self._most[row]

    def _rows(self, ids: "torch.Tensor") -> Iterator[tuple[int, int, int | None]]:
        """For each sequence the index of its row, the number of its tokens, and that at which its answer begins."""
        new = ids[:, self._width :].cpu().numpy()
        if new.shape[1] != self._length:
            self._length, self._starts, self._starts_before = new.shape[1], {}, self._starts
        for index, added in enumerate(new):
            row = index * len(self._opened) // len(new)
            tokens, opened = np.concatenate([self._begun[row], added]), self._opened[row]
            key = opened, tokens.tobytes()
            if key not in self._starts:
                before = self._starts_before.get((opened, tokens[:-1].tobytes()))
                is_new = self._length <= 1 or len(tokens) <= self._window
                self._starts[key] = before or self._answer_start(tokens.tolist(), opened, before, is_new)
            yield row, len(tokens), self._starts[key]

    def _answer_start(self, tokens: list[int], opened: bool, before: int | None, is_new: bool) -> int | None:
        """As `ThoughtMarks.answer_start`, in tokens; `before` is that without the last one, unless the row `is_new`."""

        def start(count: int) -> int | None:
            return self._marks.answer_start(self._tokenizer.decode(tokens[:count]), opened)

        if not is_new and self._marks.end not in self._tokenizer.decode(tokens[-self._window :]):
            return before
        if not (position := start(len(tokens))):
            return position
        return bisect_left(range(len(tokens)), True, key=lambda count: bool(start(count)))

    def read(self, row: int, new: list[int], end: int | None) -> tuple[str, str, int, bool, bool]:
        """Thoughts and answer of a row, the number of its tokens, whether it ended by itself, and whether its thoughts
        did not.

        Args:
            new: its tokens, and padding after those that it may have.
            end: the index of the first token that can end it.
        """
        thoughts, answer, start = split_ids(self._tokenizer, self._marks, new[:end], self._opened[row])
        limit, budget = self._limit(row, start), self._budgets[row]
        finished = end is not None and end < limit
        if not finished:
            new = new[:limit]
            thoughts, answer, start = split_ids(self._tokenizer, self._marks, new, self._opened[row])
        was_closed = budget is not None and start == budget + len(self._close) and new[budget:start] == self._close
        is_cut = was_closed or (start is None and not finished)
        return thoughts, answer, end if finished else len(new), finished, is_cut
