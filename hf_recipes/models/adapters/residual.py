"""LoRA initialized from a decomposition of the base's weights: PiSSA (arXiv 2404.02948) and OLoRA (arXiv 2406.01775).

Both initialize A, B with A₀, B₀ from a decomposition of W. PEFT subtracts s·B₀A₀ from the base's weights, so that base
and adapter together are W at first. Then the adapter fits only that changed base, which no file holds, and disabling it
does not give the base back. Here the base stays as it is, and a layer computes Wx + s·BAx − s·B₀A₀x, the same function.
It is saved as a plain LoRA of twice the rank, [A; A₀] and [B, −B₀], which fits the published base.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from hf_recipes.core.errors import UserError

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

ADAPTER = "default"
KINDS = ("pissa", "olora")


def is_residual(config: "LoraConfig") -> bool:
    return str(config.init_lora_weights).lower().startswith(KINDS)


def has_residual(model: torch.nn.Module) -> bool:
    return any(hasattr(module, "initial_A") for module in model.modules())


def initialize_residual(model: "PeftModel", kind: str) -> None:
    """Initialize a fresh, plain LoRA by PEFT's `init_lora_weights` of this `kind`; the base stays as it is."""
    for module, matrices in _layers(model, ADAPTER):
        for letter, matrix, initial in zip("AB", matrices, _initial(module, ADAPTER, kind), strict=True):
            matrix.data.copy_(initial)
            module.register_buffer(f"initial_{letter}", initial, persistent=False)
        module.register_forward_hook(_subtract_initial)
        module.register_state_dict_post_hook(_to_double_rank)
        module.register_load_state_dict_pre_hook(_from_double_rank)
    save, config = model.save_pretrained, model.peft_config[ADAPTER]

    def save_pretrained(*args: Any, **kwargs: Any) -> None:
        values = dict(vars(config))
        _double_rank(config)
        try:
            save(*args, **kwargs)
        finally:
            vars(config).update(values)

    model.save_pretrained = save_pretrained


def to_plain_lora(model: "PeftModel", name: str, kind: str) -> None:
    """Convert an adapter that PEFT trained on the changed base into one of twice the rank for the base itself.

    Args:
        name: of the adapter; its matrices were loaded into a plain LoRA.
        kind: a deterministic value of PEFT's `init_lora_weights`.
    """
    for module, (a, b) in _layers(model, name):
        initial_a, initial_b = _initial(module, name, kind)
        a.data, b.data = torch.cat([a.data, initial_a]), torch.cat([b.data, -initial_b], dim=1)
        module.r[name] *= 2
    _double_rank(model.peft_config[name])


def _layers(model: "PeftModel", name: str) -> Iterator[tuple[Any, list[torch.nn.Parameter]]]:
    """The adapter's layers, each with its two matrices, which must be of linear layers at least as wide as the rank."""
    from peft.tuners.lora import LoraLayer

    kind = "init_lora_weights pissa or olora"
    for path, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        layer, path = module.get_base_layer(), path.removeprefix("base_model.model.")
        if not isinstance(layer, torch.nn.Linear) or not layer.weight.is_floating_point():
            raise UserError(f"{kind}: {path} is no linear layer of float weights; leave it out, or take plain LoRA")
        if module.r[name] > min(layer.weight.shape):
            raise UserError(f"{kind}: rank {module.r[name]} is above the width of {path}, {min(layer.weight.shape)}")
        yield module, [module.lora_A[name].weight, module.lora_B[name].weight]


@torch.no_grad()
def _initial(module: Any, name: str, kind: str) -> list[torch.Tensor]:
    """A₀ and B₀ by PEFT's initialization, after which the module's weights are put back."""
    layer, matrices = module.get_base_layer(), [module.lora_A[name].weight, module.lora_B[name].weight]
    weight, values = layer.weight.data, [matrix.data for matrix in matrices]
    layer.weight.data = weight.clone()  # OLoRA changes it in place
    if kind.lower() == "olora":
        module.olora_init(name)
    else:
        module.pissa_init(name, kind)
    initial = [matrix.data.to(value).clone() for matrix, value in zip(matrices, values, strict=True)]
    layer.weight.data = weight
    for matrix, value in zip(matrices, values, strict=True):
        matrix.data = value
    return initial


def _subtract_initial(module: Any, inputs: tuple[torch.Tensor, ...], result: torch.Tensor) -> torch.Tensor:
    if module.disable_adapters or ADAPTER not in module.active_adapters:
        return result
    x = module._cast_input_dtype(inputs[0], module.initial_A.dtype)
    initial = F.linear(F.linear(x, module.initial_A), module.initial_B) * module.scaling[ADAPTER]
    return (result - initial).to(result.dtype)


def _to_double_rank(module: Any, state: dict[str, torch.Tensor], prefix: str, metadata: Any) -> None:
    """(r, in) → (2r, in) and (out, r) → (out, 2r)."""
    a, b = (f"{prefix}lora_{letter}.{ADAPTER}.weight" for letter in "AB")
    state[a] = torch.cat([state[a], module.initial_A])
    state[b] = torch.cat([state[b], -module.initial_B], dim=1)


def _from_double_rank(module: Any, state: dict[str, torch.Tensor], prefix: str, *rest: Any) -> None:
    a, b = (f"{prefix}lora_{letter}.{ADAPTER}.weight" for letter in "AB")
    if a in state and b in state:
        state[a], initial_a = state[a].chunk(2)
        state[b], initial_b = state[b].chunk(2, dim=1)
        module.initial_A.copy_(initial_a)
        module.initial_B.copy_(-initial_b)


def _double_rank(config: "LoraConfig") -> None:
    """Twice the rank at the same scale, which is alpha / r, or alpha / √r."""
    factor = 2**0.5 if config.use_rslora else 2
    config.r, config.lora_alpha = 2 * config.r, factor * config.lora_alpha
    config.rank_pattern = {name: 2 * rank for name, rank in (config.rank_pattern or {}).items()}
    config.alpha_pattern = {name: factor * alpha for name, alpha in (config.alpha_pattern or {}).items()}
