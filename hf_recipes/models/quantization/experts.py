"""The fused weights of experts in four bits, quantized layer by layer while a model is loaded.

transformers 5.23 quantizes linear modules only, and leaves a mixture's experts, most of its weights, in bfloat16.
bitsandbytes has the parametrization that dequantizes such a weight where it is read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from hf_recipes.core.errors import say

if TYPE_CHECKING:
    from torch import nn


def is_experts_weight(module: "nn.Module", key: str) -> bool:
    """Whether the parameter `key` of `module` holds the matrices of several experts: (experts, rows, columns)."""
    from torch import nn

    weight = module._parameters.get(key)
    shape = getattr(weight, "ds_shape", getattr(weight, "shape", ()))
    return len(shape) == 3 and min(shape) > 1 and not isinstance(module, nn.modules.conv._ConvNd)


@contextmanager
def quantizing_experts() -> Iterator[None]:
    """While this lasts, models that transformers loads in four bits have their experts in four bits too."""
    import torch
    from bitsandbytes import functional
    from bitsandbytes.nn.parametrize import replace_parameter_4bit_prequantized
    from transformers.core_model_loading import ConversionOps
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

    class Quantizer(Bnb4BitHfQuantizer):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.states: dict[str, Any] = {}

        def param_needs_quantization(self, model: "nn.Module", param_name: str, **kwargs: Any) -> bool:
            module, _, key = param_name.rpartition(".")
            return param_name in self.states or (
                is_experts_weight(model.get_submodule(module), key)
                or super().param_needs_quantization(model, param_name, **kwargs)
            )

        def get_quantize_ops(self) -> ConversionOps:
            return Operation(self, super().get_quantize_ops())

        def _process_model_after_weight_loading(self, model: "nn.Module", **kwargs: Any) -> Any:
            # In the order of the model, which `as_plain_parameters` keeps: it decides how PEFT nests its wrappers.
            for name in [name for name, _ in model.named_parameters() if name in self.states]:
                (module, _, key), state = name.rpartition("."), self.states[name]
                replace_parameter_4bit_prequantized(
                    model.get_submodule(module), key, state.as_dict(packed=True), state.absmax.device
                )
            return super()._process_model_after_weight_loading(model, **kwargs)

    class Operation(ConversionOps):
        def __init__(self, quantizer: Quantizer, linear: ConversionOps):
            self.quantizer, self.linear = quantizer, linear

        def convert(self, input_dict: dict[str, Any], model: "nn.Module", **kwargs: Any) -> dict[str, torch.Tensor]:
            result = {}
            for name, value in input_dict.items():
                module, _, key = name.rpartition(".")
                if not is_experts_weight(model.get_submodule(module), key):
                    result |= self.linear.convert({name: value}, model=model, **kwargs)
                    continue
                settings = self.quantizer.quantization_config
                data, self.quantizer.states[name] = functional.quantize_4bit(
                    value[0] if isinstance(value, list) else value,
                    compress_statistics=settings.bnb_4bit_use_double_quant,
                    quant_type=settings.bnb_4bit_quant_type,
                )
                result[name] = torch.nn.Parameter(data, requires_grad=False)
            return result

    with patch.dict(AUTO_QUANTIZER_MAPPING, {"bitsandbytes_4bit": Quantizer}):
        yield


def say_unquantized(model: "nn.Module") -> None:
    """Say what experts weigh that were left as they are."""
    left = [p for m in model.modules() for key, p in m.named_parameters(recurse=False) if is_experts_weight(m, key)]
    if left:
        size, total = (sum(p.numel() * p.element_size() for p in kind) for kind in (left, model.parameters()))
        dtype = str(left[0].dtype).removeprefix("torch.")
        say(
            f"experts stay in {dtype}: {size / 1e9:,.2f} of the weights' {total / 1e9:,.2f} GB, as 8 bits are for "
            "linear modules only; --load_in_4bit quantizes them too"
        )


@contextmanager
def as_plain_parameters(model: "nn.Module") -> Iterator[None]:
    """While this lasts, PEFT finds quantized experts as it finds others: by the ends of their names, in their order.

    An adapter for them is then named as one for the weights in full. Stand-ins have the shape, and no memory.
    """
    import torch

    _mend_wrappers()
    hidden = []
    for module in model.modules():
        if "parametrizations" not in module._modules:
            continue
        parametrized, lists = type(module), module._modules.pop("parametrizations")
        hidden.append((module, parametrized, lists))
        module.__class__ = parametrized.__bases__[0]
        for key, entries in lists.items():
            state = entries[0].quant_state
            stand_in = torch.empty(1, dtype=state.dtype, device=entries.original.device).expand(state.shape)
            module._parameters[key] = torch.nn.Parameter(stand_in, requires_grad=False)
    try:
        yield
    finally:
        for module, parametrized, lists in hidden:
            for key in lists:
                del module._parameters[key]
            module._modules["parametrizations"] = lists
            module.__class__ = parametrized


def _mend_wrappers() -> None:
    """Let PEFT 0.21 adapt a weight that has a parametrization of its own.

    It takes back only one of the two classes that it registers; and torch keeps the value that was read while it was
    registered, without the adapter, which the layer would compute with.
    """
    import torch
    from peft.tuners.lora import layer
    from torch.nn.utils import parametrize

    if issubclass(layer._LoraFactorsProxy, layer._LoraParameterProxy):
        return

    class LoraFactorsProxy(layer._LoraParameterProxy):
        forward = layer._LoraFactorsProxy.forward

        def __init__(self, lhs: torch.Tensor, rhs: torch.Tensor, scaling: float):
            torch.nn.Module.__init__(self)
            self.lhs, self.rhs, self.scaling = lhs, rhs, scaling

    activate = layer.ParamWrapper._activate_lora

    @contextmanager
    def activate_lora(self: Any, active_adapters: list[str]) -> Iterator[None]:
        with activate(self, active_adapters):
            parametrize._cache.pop((id(self.get_base_layer()), self.parameter_name), None)
            yield

    layer._LoraFactorsProxy = LoraFactorsProxy
    layer.ParamWrapper._activate_lora = activate_lora
