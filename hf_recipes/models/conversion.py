"""Checkpoints in other formats → safetensors folders that transformers loads."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from hf_recipes.core.files import is_empty, new_folder, writing
from hf_recipes.errors import UserError, say

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def convert_gguf(gguf_file: str | os.PathLike, output_dir: str | os.PathLike) -> Path:
    """Turn a GGUF file into a safetensors folder in float32, once; an existing folder is used as it is.

    The weights are those of the quantized file, dequantized. The folder appears whole or not at all.

    Raises:
        UserError: no such file, an architecture that transformers cannot read from GGUF, or something else in the
            folder.
    """
    source, target = Path(gguf_file), Path(output_dir)
    if (target / "config.json").is_file():
        return target
    if not source.is_file():
        raise UserError(f"{source}: no such file")
    if target.is_dir() and not is_empty(target):
        raise UserError(f"{target}: the folder is not empty and holds no model; name another with --output_dir")
    say(f"converting {source.name} to {target} (once)")
    try:
        model, tokenizer = load_gguf(source)
    except (ValueError, NotImplementedError, ImportError) as error:
        raise UserError(f"{source}: cannot be converted ({error})") from None
    try:
        with writing(str(target)), new_folder(target) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
    except (OSError, UserError):
        if not (target / "config.json").is_file():  # else another process was first
            raise
    return target


def load_gguf(source: Path) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """The model in a GGUF file, in float32, and its tokenizer.

    Raises:
        ValueError, NotImplementedError, ImportError: what transformers raises for a file that it cannot read.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    # The weights are plain floats now; save_pretrained refuses while the model still counts as quantized.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer
