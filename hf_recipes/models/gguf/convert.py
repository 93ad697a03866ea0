"""Models in GGUF files: reading them, and converting one to a safetensors folder."""

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import is_empty, make_once, new_folder, write_json, writing
from hf_recipes.data.examples import fingerprint
from hf_recipes.models.tokenizers import pretokenizers
from hf_recipes.models.tokenizers.pretokenizers import ADDS_BOS, WHOLE_TOKENS, pre_tokenizer
from hf_recipes.models.weight_files import file_digest

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


RECORD = "gguf_source.json"  # in a converted folder: the file that it was made from, by which converter, and its files
_MADE = re.compile(
    r"(generation_)?config\.json|model.*\.safetensors(\.index\.json)?|tokenizer.*|chat_template\.jinja|"
    rf"special_tokens_map\.json|{re.escape(RECORD)}"
)
# How rotary positions are scaled: llama.cpp's names of it → transformers'.
_SCALING = {
    "factor": "factor",
    "original_context_length": "original_max_position_embeddings",
    "yarn_attn_factor": "attention_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}
# Of all Llama 3.1, 3.2 and 3.3; a file has the divisors of the frequencies that follow from these and a factor.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def convert_gguf(gguf_file: str | os.PathLike, output_dir: str | os.PathLike) -> Path:
    """Convert a GGUF file to a safetensors folder with its weights dequantized to float32.

    The folder is complete or absent. One that this converter made from the same content is returned as it is; one that
    was made from another file or by another version is made anew.
    """
    source, target = Path(gguf_file), Path(output_dir)
    if not source.is_file():
        raise UserError(f"{source}: no such file")
    content = file_digest(source)
    make_once(target, lambda: is_converted(target, content), lambda: _convert(source, target, content))
    return target


def is_converted(folder: Path, content: str | None = None) -> bool:
    """Whether a folder is whole and of this version of the converter, and made from `content`, a `file_digest`."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in record["files"]}
        return (
            record["converter"] == _converter()
            and sizes == record["files"]
            and (content is None or record["content"] == content)
        )
    except (OSError, ValueError, LookupError, TypeError):
        return False


def files_of_conversion(folder: Path, record: str = RECORD) -> list[Path] | None:
    """The files of a folder, `record` last, if they are all a conversion's; None otherwise.

    Args:
        record: name of the file that tells so.
    """
    if not folder.is_dir() or is_empty(folder):
        return []
    paths = sorted(folder.iterdir(), key=lambda path: path.name == record)
    if paths[-1].name != record or not all(_MADE.fullmatch(path.name) for path in paths[:-1]):
        return None
    return paths


def record_conversion(folder: Path, source: str, content: str) -> None:
    """Write `RECORD` into a folder that was made from a GGUF file named `source` with the digest `content`."""
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    write_json(folder / RECORD, {"file": source, "content": content, "converter": _converter(), "files": sizes})


def _converter() -> str:
    return fingerprint(version("transformers"), code=(sys.modules[__name__], pretokenizers))


def _convert(source: Path, target: Path, content: str) -> None:
    former = files_of_conversion(target)
    if former is None:
        raise UserError(
            f"{target}: the folder is not empty, and nothing in it says that all of it was converted from a GGUF file; "
            "name another with --output_dir"
        )
    if former:
        say(f"{target} was made from another file or by another version of the converter; it is made anew")
    say(f"converting {source.name} (once)")
    try:
        tokenizer, model = load_gguf_tokenizer(source), load_gguf_model(source)
    except (ValueError, RuntimeError, ImportError, UserError) as error:  # also of sizes that do not fit
        raise UserError(f"{source}: cannot be converted ({error})") from None
    with writing(str(target), "name another folder with --output_dir"), new_folder(target) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        record_conversion(partial, source.name, content)
        for path in former:
            path.unlink()


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
    # transformers reads them for some architectures only, and takes 128 for qwen3's heads. Gemma has two sizes of them.
    for name, key in {
        "head_dim": "attention.key_length",
        "moe_intermediate_size": "expert_feed_forward_length",
    }.items():
        size = metadata.get(f"{architecture}.{key}")
        if size and getattr(config, name, None) and not architecture.startswith("gemma"):
            setattr(config, name, size)
    _scale_positions(config, source, metadata)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, config=config, dtype=torch.float32
    )
    # The weights are plain floats now, but save_pretrained refuses a model that counts as quantized.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def _scale_positions(config: "PretrainedConfig", source: Path, metadata: Mapping[str, Any]) -> None:
    """Scale `config`'s rotary positions as the file says, where transformers does not read that.

    Raises:
        NotImplementedError: where they are scaled in a way that is not known here.
    """
    import torch
    from transformers.integrations.gguf.reader import GgufHeader, load_gguf_state_dict
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    positions = getattr(config, "rope_parameters", None)
    if not positions or positions.get("rope_type", "default") != "default":
        return
    prefix = f"{metadata['general.architecture']}.rope.scaling."
    given = {name: metadata.get(prefix + key) for key, name in _SCALING.items()}
    tensors = load_gguf_state_dict(GgufHeader.from_file(str(source)))
    kind = metadata.get(f"{prefix}type", "none")
    if "rope_freqs.weight" in tensors:
        kind, divisors = "llama3", tensors["rope_freqs.weight"][:]
        given = _LLAMA3 | {"factor": float(divisors.max())}
    if kind == "none":
        return
    known = kind in ("linear", "yarn", "llama3") and not any(name.startswith("rope_factors") for name in tensors)
    scaling = {name: value for name, value in given.items() if value is not None}
    config.rope_parameters = {**positions, **scaling, "rope_type": kind}
    if known and kind == "llama3":
        frequencies, _ = ROPE_INIT_FUNCTIONS[kind](config)
        exponents = torch.arange(len(frequencies)) / len(frequencies)
        known = torch.allclose(frequencies * divisors, positions["rope_theta"] ** -exponents, rtol=1e-4)
    if not known:
        raise NotImplementedError(f"its rotary positions are scaled as is not known here ({kind})")


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
