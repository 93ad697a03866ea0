"""Rows of questions and answers, and of conversations, as `messages`."""

import json
from dataclasses import replace
from typing import Any

from hf_recipes.data.schemas.columns import Columns, Example, Row, is_empty, optional, text_of
from hf_recipes.data.schemas.conversation import (
    Message,
    RowProblem,
    add_thoughts,
    check_conversation,
    link_results,
    read_tools,
    read_turns,
    with_thoughts,
)

# Columns of a question and its answer, in the order in which they are looked for.
PAIRS = (
    ("prompt", "response"),
    ("prompt", "completion"),
    ("query", "response"),
    ("question", "answer"),
    ("user", "assistant"),
    ("context", "target"),
    ("instruction", "output"),
    ("input", "target"),
    ("input", "output"),
    ("问", "答"),
    ("Question", "Response"),
    ("input", "content"),
)
ANSWER_OF = dict(reversed(PAIRS))  # the first answer column of each prompt column
MESSAGE_COLUMNS = ("messages", "dialog", "conversation", "conversations")


def pair_of(row: Row) -> tuple[str | None, str | None]:
    """The columns of a question and its answer."""
    return next((pair for pair in PAIRS if pair[0] in row and pair[1] in row), (None, None))


def prompt_of(row: Row) -> str | None:
    """The column of a question, with or without an answer."""
    return next((prompt for prompt, _ in PAIRS if prompt in row), None)


def fill_pair(columns: Columns, row: Row) -> Columns:
    prompt, response = pair_of(row)
    if columns.reads == "prompts" and (columns.prompt or prompt is None):
        prompt = columns.prompt or prompt_of(row)
        response = next((b for a, b in PAIRS if a == prompt and b in row), ANSWER_OF.get(prompt, "response"))
    return replace(columns, prompt=columns.prompt or prompt, response=columns.response or response)


def make_conversation(messages: list[Message], row: Row, columns: Columns, tools: Any = None) -> Example:
    if messages and messages[0]["role"] != "system":
        system = optional(row, "system") or columns.system_prompt
        if system is not None:
            messages = [{"role": "system", "content": system}, *messages]
    if columns.reads == "prompts" and len(messages) > 1:
        last = messages[-1]
        if last["role"] == "assistant" and is_empty(last["content"]) and not last.get("tool_calls"):
            messages = messages[:-1]
    elif columns.reads == "examples" and messages:
        messages = [*messages[:-1], with_thoughts_of(messages[-1], row, columns.thoughts)]
    check_conversation(messages, needs_answer=columns.reads != "prompts")
    link_results(messages)
    example: Example = {"messages": messages}
    if tools is not None and (described := read_tools(tools)):
        example["tools"] = described
    return example


def with_thoughts_of(message: Message, row: Row, column: str | None) -> Message:
    """An answer with the thoughts that `row` has in `column`, unless it has its own."""
    if message["role"] != "assistant" or "reasoning_content" in with_thoughts(message):
        return message
    return add_thoughts(message, row, column)


def _single_turn(row: Row, columns: Columns, prompt: str, response: str) -> Example:
    turns = [{"role": "user", "content": prompt}]
    if columns.reads != "prompts" or not is_empty(row.get(response)):
        turns.append({"role": "assistant", "content": text_of(row, response, "answer")})
    return make_conversation(_history(optional(row, columns.history)) + turns, row, columns)


def _history(pairs: Any) -> list[Message]:
    problem = RowProblem("history is not a list of [question, answer] pairs")
    if isinstance(pairs, str):
        try:
            pairs = json.loads(pairs)
        except ValueError:
            raise problem from None
    pairs = [] if pairs is None else pairs
    if not isinstance(pairs, list) or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs):
        raise problem
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]


def from_prompt_response(row: Row, columns: Columns) -> Example:
    if turns := read_prompt_and_completion(row, columns):
        prompt, completion = turns
        for message in prompt if columns.reads == "examples" else ():
            if message["role"] == "assistant":
                message["weight"] = 0  # as in TRL, the completion alone is trained on
        return make_conversation(prompt + completion, row, columns, optional(row, "tools"))
    return _single_turn(row, columns, text_of(row, columns.prompt, "prompt"), columns.response)


def read_prompt_and_completion(row: Row, columns: Columns) -> tuple[list[Message], list[Message]] | None:
    """Prompt and completion, where they are lists of messages (TRL's conversational form)."""
    prompt, completion = row.get(columns.prompt), row.get(columns.response)
    if columns.reads == "prompts" and is_empty(completion):
        completion = []
    if not isinstance(prompt, list) or not isinstance(completion, list):
        return None
    after = read_turns(completion, columns.response, "role", "content")
    return read_turns(prompt, columns.prompt, "role", "content"), after


def from_alpaca(row: Row, columns: Columns) -> Example:
    prompt = text_of(row, "instruction", "prompt")
    if optional(row, "input") is not None:
        prompt = f"{prompt}\n{text_of(row, 'input', 'input')}"
    columns = columns if columns.history else replace(columns, history="history")
    return _single_turn(row, columns, prompt, "output")


def from_sharegpt(row: Row, columns: Columns) -> Example:
    messages = read_turns(row.get("conversations"), "conversations", "from", "value")
    return make_conversation(messages, row, columns, optional(row, "tools"))


def from_messages(row: Row, columns: Columns) -> Example:
    column = next((name for name in MESSAGE_COLUMNS if row.get(name) is not None), "messages")
    messages = read_turns(row.get(column), column, "role", "content")
    return make_conversation(messages, row, columns, optional(row, "tools"))


def has_turns(row: Row, role_key: str) -> bool:
    """Whether the first column of turns has its roles under `role_key`."""
    turns = next((row[name] for name in MESSAGE_COLUMNS if isinstance(row.get(name), list)), None)
    has_role = bool(turns) and isinstance(turns[0], dict) and "role" in turns[0]
    return turns is not None and has_role == (role_key == "role")
