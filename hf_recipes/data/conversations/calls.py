"""Calls of tools, their results, and the tools, in the form that chat templates expect."""

import json
from itertools import count
from typing import Any

from hf_recipes.data.conversations.cells import parsed
from hf_recipes.data.conversations.conversation import Message, RowProblem


def read_calls(value: Any) -> list[dict]:
    """One or several tool calls, as JSON text or parsed, in the form that chat templates expect."""
    try:
        calls = json.loads(value) if isinstance(value, str) else value
        calls = calls if isinstance(calls, list) else [calls]
        read = []
        for call in calls:
            function = call.get("function", call)
            arguments = function.get("arguments") or {}
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
            one = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
            read.append({"id": str(call["id"]), **one} if call.get("id") else one)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise RowProblem("a tool call that is not JSON with a name and arguments") from None
    return read


def with_objects(message: Message) -> Message:
    """`message` with the arguments of its calls as objects, where they are JSON text as in OpenAI's interface.

    Raises:
        RowProblem: a call has no name, or arguments that are not JSON.
    """
    return {**message, "tool_calls": read_calls(message["tool_calls"])} if message.get("tool_calls") else message


def link_results(messages: list[Message]) -> None:
    """Give every call an id and every result the id and name of its call: the one that it names, else the next.

    A call written as text has no id, and the result after it none.
    """
    taken = {call.get("id") for message in messages for call in message.get("tool_calls", ())}
    free = (name for name in (f"call{number:05}" for number in count()) if name not in taken)
    calls: dict[str, dict] = {}  # all before, by id
    waiting: list[str] = []  # the ids of those of the turn before that have no result
    for message in messages:
        if message["role"] == "assistant":
            for call in message.get("tool_calls", ()):
                call["id"] = call.get("id") or next(free)
                calls[call["id"]] = call
            waiting = [call["id"] for call in message.get("tool_calls", ())]
        elif message["role"] == "tool" and waiting:
            identifier = message.setdefault("tool_call_id", waiting[0])
            if identifier not in calls:
                raise RowProblem("a tool result with the id of no call", identifier)
            message.setdefault("name", calls[identifier]["function"]["name"])
            if identifier in waiting and len(waiting) > 1:
                waiting.remove(identifier)


def read_tools(tools: Any) -> list[dict]:
    """Descriptions of functions, as JSON text or parsed, in the form that chat templates expect."""
    tools = parsed(tools)
    if isinstance(tools, str):
        raise RowProblem("'tools' is not JSON")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowProblem("'tools' is not a list of function descriptions")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
