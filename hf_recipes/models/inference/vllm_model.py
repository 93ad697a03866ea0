"""vLLM in the place of transformers' model, for answers alone.

Written to vLLM's `EngineArgs`, `LLM.generate`, `SamplingParams` and `LoRARequest` (docs.vllm.ai, offline inference).
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np

from hf_recipes.core.arguments.settings import setting
from hf_recipes.core.errors import UserError
from hf_recipes.models.adapters.saved_adapter import check_adapter_weights, read_adapter_config
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.checks.finite import check_weight_files
from hf_recipes.models.inference.decoding import Decoding
from hf_recipes.models.inference.generation_settings import generation_config_of
from hf_recipes.models.inference.loading import computes_bf16, load_for_inference

if TYPE_CHECKING:
    from argparse import Namespace

    from peft import LoraConfig
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank takes
NOT_INSTALLED = "--engine vllm: vLLM is not installed here; the docs' page on serving says how, or omit the flag"
AT_ONCE = 2048  # prompts, of which vLLM makes its batches; those of one call are lost where a run is killed


@dataclass(kw_only=True)
class AnswerArguments:
    """What writes the answers of a model."""

    engine: Literal["transformers", "vllm"] = setting(
        "What writes the answers: transformers on any device, or vLLM, faster on GPUs, where it is installed.",
        "transformers",
    )
    vllm_args: str | None = setting(
        "More arguments of vLLM's engine, such as '--gpu-memory-utilization 0.5 --max-model-len 4096'."
    )

    def __post_init__(self):
        if self.engine != "vllm" and self.vllm_args:
            raise ValueError("--vllm_args: has no effect without --engine vllm")

    @property
    def engine_options(self) -> dict[str, str | None]:
        """Keywords of `load_for_answers`."""
        return {"engine": self.engine, "vllm_args": self.vllm_args}


def check_vllm(
    arguments: ModelArguments,
    tokenizer: "PreTrainedTokenizerBase",
    config: "PretrainedConfig",
    decoding: Decoding,
    vllm_args: str | None = None,
) -> None:
    """A UserError where vLLM is not installed, has no such arguments, or cannot run the model as it was trained."""
    if find_spec("vllm") is None:
        raise UserError(NOT_INSTALLED)
    _parsed({"model": arguments.model_name_or_path}, vllm_args)
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


def _parsed(flags: Mapping[str, Any], more: str | None) -> "Namespace":
    """vLLM's arguments of `flags` and, over them, of the words of `more`; a UserError where it does not take them."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    def refuse(message: str) -> NoReturn:
        raise UserError(f"--vllm_args {more}: {message}")

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser(add_help=False))
    parser.error = refuse
    words = [word for name, value in flags.items() for word in flag_words(name, value)]
    given = parser.parse_args(words + words_of(more))
    if given.model != flags["model"]:
        refuse("the model is the one of --model_name_or_path; leave --model out")
    return given


def words_of(vllm_args: str | None) -> list[str]:
    """The words of --vllm_args, as a shell has them."""
    try:
        words = shlex.split(vllm_args or "")
    except ValueError as error:
        raise UserError(f"--vllm_args {vllm_args}: {error}") from None
    for word in words:
        if word.split("=")[0].replace("_", "-") in ("--hf-token", "--api-key"):
            raise UserError("--vllm_args is printed and recorded; a secret goes by HF_TOKEN or --api_key_file")
    return words


def flag_words(name: str, value: Any) -> list[str]:
    """The words of a flag of vLLM's; of None and False none, of True the flag alone."""
    if value is None or value is False:
        return []
    values = value if isinstance(value, list) else [] if value is True else [value]
    return [f"--{name}", *map(str, values)]


class VllmModel:
    """A model with its adapter, which continues ids.

    Args:
        autocast: the run computed in bfloat16.
        vllm_args: more arguments of its engine, as on a command line.
    """

    def __init__(
        self,
        arguments: ModelArguments,
        config: "PretrainedConfig",
        *,
        trust_remote_code: bool = False,
        cache_dir: str | None = None,
        autocast: bool = False,
        vllm_args: str | None = None,
    ):
        from vllm import LLM
        from vllm.engine.arg_utils import EngineArgs
        from vllm.lora.request import LoRARequest

        self.config, self._lora = config, None
        self.generation_config = generation_config_of(arguments, config, cache_dir=cache_dir)
        dtype = arguments.dtype
        if dtype == "auto":
            dtype = "bfloat16" if autocast or computes_bf16() else "float32"
        flags: dict[str, Any] = {
            "model": arguments.model_name_or_path,
            "revision": arguments.model_revision,
            "dtype": dtype,
            "trust-remote-code": trust_remote_code,
            "download-dir": cache_dir,
            "skip-tokenizer-init": True,
            "generation-config": "vllm",
            "enable-prefix-caching": True,
            "quantization": "bitsandbytes" if arguments.load_in_4bit else None,
        }
        if path := arguments.peft_path:
            flags |= {"enable-lora": True, "max-lora-rank": lora_rank([check_adapter(path).r])}
            self._lora = LoRARequest("adapter", 1, path)
        settings = EngineArgs.from_cli_args(_parsed(flags, vllm_args))
        try:
            self._llm = LLM(**vars(settings))
        except (RuntimeError, ValueError) as error:  # of its engine, which is another process that wrote its reason
            raise UserError(
                f"--engine vllm: vLLM did not start ({str(error).strip()}); what it lacks is above, and --vllm_args "
                "takes its settings, such as '--gpu-memory-utilization 0.5' where others use the device"
            ) from error
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
    vllm_args: str | None = None,
    is_reward: bool = False,
    **options: Any,
) -> "PreTrainedModel | VllmModel":
    """The model in `engine`, transformers or vllm.

    Args:
        options: of `load_for_inference`, without those of devices.
    """
    if engine == "vllm":
        return VllmModel(arguments, config, vllm_args=vllm_args, **options)
    return load_for_inference(arguments, tokenizer, is_reward=is_reward, **options)
