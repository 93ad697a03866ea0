"""Weights in four or eight bits (bitsandbytes): the settings, and a quantized base made ready to carry an adapter."""

import inspect
from typing import TYPE_CHECKING, Any

from hf_recipes.core.errors import UserError
from hf_recipes.core.files import read_mapping
from hf_recipes.core.settings import nearest

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel


def read_bnb_config(
    path: str | None, *, load_in_4bit: bool = False, load_in_8bit: bool = False, compute_dtype: str = "float32"
) -> "BitsAndBytesConfig | None":
    """The `BitsAndBytesConfig` of a JSON file with any of its keys, or of a flag alone; None where nothing is asked.

    Without a file, four bits are NF4 with double quantization (QLoRA, https://arxiv.org/abs/2305.14314).
    `compute_dtype` is what a 4-bit layer multiplies in where the file does not say.

    Raises:
        UserError: no such file, not a JSON object, an unknown key (the nearest is named), a value that bitsandbytes
            refuses, neither or both of 4 and 8 bits.
    """
    if path is None and not load_in_4bit and not load_in_8bit:
        return None
    from transformers import BitsAndBytesConfig

    where = f"--bnb_config {path}" if path else "--load_in_4bit" if load_in_4bit else "--load_in_8bit"
    settings: dict[str, Any] = {}
    if path is None:
        settings |= {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True} if load_in_4bit else {}
    else:
        settings = read_mapping(path, "--bnb_config")
    known = inspect.signature(BitsAndBytesConfig.__init__).parameters.keys() - {"self", "kwargs"}
    for key in settings:
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}{nearest(key, known)}")
    for key, flag in (("load_in_4bit", load_in_4bit), ("load_in_8bit", load_in_8bit)):
        settings[key] = bool(settings.get(key)) or flag
    if settings["load_in_4bit"] == settings["load_in_8bit"]:
        which = "both" if settings["load_in_4bit"] else "neither"
        raise UserError(f"{where}: {which} of load_in_4bit and load_in_8bit asked for; choose one")
    settings.setdefault("bnb_4bit_compute_dtype", compute_dtype)
    try:
        return BitsAndBytesConfig(**settings)
    except (TypeError, ValueError, AttributeError, ImportError) as error:
        raise UserError(f"{where}: {' '.join(str(error).split())}") from None


def is_quantized(model: "PreTrainedModel") -> bool:
    return bool(getattr(model, "is_quantized", False))


def prepare_quantized(model: "PreTrainedModel") -> None:
    """Freeze a quantized base, and put its one-dimensional weights (norms, biases) in float32.

    This is PEFT's `prepare_model_for_kbit_training` but for the embeddings and the head, which it would turn into
    float32 as well: 4.3 GB for Qwen2.5-7B, frozen as they are. The trainer asks for the gradients of the inputs where
    it turns checkpointing on.
    """
    import torch

    limit_cpu_kernel(model, inference=False)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.ndim == 1 and parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32)


def limit_cpu_kernel(model: "PreTrainedModel", *, inference: bool) -> None:
    """Keep bitsandbytes' 4-bit kernel for CPUs with AVX-512 BF16 to where it is right.

    At the first evaluation it repacks the weights for good, rounds their scales to bfloat16, and from then on passes no
    gradient; and it takes no other widths than multiples of 32 (out) and of the block size (in).
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            state = module.weight.quant_state
            fits = module.out_features % 32 == 0 and module.in_features % state.blocksize == 0
            module.support_avx512bf16_for_cpu = inference and fits
