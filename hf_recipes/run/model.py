"""The model that a run trains: loaded, quantized, with its adapter."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled

from hf_recipes.core.errors import UserError, say
from hf_recipes.dry_run.checks import check_trained
from hf_recipes.models.adapters.lora import attach_lora, read_lora_config
from hf_recipes.models.adapters.saved_adapter import check_same_shape, load_adapter, read_adapter_config
from hf_recipes.models.adapters.targets import trained_shares, what_is_trained
from hf_recipes.models.adapters.vision import vision_parts
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.checks.packing import joins_rows, made_to_keep_packed_rows_apart
from hf_recipes.models.embeddings import fit_embeddings
from hf_recipes.models.inference.generation_settings import make_savable, stop_at_ends
from hf_recipes.models.loading import load_model
from hf_recipes.models.quantization.settings import is_quantized, prepare_quantized, read_bnb_config
from hf_recipes.run.arguments import RunArguments
from hf_recipes.run.inherited import unused_steps
from hf_recipes.run.optimization import check_optimization


def check_settings(model_args: ModelArguments, args: RunArguments, task_type: str = "CAUSAL_LM") -> None:
    """Name what cannot work together before anything is loaded."""
    check_optimization(args)
    for line in unused_steps(args):
        say(f"note: {line}")
    if model_args.use_lora:
        read_lora_config(model_args.lora_config, task_type)
    quantization = read_bnb_config(
        model_args.bnb_config, load_in_4bit=model_args.load_in_4bit, load_in_8bit=model_args.load_in_8bit
    )
    if quantization is not None:
        say(f"the base in {4 if quantization.load_in_4bit else 8} bits ({quantization.quantization_method()})")
    if args.use_cpu and (args.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true"):
        say("note: FSDP needs an accelerator; on a CPU each process keeps all weights (DDP)")
    padding_free = getattr(args, "padding_free", False) and not args.packing
    if padding_free and not joins_rows(model_args.attn_implementation):
        raise UserError(
            "--padding_free joins the rows of a batch into one, which takes flash attention: give "
            "--attn_implementation flash_attention_2, or --packing, which fills rows with whole examples"
        )
    if model_args.quantizes and is_deepspeed_zero3_enabled():
        raise UserError(
            "quantized weights (--load_in_4bit, --load_in_8bit, --bnb_config) cannot be sharded over processes by "
            "DeepSpeed's stage 3: take --deepspeed configs/deepspeed/zero2.json, or leave the quantization out"
        )
    if model_args.use_lora and getattr(args, "train_only", None):
        raise UserError(
            f"--train_only {args.train_only} trains weights that no adapter holds: leave LoRA out, or train them with "
            'it by "modules_to_save": ["embed_tokens"] in --lora_config'
        )


def load_base(
    model_args: ModelArguments,
    args: RunArguments,
    tokenizer: PreTrainedTokenizerBase,
    *,
    make: Callable[..., PreTrainedModel] = load_model,
    descriptions: Mapping[str, str] | None = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """The model before any adapter: loaded, quantized, with embeddings for all tokens; the same at each call."""
    set_seed(args.seed)  # new weights are random: a head, embeddings, and then the adapter
    model = make(
        model_args,
        trains_all=not model_args.use_lora,
        bf16=bool(args.bf16),
        trust_remote_code=args.trust_remote_code,
        **kwargs,
    )
    if is_quantized(model):
        prepare_quantized(model)
    fit_embeddings(model, tokenizer, descriptions)
    return model


def build_model(
    model_args: ModelArguments,
    args: RunArguments,
    tokenizer: PreTrainedTokenizerBase,
    added_tokens: Sequence[str] = (),
    *,
    packing_error: UserError | None = None,
    freeze: Callable[[PreTrainedModel], None] = lambda model: None,
    task_type: str = "CAUSAL_LM",
    **kwargs: Any,
) -> PreTrainedModel:
    """The base model with its adapter, or with all weights trained that `freeze` leaves.

    Args:
        packing_error: to raise where packed rows would see each other; None where none are packed.
        task_type: PEFT's; SEQ_CLS for a reward model.
        kwargs: for `load_base`.
    """
    fresh = model_args.use_lora and not model_args.peft_path
    lora = read_lora_config(model_args.lora_config, task_type) if fresh else None
    if model_args.peft_path:
        saved = read_adapter_config(model_args.peft_path, task_type)
        if model_args.lora_config:
            check_same_shape(saved, model_args.peft_path, model_args.lora_config)
    model = load_base(model_args, args, tokenizer, **kwargs)
    stop_at_ends(model, tokenizer)
    if not model_args.use_lora:
        make_savable(model)
    if packing_error is not None and not made_to_keep_packed_rows_apart(model):
        raise packing_error
    if model_args.peft_path:
        model = load_adapter(model, model_args.peft_path, is_trainable=True)
    elif lora is not None:
        new_ids = tokenizer.convert_tokens_to_ids(list(added_tokens))
        model = attach_lora(model, lora, model_args.lora_config, new_ids)
    freeze(model)
    for part in vision_parts(model) if not model_args.use_lora else ():
        model.get_submodule(part).requires_grad_(False)
    check_trained(model, args, is_quantized(model))
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
    if hasattr(model, "get_nb_trainable_parameters"):
        trained, total = model.get_nb_trainable_parameters()
    else:
        total, trained = sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)
    say(f"training {what_is_trained(trained, total, trained_shares(model))}")
    return model


def build_reference(
    model_args: ModelArguments, args: RunArguments, tokenizer: PreTrainedTokenizerBase, **kwargs: Any
) -> PreTrainedModel | None:
    """A frozen copy of a model all of whose weights are trained, new embeddings included.

    None with an adapter, or where the reference's log-probabilities are computed before the training.

    Args:
        kwargs: for `load_base`.
    """
    if model_args.use_lora or getattr(args, "precompute_ref_log_probs", False):
        return None
    say("the reference is a second model with the same weights, which stay as they are")
    return load_base(model_args, args, tokenizer, **kwargs).requires_grad_(False).eval()
