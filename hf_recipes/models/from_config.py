"""New models, made from a configuration with random weights, and freezing: for pretraining."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.core.arguments.command_line import nearest
from hf_recipes.core.arguments.settings import setting
from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import read_mapping
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.loading import load_config, load_model, loading_error

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

MULTIPLE = 64  # the vocabulary is padded to a multiple of it: matrix kernels are slow for odd sizes


@dataclass
class PretrainModelArguments(ModelArguments):
    """A model to train further, or the shape of a new one; all weights are trained unless LoRA is set."""

    model_name_or_path: str | None = setting("The model to train further: a folder or a Hub id.")
    use_lora: bool = setting("Train an adapter; without it all weights.", False)
    config_name: str | None = setting("The shape of a new model: a JSON file (configs/models), a folder or a Hub id.")
    tokenizer_name: str | None = setting("The tokenizer of a new model: a folder or a Hub id.")
    initializer_range: float | None = setting("Standard deviation of a new model's weights; by default the shape's.")

    def __post_init__(self):
        if bool(self.model_name_or_path) == bool(self.config_name):
            raise ValueError("give --model_name_or_path to train a model further, or --config_name to make a new one")
        if self.config_name and not self.tokenizer_name:
            raise ValueError("--config_name makes a new model; --tokenizer_name says what its tokens are")
        if self.config_name and (self.use_lora or self.quantizes):
            raise ValueError("--config_name: a new model is trained whole; leave LoRA and quantization out")
        if self.initializer_range is not None and not (self.config_name and self.initializer_range > 0):
            raise ValueError("--initializer_range: a positive deviation, of the weights of --config_name's new model")
        if self.lora_config or self.peft_path or self.quantizes:
            self.use_lora = True
        super().__post_init__()

    @property
    def tokenizer_source(self) -> str:
        return self.tokenizer_name or super().tokenizer_source


def read_model_config(
    arguments: PretrainModelArguments,
    tokenizer: "PreTrainedTokenizerBase",
    trust_remote_code: bool = False,
    cache_dir: str | None = None,
) -> "PretrainedConfig":
    """The configuration of the model to train further, or of a new one with the tokenizer's vocabulary."""
    from transformers import CONFIG_MAPPING

    if not arguments.config_name:
        return load_config(arguments, trust_remote_code=trust_remote_code, cache_dir=cache_dir)
    path = arguments.config_name
    settings = _read_shape(path, arguments.model_revision, cache_dir)
    kind = settings.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        raise UserError(f"--config_name {path}: model_type {kind!r} is not known{nearest(str(kind), CONFIG_MAPPING)}")
    if "transformers_version" not in settings:  # else a model's, whose keys may be those of another version
        known = set(CONFIG_MAPPING[kind]().to_dict())
        for name in set(settings) - known - {"architectures"}:
            raise UserError(f"--config_name {path}: {kind} has no key {name!r}{nearest(name, known)}")
    for name in ("auto_map", "quantization_config"):  # of that model's code and weights
        settings.pop(name, None)
    settings["vocab_size"] = -(-len(tokenizer) // MULTIPLE) * MULTIPLE
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if arguments.initializer_range is not None:
        settings["initializer_range"] = arguments.initializer_range
    try:
        return CONFIG_MAPPING[kind](**{**settings, **ids})
    except (TypeError, ValueError) as error:
        raise UserError(f"--config_name {path}: {' '.join(str(error).split())}") from None


def _read_shape(name: str, revision: str, cache_dir: str | None) -> dict[str, Any]:
    """The JSON object in a file or a text, or the config.json of a folder or a Hub id."""
    if os.path.isdir(name):
        name = str(Path(name, "config.json"))
    elif re.fullmatch(r"[\w.-]+/[\w.-]+(?<!\.json)", name, re.ASCII) and not os.path.exists(name):
        from transformers.utils import cached_file

        try:
            name = cached_file(name, "config.json", revision=revision, cache_dir=cache_dir)
        except OSError as error:
            raise loading_error(error, f"--config_name {name}") from None
    return read_mapping(name, "--config_name")


def make_model(arguments: PretrainModelArguments, *, config: "PretrainedConfig", **kwargs) -> "PreTrainedModel":
    """`load_model`, or a new model in float32 (weights that are trained lose small updates in bfloat16)."""
    import torch
    from transformers import AutoModelForCausalLM

    if not arguments.config_name:
        return load_model(arguments, **kwargs)

    dtype = torch.float32 if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
    settings = {"attn_implementation": arguments.attn_implementation} if arguments.attn_implementation else {}
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, **settings)
    embedding = model.get_input_embeddings().weight
    tied = embedding is getattr(model.get_output_embeddings(), "weight", None)
    sizes = {id(p): getattr(p, "ds_numel", p.numel()) for p in model.parameters()}
    say(
        f"a new {config.model_type} model: {sum(sizes.values()):,} weights, of them {sizes[id(embedding)]:,} in "
        f"{'tied ' if tied else ''}embeddings of {config.vocab_size:,} tokens (a multiple of {MULTIPLE})"
    )
    return model


def freeze(model: "PreTrainedModel", train_only: str | None, layers: str | None) -> None:
    """Train only the embeddings (``train_only="embeddings"``), or all but the `layers`, such as 0-11 or 0,2,4."""
    if train_only == "embeddings":
        kept = {id(module.weight) for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in kept)
    if layers:
        import torch

        count = model.config.get_text_config().num_hidden_layers
        stack = next((m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count), None)
        if stack is None:
            raise UserError(f"--freeze_layers: {model.config.model_type} has no list of its {count} layers")
        for index in _numbers(layers, count):
            stack[index].requires_grad_(False)


def _numbers(text: str, count: int) -> list[int]:
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise UserError(f"--freeze_layers {text}: expected numbers and ranges, as 0-11 or 0,2,4")
        if int(first) > int(last or first):
            raise UserError(f"--freeze_layers {text}: {part.strip()} has no layers; write {last}-{first}")
        numbers += range(int(first), int(last or first) + 1)
    over = [number for number in numbers if number >= count]
    if over:
        raise UserError(f"--freeze_layers {text}: there is no layer {over[0]}; the model has 0 to {count - 1}")
    return numbers
