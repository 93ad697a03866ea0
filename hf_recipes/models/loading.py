"""A base model's configuration and weights, for training as for inference."""

import codecs
import copy
import os
import pickle
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import is_path, read_mapping
from hf_recipes.models.adapters.vision import has_vision
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.checks.finite import check_weights
from hf_recipes.models.checks.packing import sees_later_tokens
from hf_recipes.models.families.detect import BY_REMOTE_CODE, detect, refuse_unconverted
from hf_recipes.models.inference.generation_settings import generation_config_of
from hf_recipes.models.packed_masks import makes_causal_masks
from hf_recipes.models.quantization.experts import quantizing_experts, say_unquantized
from hf_recipes.models.quantization.settings import limit_cpu_kernel, read_bnb_config, sparing_kernels

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


JSON_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
LOADING_ERRORS = (OSError, ValueError, KeyError, ImportError)  # of a tokenizer, and among others of a model


def loading_error(error: Exception, name: str) -> UserError:
    """A loading error of transformers as one sentence."""
    text = str(error) or type(error).__name__
    line = " ".join(text.split())[:300]
    if "trust_remote_code" in text:
        return UserError(f"{name}: this model runs code of its own; read it, then allow it with --trust_remote_code")
    if "tiktoken" in text:
        return UserError(
            f"{name}: its tokenizer's file is one of tiktoken, which is missing: pip install -e '.[tiktoken]'"
        )
    if isinstance(error, pickle.UnpicklingError):
        return UserError(f"{name}: its weights are a pickle with more than tensors in it, which is not loaded")
    if "Unrecognized configuration class" in text and (whole := _vision_class(name)):
        return UserError(
            f"{name}: a vision model ({whole}), whose text part transformers has no class for; take a text model, or "
            "Qwen3.5, Gemma 3 or their like, whose text part can be trained"
        )
    if "Unrecognized configuration class" in text and "SequenceClassification" in text:
        return UserError(
            f"{name}: transformers has no class of this family with a head for scores; take another base for a reward "
            "model (docs/en/families.md has a table)"
        )
    if os.path.isdir(name):
        return UserError(_broken_file(name) or f"{name}: no model can be loaded from this folder ({line})")
    if is_path(name):
        return UserError(f"{name}: no such folder")
    return UserError(f"{name}: neither a local folder nor a model to be had from the Hub ({line})")


def _sees_later(name: str, kind: str) -> UserError:
    return UserError(f"{name}: {kind} attends to later tokens; it is no causal language model")


def _broken_file(folder: str) -> str | None:
    """Which of a model's files in `folder` is no JSON object that transformers reads."""
    for name in JSON_FILES:
        path = os.path.join(folder, name)
        if os.path.isfile(path) and Path(path).read_bytes().startswith(codecs.BOM_UTF8):
            return f"{path}: begins with a byte order mark, which transformers does not read; save it without one"
        try:
            read_mapping(path, "")
        except UserError as error:
            if os.path.isfile(path):
                return f"{str(error).strip()}; download it again"
    return None


def _vision_class(name: str, **source: Any) -> str | None:
    """The class of a model that sees pictures; None of any other."""
    from transformers import PreTrainedConfig

    try:
        values, _ = PreTrainedConfig.get_config_dict(name, **source)
    except (OSError, ValueError):  # which the caller has an error for
        return None
    return (values.get("architectures") or ["vision model"])[0] if values.get("vision_config") else None


def load_config(arguments: ModelArguments, trust_remote_code: bool, cache_dir: str | None = None) -> "PretrainedConfig":
    """The model's configuration, before any weight is read; its generation_config.json is checked too."""
    from transformers import AutoConfig, PreTrainedConfig

    name = arguments.model_name_or_path
    if os.path.isdir(name) and not os.path.isfile(os.path.join(name, "config.json")):
        hint = ""
        if os.path.isfile(os.path.join(name, "adapter_config.json")):
            hint = "; it holds an adapter: give its base as --model_name_or_path and this as --peft_path"
        raise UserError(f"{name}: this folder has no config.json{hint}")
    try:
        values, _ = PreTrainedConfig.get_config_dict(name, revision=arguments.model_revision, cache_dir=cache_dir)
        refuse_unconverted(name, values, trust_remote_code=trust_remote_code)
        config = AutoConfig.from_pretrained(
            name, revision=arguments.model_revision, trust_remote_code=trust_remote_code, cache_dir=cache_dir
        )
        if detect(values, name) in BY_REMOTE_CODE:
            from hf_recipes.models.families import remote_code

            remote_code.prepare(config, name, revision=arguments.model_revision, cache_dir=cache_dir)
    except UserError:
        raise
    except Exception as error:  # a configuration can be wrong in any way, and nothing else happens here
        raise loading_error(error, name) from None
    if config.model_type == "cpmant":  # of others it is found on the model itself
        raise _sees_later(name, config.model_type)
    generation_config_of(arguments, config, cache_dir)
    return config


def embedding_rows(arguments: ModelArguments, cache_dir: str | None = None) -> int | None:
    """Of the model, as its config.json says; None where that does not."""
    from transformers import PreTrainedConfig

    if arguments.model_name_or_path is None:  # a new model, which is made to fit its tokenizer
        return sys.maxsize
    try:
        values, _ = PreTrainedConfig.get_config_dict(
            arguments.model_name_or_path, revision=arguments.model_revision, cache_dir=cache_dir
        )
    except (OSError, ValueError):  # which `load_config` reports
        return None
    if not isinstance(values, dict):  # which `load_config` reports too
        return None
    return values.get("vocab_size", values.get("text_config", {}).get("vocab_size"))


def weight_dtype(arguments: ModelArguments, *, trains_all: bool, bf16: bool) -> "torch.dtype":
    """The dtype that the base model's weights are loaded in.

    With ``--dtype auto``, frozen weights are in bfloat16 where the run computes in it; weights that are trained are in
    float32, because an update of 1e-5 is lost in bfloat16's eight bits.
    """
    import torch

    if arguments.dtype != "auto":
        return getattr(torch, arguments.dtype)
    return torch.bfloat16 if bf16 and not trains_all else torch.float32


def without_weights(
    config: "PretrainedConfig", tokenizer: "PreTrainedTokenizerBase", *, is_reward: bool, **kwargs: Any
) -> "PreTrainedModel":
    """The model of a configuration on the meta device, with embeddings for all tokens of the tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification if is_reward else AutoModelForCausalLM
    if is_reward:
        config = copy.deepcopy(config)
        config.num_labels, config.get_text_config().pad_token_id = 1, tokenizer.pad_token_id
    with without_deepspeed(), torch.device("meta"):
        model = kind.from_config(config, **kwargs)
        if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return model


def load_model(
    arguments: ModelArguments,
    *,
    trains_all: bool,
    bf16: bool,
    trust_remote_code: bool = False,
    is_reward: bool = False,
    may_lack: Collection[str] = (),
    **kwargs: Any,
) -> "PreTrainedModel":
    """The causal language model, or with `is_reward` the sequence classifier that scores conversations.

    It is quantized where `arguments` say so. The weights named in `may_lack` are initialized at random where the files
    have none; any other missing weight, and NaN or infinities in one, are refused.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, AutoModelForSequenceClassification

    name = arguments.model_name_or_path
    if trust_remote_code:  # which may need `remote_code`
        load_config(arguments, trust_remote_code, kwargs.get("cache_dir"))
    kind = AutoModelForSequenceClassification if is_reward else AutoModelForCausalLM
    if may_lack:
        kwargs["num_labels"] = 1
    quantization = read_bnb_config(
        arguments.bnb_config,
        load_in_4bit=arguments.load_in_4bit,
        load_in_8bit=arguments.load_in_8bit,
        compute_dtype="bfloat16" if bf16 else "float32",
    )
    if quantization is not None:
        kwargs["quantization_config"] = quantization
    dtype = weight_dtype(arguments, trains_all=trains_all, bf16=bf16)
    if arguments.attn_implementation:
        kwargs["attn_implementation"] = arguments.attn_implementation
    try:
        in_4_bits = quantization is not None and quantization.load_in_4bit
        quiet = _without_report() if may_lack else nullcontext()
        with quiet, quantizing_experts() if in_4_bits else nullcontext(), sparing_kernels():
            model, report = kind.from_pretrained(
                name,
                revision=arguments.model_revision,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **kwargs,
            )
    except UserError:
        raise
    except Exception as error:  # a configuration can be wrong in any way
        raise loading_error(error, name) from None
    revision, cache_dir = arguments.model_revision, kwargs.get("cache_dir")
    if not has_vision(model.config) and (whole := _vision_class(name, revision=revision, cache_dir=cache_dir)):
        if not is_reward and type(model.config) not in MODEL_FOR_CAUSAL_LM_MAPPING:  # none loads Mllama's again
            raise loading_error(ValueError("Unrecognized configuration class"), name)
        say(f"{name}: the text part of {whole}; whole models saved or merged from it have no vision part")
    if missing := sorted(set(report["missing_keys"]) - set(may_lack)):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"{name}: its files lack weights of {type(model).__name__} ({', '.join(missing[:3])}{more}), which would "
            f"stay random; give a complete checkpoint of a {'reward' if is_reward else 'causal language'} model"
        )
    if not is_reward and "score.weight" in report["unexpected_keys"]:
        raise UserError(f"{name}: a reward model, which has a score head; give a causal language model")
    check_weights(model, arguments, kwargs.get("cache_dir"))
    if quantization is not None:
        limit_cpu_kernel(model, inference=False)  # nothing here may repack weights that are to be trained on
        say_unquantized(model)
    if model.base_model is model and hasattr(model, "model"):  # Llama 4's text model, which names its body otherwise
        model.base_model_prefix = "model"
    # With router logits, a mixture of experts cannot generate from prompts of several lengths. Trainers request them in
    # each forward pass.
    if getattr(model.config.get_text_config(), "output_router_logits", False):
        model.config.get_text_config().output_router_logits = False
    # is_decoder False is the truth of BERT, which can be either, and wrong of GPT-NeoX, which is always a decoder.
    # Classes that make a mask of their own are tried too.
    may = getattr(model.config, "is_decoder", True) is False or not makes_causal_masks(model)
    if not is_reward and may and sees_later_tokens(model):
        raise _sees_later(name, model.config.model_type)
    if quantization is not None:
        limit_cpu_kernel(model, inference=True)
    return model


@contextmanager
def without_deepspeed() -> Iterator[None]:
    """While this lasts, transformers does not shard the weights of new models, as it does under ZeRO stage 3."""
    from transformers.integrations import deepspeed

    reference = deepspeed._hf_deepspeed_config_weak_ref
    config = reference and reference()
    if config is None:
        yield
        return
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed.set_hf_deepspeed_config(config)


@contextmanager
def _without_report() -> Iterator[None]:
    """While this lasts, transformers does not warn of a new head, or of a head in the files that is not loaded."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
