"""The weight files of an older checkpoint, read as data and written shard by shard in the new layout."""

import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.core.errors import UserError
from hf_recipes.core.files import new_file, write_json
from hf_recipes.models.checks.finite import WHY, is_finite
from hf_recipes.models.families.layouts import Family
from hf_recipes.models.families.old_configs import Config
from hf_recipes.models.families.tokenizers.fast_tokenizer import read_json
from hf_recipes.models.weight_files import commonest, file_digest

if TYPE_CHECKING:
    import torch

_POINTER = b"version https://git-lfs"
_INV_FREQ = re.compile(r".*rotary(_pos)?_emb\.inv_freq")
# The stem of a single file and of the index of several: safetensors first, where a folder has both.
_FORMATS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)


def weight_files(folder: Path) -> list[Path]:
    for single, index in _FORMATS:
        if (folder / index).is_file():
            weight_map = read_json(folder / index).get("weight_map")
            names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
            if not names or not all(isinstance(name, str) for name in names):
                raise UserError(
                    f"{folder / index}: no weight_map, which names a file for each tensor; download it again"
                )
            paths = [folder / name for name in sorted(names)]
            if missing := [path.name for path in paths if not path.is_file()]:
                raise UserError(f"{folder}: {index} names {', '.join(missing)}, which is not there; download it again")
            return paths
        if (folder / single).is_file():
            return [folder / single]
    raise UserError(f"{folder}: no weights (model.safetensors, pytorch_model.bin or the index of their shards)")


def tensors_of(path: Path) -> "Iterator[tuple[str, torch.Tensor]]":
    """The tensors of a file. Nothing but tensors is unpickled."""
    import torch
    from safetensors import SafetensorError, safe_open

    with open(path, "rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise UserError(f"{path}: a git-lfs pointer, not the weights; fetch them with git lfs pull")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118
                    yield name, file.get_tensor(name)
        except SafetensorError as error:
            raise UserError(f"{path}: cannot be read ({error}); download it again") from None
        return
    try:
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # a file in the format before torch 1.6
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path}: a pickle with more than tensors in it, which is not loaded") from None
    except (RuntimeError, EOFError) as error:
        reason = next(iter(str(error).splitlines()), "it ends too early")
        raise UserError(f"{path}: cannot be read ({reason}); download it again") from None
    for name, tensor in tensors.items() if isinstance(tensors, dict) else [("its content", tensors)]:
        if not isinstance(tensor, torch.Tensor):
            raise UserError(
                f"{path}: {name} has the type {type(tensor).__name__}, and in a file of weights all are tensors; give "
                "the model as its save_pretrained writes it"
            )
        yield name, tensor


def new_tensors(
    family: Family, name: str, tensor: "torch.Tensor", config: Mapping[str, Any]
) -> "dict[str, torch.Tensor] | None":
    """What a tensor becomes, by name; None for a name that the family does not have.

    Args:
        config: the values of the new configuration.
    """
    import torch

    if _INV_FREQ.fullmatch(name):
        return {} if _is_expected(tensor, family, config) else None
    module, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias"):
        return None
    if (new := family.outside.get(module)) is not None:
        if new == "lm_head" and config["tie_word_embeddings"]:
            return {}
        if new == "lm_head" and family.normalized_head:
            tensor = torch.nn.functional.normalize(tensor.float()).to(tensor.dtype)
        return {f"{new}.{kind}": tensor}
    if not (match := re.fullmatch(rf"{re.escape(family.layers)}\.(\d+)\.(.+)", module)):
        return None
    new = family.modules.get(match[2])
    if new is None:
        return None
    prefix = f"model.layers.{match[1]}."
    if isinstance(new, str):
        return {f"{prefix}{new}.{kind}": tensor}
    parts = family.split(tensor, config)
    return {f"{prefix}{part}.{kind}": rows for part, rows in zip(new, parts, strict=True)}


def _is_expected(inv_freq: "torch.Tensor", family: Family, config: Mapping[str, Any]) -> bool:
    """Whether stored rotary frequencies, which may have been rounded to 16 bits, are those of the configuration."""
    import torch

    rope = config["rope_parameters"]
    theta = family.default_theta or rope["rope_theta"]
    head_dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    dim = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    expected = theta ** -(torch.arange(0, dim, 2, dtype=torch.float) / dim)
    return inv_freq.shape == expected.shape and torch.allclose(inv_freq.float(), expected, rtol=1e-2, atol=1e-6)


def expected_shapes(config: Config) -> "dict[str, torch.Size]":
    """The weights that transformers' class of a new configuration has."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        # A family's default padding token may lie behind a small vocabulary.
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**config, "pad_token_id": None}))
    tied = model.all_tied_weights_keys
    return {name: weight.shape for name, weight in model.state_dict().items() if name not in tied}


def convert_weights(
    family: Family,
    source: Path,
    target: Path,
    config: Config,
    expected: "Mapping[str, torch.Size]",
    shards: dict[str, str],
    written: Callable[[], None],
) -> "torch.dtype":
    """Write a new shard for each old one, and their index.

    Args:
        expected: see `expected_shapes`.
        shards: digests of the new shards in `target` that are complete, which are not written again; each that is
            written is added, and `written` called.

    Returns:
        The commonest dtype of the weights.

    Raises:
        UserError: a tensor or a shape is not the family's, or one is missing.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    paths = weight_files(source)
    dtypes: dict[str, torch.dtype] = {}
    weight_map: dict[str, str] = {}
    for number, path in enumerate(paths, 1):
        shard = "model.safetensors" if len(paths) == 1 else f"model-{number:05}-of-{len(paths):05}.safetensors"
        if not ((target / shard).is_file() and shards.get(shard) == file_digest(target / shard)):
            with new_file(target / shard) as partial:
                save_file(_converted(family, path, config, expected, weight_map), partial, metadata={"format": "pt"})
            shards[shard] = file_digest(target / shard)
            written()
        with safe_open(target / shard, "pt") as file:
            dtypes |= {name: file.get_slice(name)[:0].dtype for name in file.keys()}  # noqa: SIM118
        weight_map |= dict.fromkeys(dtypes.keys() - weight_map, shard)
    if missing := sorted(expected.keys() - weight_map):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"{source}: its files lack weights of {family.name} ({', '.join(missing[:3])}{more}, by their new names); "
            "give a complete checkpoint"
        )
    if len(paths) > 1:
        size = sum(expected[name].numel() * dtype.itemsize for name, dtype in dtypes.items())
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(target / "model.safetensors.index.json", index)
    return commonest(dtypes)


def _converted(
    family: Family, path: Path, config: Config, expected: "Mapping[str, torch.Size]", others: Mapping[str, str]
) -> "dict[str, torch.Tensor]":
    """The new tensors of an old shard; those of the ones before it are `others`."""
    converted: dict[str, torch.Tensor] = {}
    for name, tensor in tensors_of(path):
        for new, value in _checked(family, path, name, tensor, config, expected).items():
            if new in converted or new in others:
                raise UserError(f"{path}: {name} is in these files twice")
            converted[new] = value.clone()  # rows of one tensor share memory, which safetensors refuses
    return converted


def _checked(
    family: Family,
    path: Path,
    name: str,
    tensor: "torch.Tensor",
    config: Config,
    expected: "Mapping[str, torch.Size]",
) -> "dict[str, torch.Tensor]":
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind not in ("bfloat16", "float16", "float32", "float64"):
        raise UserError(
            f"{path}: {name} holds {kind}, as quantized weights do, and only floating-point ones are converted; give "
            "the checkpoint that it was made from"
        )
    if not is_finite(tensor):
        raise UserError(f"{path}: {name} {WHY}; download it again")
    try:
        values = new_tensors(family, name, tensor, config)
    except (RuntimeError, ValueError, TypeError):  # rows that cannot be split so
        raise UserError(_misfit(family, path, name, tensor)) from None
    if values is None or any(new not in expected for new in values):
        raise UserError(
            f"{path}: {family.name} has no tensor {name} of shape {list(tensor.shape)}; nothing is converted"
        )
    if any(value.shape != expected[new] for new, value in values.items()):
        raise UserError(_misfit(family, path, name, tensor))
    return values


def _misfit(family: Family, path: Path, name: str, tensor: "torch.Tensor") -> str:
    return (
        f"{path}: {name} has the shape {list(tensor.shape)}, which does not fit the sizes in config.json of this "
        f"{family.name}; nothing is converted"
    )
