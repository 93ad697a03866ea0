"""What PEFT 0.21 does not do by itself where an adapter is put on a base."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest.mock import patch

from hf_recipes.models.adapters.targets import as_modules
from hf_recipes.models.quantization.experts import as_plain_parameters

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel


@contextmanager
def adaptable(model: "PreTrainedModel", *configs: "PeftConfig") -> Iterator[None]:
    """While this lasts, PEFT can put adapters of `configs` on `model`, however its weights are kept."""
    with token_rows_on_cpu(), as_modules(model, *configs), as_plain_parameters(model):
        yield


@contextmanager
def token_rows_on_cpu() -> Iterator[None]:
    """While this lasts, PEFT reads rows of embeddings that ZeRO's stage 3 shards on any device (0.21: on CUDA only)."""
    import torch
    from peft.tuners.trainable_tokens import TrainableTokensLayer
    from peft.utils.integrations import check_deepspeed_zero3_enabled, gather_params_ctx

    if torch.cuda.is_available() or not check_deepspeed_zero3_enabled():
        yield
        return

    def rows_of(self, weight: torch.Tensor, rows: torch.Tensor, embed_dim: int) -> torch.Tensor:
        with gather_params_ctx([weight], modifier_rank=None):
            return weight[rows].clone()  # gathered in all processes, so that none has to broadcast it

    with patch.object(TrainableTokensLayer, "_collect_token_weights", rows_of):
        yield


def repair(model: "PeftModel", biases: "list[tuple[torch.nn.Parameter, torch.Tensor]]") -> None:
    """Show the bias of a head whose rows are trained, and let `disable_adapter` restore the base's `biases` too."""
    _expose_head_bias(model)
    if biases:
        _restore_when_disabled(model, biases)


def _expose_head_bias(model: "PeftModel") -> None:
    """Give a head whose rows are trained the base's `bias`, or None, which TRL's losses read and PEFT 0.21 hides."""
    from peft.utils.other import TrainableTokensWrapper

    head = model.get_output_embeddings()
    if isinstance(head, TrainableTokensWrapper):
        object.__setattr__(head, "bias", head.original_module.bias)  # not as a parameter of its own


def base_biases(model: "PreTrainedModel", config: "PeftConfig") -> "list[tuple[torch.nn.Parameter, torch.Tensor]]":
    """The base's biases, where the adapter trains some, and their values."""
    if getattr(config, "bias", "none") == "none":
        return []
    return [(p, p.detach().clone()) for name, p in model.named_parameters() if name.endswith("bias")]


def _restore_when_disabled(model: "PeftModel", biases: "list[tuple[torch.nn.Parameter, torch.Tensor]]") -> None:
    """Make `disable_adapter` restore the base's `biases` too: PEFT leaves the trained ones."""
    disable = model.disable_adapter

    @contextmanager
    def disable_adapter() -> Iterator[None]:
        trained = [bias.data for bias, _ in biases]
        with warnings.catch_warnings(), disable():
            for bias, value in biases:
                bias.data = value.to(bias.data)
            try:
                yield
            finally:
                for (bias, _), data in zip(biases, trained, strict=True):
                    bias.data = data

    model.disable_adapter = disable_adapter
