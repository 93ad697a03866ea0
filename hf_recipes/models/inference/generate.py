"""Batched generation from token ids."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_recipes.core.errors import UserError
from hf_recipes.data.schemas.thoughts import ThoughtMarks
from hf_recipes.models.inference.decoding import Decoding
from hf_recipes.models.inference.generation_settings import complete_generation_config
from hf_recipes.models.inference.thinking import Thinking

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Watch = Callable[["torch.Tensor"], bool]


@dataclass(frozen=True)
class Continuation:
    """What a model generated after a prompt.

    Attributes:
        text: without special tokens, and without thoughts where these are told apart.
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
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    batches: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    stop_ids: Sequence[int] = (),
    marks: ThoughtMarks | None = None,
    keys: Sequence[int] | None = None,
    before_batch: Callable[[], None] = lambda: None,
    watch: Watch | None = None,
    synced: bool = False,
) -> Iterator[tuple[Sequence[int], list[Continuation]]]:
    """Continue `prompts` (lists of ids, any lengths) and yield each batch of indices with its texts once it is done.

    Batches are padded on the left. A text ends before one of `stop_tokens`; nothing else of the model's generation
    settings is used. Its mode and its use of the cache are restored at the end, or when the iterator is closed.

    Apart from rounding (in practice, not in float32), a text does not depend on its batch. This is true of sampled ones
    too: each row has its own random numbers, and torch's random state is neither used nor changed.

    Args:
        marks: of thoughts, which are told apart and have a budget (see `Thinking`); None where there are none.
        keys: a number for each prompt, by default its index; seed and key decide what is sampled for it.
        before_batch: called before each batch.
        watch: called after each token with the new ones of all rows, (B, t); where it returns True, the batch ends.
        synced: compute until all processes have their answers, as weights that are sharded over them need (ZeRO's
            stage 3, FSDP); each process must have equally many batches.
    """
    import torch
    from transformers import LogitsProcessorList, StoppingCriteriaList

    stops = stop_tokens(tokenizer, model.generation_config.eos_token_id, stop_ids)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    # The last position's hidden states are a strided view; F.linear then copies the head's weights once for each row of
    # the batch (1.1 GB for 20 rows of a 135M model on torch 2.13).
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda module, inputs: (inputs[0].contiguous(), *inputs[1:]))
    was_training, used_cache = model.training, model.config.use_cache
    model.eval()
    model.config.use_cache = True
    try:
        for batch in batches:
            before_batch()
            width = max(len(prompts[index]) for index in batch)
            ids = torch.full((len(batch), width), tokenizer.pad_token_id)
            mask = torch.zeros_like(ids)
            for row, index in enumerate(batch):
                ids[row, width - len(prompts[index]) :] = torch.as_tensor(prompts[index])
                mask[row, width - len(prompts[index]) :] = 1
            ids, mask = ids.to(model.device), mask.to(model.device)
            finite = _FiniteRows()
            processors = decoding.processors(mask, [index if keys is None else keys[index] for index in batch])
            criteria: list = [_Watched(watch, width)] if watch else []
            max_new_tokens, thinking = decoding.max_new_tokens, None
            if marks is not None:
                budgets = max_new_tokens, decoding.max_thinking_tokens, context
                thinking = Thinking(tokenizer, marks, [prompts[index] for index in batch], *budgets)
                max_new_tokens = thinking.max_tokens
                processors.append(thinking.close)
                criteria.append(thinking.stop)
            # A logits processor samples, so that `generate` itself always takes the likeliest token.
            config = complete_generation_config(
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=decoding.num_beams,
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
                    logits_processor=LogitsProcessorList([finite, *processors]),
                    stopping_criteria=StoppingCriteriaList(criteria),
                    synced_gpus=synced,
                )
            rows = enumerate(zip(output[:, width:].tolist(), finite.rows(len(batch)), strict=True))
            yield batch, [_read(tokenizer, new, stops, is_finite, thinking, row) for row, (new, is_finite) in rows]
    finally:
        hook.remove()
        model.config.use_cache = used_cache
        model.train(was_training)


class _FiniteRows:
    """A logits processor that changes nothing and records of which rows all logits were finite."""

    def __init__(self):
        self._finite: torch.Tensor | None = None

    def __call__(self, ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        finite = scores.amax(-1).isfinite()  # the maximum of a row with NaN is NaN
        self._finite = finite if self._finite is None else self._finite & finite
        return scores

    def rows(self, count: int) -> list[bool]:
        return self._finite.view(count, -1).all(1).tolist()


class _Watched:
    def __init__(self, watch: Watch, width: int):
        self._watch, self._width = watch, width

    def __call__(self, ids: "torch.Tensor", scores: "torch.Tensor", **kwargs) -> "torch.Tensor":
        return ids.new_full((len(ids),), bool(self._watch(ids[:, self._width :])), dtype=bool)


def _read(
    tokenizer: "PreTrainedTokenizerBase",
    new: list[int],
    stops: set[int],
    is_finite: bool,
    thinking: Thinking | None,
    row: int,
) -> Continuation:
    end = next((index for index, token in enumerate(new) if token in stops), None)
    if thinking is None:
        finished, count, thoughts, is_cut = end is not None, len(new) if end is None else end, "", False
        text = tokenizer.decode(new[:end], skip_special_tokens=True)
    else:
        thoughts, text, count, finished, is_cut = thinking.read(row, new, end)
    return Continuation(text, count, finished, new[: count + finished], is_finite, thoughts, is_cut)


def not_numbers(what: str) -> UserError:
    return UserError(
        f"{what}: the model's logits are not numbers (NaN or infinite) although its weights are; --dtype float32 or "
        "bfloat16 holds larger numbers than float16, else base and adapter do not go together"
    )
