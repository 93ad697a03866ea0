"""Loading for inference: a base model, with or without an adapter, and the tokenizer that goes with it."""

from types import MethodType
from typing import TYPE_CHECKING

from hf_recipes.core.errors import UserError
from hf_recipes.models.adapters.saved_adapter import is_reward_adapter, load_adapter, read_adapter_config
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.devices import cpu_computes_bf16, has_accelerator
from hf_recipes.models.embeddings import fit_embeddings
from hf_recipes.models.loading import load_config, load_model, loading_error, without_weights
from hf_recipes.models.quantization.settings import is_quantized
from hf_recipes.models.templates.options import TemplateChoice
from hf_recipes.models.tokenizers.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def open_for_inference(
    arguments: ModelArguments,
    *,
    template: TemplateChoice | None = None,
    trust_remote_code: bool = False,
    cache_dir: str | None = None,
) -> tuple["PretrainedConfig", "PreTrainedTokenizerBase"]:
    """The model's configuration and the tokenizer (the adapter's, where one was saved with it); no weight is read.

    The tokenizer may have no chat template, as a base model's that only continues text. Another one, of `template`,
    must not write special tokens that it does not have.
    """
    template = template or TemplateChoice()
    source = {"trust_remote_code": trust_remote_code, "cache_dir": cache_dir}
    config = load_config(arguments, **source)
    if arguments.peft_path:
        read_adapter_config(arguments.peft_path)
    tokenizer, added = load_tokenizer(
        arguments.tokenizer_source,
        **template.template_settings(),
        needs_template=False,
        revision=arguments.model_revision,
        **source,
    )
    if added:
        raise UserError(
            f"--chat_template {template.chat_template}: it writes tokens that {arguments.tokenizer_source} does not "
            f"have and the model was not trained with ({' '.join(added)}); take the template that it was trained with"
        )
    if not trust_remote_code:  # such code may not be made for the meta device
        try:
            model = without_weights(config, tokenizer, is_reward=is_reward_model(config, arguments.peft_path))
        except Exception as error:  # a configuration can be wrong in any way
            raise loading_error(error, arguments.model_name_or_path) from None
        if arguments.peft_path:
            load_adapter(model, arguments.peft_path)
    return config, tokenizer


def is_reward_model(config: "PretrainedConfig", peft_path: str | None = None) -> bool:
    """Whether the model, or its adapter, gives a conversation one score instead of continuing it."""
    return bool(peft_path and is_reward_adapter(peft_path)) or (
        any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
        and config.num_labels == 1
    )


def computes_bf16() -> bool:
    """Whether this machine's accelerator, or without one its processor, is made for bfloat16."""
    if not has_accelerator():
        return cpu_computes_bf16()
    from transformers.utils import is_torch_bf16_gpu_available

    return is_torch_bf16_gpu_available()


def load_for_inference(
    arguments: ModelArguments,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    trust_remote_code: bool = False,
    cache_dir: str | None = None,
    is_reward: bool = False,
    device_map: str | None = None,
    autocast: bool = False,
) -> "PreTrainedModel":
    """The model, quantized where `arguments` say so, with its adapter, on the accelerator where there is one.

    With ``--dtype auto`` its weights are in bfloat16 where the machine computes in it, else in float32.

    Args:
        is_reward: it is a reward model, or its adapter makes it one.
        device_map: ``"cpu"`` keeps it off the accelerator, ``"auto"`` spreads it over several.
        autocast: compute in bfloat16 as Trainer does, around the outermost `forward` alone.
    """
    import torch

    source = {"trust_remote_code": trust_remote_code, "cache_dir": cache_dir}
    options = {"trains_all": False, "bf16": computes_bf16(), **source}
    if is_reward:
        from hf_recipes.models.reward_head import load_reward_model

        model = load_reward_model(arguments, config=load_config(arguments, **source), tokenizer=tokenizer, **options)
        if not arguments.peft_path and len(tokenizer) > (rows := model.get_input_embeddings().num_embeddings):
            raise UserError(
                f"{arguments.model_name_or_path}: the tokenizer has {len(tokenizer):,} tokens and the reward model was "
                f"trained with {rows:,}; give it the tokenizer that it was trained with"
            )
    else:
        model = load_model(arguments, **options, **({"device_map": device_map} if device_map else {}))
    with torch.random.fork_rng(devices=[]):  # new embedding rows, unless the adapter has them: the same each time
        torch.manual_seed(0)
        fit_embeddings(model, tokenizer)
    # Quantized weights were put there while they were loaded.
    if has_accelerator() and not device_map and not is_quantized(model):
        model = model.to(torch.accelerator.current_accelerator())
    if arguments.peft_path:
        model = load_adapter(model, arguments.peft_path)
    return (_autocast(model) if autocast else model).eval()


def _autocast(model: "PreTrainedModel") -> "PreTrainedModel":
    """`model` with the forward that `Accelerator.prepare_model` gives it with bf16, without an `Accelerator`."""
    import torch
    from accelerate.utils.operations import convert_outputs_to_fp32

    forward = torch.autocast(model.device.type, dtype=torch.bfloat16)(model.forward.__func__)
    model.forward = MethodType(convert_outputs_to_fp32(forward), model)
    return model
