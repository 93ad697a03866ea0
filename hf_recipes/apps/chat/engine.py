"""A model and its adapters that answer one question at a time, token by token, and can be stopped."""

import contextlib
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
from hf_recipes.data.schemas.conversation import Message
from hf_recipes.data.schemas.thoughts import TAGS, ThoughtMarks
from hf_recipes.evaluation.predict import prompt_budget
from hf_recipes.models.adapters.saved_adapter import load_adapter, read_adapter_config
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.inference.decoding import Decoding
from hf_recipes.models.inference.generate import Continuation, continue_batches, not_numbers
from hf_recipes.models.inference.loading import is_reward_model, load_for_inference, open_for_inference
from hf_recipes.models.inference.thinking import opens_thoughts, split_ids
from hf_recipes.models.templates.options import TemplateArguments

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BASE = "base"
MAX_NEW_TOKENS = 4096  # largest number that the page offers, where the context holds twice as many


@dataclass(frozen=True)
class Prompt:
    """The token ids of a prompt, and what was truncated."""

    ids: np.ndarray
    full_length: int  # before truncation
    turns_dropped: bool  # the oldest turns
    question_cut: bool  # the beginning of the last question


@dataclass(frozen=True)
class Answer:
    """An answer, finished or not: `tokens` of its `ids` make `text`, without the token that ends the turn.

    Thoughts are in the text as ``<think>…</think>``, whatever the template's marks. `end` is why it ended: ``"end"``
    (the model ended it), ``"length"`` or ``"stop"``; None while it is generated.
    """

    prompt: Prompt
    text: str = ""
    tokens: int = 0
    ids: Sequence[int] = ()
    end: str | None = None
    cut_while_thinking: bool = False


class ChatModel:
    """The base model or one of its adapters, with its tokenizer and chat template."""

    def __init__(self, name: str, tokenizer: "PreTrainedTokenizerBase", adapter: str | None = None):
        self.name, self.tokenizer, self.adapter = name, tokenizer, adapter
        self._encoder = ChatEncoder(tokenizer)

    @property
    def stop_ids(self) -> list[int]:
        return self._encoder.stop_ids

    @property
    def marks(self) -> ThoughtMarks:
        return self._encoder.template.marks

    def prompt(self, messages: Sequence[Message], budget: int | None) -> Prompt:
        """`messages`, the last one a question, rendered for generation and truncated to `budget` tokens."""
        encoder = copy.copy(self._encoder)
        encoder.max_source_length = budget or encoder.max_source_length
        [row] = encoder.encode([list(messages)])
        if is_dropped(row.status):
            raise UserError(row.status.removeprefix("dropped: "))
        ids = row.input_ids[: row.prompt_length]
        return Prompt(ids, row.full_prompt_length, "oldest turns left out" in row.status, "prompt cut" in row.status)

    def decode(self, answer: Answer) -> str:
        """The prompt and the answer with special tokens, as the model read and wrote them."""
        ids = [*answer.prompt.ids.tolist(), *answer.ids]
        return self.tokenizer.decode(ids, skip_special_tokens=False).rstrip("\ufffd")


class Engine:
    """Generates one answer at a time, with one of its `chat_models`.

    Args:
        model: with the adapters of `chat_models` loaded.
        budget: the largest number of prompt tokens for a number of new tokens; None: no limit.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        chat_models: Sequence[ChatModel],
        budget: Callable[[int], int | None] = lambda new: None,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ):
        self.model, self.budget, self.max_new_tokens = model, budget, max_new_tokens
        self.chat_models = {chat_model.name: chat_model for chat_model in chat_models}
        self._lock = threading.Lock()

    def prompt(self, name: str, messages: Sequence[Message], decoding: Decoding) -> Prompt:
        """See `ChatModel.prompt`."""
        return self.chat_models[name].prompt(messages, self.budget(decoding.max_new_tokens))

    def answer(
        self, name: str, prompt: Prompt, decoding: Decoding, key: int = 0, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[Answer]:
        """The answer of `chat_models[name]`, yielded repeatedly as it grows; the last one has its `end`.

        Other calls wait for it. Closing the iterator ends the generation.

        Args:
            key: with the seed, determines what is sampled.
            stopped: called after each token; True ends the answer.
        """
        chat_model, answer = self.chat_models[name], Answer(prompt)
        updates: queue.SimpleQueue = queue.SimpleQueue()
        closed, ended = threading.Event(), threading.Event()
        opened = opens_thoughts(chat_model.tokenizer, chat_model.marks, prompt.ids)

        def watch(new: "torch.Tensor") -> bool:
            updates.put(new[0].tolist())
            if closed.is_set() or stopped():
                ended.set()
            return ended.is_set()

        def work() -> None:
            try:
                with self._lock:
                    updates.put(self._generate(chat_model, prompt, decoding, key, watch))
            except BaseException as error:
                updates.put(error)

        threading.Thread(target=work, daemon=True, name="answer").start()
        try:
            while answer.end is None:
                update = _newest(updates)
                if isinstance(update, BaseException):
                    raise update
                if isinstance(update, Continuation):
                    end = "end" if update.finished else "stop" if ended.is_set() else "length"
                    text = _shown(update.thoughts, update.text.rstrip("\ufffd").strip())
                    is_cut = update.cut_while_thinking and end != "stop"
                    kwargs = {"end": end, "cut_while_thinking": is_cut}
                    answer = replace(answer, text=text, tokens=update.tokens, ids=update.ids, **kwargs)
                else:  # without an incomplete character at the end
                    thoughts, text, _ = split_ids(chat_model.tokenizer, chat_model.marks, update, opened)
                    text = _shown(thoughts.rstrip("\ufffd"), text.rstrip("\ufffd").lstrip())
                    answer = replace(answer, text=text, tokens=len(update), ids=update)
                yield answer
        finally:
            closed.set()

    def _generate(self, chat_model: ChatModel, prompt: Prompt, decoding: Decoding, key: int, watch) -> Continuation:
        context = contextlib.nullcontext()
        if chat_model.adapter is not None:
            self.model.set_adapter(chat_model.adapter)
        elif any(other.adapter for other in self.chat_models.values()):
            context = self.model.disable_adapter()
        options = {"stop_ids": chat_model.stop_ids, "marks": chat_model.marks, "keys": [key], "watch": watch}
        with context:
            batches = continue_batches(self.model, chat_model.tokenizer, [prompt.ids], [[0]], decoding, **options)
            [(_, [continuation])] = batches
        if not continuation.is_finite:
            raise not_numbers(chat_model.name)
        return continuation


def _shown(thoughts: str, answer: str) -> str:
    """Both as one text, in the form that the page folds and that training files have."""
    if not thoughts:
        return answer
    return f"{TAGS.start}\n{thoughts}" + (f"{TAGS.close}\n\n{answer}" if answer else "")


def _newest(updates: queue.SimpleQueue):
    """The last item of the queue, or the next one; a slow consumer skips those between."""
    update = updates.get()
    while not updates.empty():
        update = updates.get()
    return update


def open_engine(
    arguments: ModelArguments,
    adapters: Sequence[str],
    *,
    max_new_tokens: int,
    max_source_length: int | None = None,
    template: TemplateArguments | None = None,
    trust_remote_code: bool = False,
    cache_dir: str | None = None,
    device_map: str | None = None,
) -> Engine:
    """The model of `arguments` with all `adapters` (folders), each with the tokenizer that was saved with it.

    A tokenizer without a chat template is replaced by the first adapter's, or else gets the bundled template `plain`.
    """
    biased = next((path for path in adapters if read_adapter_config(path).bias != "none"), None)
    if biased and len(adapters) > 1:
        raise UserError(
            f"--peft_path {biased}: it has biases of the base (bias), which would stay in the answers of the other "
            "adapters; chat with it alone, or merge it"
        )
    source = {"trust_remote_code": trust_remote_code, "cache_dir": cache_dir}
    opened = []
    for path in (*adapters, None):
        model_arguments = replace(arguments, peft_path=path)
        config, tokenizer = open_for_inference(model_arguments, template=template, **source)
        if is_reward_model(config, path):
            flag = f"--peft_path {path}" if path else arguments.model_name_or_path
            raise UserError(f"{flag}: a reward model, which scores answers and generates none; use scripts/score.py")
        opened.append((model_arguments, tokenizer))
    budget = prompt_budget(config, max_new_tokens)
    if max_source_length and budget is not None and max_source_length > budget:
        say(f"--max_source_length {max_source_length}: the context leaves {budget:,} tokens to a prompt")

    tokenizers = [_with_template(each, tokenizer, opened[0][1], source) for each, tokenizer in opened]
    largest = max(tokenizers, key=len)
    model = load_for_inference(arguments, largest, device_map=device_map, **source)
    chat_models = []
    for number, (path, name, tokenizer) in enumerate(zip(adapters, model_names(adapters), tokenizers, strict=False)):
        model = load_adapter(model, path, name=f"adapter{number}")  # PEFT's names must not have a dot
        chat_models.append(ChatModel(name, tokenizer, f"adapter{number}"))
    chat_models.append(ChatModel(BASE, tokenizers[-1]))

    def budget_for(new_tokens: int) -> int | None:
        return min(filter(None, (prompt_budget(config, new_tokens), max_source_length)), default=None)

    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    longest = min(MAX_NEW_TOKENS, context // 2 if context else MAX_NEW_TOKENS)
    return Engine(model.eval(), chat_models, budget_for, max(max_new_tokens, longest))


def _with_template(arguments: ModelArguments, tokenizer, first, source: dict):
    if tokenizer.chat_template is not None:
        return tokenizer
    if first.chat_template is not None:
        say(f"{arguments.tokenizer_source}: the tokenizer has no chat template; the first adapter's is used")
        return first
    say(f"{arguments.tokenizer_source}: the tokenizer has no chat template; question and answer are plain text")
    return open_for_inference(arguments, template=TemplateArguments("plain"), **source)[1]


def model_names(paths: Sequence[str]) -> list[str]:
    """The shortest ends of `paths` that differ from each other and from `BASE`: ``a``, ``b/checkpoint-100``."""
    parts = [Path(path).absolute().parts for path in paths]
    if len(set(parts)) < len(parts):
        twice = next(path for path, each in zip(paths, parts, strict=True) if parts.count(each) > 1)
        raise UserError(f"--peft_path {twice}: given twice")
    names = []
    for each in parts:
        size = 1
        while sum(other[-size:] == each[-size:] for other in parts) > 1 or "/".join(each[-size:]) == BASE:
            size += 1
        names.append("/".join(each[-size:]))
    return names
