"""A trained reward model as a reward."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import shown
from hf_recipes.data.chat.encoder import ChatEncoder
from hf_recipes.data.chat.prompts import Prompt
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.inference import forward
from hf_recipes.models.inference.batch_options import BatchOptions
from hf_recipes.models.inference.loading import is_reward_model, load_for_inference, open_for_inference
from hf_recipes.models.loading import load_config, without_deepspeed
from hf_recipes.models.reward_head import rewards

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

BATCH_SIZE = 16  # conversations


class ScoringModel:
    """A trained reward model with its tokenizer and chat template, which may differ from those of the scored model.

    Its weights are read when the first answer is scored.

    Args:
        path: a reward model or the adapter of one, trained by scripts/reward.py.
        base: an adapter's base; by default the one that the adapter names.
    """

    def __init__(
        self, path: str, base: str | None = None, trust_remote_code: bool = False, cache_dir: str | None = None
    ):
        self._source = {"trust_remote_code": trust_remote_code, "cache_dir": cache_dir}
        self._arguments = _open_reward_model(path, base, **self._source)
        config, self._tokenizer = open_for_inference(self._arguments, **self._source)
        limit = getattr(config.get_text_config(), "max_position_embeddings", None)
        self._encoder = ChatEncoder(self._tokenizer, train_on="last", max_length=limit, keep_rest=True)

    @cached_property
    def model(self) -> "PreTrainedModel":
        with without_deepspeed():  # not sharded: the policy's engine gathers only the policy's weights
            model = load_for_inference(self._arguments, self._tokenizer, is_reward=True, **self._source)
        return model.requires_grad_(False)

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[str], thoughts: Sequence[str] = ()) -> list[float]:
        """The score of each answer, without its thoughts, as a finished turn of its conversation; an empty one is the
        end token alone."""
        rows = self._encode(prompts, answers)
        scores = [0.0] * len(rows)
        with forward.evaluating(self.model):
            for batch in forward.batches([-len(ids) for ids in rows], BATCH_SIZE, BatchOptions()):
                for index, score in zip(batch, rewards(self.model, [rows[index] for index in batch]), strict=True):
                    scores[index] = score
        return scores

    def _encode(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[np.ndarray]:
        conversations = []
        for prompt, answer in zip(prompts, answers, strict=True):
            before = prompt.messages or [{"role": "user", "content": prompt.question}]
            conversations.append([*before, {"role": "assistant", "content": answer}] if answer.strip() else before)
        rows = []
        for prompt, answer, row in zip(prompts, answers, self._encoder.encode(conversations), strict=True):
            ids = row.input_ids
            if not len(ids):
                raise UserError(
                    f"{prompt.location}: the reward model cannot take this conversation ({shown(row.status)})"
                )
            rows.append(ids if answer.strip() else np.r_[ids, self._encoder.end_ids])
        return rows


def _open_reward_model(
    path: str, base: str | None = None, trust_remote_code: bool = False, cache_dir: str | None = None
) -> ModelArguments:
    settings = Path(path, "adapter_config.json")
    arguments = ModelArguments(path)
    if settings.is_file():
        base = base or json.loads(settings.read_text(encoding="utf-8-sig")).get("base_model_name_or_path")
        arguments = ModelArguments(base or "", peft_path=path)
    elif base:
        raise UserError(f"--reward_base: {path} is no adapter, and has no other base")
    try:
        config: PretrainedConfig = load_config(arguments, trust_remote_code, cache_dir)
    except UserError as error:
        hint = "; name the base of this adapter with --reward_base" if settings.is_file() else ""
        raise UserError(f"--reward_model {path}: {error}{hint}") from None
    if not is_reward_model(config, arguments.peft_path):
        raise UserError(f"--reward_model {path}: not a reward model; scripts/reward.py trains one")
    return arguments
