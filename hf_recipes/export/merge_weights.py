"""Adapters scaled and merged into the weights of their base, and these cast to the dtype that is saved."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hf_recipes.core.errors import UserError, say
from hf_recipes.models import weight_files

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def scale_adapters(model: "PeftModel", names: Sequence[str], weights: Sequence[float]) -> None:
    """Activate the adapters `names`, each with its weight times its scale."""
    from peft.tuners.lora import LoraLayer

    model.base_model.set_adapter(list(names))
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name, weight in zip(names, weights, strict=True):
                if name in module.scaling:
                    module.scaling[name] *= weight


def merge_and_unload(model: "PeftModel", names: Sequence[str]) -> "PreTrainedModel":
    """The base with the adapters merged into its weights.

    Tied embeddings stay tied where both are still equal, as after training the rows of a few tokens; where only one of
    the two was trained, they are untied.
    """
    from peft.utils.other import TrainableTokensWrapper

    base = model.base_model.model
    text = base.config.get_text_config()
    tied = bool(text.tie_word_embeddings) and base.get_output_embeddings() is not None
    if tied:  # untied first: merging into one of them would change the other
        seen: set[int] = set()
        for module in base.modules():
            for name, weight in module.named_parameters(recurse=False):
                if id(weight) in seen:
                    setattr(module, name, torch.nn.Parameter(weight.data.clone(), weight.requires_grad))
                seen.add(id(weight))
    # The head of tied embeddings gets their trained rows too. PEFT (0.21) would add LoRA on it to a copy of its weight.
    for module in list(base.modules()):
        if isinstance(rows := getattr(module, "base_layer", None), TrainableTokensWrapper):
            module.base_layer = rows.unload_and_optionally_merge_module(True, False, list(names))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they are untied
        try:
            base = model.merge_and_unload(adapter_names=list(names))
        except (ValueError, RuntimeError) as error:
            raise UserError(f"--peft_path: PEFT cannot merge this adapter ({' '.join(str(error).split())})") from None
    if tied:
        inputs, outputs = base.get_input_embeddings(), base.get_output_embeddings()
        is_equal = torch.equal(inputs.weight, outputs.weight)
        for config in (base.config, text):
            config.tie_word_embeddings = is_equal
        if is_equal:
            outputs.weight = inputs.weight
        else:
            say("input and output embeddings are no longer one weight: the adapter trained one of them alone")
    return base


@torch.no_grad()
def cast(model: "PreTrainedModel", base: Path, dtype: str) -> torch.dtype:
    """Cast the weights to `dtype`, or with "auto" each to that of the `base`'s files; a reward head to float32.

    Returns:
        The dtype of most weights.
    """
    from hf_recipes.models.reward_head import ScoreHead

    stored: dict[str, torch.dtype] = {}
    if dtype != "auto":
        most = getattr(torch, dtype)
    else:
        stored = weight_files.stored_dtypes(base)
        most = weight_files.commonest(stored) or model.config.dtype or torch.float32
    heads = {name for name, module in model.named_modules() if isinstance(module, ScoreHead)}
    for name, weight in model.named_parameters():
        is_head = name.rpartition(".")[0] in heads
        weight.data = weight.data.to(torch.float32 if is_head else stored.get(name, most))
    model.config.dtype = most
    return most
