"""LoRA that begins as a part of the base's weights: PiSSA (arXiv 2404.02948) and OLoRA (arXiv 2406.01775).

Both begin with A₀, B₀ from a decomposition of W. PEFT takes s·B₀A₀ out of the base, so that the two begin as W: then
the adapter fits that base alone, of which there is no file, and switched off it leaves a base that is none. Here the
base stays as it is, and a layer computes Wx + s·BAx − s·B₀A₀x, which is the same function. In files it is a plain LoRA
of twice the rank, [A; A₀] and [B, −B₀], which fits the base for everyone.
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


def begins_in_base(config: "LoraConfig") -> bool:
    return str(config.init_lora_weights).lower().startswith(KINDS)


def has_begun_in_base(model: torch.nn.Module) -> bool:
    return any(hasattr(module, "start_A") for module in model.modules())


def begin_in_base(model: "PeftModel", kind: str) -> None:
    """Give each layer of a fresh adapter its part of the base to begin with.

    Args:
        model: with a fresh, plain LoRA.
        kind: a value of PEFT's `init_lora_weights`.

    Raises:
        UserError: a layer that is not linear, or narrower than the rank.
    """
    for module, matrices in _layers(model, ADAPTER):
        start = _start(module, ADAPTER, kind)
        for letter, matrix, begun in zip("AB", matrices, start, strict=True):
            matrix.data.copy_(begun)
            module.register_buffer(f"start_{letter}", begun, persistent=False)
        module.register_forward_hook(_without_start)
        module.register_state_dict_post_hook(_joined)
        module.register_load_state_dict_pre_hook(_parted)
    save, config = model.save_pretrained, model.peft_config[ADAPTER]

    def save_pretrained(*args: Any, **kwargs: Any) -> None:
        own = dict(vars(config))
        _double(config)
        try:
            save(*args, **kwargs)
        finally:
            vars(config).update(own)

    model.save_pretrained = save_pretrained


def to_plain_lora(model: "PeftModel", name: str, kind: str) -> None:
    """Make an adapter that was trained on what PEFT leaves of the base one of twice the rank for the base itself.

    Args:
        name: the adapter's, whose matrices were loaded into a plain LoRA.
        kind: a value of PEFT's `init_lora_weights`, without chance.
    """
    for module, (a, b) in _layers(model, name):
        start_a, start_b = _start(module, name, kind)
        a.data, b.data = torch.cat([a.data, start_a]), torch.cat([b.data, -start_b], dim=1)
        module.r[name] *= 2
    _double(model.peft_config[name])


def _layers(model: "PeftModel", name: str) -> Iterator[tuple[Any, list[torch.nn.Parameter]]]:
    """The adapter's layers, and of each its two matrices."""
    from peft.tuners.lora import LoraLayer

    kind = "init_lora_weights pissa or olora"
    for path, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        layer = module.get_base_layer()
        if not isinstance(layer, torch.nn.Linear) or not layer.weight.is_floating_point():
            path = path.removeprefix("base_model.model.")
            raise UserError(f"{kind}: {path} is no linear layer of float weights; leave it out, or take plain LoRA")
        if module.r[name] > min(layer.weight.shape):
            path = path.removeprefix("base_model.model.")
            raise UserError(f"{kind}: rank {module.r[name]} is above the width of {path}, {min(layer.weight.shape)}")
        yield module, [module.lora_A[name].weight, module.lora_B[name].weight]


@torch.no_grad()
def _start(module: Any, name: str, kind: str) -> list[torch.Tensor]:
    """A₀ and B₀; the module's weights stay as they are."""
    layer, matrices = module.get_base_layer(), [module.lora_A[name].weight, module.lora_B[name].weight]
    weight, values = layer.weight.data, [matrix.data for matrix in matrices]
    layer.weight.data = weight.clone()  # OLoRA's is changed in its place
    if kind.lower() == "olora":
        module.olora_init(name)
    else:
        module.pissa_init(name, kind)
    start = [matrix.data.to(value).clone() for matrix, value in zip(matrices, values, strict=True)]
    layer.weight.data = weight
    for matrix, value in zip(matrices, values, strict=True):
        matrix.data = value
    return start


def _without_start(module: Any, inputs: tuple[torch.Tensor, ...], result: torch.Tensor) -> torch.Tensor:
    if module.disable_adapters or ADAPTER not in module.active_adapters:
        return result
    x = module._cast_input_dtype(inputs[0], module.start_A.dtype)
    start = F.linear(F.linear(x, module.start_A), module.start_B) * module.scaling[ADAPTER]
    return (result - start).to(result.dtype)


def _joined(module: Any, state: dict[str, torch.Tensor], prefix: str, metadata: Any) -> None:
    """(r, in) → (2r, in) and (out, r) → (out, 2r)."""
    a, b = (f"{prefix}lora_{letter}.{ADAPTER}.weight" for letter in "AB")
    state[a] = torch.cat([state[a], module.start_A])
    state[b] = torch.cat([state[b], -module.start_B], dim=1)


def _parted(module: Any, state: dict[str, torch.Tensor], prefix: str, *rest: Any) -> None:
    a, b = (f"{prefix}lora_{letter}.{ADAPTER}.weight" for letter in "AB")
    if a in state and b in state:
        state[a], start_a = state[a].chunk(2)
        state[b], start_b = state[b].chunk(2, dim=1)
        module.start_A.copy_(start_a)
        module.start_B.copy_(-start_b)


def _double(config: "LoraConfig") -> None:
    """Twice the rank at the same scale, which is alpha / r, or alpha / √r."""
    factor = 2**0.5 if config.use_rslora else 2
    config.r, config.lora_alpha = 2 * config.r, factor * config.lora_alpha
    config.rank_pattern = {name: 2 * rank for name, rank in (config.rank_pattern or {}).items()}
    config.alpha_pattern = {name: factor * alpha for name, alpha in (config.alpha_pattern or {}).items()}
