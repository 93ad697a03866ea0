"""Batched generation from token ids."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from hf_recipes.core.errors import UserError
from hf_recipes.data.conversations.thoughts import ThoughtMarks
from hf_recipes.models.inference.decoding import Decoding, batch_processors
from hf_recipes.models.inference.generation_settings import complete_generation_config
from hf_recipes.models.inference.thinking import Thinking
from hf_recipes.models.inference.vllm_model import AT_ONCE, VllmModel

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Continuation:
    """What a model generated after a prompt.

    Attributes:
        text: without special tokens, and without thoughts where these can be separated.
        tokens: their number, thoughts included, without the end token.
        finished: whether an end token ended it.
        ids: all of them, with the end token.
        is_finite: whether all logits were finite; else the text means nothing.
        thoughts: without their marks.
        cut_while_thinking: whether the thoughts did not end by themselves.
    """

    text: str
    tokens: int
    finished: bool
    ids: list[int]
    is_finite: bool = True
    thoughts: str = ""
    cut_while_thinking: bool = False


@dataclass(frozen=True)
class Step:
    """A row of a batch after one more token.

    Attributes:
        index: of its prompt.
        ids: all that were generated after the prompt.
        logits: (V,), those that the last token was taken from.
        is_last: whether the row ends with this token.
        read: gives its continuation so far.
    """

    index: int
    ids: list[int]
    logits: "torch.Tensor"
    is_last: bool
    read: Callable[[], Continuation]


Watch = Callable[[Step], bool]


def plan_batches(prompts: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """The indices of `prompts` in batches of similar length, the longest first."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def stop_tokens(
    tokenizer: "PreTrainedTokenizerBase", model_stops: int | list[int] | None, stop_ids: Sequence[int] = ()
) -> set[int]:
    """The ids that end a text: `stop_ids`, the tokenizer's eos, and those of the model's generation settings."""
    model_stops = model_stops if isinstance(model_stops, list) else [model_stops]
    return {*stop_ids, tokenizer.eos_token_id, *model_stops} - {None}


def continue_batches(
    model: "PreTrainedModel | VllmModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    batches: Sequence[Sequence[int]],
    decoding: Decoding | Sequence[Decoding],
    *,
    stop_ids: Sequence[int] = (),
    marks: ThoughtMarks | None = None,
    keys: Sequence[int] | None = None,
    begun: Sequence[Sequence[int]] | None = None,
    before_batch: Callable[[], None] = lambda: None,
    watch: Watch | None = None,
    synced: bool = False,
) -> Iterator[tuple[Sequence[int], list[Continuation]]]:
    """Continue `prompts` (lists of ids, any lengths) and yield each batch of indices with its texts once it is done.

    Batches are padded on the left. A text ends before one of `stop_tokens`; nothing else of the model's generation
    settings is used. Its mode and its use of the cache are restored at the end, or when the iterator is closed.

    Apart from rounding (in practice, not in float32), a text does not depend on its batch. This is true of sampled ones
    too: each row has its own random numbers, and torch's random state is neither used nor changed.

    vLLM makes batches by itself and gets `AT_ONCE` prompts; its rows can neither have `begun` nor be watched.

    Args:
        decoding: of all prompts, or one for each, without beams.
        marks: of thoughts, which are separated and have a budget (see `Thinking`); None where there are none.
        keys: a number for each prompt, by default its index; seed and key decide what is sampled for it.
        begun: for each prompt, ids that were generated before; the text is continued as if it had not been interrupted.
        before_batch: called before each batch.
        watch: called after each token for each row that has not ended; where it returns True, the row ends.
        synced: compute until all processes have their answers, as weights that are sharded over them need (ZeRO's
            stage 3, FSDP); each process must have equally many batches.
    """
    import torch
    from transformers import LogitsProcessorList, StoppingCriteriaList

    stops = stop_tokens(tokenizer, model.generation_config.eos_token_id, stop_ids)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(model, VllmModel):
        order = [index for batch in batches for index in batch]
        for batch in (order[start : start + AT_ONCE] for start in range(0, len(order), AT_ONCE)):
            before_batch()
            rows = [_Row(index, prompts[index], []) for index in batch]
            settings = [decoding if isinstance(decoding, Decoding) else decoding[index] for index in batch]
            thinking = Thinking(tokenizer, marks, rows, settings, context) if marks else None
            row_keys = batch if keys is None else [keys[index] for index in batch]
            yield batch, _continue_in_vllm(model, tokenizer, rows, settings, row_keys, stops, thinking)
        return
    # The last position's hidden states are a strided view; F.linear then copies the head's weights once for each row of
    # the batch (1.1 GB for 20 rows of a 135M model on torch 2.13).
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda module, inputs: (inputs[0].contiguous(), *inputs[1:]))
    text = model.config.get_text_config()
    was_training, used_cache = model.training, getattr(text, "use_cache", True)
    model.eval()
    text.use_cache = True
    try:
        for batch in batches:
            before_batch()
            rows = [_Row(index, prompts[index], list(begun[index]) if begun else []) for index in batch]
            settings = [decoding if isinstance(decoding, Decoding) else decoding[row.index] for row in rows]
            width = max(len(row.prompt) + len(row.begun) for row in rows)
            ids = torch.full((len(batch), width), tokenizer.pad_token_id)
            mask = torch.zeros_like(ids)
            for number, row in enumerate(rows):
                read = torch.cat([torch.as_tensor(row.prompt), torch.as_tensor(row.begun, dtype=torch.long)])
                ids[number, width - len(read) :], mask[number, width - len(read) :] = read, 1
            ids, mask = ids.to(model.device), mask.to(model.device)
            row_keys = [row.index if keys is None else keys[row.index] for row in rows]
            processors = batch_processors(settings, mask, row_keys, [len(row.begun) for row in rows])
            limits, thinking = [one.max_new_tokens for one in settings], None
            longest = max(limit - len(row.begun) for limit, row in zip(limits, rows, strict=True))
            if marks is not None:
                thinking = Thinking(tokenizer, marks, rows, settings, context)
                longest = thinking.max_tokens
                processors.append(thinking.close)
            texts = _Texts(tokenizer, rows, width, stops, limits, thinking)
            criteria: list = [partial(_watched, watch, texts)] if watch else [thinking.stop] if thinking else []
            # A logits processor samples, so that `generate` itself always takes the likeliest token.
            config = complete_generation_config(
                max_new_tokens=longest,
                do_sample=False,
                num_beams=settings[0].num_beams,
                use_cache=True,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=sorted(stops),
                bos_token_id=tokenizer.bos_token_id,
            )
            with torch.no_grad():
                output = model.generate(
                    ids,
                    attention_mask=mask,
                    generation_config=config,
                    logits_processor=LogitsProcessorList([texts.look, *processors]),
                    stopping_criteria=StoppingCriteriaList(criteria),
                    synced_gpus=synced,
                )
            new = zip(rows, output[:, width:].tolist(), strict=True)
            yield batch, [texts.read(number, [*row.begun, *ids]) for number, (row, ids) in enumerate(new)]
    finally:
        hook.remove()
        text.use_cache = used_cache
        model.train(was_training)


def _continue_in_vllm(
    model: VllmModel,
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence["_Row"],
    decodings: Sequence[Decoding],
    keys: Sequence[int],
    stops: set[int],
    thinking: Thinking | None,
) -> list[Continuation]:
    """The continuations of rows, with thoughts in two calls: until their budget is reached, and the rest."""
    import torch

    def more(to_add: dict[int, tuple[list[int], int]], step: int) -> None:
        """Continue texts by what is given for them, and by so many tokens."""
        for number, (given, _) in to_add.items():
            texts[number] += given
        numbers = [number for number, (_, limit) in to_add.items() if limit > 0]
        new = model.generate(
            [[*rows[number].prompt, *texts[number]] for number in numbers],
            [to_add[number][1] for number in numbers],
            [decodings[number] for number in numbers],
            [[keys[number], step] for number in numbers],
            stops,
        )
        for number, ids in zip(numbers, new, strict=True):
            texts[number] += ids

    texts: list[list[int]] = [[] for _ in rows]
    limits = [decoding.max_new_tokens for decoding in decodings]
    more({number: ([], thinking.first(number) if thinking else limit) for number, limit in enumerate(limits)}, 0)
    if thinking:
        unfinished = (number for number, ids in enumerate(texts) if not stops.intersection(ids[-1:]))
        more({number: thinking.rest(number, texts[number]) for number in unfinished}, 1)
    finite = torch.ones(len(rows), dtype=torch.bool)
    read = _Texts(tokenizer, list(rows), 0, stops, limits, thinking, finite=finite)
    return [read.read(number, ids) for number, ids in enumerate(texts)]


@dataclass(frozen=True)
class _Row:
    index: int
    prompt: Sequence[int]
    begun: list[int]


@dataclass
class _Texts:
    """The rows of a batch while they are generated, and what they read as."""

    tokenizer: "PreTrainedTokenizerBase"
    rows: list[_Row]
    width: int
    stops: set[int]
    limits: list[int]
    thinking: Thinking | None
    ended: set[int] = field(default_factory=set)
    logits: "torch.Tensor | None" = None
    finite: "torch.Tensor | None" = None

    def look(self, ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        """A logits processor that changes nothing and records of which rows all logits were finite."""
        finite = scores.amax(-1).isfinite()  # the maximum of a row with NaN is NaN
        self.logits, self.finite = scores, finite if self.finite is None else self.finite & finite
        return scores

    def read(self, number: int, new: list[int]) -> Continuation:
        """What the ids `new`, those that were begun with among them, say."""
        limit = self.limits[number]
        end = next((index for index, token in enumerate(new) if token in self.stops), None)
        if self.thinking is None:
            finished, thoughts, is_cut = end is not None and end < limit, "", False
            count = end if finished else min(limit, len(new))
            text = self.tokenizer.decode(new[:count], skip_special_tokens=True)
        else:
            thoughts, text, count, finished, is_cut = self.thinking.read(number, new, end)
        is_finite = bool(self.finite.view(len(self.rows), -1)[number].all())
        return Continuation(text, count, finished, new[: count + finished], is_finite, thoughts, is_cut)


def _watched(watch: Watch, texts: _Texts, ids: "torch.Tensor", scores: "torch.Tensor", **kwargs) -> "torch.Tensor":
    """A stopping criterion: the rows that end, or for which `watch` returned True."""
    generated = [[*row.begun, *new] for row, new in zip(texts.rows, ids[:, texts.width :].tolist(), strict=True)]
    if texts.thinking:
        over = texts.thinking.stop(ids, scores).tolist()
    else:
        over = [len(new) >= limit for new, limit in zip(generated, texts.limits, strict=True)]
    for number, (row, new) in enumerate(zip(texts.rows, generated, strict=True)):
        is_last = over[number] or new[-1] in texts.stops
        step = Step(row.index, new, texts.logits[number], is_last, partial(texts.read, number, new))
        if number not in texts.ended and (watch(step) or is_last):
            texts.ended.add(number)
    return ids.new_tensor([number in texts.ended for number in range(len(ids))], dtype=bool)


def not_numbers(what: str) -> UserError:
    return UserError(
        f"{what}: the model's logits are not numbers (NaN or infinite) although its weights are; --dtype float32 or "
        "bfloat16 holds larger numbers than float16, else base and adapter do not go together"
    )
