"""Weights in four or eight bits (bitsandbytes): the settings, and a quantized base made ready to carry an adapter."""

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from hf_recipes.core.arguments.command_line import nearest
from hf_recipes.core.errors import UserError
from hf_recipes.core.files import read_mapping

if TYPE_CHECKING:
    from torch import nn
    from transformers import BitsAndBytesConfig, PreTrainedModel

ROUTER = re.compile(r"(^|\.)(router|gate|\w*expert_gate)(\.|$)")  # modules that choose experts
# Settings of the other width, by whether weights are loaded in 4 bits.
IGNORED = {True: ("llm_int8_threshold", "llm_int8_has_fp16_weight"), False: ("bnb_4bit_",)}


def read_bnb_config(
    path: str | None, *, load_in_4bit: bool = False, load_in_8bit: bool = False, compute_dtype: str = "float32"
) -> "BitsAndBytesConfig | None":
    """The `BitsAndBytesConfig` of a JSON file with any of its keys, or of a flag alone; None without either.

    Without a file, four bits are NF4 with double quantization (QLoRA, https://arxiv.org/abs/2305.14314).
    `compute_dtype` is what a 4-bit layer multiplies in, unless the file has bnb_4bit_compute_dtype.
    """
    if path is None and not load_in_4bit and not load_in_8bit:
        return None
    from transformers import BitsAndBytesConfig

    flag = f"--bnb_config {path}" if path else "--load_in_4bit" if load_in_4bit else "--load_in_8bit"
    settings: dict[str, Any] = {}
    if path:
        settings = read_mapping(path, "--bnb_config")
    elif load_in_4bit:
        settings = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    defaults = {key: one.default for key, one in inspect.signature(BitsAndBytesConfig.__init__).parameters.items()}
    known = defaults.keys() - {"self", "kwargs"}
    for key in settings:
        if key not in known:
            raise UserError(f"{flag}: unknown key {key!r}{nearest(key, known)}")
    for key, given in (("load_in_4bit", load_in_4bit), ("load_in_8bit", load_in_8bit)):
        if not isinstance(settings.setdefault(key, False), bool):
            raise UserError(f"{flag}: {key} is {settings[key]!r}; expected true or false, without quotes")
        settings[key] |= given
    if settings["load_in_4bit"] == settings["load_in_8bit"]:
        which = "both" if settings["load_in_4bit"] else "neither"
        raise UserError(f"{flag}: {which} of load_in_4bit and load_in_8bit; choose one")
    for key, value in settings.items():
        if key.startswith(IGNORED[settings["load_in_4bit"]]) and value not in (defaults[key], "float32"):
            width = "load_in_4bit" if settings["load_in_4bit"] else "load_in_8bit"
            raise UserError(f"{flag}: {key} has no effect with {width}; leave it out")
    settings.setdefault("bnb_4bit_compute_dtype", compute_dtype)
    try:
        return BitsAndBytesConfig(**settings)
    except (TypeError, ValueError, AttributeError, ImportError) as error:
        raise UserError(f"{flag}: {' '.join(str(error).split())}") from None


def is_read_by_kernel(model: "nn.Module", name: str) -> bool:
    """Whether a Mamba layer takes the weight of this linear module, past its forward pass: no adapter on it would have
    an effect, and nothing can be computed with it in four or eight bits."""
    path, _, leaf = name.rpartition(".")
    parent = model.get_submodule(path)
    return leaf in ("x_proj", "dt_proj", "out_proj") and hasattr(parent, "A_log") and hasattr(parent, "D")


@contextmanager
def sparing_kernels() -> Iterator[None]:
    """While this lasts, transformers quantizes no module of which `is_read_by_kernel` is true, and no router: these are
    small, choose differently when they are rounded, and LongCat takes the weight of its past the forward pass."""
    from torch import nn
    from transformers.quantizers.base import HfQuantizer

    left_out = HfQuantizer.get_modules_to_not_convert

    def with_kernels(model: "PreTrainedModel", *args: Any, **kwargs: Any) -> list[str]:
        linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
        spared = [name for name in linear if ROUTER.search(name) or is_read_by_kernel(model, name)]
        return [*left_out(model, *args, **kwargs), *spared]

    with patch.object(HfQuantizer, "get_modules_to_not_convert", staticmethod(with_kernels)):
        yield


def is_quantized(model: "PreTrainedModel") -> bool:
    return bool(getattr(model, "is_quantized", False))


def prepare_quantized(model: "PreTrainedModel") -> None:
    """Freeze a quantized base, and put its one-dimensional weights (norms, biases) in float32.

    This is PEFT's `prepare_model_for_kbit_training` without casting the frozen embeddings and head to float32, which
    takes 4.3 GB for Qwen2.5-7B. The trainer enables gradients of the inputs where it turns checkpointing on.
    """
    import torch

    limit_cpu_kernel(model, inference=False)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.ndim == 1 and parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32)
    half = next((p.dtype for p in model.parameters() if p.dtype in (torch.float16, torch.bfloat16)), None)
    if half is not None and hasattr(model, "generate"):
        # It goes past the trainer's autocast, without which a head in half precision takes no float32.
        model.generate = MethodType(torch.autocast(model.device.type, half)(type(model).generate), model)


def limit_cpu_kernel(model: "PreTrainedModel", *, inference: bool) -> None:
    """Allow bitsandbytes' 4-bit kernel for CPUs with AVX-512 BF16 only where it is correct.

    In the first evaluation it repacks the weights for good and rounds their scales to bfloat16; afterwards it passes no
    gradient. It takes only widths that are multiples of 32 (out) and of the block size (in).
    """
    from bitsandbytes.functional import has_avx512bf16

    def fits(module: "nn.Module") -> bool:
        return module.out_features % 32 == 0 and module.in_features % module.weight.quant_state.blocksize == 0

    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = inference and has_avx512bf16() and fits(module)
