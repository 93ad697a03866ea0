"""Requests of OpenAI's chat completions: read whole, or refused with the name of what is wrong."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hf_recipes.apps.chat.arguments import decoding_of
from hf_recipes.apps.chat.models import ChatModel
from hf_recipes.apps.serve.arguments import ServeArguments
from hf_recipes.core.errors import UserError
from hf_recipes.data.conversations.calls import link_results, read_calls, read_tools
from hf_recipes.data.conversations.conversation import Message, RowProblem, with_text, with_thoughts
from hf_recipes.data.conversations.turns import ROLES
from hf_recipes.models.inference.decoding import Decoding

COLDEST = 1e-5  # a temperature below is 0, as vLLM's: logits over it are infinite
MOST_TOKENS = 2048  # of an answer, where neither the request nor the server says
MOST_CHOICES, MOST_STOPS, MOST_LOGPROBS = 16, 16, 20
# Parameters that change no answer.
NEUTRAL = (
    "user",
    "metadata",
    "store",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "service_tier",
)
# Parameters that may only say what is done anyway.
FIXED: dict[str, tuple] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "min_p": (0,),
    "modalities": (["text"],),
    "parallel_tool_calls": (True,),
    "response_format": ({"type": "text"},),
    "tool_choice": ("auto", "none"),
}
KEYS = {
    "system": {"content"},
    "user": {"content"},
    "assistant": {"content", "tool_calls", "reasoning_content"},
    "tool": {"content", "tool_call_id", "name"},
}


class RequestError(Exception):
    """Why a request is refused, as OpenAI's errors say it."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None):
        super().__init__(message)
        self.status = status
        kind = {401: "authentication_error", 500: "server_error", 503: "server_error"}
        kind = kind.get(status, "invalid_request_error")
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True)
class ServedModel:
    """A model with its name, and what a request to it begins with."""

    chat_model: ChatModel
    arguments: ServeArguments

    @property
    def name(self) -> str:
        return self.chat_model.name


@dataclass(frozen=True)
class ChatRequest:
    """A request that can be answered; `max_tokens` is None where it says nothing."""

    model: ServedModel
    prompt: np.ndarray
    decoding: Decoding
    n: int
    stop: Sequence[str]
    tools: list[dict] | None
    max_tokens: int | None
    top_logprobs: int | None
    stream: bool
    include_usage: bool


class _Body:
    """The parameters of a request, each taken once; null is as if it were not there."""

    def __init__(self, body: Any):
        if not isinstance(body, dict):
            raise RequestError("the body is not a JSON object")
        self._values = {name: value for name, value in body.items() if value is not None}

    def take(self, name: str, expected: str, is_valid: Callable[[Any], bool], default: Any = None) -> Any:
        value = self._values.pop(name, None)
        if value is None:
            return default
        if not is_valid(value):
            raise RequestError(f"{name}: expected {expected}", name)
        return value

    def number(self, name: str, low: float, high: float, default: float | None = None, over: bool = False) -> Any:
        """From `low`, or `over` it, to `high`."""

        def is_valid(value: Any) -> bool:
            return _is_a(value, (int, float)) and low <= value <= high and not (over and value == low)

        return self.take(name, f"a number {'over' if over else 'from'} {low:g} to {high:g}", is_valid, default)

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int | None:
        expected = f"a whole number from {low} to {high}"
        return self.take(name, expected, lambda value: _is_a(value, int) and low <= value <= high, default)

    def list(self, name: str) -> list | None:
        return self.take(name, "a list", lambda value: isinstance(value, list))

    def flag(self, name: str) -> bool:
        return self.take(name, "true or false", lambda value: isinstance(value, bool), False)

    def end(self, prefix: str = "") -> None:
        """Refuse what was not taken."""
        for name, value in self._values.items():
            if name in FIXED and not prefix:
                if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in FIXED[name]):
                    supported = " or ".join(map(repr, FIXED[name]))
                    raise RequestError(f"{name}: only {supported} is supported by this server", name)
            elif name not in NEUTRAL or prefix:
                raise RequestError(f"{prefix}{name}: not supported by this server", f"{prefix}{name}")


def _is_a(value: Any, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def read_request(body: Any, models: Mapping[str, ServedModel], context: int | None) -> ChatRequest:
    """A request to one of `models`, whose `context` holds prompt and answer."""
    values = _Body(body)
    name = values.take("model", "a name", lambda value: isinstance(value, str))
    if name is None:
        raise RequestError("model: missing", "model")
    if name not in models:
        known = ", ".join(dict.fromkeys(model.name for model in models.values()))
        raise RequestError(f"the model {name!r} does not exist; there are {known}", "model", 404, "model_not_found")
    model = models[name]
    arguments, chat_model = model.arguments, model.chat_model
    tools = _tools(values.list("tools"))
    messages = _messages(values.list("messages"), arguments)
    tools = None if body.get("tool_choice") == "none" else tools
    if tools and chat_model.calls is None:
        way_out = "have the client send none (Open WebUI: Controls, Function Calling, Legacy)"
        raise RequestError(f"tools: the chat template of {model.name} shows no calls of tools; {way_out}", "tools")
    try:
        prompt = chat_model.whole_prompt(messages, tools)
    except (RowProblem, UserError) as problem:
        raise RequestError(f"messages: {problem}", "messages") from None

    max_tokens = _max_tokens(values)
    temperature = values.number("temperature", 0, 2, arguments.temperature)
    decoding = decoding_of(
        temperature if temperature >= COLDEST else 0,
        values.number("top_p", 0, 1, arguments.top_p, over=True),
        _new_tokens(max_tokens, len(prompt), context, arguments.max_new_tokens),
        values.number("repetition_penalty", 0, 2, arguments.repetition_penalty, over=True),
        _seed(values.integer("seed", -(2**63), 2**63 - 1, arguments.seed)),
        arguments.max_thinking_tokens,
    )
    top_k = max(0, values.integer("top_k", -1, 2**31, 0))  # -1 is vLLM's word for all
    request = ChatRequest(
        model,
        prompt,
        replace(decoding, top_k=top_k) if decoding.do_sample else decoding,
        values.integer("n", 1, MOST_CHOICES, 1),
        _stop(values.take("stop", "a text or a list of texts", lambda value: isinstance(value, (str, list)), [])),
        tools,
        max_tokens,
        _top_logprobs(values),
        values.flag("stream"),
        _include_usage(values, bool(body.get("stream"))),
    )
    values.end()
    return request


def _seed(seed: int | None) -> int:
    return secrets.randbits(63) if seed is None else seed % 2**64


def _max_tokens(values: _Body) -> int | None:
    one, other = (values.integer(name, 1, 2**31) for name in ("max_completion_tokens", "max_tokens"))
    if one and other and one != other:
        raise RequestError("max_tokens and max_completion_tokens: give one of them", "max_tokens")
    return one or other


def _new_tokens(max_tokens: int | None, prompt: int, context: int | None, default: int | None) -> int:
    """Tokens of an answer at the most."""
    if context is None:
        return max_tokens or default or MOST_TOKENS
    code = "context_length_exceeded"
    if prompt >= context:
        message = f"the model's context is {context} tokens; the prompt has {prompt}"
        raise RequestError(message, "messages", code=code)
    if max_tokens and prompt + max_tokens > context:
        message = f"the model's context is {context} tokens; the prompt has {prompt} and max_tokens is {max_tokens}"
        raise RequestError(message, "max_tokens", code=code)
    return max_tokens or min(default or MOST_TOKENS, context - prompt)


def _stop(stop: str | list) -> list[str]:
    stops = [stop] if isinstance(stop, str) else stop
    if len(stops) > MOST_STOPS or not all(isinstance(text, str) and text for text in stops):
        raise RequestError(f"stop: expected up to {MOST_STOPS} texts that are not empty", "stop")
    return stops


def _top_logprobs(values: _Body) -> int | None:
    logprobs, top = values.flag("logprobs"), values.integer("top_logprobs", 0, MOST_LOGPROBS)
    if top is not None and not logprobs:
        raise RequestError("top_logprobs: needs logprobs to be true", "top_logprobs")
    return (top or 0) if logprobs else None


def _include_usage(values: _Body, stream: bool) -> bool:
    options = values.take("stream_options", "an object", lambda value: isinstance(value, dict))
    if options is None:
        return False
    if not stream:
        raise RequestError("stream_options: needs stream to be true", "stream_options")
    options = _Body(options)
    include_usage = options.flag("include_usage")
    options.take("include_obfuscation", "false", lambda value: value is False)
    options.end("stream_options.")
    return include_usage


def _tools(tools: list | None) -> list[dict] | None:
    for number, tool in enumerate(tools or ()):
        function = tool.get("function") if isinstance(tool, dict) else None
        if (
            not isinstance(function, dict)
            or tool.get("type") != "function"
            or not isinstance(function.get("name"), str)
        ):
            raise RequestError(f"tools[{number}]: expected a function with its name", "tools")
        if not isinstance(function.get("parameters") or {}, dict):
            raise RequestError(f"tools[{number}].function.parameters: expected an object", "tools")
        if function.get("strict"):
            raise RequestError(f"tools[{number}].function.strict: not supported by this server", "tools")
    return read_tools(tools) if tools else None


def _messages(turns: list | None, arguments: ServeArguments) -> list[Message]:
    """The messages in our form, with the system prompt of the run where they have none."""
    if not turns:
        raise RequestError("messages: empty" if turns is not None else "messages: missing", "messages")
    messages: list[Message] = []
    for number, turn in enumerate(turns):
        name = f"messages[{number}]"
        try:
            messages.append(_message(turn))
        except RowProblem as problem:
            raise RequestError(f"{name}: {problem}", name) from None
        except RequestError as error:
            raise RequestError(f"{name}{error}", name) from None
    if messages[-1]["role"] == "assistant":
        raise RequestError("messages: the last one is the assistant's; there is nothing to answer", "messages")
    try:
        link_results(messages)
    except RowProblem as problem:
        raise RequestError(f"messages: {problem}", "messages") from None
    if arguments.system_prompt and all(message["role"] != "system" for message in messages):
        messages.insert(0, {"role": "system", "content": arguments.system_prompt})
    return messages


def _message(turn: Any) -> Message:
    role = turn.get("role") if isinstance(turn, dict) else None
    role = ROLES[role] if role == "developer" else role
    if not isinstance(role, str) or role not in KEYS:
        raise RequestError(f".role: expected one of {', '.join(KEYS)}")
    given = {key: value for key, value in turn.items() if key != "role" and (value or key == "content")}
    if unknown := given.keys() - KEYS[role]:
        raise RequestError(f".{min(unknown)}: not supported by this server for the role {role}")
    content = given.get("content")
    for part in content if isinstance(content, list) else ():
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise RequestError(f".content: a part of the type {kind}; only text is supported")
    message = with_text({"role": role, **given, "content": content})
    if given.get("tool_calls"):
        message["tool_calls"] = read_calls(given["tool_calls"])
    elif message["content"] is None:
        raise RequestError(".content: missing")
    for key in ("reasoning_content", "tool_call_id", "name"):
        if not isinstance(message.get(key, ""), str):
            raise RequestError(f".{key}: expected a text")
    return with_thoughts({**message, "content": message["content"] or ""})
