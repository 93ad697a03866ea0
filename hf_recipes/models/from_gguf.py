"""Models in GGUF files: reading them, and converting one to a safetensors folder."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import is_empty, new_folder, writing
from hf_recipes.models.pretokenizers import ADDS_BOS, WHOLE_TOKENS, pre_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def convert_gguf(gguf_file: str | os.PathLike, output_dir: str | os.PathLike) -> Path:
    """Convert a GGUF file to a safetensors folder with its weights dequantized to float32.

    The folder is complete or absent. One that holds a model already is returned as it is.
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
        tokenizer, model = load_gguf_tokenizer(source), load_gguf_model(source)
    except (ValueError, NotImplementedError, ImportError, UserError) as error:
        raise UserError(f"{source}: cannot be converted ({error})") from None
    try:
        with writing(str(target), "name another folder with --output_dir"), new_folder(target) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
    except UserError:
        if not (target / "config.json").is_file():  # another process may have written it
            raise
    return target


def read_metadata(source: Path, arrays: Sequence[str] = ()) -> dict[str, Any]:
    """A GGUF file's metadata by key; of arrays only the length, but for the string arrays named in `arrays`."""
    from transformers.integrations.gguf import read_gguf_metadata

    return read_gguf_metadata(str(source), arrays)[0]


def load_gguf_model(source: Path) -> "PreTrainedModel":
    """The model in a GGUF file, in float32.

    Raises:
        ValueError, NotImplementedError, ImportError: what transformers raises for a file that it cannot read.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source.parent, gguf_file=source.name)
    metadata = read_metadata(source)
    architecture = metadata["general.architecture"]
    head_dim = metadata.get(f"{architecture}.attention.key_length")
    # transformers reads it for some architectures only, and takes 128 for qwen3. Gemma has two of them.
    if head_dim and getattr(config, "head_dim", None) and not architecture.startswith("gemma"):
        config.head_dim = head_dim
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, config=config, dtype=torch.float32
    )
    # The weights are plain floats now, but save_pretrained refuses a model that counts as quantized.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def load_gguf_tokenizer(source: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer in a GGUF file, which splits texts as llama.cpp does with that file.

    transformers reads vocabulary and merges; it knows the pre-tokenizers of some families only.

    Raises:
        ValueError, NotImplementedError, ImportError: what transformers raises for a file that it cannot read.
    """
    from tokenizers import decoders, normalizers
    from transformers import AutoTokenizer

    tokenizer, metadata = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name), read_metadata(source)
    backend, kind = tokenizer.backend_tokenizer, metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        name = metadata.get("tokenizer.ggml.pre")
        if not name:
            name = "default"
            say(f"{source.name} names no pre-tokenizer (tokenizer.ggml.pre): texts are split as llama.cpp does then")
        backend.pre_tokenizer = pre_tokenizer(name)
        backend.model.ignore_merges = name in WHOLE_TOKENS
        if name in ADDS_BOS and "tokenizer.ggml.add_bos_token" not in metadata:
            tokenizer.add_bos_token = True
    elif kind == "llama":
        backend.normalizer, backend.pre_tokenizer = normalizers.Replace(" ", "▁"), None
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        if metadata.get("tokenizer.ggml.add_space_prefix", True):
            backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), backend.normalizer])
            parts.append(decoders.Strip(" ", left=1))
        backend.decoder = decoders.Sequence(parts)
    return tokenizer
