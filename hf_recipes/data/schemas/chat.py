"""Rows of questions and answers, and of conversations, as `messages`."""

import re
from dataclasses import replace
from typing import Any

from hf_recipes.core.errors import UserError
from hf_recipes.data.conversations.calls import link_results, read_calls, read_tools
from hf_recipes.data.conversations.cells import by_key, is_empty, keys_of, parsed
from hf_recipes.data.conversations.conversation import Message, RowProblem, check_conversation, with_thoughts
from hf_recipes.data.conversations.dialogue_text import read_dialogue, read_dialogue_prompt
from hf_recipes.data.conversations.thought_columns import add_thoughts, thoughts_name
from hf_recipes.data.conversations.turns import is_turn, pop_unused, read_exchanges, read_turns
from hf_recipes.data.schemas.column_names import (
    ANSWER_OF,
    ANSWERS,
    CONTEXT_COLUMNS,
    FORUM,
    HISTORY_COLUMNS,
    MESSAGE_COLUMNS,
    PAIRS,
    QUESTIONS,
    REFERENCE_ANSWERS,
    SYSTEM_COLUMNS,
    TEXT_COLUMNS,
    TOOLS_COLUMNS,
)
from hf_recipes.data.schemas.columns import Columns, Example, Row, answer_of, optional, text_of

_LANGUAGE = re.compile(r"^(?:zh|cn|en|chinese|english)_|_(?:zh|cn|en|chinese|english)$")
WITHOUT_LOSS = "turns without loss, by {!r}"
NOT_TRAINED = "{!r} of a turn that is not the assistant's has no effect"


def pair_of(row: Row) -> tuple[str | None, str | None]:
    """The columns of a question and its answer."""
    if pair := next((pair for pair in PAIRS if pair[0] in row and pair[1] in row), None):
        return pair
    if forum := next((columns for columns in FORUM if row.keys() >= set(columns)), None):
        return forum[0], forum[2]
    names = by_key(row)
    question = next((names[name] for name in QUESTIONS if name in names), None)
    answer = next((names[name] for name in ANSWERS if name in names), None)
    return (None, None) if question is None or answer is None else (question, answer)


def prompt_of(row: Row) -> str | None:
    """The column of a question, with or without an answer."""
    names = by_key(row)
    prompts = (prompt for prompt in (*(prompt for prompt, _ in PAIRS), *QUESTIONS) if prompt in names)
    return names[prompt] if (prompt := next(prompts, None)) else "title" if {"title", "desc"} <= row.keys() else None


def fill_pair(columns: Columns, row: Row) -> Columns:
    prompt, response = pair_of(row)
    if variant := variant_of(columns.response):
        prompt = next((name for name in row if variant in keys_of(name)[0] and is_variant(name, prompt)), prompt)
    if columns.reads == "prompts" and (columns.prompt or prompt is None):
        prompt = columns.prompt or prompt_of(row)
        response = next((b for a, b in PAIRS if a == prompt and b in row), reference_of(row))
        response = response or ANSWER_OF.get(prompt, "response")
    return replace(columns, prompt=columns.prompt or prompt, response=columns.response or response)


def reference_of(row: Row) -> str | None:
    """The column of an answer, or of what one is compared with."""
    keys = by_key(row)
    names = (keys[name] for name in (*ANSWERS, *REFERENCE_ANSWERS) if name in keys)
    return next((name for name in names if name != "reward_model" or isinstance(row[name], dict)), None)


def reference_in(row: Row, column: str | None) -> str | None:
    """What a column says of a prompt's answer, as text."""
    value = optional(row, column)
    if column == "reward_model":
        value = value.get("ground_truth") if isinstance(value, dict) else None
    return None if is_empty(value) else answer_of({"": value}, "")[0]


def fill_alpaca(columns: Columns, row: Row) -> Columns:
    return replace(columns, prompt="instruction", response="output")


def variant_of(name: str | None) -> str:
    """The language that a column's name ends or begins with: ``_zh`` of ``output_zh``."""
    match = name and _LANGUAGE.search(keys_of(name)[0])
    return match[0] if match else ""


def is_variant(name: str, of: str | None) -> bool:
    """Whether a column is that of another one in a language that its name has."""
    return of is not None and keys_of(name)[0].replace(variant_of(name), "") in keys_of(of)


def forms_of(name: str) -> set[str]:
    """A column's name, also without its language, and without the model that made an attempt or a solution."""
    key = keys_of(name)[0]
    last = key.rpartition("_")[2]
    return {*keys_of(name), key.replace(variant_of(name), ""), last if last in ("attempt", "solution") else key}


def check_answers(columns: Columns, row: Row, path: str) -> None:
    """Refuse a file of two columns that could both be the answer."""
    known = {*ANSWERS, *(answer for _, answer in PAIRS)} - {"content", "target"}
    others = [
        name for name in row if known.intersection(forms_of(name)) and name not in (columns.prompt, columns.response)
    ]
    others = [name for name in others if not is_empty(row[name]) and row[name] != row.get(columns.response)]
    if others:
        names = ", ".join(map(repr, (columns.response, *others)))
        raise UserError(f"{path}: the columns {names} could each be the answer; name one with --response_column")


def fill_surroundings(columns: Columns, row: Row) -> Columns:
    """`columns` with those that belong to a conversation beside its question and answer or turns."""
    named = {*(columns.prompt, columns.response, columns.history, columns.label)}
    rest = {name: row[name] for name in row if name not in named}
    keys = by_key(rest)
    if variant := variant_of(columns.prompt):
        keys |= {key.replace(variant, ""): name for key, name in keys.items() if variant in key}

    def first(names: tuple[str, ...]) -> str | None:
        return next((keys[name] for name in names if name in keys), None)

    thoughts = columns.thoughts
    if thoughts is None and columns.reads != "prompts":
        thoughts = thoughts_name(rest)
    return replace(
        columns,
        system=first((*SYSTEM_COLUMNS, "prefix") if "plain_text" in row else SYSTEM_COLUMNS),  # moss-002-sft-data
        tools=first(TOOLS_COLUMNS),
        history=columns.history or first(HISTORY_COLUMNS),
        context=first(CONTEXT_COLUMNS) if columns.prompt else None,
        thoughts=thoughts,
    )


def make_conversation(messages: list[Message], row: Row, columns: Columns, remarks: tuple[str, ...] = ()) -> Example:
    """The example of `messages` with the system turn, tools and thoughts that `row` has in other columns.

    `unused` are the keys of turns that it is not made of; see `read_turns`.
    """
    unused = pop_unused(messages)
    marks = {(message.get("weight") == 0, message.pop("mark")): None for message in messages if "mark" in message}
    tools = optional(row, columns.tools)
    if messages and messages[0]["role"] == "system" and "tools" in messages[0]:
        tools = messages[0].pop("tools") if tools is None else tools
        messages = messages if (messages[0]["content"] or "").strip() else messages[1:]
    if messages and messages[0]["role"] != "system":
        system = optional(row, columns.system) or columns.system_prompt
        if not is_empty(system):
            messages = [{"role": "system", "content": system}, *messages]
    if columns.reads == "prompts" and len(messages) > 1:
        last = messages[-1]
        if last["role"] == "assistant" and is_empty(last["content"]) and not last.get("tool_calls"):
            messages = messages[:-1]
    elif columns.reads != "prompts" and messages:
        messages = [*messages[:-1], with_thoughts_of(messages[-1], row, columns.thoughts)]
    check_conversation(messages, needs_answer=columns.reads != "prompts")
    if marks and columns.reads == "examples":
        if all(message.get("weight") == 0 for message in messages if message["role"] == "assistant"):
            raise RowProblem(f"no turn carries loss: {', '.join(repr(key) for _, key in marks)}")
        remarks = (
            *remarks,
            *(WITHOUT_LOSS.format(key) if without else NOT_TRAINED.format(key) for without, key in marks),
        )
    link_results(messages)
    example: Example = {"messages": messages}
    if tools is not None and (described := read_tools(tools)):
        example["tools"] = described
    return example | ({"unused": unused} if unused else {}) | ({"remarks": list(remarks)} if remarks else {})


def with_thoughts_of(message: Message, row: Row, column: str | None) -> Message:
    """An answer with the thoughts that `row` has in `column`, unless it has its own."""
    if message["role"] != "assistant" or "reasoning_content" in with_thoughts(message):
        return message
    return add_thoughts(message, row, column)


def question_of(row: Row, columns: Columns) -> str:
    """The question and, on the next line, the context that it is about."""
    context = None if optional(row, columns.context) is None else text_of(row, columns.context, "input")
    if context is not None and optional(row, columns.prompt) is None:
        return context
    question = text_of(row, columns.prompt, "prompt")
    return question if context is None else f"{question}\n{context}"


def read_history(row: Row, columns: Columns) -> list[Message]:
    """The turns before the question: pairs of a question and an answer, or turns with their roles."""
    turns = parsed(optional(row, columns.history))
    if turns is None:
        return []
    problem = RowProblem("history is not a list of [question, answer] pairs")
    if not isinstance(turns, list):
        raise problem
    try:
        if isinstance(turns[0], dict):
            return read_turns(turns, columns.history)
        return read_exchanges(turns, columns.history)
    except RowProblem:
        raise problem from None


def read_question(row: Row, columns: Columns) -> tuple[list[Message], tuple[str, ...]]:
    """The turns before the answer, with a remark where the question is a text of several turns with their speakers."""
    question = question_of(row, columns)
    turns = read_dialogue_prompt(question)
    remarks = (f"{columns.prompt!r} read as the turns that it holds",) if turns else ()
    return [*read_history(row, columns), *(turns or [{"role": "user", "content": question}])], remarks


def from_prompt_response(row: Row, columns: Columns) -> Example:
    if turns := read_prompt_and_completion(row, columns):
        prompt, completion = turns
        for message in prompt if columns.reads == "examples" else ():
            if message["role"] == "assistant":
                message["weight"] = 0  # as in TRL, the completion alone is trained on
        return make_conversation(prompt + completion, row, columns)
    answer = row.get(columns.response)
    if columns.reads == "prompts" and columns.response == "reward_model":
        row = {**row, "reward_model": (answer := reference_in(row, "reward_model"))}
    if holds_turns(answers := answer if isinstance(answer, list) else [answer]):
        turns = read_turns(answers, columns.response)
        before = read_question(row, columns)[0] if turns[0]["role"] == "assistant" else []
        return make_conversation(before + turns, row, columns)
    turns, remarks = read_question(row, columns)
    if columns.reads != "prompts" or not is_empty(answer):
        answer, is_rendered = answer_of(row, columns.response)
        turns.append({"role": "assistant", "content": answer})
        remarks = (*remarks, f"{columns.response!r} rendered as JSON") if is_rendered else remarks
    return make_conversation(turns, row, columns, remarks)


def read_prompt_and_completion(row: Row, columns: Columns) -> tuple[list[Message], list[Message]] | None:
    """Prompt and completion, where they are lists of messages (TRL's conversational form); an answer may be text."""
    prompt = row.get(columns.prompt)
    if not isinstance(prompt, list) or not all(isinstance(message, dict) for message in prompt):
        return None
    completion = row.get(columns.response)
    if isinstance(completion, dict) and is_turn(completion):
        completion = [completion]
    elif columns.reads == "prompts" and not holds_turns(completion):
        completion = reference_in(row, columns.response) or []
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    if not isinstance(completion, list):
        return None
    return read_turns(prompt, columns.prompt), read_turns(completion, columns.response)


def from_calls(row: Row, columns: Columns) -> Example:
    """A question whose answer is one or several calls of tools (xLAM)."""
    turns, remarks = read_question(row, columns)
    if calls := read_calls(optional(row, columns.response) or []):
        turns.append({"role": "assistant", "content": "", "tool_calls": calls})
    return make_conversation(turns, row, columns, remarks)


def from_messages(row: Row, columns: Columns) -> Example:
    known = (name for name in (*MESSAGE_COLUMNS, *TEXT_COLUMNS) if row.get(name) is not None)
    column = next(known, None) or other_turns(row, columns.ignored) or "messages"
    turns = row.get(column)
    messages = read_dialogue(turns) if isinstance(turns, str) else None
    messages = messages or read_turns(turns, column)
    if columns.reads == "prompts" and messages and messages[-1]["role"] != "assistant":
        reference = reference_in(row, reference_of(row))
        messages += [{"role": "assistant", "content": reference}] if reference is not None else []
    return make_conversation(messages, row, columns)


def other_turns(row: Row, ignored: tuple[str, ...] = ()) -> str | None:
    """The column of turns with their roles, where one alone has such and its name is none of those known."""
    names = [name for name, value in row.items() if name not in ignored and holds_turns(value)]
    return names[0] if len(names) == 1 else None


def holds_turns(value: Any) -> bool:
    turns = parsed(value) if isinstance(value, str) and value.lstrip()[:1] == "[" else value
    return isinstance(turns, list) and bool(turns) and isinstance(turns[0], dict) and is_turn(turns[0])


def turns_key(row: Row) -> str | None:
    """The key of the role in the first column of turns: ``role`` or ``from``; empty for turns without such a key."""
    for name in (*MESSAGE_COLUMNS, *TEXT_COLUMNS):
        value = row.get(name)
        if isinstance(value, str) and read_dialogue(value):
            return ""
        turns = value if isinstance(value, list) or name in TEXT_COLUMNS else parsed(value)
        if isinstance(turns, dict) and "turn_1" in turns:
            return ""
        if not isinstance(turns, list) or (not turns and name not in MESSAGE_COLUMNS[:4]):
            continue
        first = turns[0] if turns else {}
        if isinstance(first, dict) and ("role" in first or "from" in first or not first):
            return "role" if "role" in first else "from"
        if isinstance(first, (str, dict, list)):
            return ""
    return None
