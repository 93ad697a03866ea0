"""Checkpoints in other formats → safetensors folders that transformers loads."""

import os
import shutil
from pathlib import Path

from hf_recipes.errors import UserError, say


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
    if target.is_dir() and any(target.iterdir()):
        raise UserError(f"{target}: the folder is not empty and holds no model; name another with --output_dir")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    say(f"converting {source.name} to {target} (once)")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    except (ValueError, NotImplementedError, ImportError) as error:
        raise UserError(f"{source}: cannot be converted ({error})") from None
    # The weights are plain floats now; save_pretrained refuses while the model still counts as quantized.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    try:
        os.replace(partial, target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not (target / "config.json").is_file():  # else another process was first
            raise UserError(f"{target}: {error.strerror}; name another folder with --output_dir") from None
    return target
