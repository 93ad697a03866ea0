"""The loss that balances a mixture's experts, in all families: TRL and transformers have it for some of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from hf_recipes.models.inference.forward import unwrapped

COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def expert_count(config: PretrainedConfig) -> int:
    """Experts of a layer that its router chooses from; 0 where it has none, or shows no choice."""
    text = config.get_text_config()
    if not hasattr(text, "output_router_logits") or not hasattr(text, "num_experts_per_tok"):
        return 0
    return next((count for name in COUNTS if (count := getattr(text, name, None))), 0)


@contextmanager
def experts_counted(config: PretrainedConfig) -> Iterator[None]:
    """While this lasts, `config` has the `num_experts` that TRL 1.16 reads, whatever its family calls them."""
    text = config.get_text_config()
    if hasattr(text, "num_experts") or not (count := expert_count(config)):
        yield
        return
    text.num_experts = count
    try:
        yield
    finally:
        del text.num_experts


class ExpertBalance:
    """The loss of the last forward pass with `output_router_logits`: 1 where all experts are used alike.

    A family's own class may compute none (DeepSeek-V3, GLM-4.5).
    """

    def __init__(self, model: torch.nn.Module):
        inner: PreTrainedModel = unwrapped(model)
        self.config = inner.config
        self._router_logits: Any = None
        inner.base_model.register_forward_hook(self._keep)

    def _keep(self, module: torch.nn.Module, args: tuple, output: Any) -> None:
        self._router_logits = getattr(output, "router_logits", None)

    def __call__(self) -> torch.Tensor:
        from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

        chosen = self.config.get_text_config().num_experts_per_tok
        return load_balancing_loss_func(self._router_logits, expert_count(self.config), chosen)
