"""A model and its adapters that answer several questions at a time, token by token, and can be stopped."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from hf_recipes.apps.chat.models import Answer, ChatModel, Prompt, with_thoughts
from hf_recipes.core.errors import say
from hf_recipes.data.conversations.conversation import Message
from hf_recipes.models.inference.decoding import Decoding
from hf_recipes.models.inference.generate import Continuation, Step, continue_batches, not_numbers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH_SIZE = 8
# A batch is read anew when others join it. Before that, each of its rows gets so many tokens, or this share of those
# that are read, so that reading takes no longer than writing.
SLICE, SHARE = 4, 1 / 64
MAX_NEW_TOKENS = 4096  # largest number that the page offers, where the context holds twice as many


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
                    text = with_thoughts(update.thoughts, update.text.rstrip("\ufffd").strip())
                    is_cut = update.cut_while_thinking and generation.end != "stop"
                    kwargs = {"end": generation.end, "cut_while_thinking": is_cut}
                    answer = replace(answer, text=text, tokens=update.tokens, ids=update.ids, **kwargs)
                else:  # without an incomplete character at the end
                    thoughts, text = chat_model.split(prompt.ids, update)
                    text = with_thoughts(thoughts.rstrip("\ufffd"), text.rstrip("\ufffd").lstrip())
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


def _newest(updates: queue.SimpleQueue):
    """The last item of the queue, or the next one; a slow consumer skips those between."""
    update = updates.get()
    while not updates.empty():
        update = updates.get()
    return update
