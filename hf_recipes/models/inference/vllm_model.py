"""vLLM in the place of transformers' model, for answers alone.

Written to vLLM's `LLM.generate`, `SamplingParams` and `LoRARequest` (docs.vllm.ai, offline inference).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_recipes.core.errors import UserError
from hf_recipes.models.adapters.saved_adapter import check_adapter_weights, read_adapter_config
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.checks.finite import check_weight_files
from hf_recipes.models.inference.decoding import Decoding
from hf_recipes.models.inference.generation_settings import generation_config_of
from hf_recipes.models.inference.loading import computes_bf16, load_for_inference

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank takes
NOT_INSTALLED = "--engine vllm: vLLM is not installed here; pip install vllm, or omit the flag"
AT_ONCE = 2048  # prompts, of which vLLM makes its batches; those of one call are lost where a run is killed


def check_vllm(
    arguments: ModelArguments, tokenizer: "PreTrainedTokenizerBase", config: "PretrainedConfig", decoding: Decoding
) -> None:
    """A UserError where vLLM is not installed, or cannot run the model as it was trained."""
    if find_spec("vllm") is None:
        raise UserError(NOT_INSTALLED)
    if decoding.num_beams > 1:
        raise UserError(f"--num_beams {decoding.num_beams}: --engine vllm has no beam search; omit one of them")
    check_model(arguments, tokenizer, config)
    if arguments.peft_path:
        check_adapter(arguments.peft_path)


def check_model(arguments: ModelArguments, tokenizer: "PreTrainedTokenizerBase", config: "PretrainedConfig") -> None:
    """A UserError where vLLM cannot run a model as `arguments` say."""
    for flag in ("load_in_8bit", "bnb_config"):
        if getattr(arguments, flag):
            raise UserError(f"--{flag}: --engine vllm has nothing like it; omit one of them")
    rows = config.get_text_config().vocab_size
    if len(tokenizer) > rows:
        raise UserError(
            f"--engine vllm: the tokenizer has {len(tokenizer):,} tokens and the model {rows:,} rows for them; merge "
            "the adapter first, or omit the flag"
        )


def check_adapter(path: str) -> "LoraConfig":
    """The settings of an adapter, or a UserError where it has what vLLM leaves out."""
    settings = read_adapter_config(path)
    parts = {"use_dora": "DoRA", "modules_to_save": "whole modules", "trainable_token_indices": "rows of embeddings"}
    for name, what in parts.items():
        if getattr(settings, name, None):
            raise UserError(f"--peft_path {path}: it has {what}, which vLLM does not load; merge it first")
    return settings


def lora_rank(ranks: Sequence[int]) -> int:
    """The least of vLLM's ranks that all adapters fit."""
    return next((rank for rank in RANKS if rank >= max(ranks)), max(ranks))


class VllmModel:
    """A model with its adapter, which continues ids.

    Args:
        autocast: the run computed in bfloat16.
    """

    def __init__(
        self,
        arguments: ModelArguments,
        config: "PretrainedConfig",
        *,
        trust_remote_code: bool = False,
        cache_dir: str | None = None,
        autocast: bool = False,
    ):
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        self.config, self._lora = config, None
        self.generation_config = generation_config_of(arguments, config, cache_dir=cache_dir)
        dtype = arguments.dtype
        if dtype == "auto":
            dtype = "bfloat16" if autocast or computes_bf16() else "float32"
        options: dict[str, Any] = {"quantization": "bitsandbytes"} if arguments.load_in_4bit else {}
        if path := arguments.peft_path:
            options |= {"enable_lora": True, "max_lora_rank": lora_rank([check_adapter(path).r])}
            self._lora = LoRARequest("adapter", 1, path)
        self._llm = LLM(
            model=arguments.model_name_or_path,
            revision=arguments.model_revision,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            download_dir=cache_dir,
            skip_tokenizer_init=True,
            generation_config="vllm",
            enable_prefix_caching=True,
            **options,
        )
        check_weight_files(arguments, cache_dir)  # now that they are here: of NaN it would make answers
        if arguments.peft_path:
            check_adapter_weights(arguments.peft_path)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        lora, self._lora = self._lora, None
        try:
            yield
        finally:
            self._lora = lora

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        decodings: Sequence[Decoding],
        seeds: Sequence[Sequence[int]],
        stops: set[int],
    ) -> list[list[int]]:
        """The ids after each of `prompts`, with the one of `stops` that ended them, at most `limits`.

        Args:
            seeds: numbers that decide what is sampled for a prompt.
        """
        from vllm import SamplingParams

        parameters = []
        for limit, decoding, seed in zip(limits, decodings, seeds, strict=True):
            sampling: dict[str, Any] = {"temperature": 0.0}
            if decoding.do_sample:
                sampling = {"temperature": decoding.temperature, "top_p": decoding.top_p}
                sampling |= {"top_k": decoding.top_k} if decoding.top_k else {}
                sampling["seed"] = int(np.random.SeedSequence([decoding.seed, *seed]).generate_state(1)[0])
            parameters.append(
                SamplingParams(
                    max_tokens=limit,
                    stop_token_ids=sorted(stops),
                    ignore_eos=True,  # the tokenizer's is one of `stops`
                    repetition_penalty=decoding.repetition_penalty,
                    detokenize=False,
                    **sampling,
                )
            )
        given = [{"prompt_token_ids": list(map(int, prompt))} for prompt in prompts]
        outputs = self._llm.generate(given, parameters, lora_request=self._lora, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]


def load_for_answers(
    arguments: ModelArguments,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    engine: str,
    config: "PretrainedConfig",
    is_reward: bool = False,
    **options: Any,
) -> "PreTrainedModel | VllmModel":
    """The model in `engine`, transformers or vllm.

    Args:
        options: of `load_for_inference`, without those of devices.
    """
    if engine == "vllm":
        return VllmModel(arguments, config, **options)
    return load_for_inference(arguments, tokenizer, is_reward=is_reward, **options)
