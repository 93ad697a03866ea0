"""Whether weights and settings are finite numbers: a model with NaN or infinities gives results that look real."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import is_zipfile

from hf_recipes.core.errors import UserError
from hf_recipes.models.quantization.settings import is_quantized

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from hf_recipes.models.arguments import ModelArguments

FLOAT32_MAX = 3.4028234663852886e38
WHY = "holds NaN or infinite values, with which the model would give logits that are not numbers"
HINT = "download it again, or train it with a lower --learning_rate"


def not_finite(settings: Mapping[str, Any]) -> str | None:
    """The dotted name of the first number in `settings`, or in mappings and lists in them, that float32 cannot hold."""
    for key, value in settings.items():
        if isinstance(value, float) and not abs(value) <= FLOAT32_MAX:  # as NaN is not
            return key
        if isinstance(value, list | tuple):
            value = dict(enumerate(value))
        if isinstance(value, Mapping) and (inner := not_finite(value)) is not None:
            return f"{key}.{inner}"
    return None


def check_weights(model: "PreTrainedModel", arguments: "ModelArguments", cache_dir: str | None = None) -> None:
    """Refuse a base model, just loaded, with a weight that is not finite; only a machine's first process looks.

    Its files are read in place of its weights where these are quantized (which can hide a NaN), sharded by ZeRO's
    stage 3, or left on disk.
    """
    from transformers.integrations import is_deepspeed_zero3_enabled

    if int(os.environ.get("LOCAL_RANK", 0)) != 0:
        return
    wrong, weights = None, dict(model.named_parameters())
    if not (is_quantized(model) or is_deepspeed_zero3_enabled() or any(w.is_meta for w in weights.values())):
        wrong = next((name for name, tensor in weights.items() if not is_finite(tensor)), None)
        if wrong is None:
            return
    check_weight_files(arguments, cache_dir)
    if wrong is not None:
        name, kind = arguments.model_name_or_path, str(model.dtype).removeprefix("torch.")
        raise UserError(f"{name}: {wrong} in {kind} {WHY}; --dtype float32 holds larger numbers, else {HINT}")


def check_weight_files(arguments: "ModelArguments", cache_dir: str | None = None) -> None:
    """Refuse a base model, which was loaded, with a weight in its files that is not finite."""
    from hf_recipes.models.weight_files import local_folder

    name = arguments.model_name_or_path
    folder = local_folder(name, arguments.model_revision, cache_dir)
    for path in sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin")):
        check_file(path, f"{name}: {path.name}")


def check_file(path: str | os.PathLike, what: str) -> None:
    """Refuse a file of weights, safetensors or .bin, with a tensor that is not finite; the error begins with `what`."""
    for key, tensor in _stored_tensors(Path(path)):
        if not is_finite(tensor):
            raise UserError(f"{what}: {key} {WHY}; {HINT}")


def _stored_tensors(path: Path) -> "Iterator[tuple[str, torch.Tensor]]":
    """The tensors of a file by name, read as they are needed; a .bin in torch's format before 1.6 at once."""
    import torch
    from safetensors import safe_open

    if path.suffix != ".safetensors":
        yield from torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path)).items()
        return
    with safe_open(path, "pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118
            yield key, tensors.get_tensor(key)


def is_finite(tensor: "torch.Tensor") -> bool:
    """By the minimum and maximum, in which NaN and infinities show: a twentieth of the time of `tensor.isfinite()`."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    tensor = tensor.detach()
    return all(bool(end.isfinite()) for end in (tensor.float() if tensor.itemsize < 2 else tensor).aminmax())
