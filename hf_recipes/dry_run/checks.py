"""Settings that do not go with the model, found from its shapes alone."""

import os
from typing import TYPE_CHECKING

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import TrainableTokensWrapper
from transformers import PretrainedConfig, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from hf_recipes.core.errors import UserError
from hf_recipes.models.adapters.residual import has_residual
from hf_recipes.models.checks.saving import saved_names
from hf_recipes.models.devices import has_accelerator
from hf_recipes.trainer.losses.expert_balance import expert_count

if TYPE_CHECKING:
    from hf_recipes.run.arguments import RunArguments


def check_trained(model: PreTrainedModel, args: "RunArguments", is_quantized: bool) -> None:
    """Refuse an adapter that would not be trained, or not be saved as it is trained, or that changes a base that must
    stay as it is."""
    if not hasattr(model, "peft_config"):
        return
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trained:
        raise UserError(
            f"--freeze_layers {args.freeze_layers} freezes all layers that the adapter is on, which leaves nothing to "
            "train; freeze fewer of them, or adapt others (layers_to_transform of --lora_config)"
        )
    if lost := sorted(trained - saved_names(model).keys()):
        raise UserError(
            f"{len(lost)} of the trained tensors would not be saved with the adapter ({lost[0]}): name their modules "
            "in modules_to_save of --lora_config, or leave them out of the training"
        )
    if isinstance(model.get_output_embeddings(), BaseTunerLayer) and not args.calls_head:
        raise UserError(
            "LoRA on the output embeddings (lm_head) would not be trained: this stage's loss reads their weight as it "
            'is; take them out of target_modules, or, where they are one with embed_tokens, "ensure_weight_tying"'
        )
    on_fsdp = (args.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true") and not args.use_cpu
    shards = "DeepSpeed's stage 3" if is_deepspeed_zero3_enabled() else "FSDP" if on_fsdp else None
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    if (
        is_deepspeed_zero3_enabled()
        and model.peft_config["default"].ensure_weight_tying
        and all(isinstance(embedding, BaseTunerLayer) for embedding in embeddings)
    ):
        raise UserError(
            '"ensure_weight_tying" gives both embeddings one LoRA, which DeepSpeed\'s stage 3 cannot shard: train them '
            "whole (modules_to_save), or take --deepspeed configs/deepspeed/zero2.json"
        )
    # TRL's GRPO, and its other losses on accelerators, gather the head's weight, which PEFT computes then.
    gathers_head = hasattr(args, "num_generations") or not (args.calls_head or args.use_cpu or not has_accelerator())
    if is_deepspeed_zero3_enabled() and gathers_head and isinstance(embeddings[1], TrainableTokensWrapper):
        raise UserError(
            "new tokens and trainable_token_indices train rows of the output embeddings, which this stage's loss cannot"
            " gather under DeepSpeed's stage 3: take --deepspeed configs/deepspeed/zero2.json, or train the embeddings "
            "whole (modules_to_save)"
        )
    if has_residual(model) and (shards or is_quantized):
        raise UserError(
            f"init_lora_weights pissa or olora needs full float weights, which {shards or 'a quantized base'} does not "
            "have: leave it out of --lora_config"
        )
    if model.peft_config["default"].bias != "none" and (shards or args.has_reference):
        why = shards or "a reference (--beta), which needs the base's biases unchanged,"
        raise UserError(f'"bias" trains biases of the base, which does not go with {why}: set it to "none"')


def balances_experts(args: "RunArguments", config: PretrainedConfig) -> bool:
    """Whether the loss has a term for balanced experts, which a mixture's has by default."""
    if not hasattr(args, "router_aux_loss_coef"):
        return False
    coefficient, count = args.router_aux_loss_coef, expert_count(config)
    if coefficient and not count:
        raise UserError(f"--router_aux_loss_coef is for mixtures of experts; {config.model_type} is not one")
    if coefficient is None:
        coefficient = getattr(config.get_text_config(), "router_aux_loss_coef", 0)
    return bool(coefficient and count)
