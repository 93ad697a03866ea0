"""A model and its adapters that answer one question at a time, token by token, until they are told to stop."""

import copy
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.ledger import is_dropped
from hf_recipes.data.chat.encoder import ChatEncoder
from hf_recipes.data.chat.prompts import ANSWER
from hf_recipes.data.schemas.conversation import Message
from hf_recipes.evaluation.predict import prompt_budget
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.inference.decoding import Decoding
from hf_recipes.models.inference.generate import Continuation, continue_batches, not_numbers
from hf_recipes.models.inference.loading import is_reward_model, load_for_inference, open_for_inference
from hf_recipes.models.saved_adapter import load_adapter

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BASE = "base"
LENGTHS = 4096  # new tokens that a page offers at the most, where the context holds twice as many


@dataclass(frozen=True)
class Prompt:
    """What a model reads: `ids`, of `length` before any were cut.

    `lost_turns` tells that the oldest turns were left out, `lost_text` that the last question's beginning was.
    """

    ids: np.ndarray
    length: int
    lost_turns: bool
    lost_text: bool


@dataclass(frozen=True)
class Answer:
    """As far as it is written: `text`, which `tokens` tokens make, to `prompt`; `ids` are all, the last one too.

    `end` is why it goes no further: ``"end"`` (the model ended it), ``"length"``, ``"stop"``; None as it is written.
    """

    prompt: Prompt
    text: str = ""
    tokens: int = 0
    ids: Sequence[int] = ()
    end: str | None = None


class Voice:
    """The base model or one of its adapters, with the tokenizer and the chat template that go with it."""

    def __init__(self, name: str, tokenizer: "PreTrainedTokenizerBase", adapter: str | None = None):
        self.name, self.tokenizer, self.adapter = name, tokenizer, adapter
        self._encoder = ChatEncoder(tokenizer)

    @property
    def stop_ids(self) -> list[int]:
        return [self.tokenizer.convert_tokens_to_ids(self._encoder.end_of_turn)]

    def prompt(self, messages: Sequence[Message], budget: int | None) -> Prompt:
        """`messages`, of which the last is a question, as the template shows them to a model that has to answer.

        Raises:
            UserError: the template does not take them, or the system turn leaves no token for the question.
        """
        encoder = copy.copy(self._encoder)
        encoder.max_source_length = budget or encoder.max_source_length
        [row] = encoder.encode([[*messages, {"role": "assistant", "content": ANSWER}]])
        if is_dropped(row.status):
            raise UserError(row.status.removeprefix("dropped: "))
        ids = row.input_ids[: row.prompt_length]
        return Prompt(ids, row.full_prompt_length, "oldest turns left out" in row.status, "prompt cut" in row.status)

    def read(self, answer: Answer) -> str:
        """The prompt and the answer as the model had and wrote them, with their special tokens."""
        ids = [*answer.prompt.ids.tolist(), *answer.ids]
        return self.tokenizer.decode(ids, skip_special_tokens=False).rstrip("\ufffd")


class Engine:
    """Answers with one of its `voices` at a time, whoever asks.

    Args:
        model: with the adapters of `voices`, if any has one.
        budget: tokens of a prompt at the most, or None, for so many new tokens.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        voices: Sequence[Voice],
        budget: Callable[[int], int | None] = lambda new: None,
        most_new_tokens: int = LENGTHS,
    ):
        self.model, self.budget, self.most_new_tokens = model, budget, most_new_tokens
        self.voices = {voice.name: voice for voice in voices}
        self._lock = threading.Lock()

    def prompt(self, name: str, messages: Sequence[Message], decoding: Decoding) -> Prompt:
        """What `voices[name]` reads; see `Voice.prompt`."""
        return self.voices[name].prompt(messages, self.budget(decoding.max_new_tokens))

    def answer(
        self, name: str, prompt: Prompt, decoding: Decoding, key: int = 0, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[Answer]:
        """The answer of `voices[name]`, again and again as it grows; the last has its `end`.

        It is that of `continue_batches`. Others who ask meanwhile wait. Closing the iterator ends the generation too.

        Args:
            key: decides together with the seed what is drawn.
            stopped: asked after each token whether to go on.
        """
        voice, answer = self.voices[name], Answer(prompt)
        news: queue.SimpleQueue = queue.SimpleQueue()
        left = threading.Event()

        def watch(new: "torch.Tensor") -> bool:
            news.put(new[0].tolist())
            return left.is_set() or stopped()

        def work() -> None:
            try:
                with self._lock:
                    news.put(self._generate(voice, prompt, decoding, key, watch))
            except BaseException as error:
                news.put(error)

        threading.Thread(target=work, daemon=True, name="answer").start()
        try:
            while answer.end is None:
                found = _newest(news)
                if isinstance(found, BaseException):
                    raise found
                if isinstance(found, Continuation):
                    is_full = found.tokens >= decoding.max_new_tokens
                    end = "end" if found.finished else "length" if is_full else "stop"
                    text = found.text.rstrip("\ufffd").strip()
                    answer = replace(answer, text=text, tokens=found.tokens, ids=found.ids, end=end)
                else:  # half of a character is shown once it is whole
                    text = voice.tokenizer.decode(found, skip_special_tokens=True).rstrip("\ufffd").lstrip()
                    answer = replace(answer, text=text, tokens=len(found), ids=found)
                yield answer
        finally:
            left.set()

    def _generate(self, voice: Voice, prompt: Prompt, decoding: Decoding, key: int, watch) -> Continuation:
        how = {"stop_ids": voice.stop_ids, "keys": [key], "watch": watch}

        def generate() -> Continuation:
            batches = continue_batches(self.model, voice.tokenizer, [prompt.ids], [[0]], decoding, **how)
            [(_, [found])] = batches
            if not found.is_finite:
                raise not_numbers(voice.name)
            return found

        if voice.adapter is not None:
            self.model.set_adapter(voice.adapter)
        elif any(other.adapter for other in self.voices.values()):
            with self.model.disable_adapter():
                return generate()
        return generate()


def _newest(news: queue.SimpleQueue):
    """What was put last, or what is put next; a consumer that is slow misses what came between."""
    found = news.get()
    while not news.empty():
        found = news.get()
    return found


def open_engine(
    arguments: ModelArguments,
    adapters: Sequence[str],
    *,
    max_new_tokens: int,
    max_source_length: int | None = None,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
    cache_dir: str | None = None,
    device_map: str | None = None,
) -> Engine:
    """The model of `arguments` with all `adapters` (folders), each with the tokenizer that was saved with it.

    A tokenizer without a chat template gets the first adapter's tokenizer in its place, or else the bundled plain text.

    Raises:
        UserError: as `load_for_inference` and `load_adapter`; a reward model, or no room for `max_new_tokens`.
    """
    source = {"trust_remote_code": trust_remote_code, "cache_dir": cache_dir}
    opened = []
    for path in (*adapters, None):
        own = replace(arguments, peft_path=path)
        config, tokenizer = open_for_inference(own, chat_template=chat_template, **source)
        if is_reward_model(config, path):
            flag = f"--peft_path {path}" if path else arguments.model_name_or_path
            raise UserError(f"{flag}: a reward model, which scores answers and writes none; scripts/score.py runs it")
        opened.append((own, tokenizer))
    budget = prompt_budget(config, max_new_tokens)
    if max_source_length and budget is not None and max_source_length > budget:
        say(f"--max_source_length {max_source_length}: the context leaves {budget:,} tokens to a prompt")

    tokenizers = [_with_template(own, tokenizer, opened[0][1], source) for own, tokenizer in opened]
    largest = max(tokenizers, key=len)
    model = load_for_inference(arguments, largest, device_map=device_map, **source)
    voices = []
    for number, (path, name, tokenizer) in enumerate(zip(adapters, voice_names(adapters), tokenizers, strict=False)):
        model = load_adapter(model, path, name=f"adapter{number}")  # a name of PEFT's must not have a dot
        voices.append(Voice(name, tokenizer, f"adapter{number}"))
    voices.append(Voice(BASE, tokenizers[-1]))

    def room(new_tokens: int) -> int | None:
        return min(filter(None, (prompt_budget(config, new_tokens), max_source_length)), default=None)

    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    most = max(max_new_tokens, min(LENGTHS, context // 2 if context else LENGTHS))
    return Engine(model.eval(), voices, room, most)


def _with_template(own: ModelArguments, tokenizer, first, source: dict):
    if tokenizer.chat_template is not None:
        return tokenizer
    if first.chat_template is not None:
        say(f"{own.tokenizer_source}: the tokenizer has no chat template; it is asked as the first adapter is")
        return first
    say(f"{own.tokenizer_source}: the tokenizer has no chat template; question and answer are plain text")
    return open_for_inference(own, chat_template="plain", **source)[1]


def voice_names(paths: Sequence[str]) -> list[str]:
    """The shortest ends of `paths` that tell them apart, and from the base: ``checkpoint-100``, ``b/checkpoint-100``.

    Raises:
        UserError: one path twice.
    """
    parts = [Path(path).absolute().parts for path in paths]
    if len(set(parts)) < len(parts):
        twice = next(path for path, own in zip(paths, parts, strict=True) if parts.count(own) > 1)
        raise UserError(f"--peft_path {twice}: given twice")
    names = []
    for own in parts:
        size = 1
        while sum(other[-size:] == own[-size:] for other in parts) > 1 or "/".join(own[-size:]) == BASE:
            size += 1
        names.append("/".join(own[-size:]))
    return names
