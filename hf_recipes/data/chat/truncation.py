"""What of a conversation stays within its budgets: the oldest exchanges go first, then text of the last question, and
at last the end of the answer."""

from bisect import bisect_left

import numpy as np

from hf_recipes.data.chat.example import Example
from hf_recipes.data.chat.templates.rendered_text import find_text
from hf_recipes.data.chat.token_offsets import Aligned
from hf_recipes.data.conversations.conversation import Message, RowProblem

BUDGETS = "--max_target_length, --max_length"
# Of answers over a budget, in statuses.
ANSWER_CUT, TOO_SMALL = "answer cut", "the budget of an answer is too small"
OVER_BUDGET = f"the answer is over its budget ({BUDGETS})"


def total_length(max_source_length: int | None, max_target_length: int | None, max_length: int | None) -> int:
    """`max_length`, or by default both budgets together (1024 for one not given), or 1024."""
    budgets = (max_source_length, max_target_length)
    return max_length or (sum(budget or 1024 for budget in budgets) if any(budgets) else 1024)


def without_oldest(messages: list[Message], prompt: Aligned, over: int) -> list[Message] | None:
    """`messages` without the first exchanges that hold `over` tokens of the prompt, at the most all but the last; None
    where there is but one exchange."""
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    if len(users) == 1:
        return None
    end = find_text(prompt.text, messages[0]["content"])[1] if messages[0]["role"] == "system" else 0
    # A template may write the system turn in the last question.
    starts = _starts(messages, prompt.text, end) or _starts(messages, prompt.text, 0)

    def token_of(index: int) -> int:
        return prompt.tokens(starts[index], starts[index] + 1)[0]

    first = bisect_left(users, token_of(users[0]) + over, lo=1, hi=len(users) - 1, key=token_of)
    return messages[: users[0]] + messages[users[first] :]


def _starts(messages: list[Message], text: str, position: int) -> dict[int, int] | None:
    """Where in `text` the questions and results are, by index, from `position` on; None where they are not."""
    starts = {}
    for index, message in enumerate(messages):
        if message["role"] in ("user", "tool"):  # of the assistant's turns the template may leave something out
            span = find_text(text, message["content"], position)
            if span is None:
                return None
            starts[index], position = span
    return starts


def cut_prompt(prompt: Aligned, question: str, count: int, side: str) -> np.ndarray:
    """The indices of a prompt's tokens without `count` of its last `question`, from its ``"left"`` or ``"right"``."""
    removed = prompt.cut(*prompt.tokens(*find_text(prompt.text, question, last=True)), count, side)
    if removed is None:
        raise RowProblem("the template and system turn alone fill the prompt's budget")
    return np.r_[: removed[0], removed[1] : len(prompt.ids)]


def cut_answer(answer: Aligned, first: int, target: int, example: Example, turn: Message, calls: bool) -> np.ndarray:
    """The indices, from `first` on, of an answer's tokens without the end of its text; what ends the turn stays.

    Args:
        first: index of the answer's first token in `answer`, which has the prompt before it.
        target: tokens that stay at the most.
        calls: whether `turn` calls a tool.
    """
    length, size = len(answer.text), len(answer.ids)
    end = answer.tokens(length - len(example.end), length)[0]
    stop = answer.boundary(first, first + max(0, target - (size - end)))
    before = length - len(example.answer)
    text = find_text(example.answer.removesuffix(example.end), turn["content"], last=True)
    begin = answer.tokens(before + text[0], before + text[1])[0] if text else size
    if calls or stop <= begin:
        what = "a call" if calls else "thoughts" if turn.get("reasoning_content") else "any text"
        raise RowProblem(f"{TOO_SMALL} for {what} ({BUDGETS})")
    return np.r_[: stop - first, end - first : size - first]
