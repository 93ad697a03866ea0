"""Answers in OpenAI's form, whole and as a stream."""

import secrets
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_recipes.apps.chat.engine import Generation
from hf_recipes.apps.serve.request import ChatRequest, RequestError
from hf_recipes.models.inference.generate import Continuation
from hf_recipes.models.inference.thinking import opens_thoughts

WINDOW = 32  # tokens that hold a mark of thoughts
SHUT_DOWN = RequestError("the server is shutting down", status=503)


@dataclass(frozen=True)
class Text:
    """What an answer says so far; without `finish_reason` only what no later token changes."""

    thoughts: str = ""
    content: str = ""
    calls: Sequence[dict] = ()
    finish_reason: str | None = None


class Choice:
    """One of the answers to a request.

    Args:
        changed: called from the engine's thread.

    Attributes:
        tokens: how many were generated, up to the end of a stop text.
    """

    def __init__(self, request: ChatRequest, index: int, changed: Callable[[], None]):
        self.request, self.index, self._changed = request, index, changed
        self.model, self.text, self.tokens, self._shown = request.model.chat_model, Text(), 0, 0
        self._update: Any = None
        self._opened = opens_thoughts(self.model.tokenizer, self.model.marks, request.prompt)
        self.generation = Generation(
            self.model,
            request.prompt,
            request.decoding,
            key=index,
            put=self._put,
            max_tokens=request.max_tokens,
            top_logprobs=request.top_logprobs,
        )

    def _put(self, update: Any) -> None:
        self._update = update
        self._changed()

    def look(self) -> None:
        """Take what was generated since the last time into `text`."""
        update = self._update
        if update is None or self.text.finish_reason is not None:
            return
        if isinstance(update, BaseException):
            raise update
        is_last = isinstance(update, Continuation)
        if is_last and self.generation.end == "stop":
            raise SHUT_DOWN
        ids = update.ids[: update.tokens] if is_last else update
        self.tokens = len(update.ids if is_last else ids)
        thoughts, content = self._split(ids)
        stops = [(content.find(stop) + len(stop), len(stop)) for stop in self.request.stop if stop in content]
        self._shown = len(ids)
        if stops:
            end, length = min(stops, key=lambda stop: (stop[0], -stop[1]))  # the first to be whole
            self.tokens, self._shown = self._tokens_with(ids, end), self._tokens_with(ids, end - length)
            self.generation.is_cancelled = True
            content = content[: end - length]
        end = "stop" if stops else self.generation.end if is_last else None
        if end is None:
            if not self._may_begin_thoughts(ids):
                self.text = Text(self._certain_thoughts(thoughts, content), self._certain(content))
            return
        calls: list[dict] = []
        if self.request.tools:
            content, calls = self.model.calls.read(content, self.request.tools)
            for token in self.model.tokenizer.all_special_tokens:
                content = content.replace(token, "")
        finish_reason = "tool_calls" if calls else "length" if end == "length" else "stop"
        self.text = Text(thoughts.rstrip("\ufffd").strip(), content.rstrip("\ufffd").strip(), calls, finish_reason)

    def _split(self, ids: Sequence[int]) -> tuple[str, str]:
        """Thoughts and answer; with tools, which special tokens may mark, the answer has these."""
        thoughts, content = self.model.split(self.request.prompt, ids)
        if self.request.tools:
            text = self.model.tokenizer.decode(ids)
            start = self.model.marks.answer_start(text, self._opened)
            content = "" if start is None else text[start:]
        return thoughts, content

    def _tokens_with(self, ids: Sequence[int], length: int) -> int:
        """How many of `ids` it takes for so many characters of the answer."""
        return bisect_left(range(len(ids)), length, key=lambda count: len(self._split(ids[:count])[1]))

    def _may_begin_thoughts(self, ids: Sequence[int]) -> bool:
        """Whether `ids` are no more than a part of a mark that an answer begins with."""
        text, marks = self.model.tokenizer.decode(ids[:WINDOW]).strip(), self.model.marks
        return any(mark != text and mark.startswith(text) for mark in (marks.start, marks.direct) if mark)

    def _certain_thoughts(self, thoughts: str, content: str) -> str:
        """`thoughts` without what may be the beginning of their end."""
        thoughts = thoughts if content else _before_part(thoughts, [self.model.marks.end])
        return thoughts.rstrip("\ufffd").strip()

    def _certain(self, content: str) -> str:
        """`content` without what may begin a stop text or a call, or be trimmed at the end."""
        ends = list(self.request.stop)
        if self.request.tools:
            mark = self.model.calls.mark
            content = content.partition(mark)[0]
            ends.append(mark)
        return _before_part(content, ends).rstrip("\ufffd").strip()

    @property
    def message(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self.text.content or None}
        if not self.text.calls:
            message["content"] = self.text.content
        if self.text.thoughts:
            message["reasoning_content"] = self.text.thoughts
        if self.text.calls:
            message["tool_calls"] = _calls(self.text.calls)
        return message

    @property
    def logprobs(self) -> dict[str, Any] | None:
        if self.request.top_logprobs is None:
            return None
        content = []
        for token, value, likeliest in self.generation.logprobs[: self._shown]:
            top = [self._logprob(other, logprob) for other, logprob in likeliest.items()]
            content.append(self._logprob(token, value) | {"top_logprobs": top})
        return {"content": content, "refusal": None}

    def _logprob(self, token: int, value: float) -> dict[str, Any]:
        text = self.model.tokenizer.decode([token])
        # A part of a character has no text; JSON has no infinity.
        return {
            "token": text,
            "logprob": max(value, -9999.0),
            "bytes": None if "\ufffd" in text else list(text.encode()),
        }


def _before_part(text: str, ends: Sequence[str]) -> str:
    """`text` without the longest end of it that one of `ends` begins with."""
    sizes = (size for end in ends for size in range(min(len(end), len(text)), 0, -1) if text.endswith(end[:size]))
    return text[: len(text) - max(sizes, default=0)]


def _calls(calls: Sequence[dict]) -> list[dict]:
    return [{"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": call} for call in calls]


@dataclass
class Reply:
    """The reply to a request, of its `choices`."""

    request: ChatRequest
    choices: list[Choice]
    created: int = field(default_factory=lambda: int(time.time()))
    name: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    _sent: dict[int, Text] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        return all(choice.text.finish_reason for choice in self.choices)

    @property
    def usage(self) -> dict[str, int]:
        read, written = len(self.request.prompt), sum(choice.tokens for choice in self.choices)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def whole(self) -> dict[str, Any]:
        choices = [
            {
                "index": choice.index,
                "message": choice.message,
                "logprobs": choice.logprobs,
                "finish_reason": choice.text.finish_reason,
            }
            for choice in self.choices
        ]
        return self._object("chat.completion", choices) | {"usage": self.usage}

    def chunks(self) -> Iterator[dict[str, Any]]:
        """What is new since the last time."""
        for choice in self.choices:
            new, sent = choice.text, self._sent.get(choice.index)
            if sent is None:
                yield self._chunk(choice, {"role": "assistant", "content": ""})
                sent = Text()
            self._sent[choice.index] = new
            if thoughts := new.thoughts.removeprefix(sent.thoughts):
                yield self._chunk(choice, {"reasoning_content": thoughts})
            if content := new.content.removeprefix(sent.content):
                yield self._chunk(choice, {"content": content})
            if new.calls and not sent.finish_reason:
                calls = [{"index": number, **call} for number, call in enumerate(_calls(new.calls))]
                yield self._chunk(choice, {"tool_calls": calls})
            if new.finish_reason and not sent.finish_reason:
                yield self._chunk(choice, {}, new.finish_reason)
        if self.is_over and self.request.include_usage:
            yield self._object("chat.completion.chunk", []) | {"usage": self.usage}

    def _chunk(self, choice: Choice, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        logprobs = choice.logprobs if finish_reason else None
        one = {"index": choice.index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        usage = {"usage": None} if self.request.include_usage else {}
        return self._object("chat.completion.chunk", [one]) | usage

    def _object(self, kind: str, choices: list[dict]) -> dict[str, Any]:
        head = {"id": self.name, "object": kind, "created": self.created, "model": self.request.model.name}
        return {**head, "system_fingerprint": None, "choices": choices}
