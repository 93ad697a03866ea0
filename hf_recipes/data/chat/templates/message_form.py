"""Messages as a chat template takes them: templates differ in where they look for texts, thoughts and calls."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

from hf_recipes.data.conversations.conversation import Message, RowProblem
from hf_recipes.data.conversations.thought_columns import THOUGHTS_KEYS

_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")


@dataclass(frozen=True)
class MessageForm:
    """Where a template looks for what messages hold.

    Attributes:
        has_parts: a content is a list of parts with a type, not a text.
        thoughts: the field of thoughts, ``"inline"`` where they stand in the content, ``"parts"`` where they are a part
            of it, or None.
        thoughts_of_calls: the same for a turn with calls.
        around: what stands before and after thoughts in the content.
        has_text_arguments: the arguments of a call are JSON text, not an object.
        no_content: the content of a turn that only calls.
        has_short_ids: an id of a call is nine letters and digits (Mistral), not anything.
    """

    has_parts: bool = False
    thoughts: str | None = None
    thoughts_of_calls: str | None = None
    around: tuple[str, str] = ("<think>\n", "\n</think>\n\n")
    has_text_arguments: bool = False
    no_content: str | None = ""
    has_short_ids: bool = False

    def prepared(self, messages: list[Message]) -> list[Message]:
        """`messages` in this form."""
        return [self._prepared(message) for message in (with_short_ids(messages) if self.has_short_ids else messages)]

    def shows_thoughts(self, message: Message) -> bool:
        """Whether there is a field for the thoughts of `message`."""
        return (self.thoughts_of_calls if message.get("tool_calls") else self.thoughts) is not None

    def _prepared(self, message: Message) -> Message:
        prepared = dict(message)
        thoughts = prepared.pop("reasoning_content", None)
        if message.get("tool_calls"):
            prepared["content"] = message["content"] or self.no_content
            prepared["tool_calls"] = list(map(self._call, message["tool_calls"]))
        field = self.thoughts_of_calls if message.get("tool_calls") else self.thoughts
        if thoughts and field == "inline":
            prepared["content"] = thoughts.join(self.around) + (message["content"] or "")
        elif thoughts and field not in (None, "parts"):
            prepared[field] = thoughts
        if (self.has_parts or (thoughts and field == "parts")) and isinstance(prepared["content"], str):
            prepared["content"] = [{"type": "text", "text": prepared["content"]}]
        if thoughts and field == "parts":
            prepared["content"] = [{"type": "thinking", "thinking": thoughts}, *(prepared["content"] or [])]
        return prepared

    def _call(self, call: dict) -> dict:
        function = dict(call["function"])
        if self.has_text_arguments:
            function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
        return {**call, "function": function}


def shows_list(text: str) -> bool:
    """Whether a rendering has a content in parts as Python or JSON writes a list."""
    return any(f"{sign}type{sign}: {sign}thinking{sign}" in text for sign in "'\"")


def with_short_ids(messages: list[Message]) -> list[Message]:
    """`messages`, where one of their ids is not nine letters and digits with other ids for all: ids have no meaning."""
    if all(_SHORT_ID.fullmatch(identifier) for identifier in _ids(messages)):
        return messages
    renamed: list[Message] = []
    names: dict[str, str] = {}
    count = 0
    for message in messages:
        calls = []
        for call in message.get("tool_calls") or ():
            names[call.get("id", "")] = short = f"call{count:05}"
            calls.append({**call, "id": short})
            count += 1
        changed = {"tool_calls": calls} if calls else {}
        if message.get("tool_call_id") in names:
            changed["tool_call_id"] = names[message["tool_call_id"]]
        renamed.append({**message, **changed})
    return renamed


def _ids(messages: list[Message]) -> Iterator[str]:
    for message in messages:
        yield from (call.get("id", "") for call in message.get("tool_calls") or ())
        if message["role"] == "tool" and "tool_call_id" in message:
            yield message["tool_call_id"]


def form_of_calls(
    form: MessageForm, render: Callable[[MessageForm, list[Message], list | None, bool], str]
) -> MessageForm:
    """`form` with that of calls, which a template shows whole; `render` raises RowProblem where it refuses them."""
    question = {"role": "user", "content": "PROBEquestion"}
    function = {"name": "PROBEcall", "arguments": {"PROBEkey": "PROBEvalue"}}
    call = {"id": "call_PROBE_of_any_length", "type": "function", "function": function}
    calling = {"role": "assistant", "content": "", "tool_calls": [call]}
    result = {"role": "tool", "content": "PROBEresult", "name": "PROBEcall", "tool_call_id": call["id"]}
    described = {"name": "PROBEcall", "description": "", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": described}]

    def rendered(tried: MessageForm, chat: list[Message], some: list | None) -> str:
        try:
            return render(tried, chat, some, False).partition("PROBEquestion")[2]
        except RowProblem:
            return ""

    form = replace(form, thoughts_of_calls=form.thoughts)
    for chat, is_short, is_text, empty, some in product(
        ([question, calling, result], [question, calling]), (False, True), (False, True), ("", None), (tools, None)
    ):
        tried = replace(form, has_short_ids=is_short, has_text_arguments=is_text, no_content=empty)
        text = rendered(tried, chat, some)
        is_whole = "PROBEcall" in text and all(text.count(name) == 1 for name in ("PROBEkey", "PROBEvalue"))
        # JSON in JSON, or an object as Python writes it.
        if is_whole and '\\"' not in text and "{'PROBEkey'" not in text:
            first = None if form.thoughts == "inline" else form.thoughts
            fields = filter(None, dict.fromkeys((first, *THOUGHTS_KEYS, "parts", form.thoughts)))
            thinking = {**calling, "reasoning_content": "PROBEthoughts"}
            for field, more in product(fields, (chat[2:], [])):
                with_thoughts = replace(tried, thoughts_of_calls=field)
                text = rendered(with_thoughts, [question, thinking, *more], some)
                before, thoughts, after = text.partition("PROBEthoughts")
                if thoughts and "PROBEcall" in after and "PROBEcall" not in before and not shows_list(text):
                    return with_thoughts
            return replace(tried, thoughts_of_calls=None)
    return form
