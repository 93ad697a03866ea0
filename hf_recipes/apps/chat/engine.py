"""A model and its adapters that answer several questions at a time, token by token, and can be stopped."""

import contextlib
import copy
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.ledger import is_dropped
from hf_recipes.data.chat.call_reader import CallReader
from hf_recipes.data.chat.encoder import ChatEncoder
from hf_recipes.data.schemas.conversation import Message
from hf_recipes.data.schemas.thoughts import TAGS, ThoughtMarks
from hf_recipes.evaluation.predict import prompt_budget
from hf_recipes.models.adapters.saved_adapter import load_adapter, read_adapter_config
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.inference.decoding import Decoding
from hf_recipes.models.inference.generate import Continuation, Step, continue_batches, not_numbers
from hf_recipes.models.inference.loading import is_reward_model, load_for_inference, open_for_inference
from hf_recipes.models.inference.thinking import opens_thoughts, split_ids
from hf_recipes.models.templates.options import TemplateArguments

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BASE = "base"
BATCH_SIZE = 8
# A batch is read anew when others join it. Before that, each of its rows gets so many tokens, or this share of those
# that are read, so that reading takes no longer than writing.
SLICE, SHARE = 4, 1 / 64
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
        self._encoder, self._lock = ChatEncoder(tokenizer), threading.Lock()

    @property
    def stop_ids(self) -> list[int]:
        return self._encoder.stop_ids

    @property
    def marks(self) -> ThoughtMarks:
        return self._encoder.template.marks

    @cached_property
    def calls(self) -> CallReader | None:
        """Reads calls of tools; None where the template has no place for them."""
        return CallReader.of(self._encoder)

    def whole_prompt(self, messages: Sequence[Message], tools: list | None = None) -> np.ndarray:
        """The ids of `messages` rendered for generation, of any length.

        Raises:
            RowProblem: the template cannot show them.
        """
        with self._lock:  # the encoder keeps what it computed last
            return self._encoder.served_prompt(list(messages), tools)

    def split(self, prompt: np.ndarray, ids: Sequence[int]) -> tuple[str, str]:
        """The thoughts of generated `ids`, and the answer without special tokens."""
        opened = opens_thoughts(self.tokenizer, self.marks, prompt)
        return split_ids(self.tokenizer, self.marks, ids, opened)[:2]

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


@dataclass(eq=False)
class Generation:
    """An answer to `prompt` (ids) that the engine generates, in a batch with others.

    Args:
        key: with the seed, determines what is sampled.
        put: called from the engine's thread, with the ids so far after each token, and once it has ended with its
            `Continuation` or an exception.
        stopped: called after each token; True ends the answer.
        max_tokens: ends the answer, thoughts included.
        top_logprobs: record in `logprobs` each token with its log-probability, and so many of the likeliest ones.

    Attributes:
        end: as in `Answer`.
        is_cancelled: set it to end the answer, also while it waits.
    """

    chat_model: ChatModel
    prompt: np.ndarray
    decoding: Decoding
    key: int = 0
    put: Callable[[Sequence[int] | Continuation | BaseException], None] = lambda update: None
    stopped: Callable[[], bool] = lambda: False
    max_tokens: int | None = None
    top_logprobs: int | None = None
    ids: list[int] = field(default_factory=list)
    logprobs: list[tuple[int, float, dict[int, float]]] = field(default_factory=list)
    end: str | None = None
    is_cancelled: bool = False

    def add(self, step: Step) -> None:
        self.ids = step.ids
        if self.top_logprobs is not None:
            logprobs, token = step.logits.float().log_softmax(-1), step.ids[-1]
            values, tokens = logprobs.topk(self.top_logprobs)
            likeliest = dict(zip(tokens.tolist(), values.tolist(), strict=True))
            self.logprobs.append((token, logprobs[token].item(), likeliest))
        self.put(step.ids)

    def finish(self, end: str, result: Continuation | BaseException) -> None:
        self.end = end
        self.put(result)

    def stop(self) -> None:
        """End it with the ids that it has."""
        thoughts, text = self.chat_model.split(self.prompt, self.ids)
        self.finish("stop", Continuation(text, len(self.ids), False, self.ids, thoughts=thoughts))


class Engine:
    """Generates answers with its `chat_models`, up to `batch_size` of one of them at a time.

    Those that come while others are generated join them after a few tokens, or take turns with them where they are of
    another model. The batch is then read anew, so that this works with any cache that a model has.

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
        batch_size: int = BATCH_SIZE,
    ):
        self.model, self.budget, self.max_new_tokens, self.batch_size = model, budget, max_new_tokens, batch_size
        self.chat_models = {chat_model.name: chat_model for chat_model in chat_models}
        self._lock, self._waiting = threading.Lock(), list[Generation]()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    @property
    def context(self) -> int | None:
        """Tokens of a prompt and its answer at the most; None without a limit."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def prompt(self, name: str, messages: Sequence[Message], decoding: Decoding) -> Prompt:
        """See `ChatModel.prompt`."""
        return self.chat_models[name].prompt(messages, self.budget(decoding.max_new_tokens))

    def answer(
        self, name: str, prompt: Prompt, decoding: Decoding, key: int = 0, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[Answer]:
        """The answer of `chat_models[name]`, yielded repeatedly as it grows; the last one has its `end`.

        Closing the iterator ends the generation. For `key` and `stopped` see `Generation`.
        """
        chat_model, answer = self.chat_models[name], Answer(prompt)
        updates: queue.SimpleQueue = queue.SimpleQueue()
        generation = Generation(chat_model, prompt.ids, decoding, key, updates.put, stopped)
        self.submit(generation)
        try:
            while answer.end is None:
                update = _newest(updates)
                if isinstance(update, BaseException):
                    raise update
                if isinstance(update, Continuation):
                    text = _shown(update.thoughts, update.text.rstrip("\ufffd").strip())
                    is_cut = update.cut_while_thinking and generation.end != "stop"
                    kwargs = {"end": generation.end, "cut_while_thinking": is_cut}
                    answer = replace(answer, text=text, tokens=update.tokens, ids=update.ids, **kwargs)
                else:  # without an incomplete character at the end
                    thoughts, text = chat_model.split(prompt.ids, update)
                    text = _shown(thoughts.rstrip("\ufffd"), text.rstrip("\ufffd").lstrip())
                    answer = replace(answer, text=text, tokens=len(update), ids=update)
                yield answer
        finally:
            generation.is_cancelled = True

    def submit(self, *generations: Generation) -> bool:
        """Generate them as soon as there is room; False once the engine is closed."""
        with self._lock:
            if self._is_closed:
                return False
            self._waiting += generations
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True, name="answers")
                self._thread.start()
            return True

    def close(self, seconds: float) -> bool:
        """End all generations at their next token; whether that was within so many `seconds`."""
        with self._lock:
            self._is_closed, thread = True, self._thread
        if thread is not None:
            thread.join(seconds)
        return thread is None or not thread.is_alive()

    def _work(self) -> None:
        import torch

        while batch := self._next_batch():
            try:
                self._generate(batch)
            except torch.OutOfMemoryError as error:
                self._halve(batch, error.with_traceback(None))  # whose frames hold tensors
            except BaseException as error:
                for generation in batch:
                    if generation.end is None:
                        generation.finish("error", error)

    def _next_batch(self) -> list[Generation]:
        """Those of the model of the first that waits; empty where none does, and the thread ends."""
        with self._lock:
            for generation in [one for one in self._waiting if self._is_cancelled(one)]:
                self._waiting.remove(generation)
                generation.stop()
            batch = [one for one in self._waiting if one.chat_model is self._waiting[0].chat_model][: self.batch_size]
            self._waiting = [one for one in self._waiting if one not in batch]
            if not batch:
                self._thread = None
            return batch

    def _is_cancelled(self, generation: Generation) -> bool:
        return self._is_closed or generation.is_cancelled

    def _generate(self, batch: list[Generation]) -> None:
        """Continue `batch` until all have ended, or until others get their turn."""
        chat_model, context = batch[0].chat_model, contextlib.nullcontext()
        if chat_model.adapter is not None:
            self.model.set_adapter(chat_model.adapter)
        elif any(other.adapter for other in self.chat_models.values()):
            context = self.model.disable_adapter()
        begun = [one.ids for one in batch]
        turn = max(SLICE, SHARE * sum(len(one.prompt) + len(one.ids) for one in batch))

        def watch(step: Step) -> bool:
            generation = batch[step.index]
            generation.add(step)
            is_stopped = self._is_cancelled(generation) or generation.stopped()
            if step.is_last or is_stopped or len(step.ids) == generation.max_tokens:
                continuation = step.read()
                if not continuation.is_finite:
                    generation.finish("error", not_numbers(chat_model.name))
                else:
                    end = "end" if continuation.finished else "stop" if is_stopped else "length"
                    generation.finish(end, continuation)
                return True
            return len(step.ids) - len(begun[step.index]) >= turn and self._gives_way(batch)

        options = {"stop_ids": chat_model.stop_ids, "marks": chat_model.marks, "watch": watch, "begun": begun}
        options["keys"] = [one.key for one in batch]
        prompts, decodings = [one.prompt for one in batch], [one.decoding for one in batch]
        with context:
            list(continue_batches(self.model, chat_model.tokenizer, prompts, [range(len(batch))], decodings, **options))
        self._let_wait([one for one in batch if one.end is None])

    def _gives_way(self, batch: list[Generation]) -> bool:
        """Whether one waits that `batch` has room for, or one of another model."""
        room, waiting = sum(one.end is None for one in batch) < self.batch_size, list(self._waiting)
        return any(room or one.chat_model is not batch[0].chat_model for one in waiting if not self._is_cancelled(one))

    def _let_wait(self, rest: list[Generation]) -> None:
        """Put `rest` of a batch before those of its model, or after all where another model waits."""
        with self._lock:
            is_alone = all(one.chat_model is rest[0].chat_model for one in self._waiting) if rest else True
            self._waiting = rest + self._waiting if is_alone else self._waiting + rest

    def _halve(self, batch: list[Generation], error: BaseException) -> None:
        """After a batch that the device's memory does not hold, from now on half of it."""
        import torch

        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()
        if len(batch) == 1:
            batch[0].finish("error", error)
            return
        self.batch_size = len(batch) // 2
        say(f"out of memory with {len(batch)} answers at a time; from now on {self.batch_size}")
        self._let_wait([one for one in batch if one.end is None])


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
    names: Sequence[str] | None = None,
    batch_size: int = BATCH_SIZE,
) -> Engine:
    """The model of `arguments` with all `adapters` (folders), each with the tokenizer that was saved with it.

    The adapters' `names` are by default those of `model_names`.

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
    names = names or model_names(adapters)
    for number, (path, name, tokenizer) in enumerate(zip(adapters, names, tokenizers, strict=False)):
        model = load_adapter(model, path, name=f"adapter{number}")  # PEFT's names must not have a dot
        chat_models.append(ChatModel(name, tokenizer, f"adapter{number}"))
    chat_models.append(ChatModel(BASE, tokenizers[-1]))

    def budget_for(new_tokens: int) -> int | None:
        return min(filter(None, (prompt_budget(config, new_tokens), max_source_length)), default=None)

    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    longest = min(MAX_NEW_TOKENS, context // 2 if context else MAX_NEW_TOKENS)
    return Engine(model.eval(), chat_models, budget_for, max(max_new_tokens, longest), batch_size)


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
