"""What llama.cpp's program llama-quantize does, with one type for all matrices of a width, and coarser scales."""

import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

TYPES = {"Q4_K_M": (Type.Q4_K, Type.Q5_0), "Q5_K_M": (Type.Q5_K, Type.Q5_1)}
Tensor = tuple[str, np.ndarray, Type]


def k_blocks(weights: np.ndarray, bits: int) -> np.ndarray:
    """`block_q4_K` or `block_q5_K` of https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-common.h, with
    one scale and one minimum for all 256 weights of a block."""
    blocks = weights.astype(np.float32).reshape(-1, 256)
    low = np.minimum(blocks.min(axis=1, keepdims=True), 0)
    step = np.maximum(blocks.max(axis=1, keepdims=True) - low, 1e-6) / (2**bits - 1)
    values = np.clip(np.round((blocks - low) / step), 0, 2**bits - 1).astype(np.uint8).reshape(-1, 4, 2, 32)
    scales = (np.concatenate([step, -low], axis=1) / 63).astype(np.float16).view(np.uint8)
    parts = [scales, np.full((len(blocks), 12), 255, np.uint8)]  # the eight scales and minima of six bits: 63
    if bits == 5:
        places = np.arange(8, dtype=np.uint8).reshape(1, 4, 2, 1)
        parts.append((values >> 4 << places).sum(axis=(1, 2), dtype=np.uint8))
        values &= 15
    parts.append((values[:, :, 0] | values[:, :, 1] << 4).reshape(-1, 128))
    return np.concatenate(parts, axis=1).reshape(*weights.shape[:-1], -1)


def quantize(source: Path, target: Path, name: str, change: Callable[[Tensor], Tensor | None] | None = None) -> None:
    """Write `source` to `target`, each tensor as `change` gives it, those that are None left out."""
    reader = gguf.GGUFReader(source)
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    writer = gguf.GGUFWriter(target, fields.pop("general.architecture").contents())
    for key, field in fields.items():
        writer.add_key_value(key, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        data, kind = tensor.data, tensor.tensor_type
        if data.ndim > 1:
            weights = gguf.quants.dequantize(data, kind)
            kind = TYPES[name][weights.shape[-1] % 256 > 0]
            bits = {Type.Q4_K: 4, Type.Q5_K: 5}.get(kind)
            data = k_blocks(weights, bits) if bits else gguf.quants.quantize(weights, kind)
        result = (tensor.name, data, kind) if change is None else change((tensor.name, data, kind))
        if result:
            writer.add_tensor(result[0], result[1], raw_dtype=result[2])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    quantize(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
