"""A GGUF file in llama.cpp's k-quants, by its own quantizer, compared with the file that it was made from.

Run as a script this is the quantizer of the package llama-cpp-python, which an error inside llama.cpp may crash.

python -m hf_recipes.export.quantize SOURCE TARGET Q4_K_M
"""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_recipes.core.errors import UserError, say

if TYPE_CHECKING:
    from gguf import ReaderTensor

PROGRAM, GET_QUANTIZER = "llama-quantize", "pip install llama-cpp-python"
MAIN_TYPES = {"q4_k_m": "Q4_K", "q5_k_m": "Q5_K"}  # of most weights; the others have more bits
# Bits of the types for rows of a multiple of 256 weights, and of those that stand in for them in other rows:
# https://github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp
K_BITS, OTHER_BITS = {"Q4_K": 4, "Q5_K": 5, "Q6_K": 6, "Q8_0": 8}, {"Q5_0": 5, "Q5_1": 5, "Q8_0": 8, "F16": 11}
# With n bits a step is 2 / 2^n of the largest weight of a block. Of weights of many distributions, none was more than
# one step off. The scales are in float16, which rounds the smallest weights by up to 2^-13.
MAX_STEPS, SMALLEST = 2, 2.0**-13
CHUNK = 2**22  # weights that are compared at once


def find_quantizer(checkout: str, stem: Path, outtype: str) -> list[str]:
    """The command of llama.cpp's quantizer: its program, in a checkout or on the PATH, or llama-cpp-python.

    Args:
        stem: path of the files, without outtype, for the error where there is none.
    """
    path = os.pathsep.join([f"{checkout}/build/bin", checkout, os.environ.get("PATH", os.defpath)])
    if program := shutil.which(PROGRAM, path=path):
        return [program]
    if getattr(importlib.util.find_spec("llama_cpp"), "origin", None):
        return [sys.executable, "-m", __name__]
    command = shlex.join([PROGRAM, f"{stem}-bf16.gguf", f"{stem}-{outtype}.gguf", outtype.upper()])
    raise UserError(
        f"--outtype {outtype}: llama.cpp's quantizer is not installed; get it with: {GET_QUANTIZER} (or put {PROGRAM} "
        f"on the PATH); or export with --outtype bf16, and where llama.cpp is installed run: {command}"
    )


def quantize(command: list[str], source: Path, target: Path, outtype: str) -> None:
    """Write `source`, whose weights are f32, f16 or bf16, to `target` as `outtype`, and compare both."""
    command = [*command, str(source), str(target), outtype.upper()]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode or not target.is_file():
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        reason = next((line for line in lines if "fail" in line), (lines or [f"exit code {done.returncode}"])[-1])
        raise UserError(f"--outtype {outtype}: llama.cpp's quantizer failed: {reason[:300]}")
    compare_tensors(source, target, outtype)


def compare_tensors(source: Path, target: Path, outtype: str) -> None:
    """Raise UserError unless `target` has the tensors of `source`, in types of `outtype` and as exact as these are."""
    problem, main = f"{target.name}: %s: nothing is left in --output_dir", MAIN_TYPES[outtype]
    try:
        before, after = _tensors(source), _tensors(target)
    except Exception as error:  # a damaged file can raise anything
        raise UserError(problem % f"it cannot be read back ({error})") from None
    if different := before.keys() ^ after.keys():
        name = min(different)
        raise UserError(problem % f"{name} is {'missing' if name in before else 'not in the model'}")
    pairs = [(before[name], after[name]) for name in before]
    largest = max(_compare(old, new, problem, outtype) for old, new in pairs)
    quantized = [new for old, new in pairs if new.tensor_type != old.tensor_type]
    if not quantized:
        raise UserError(problem % f"no tensor is {main}")
    say(
        f"weights compared with those of {source.name}\n"
        f"  largest error                 {largest:.2f} steps   (at most {MAX_STEPS})\n"
        f"  tensors                       {_counts(after.values())}"
    )
    if stand_ins := [tensor for tensor in quantized if tensor.shape[0] % 256]:
        say(f"  {main} needs rows of a multiple of 256 weights; others are {_counts(stand_ins)}")


def _compare(old: "ReaderTensor", new: "ReaderTensor", problem: str, outtype: str) -> float:
    """The largest error of a weight, in steps."""
    name, kind, width = old.name, new.tensor_type.name, int(old.shape[0])
    if new.shape.tolist() != old.shape.tolist():
        raise UserError(problem % f"{name} has the shape {new.shape.tolist()}, not {old.shape.tolist()}")
    if new.tensor_type == old.tensor_type:  # norms and what else is not quantized
        if not np.array_equal(new.data, old.data):
            raise UserError(problem % f"{name} is not the model's")
        return 0.0
    bits = (OTHER_BITS if width % 256 else K_BITS).get(kind, 0)
    if bits < K_BITS[MAIN_TYPES[outtype]]:
        raise UserError(problem % f"{name} is {kind}, which {outtype} does not have for rows of {width:,} weights")
    steps = _largest_error(old, new) * 2**bits / 2
    if not steps <= MAX_STEPS:
        raise UserError(problem % f"{name} is not the model's: a weight is {steps:.3g} steps of {kind} off")
    return steps


def _counts(tensors: Iterable["ReaderTensor"]) -> str:
    types = Counter(tensor.tensor_type.name for tensor in tensors)
    return ", ".join(f"{kind} {count}" for kind, count in types.most_common())


def _tensors(path: Path) -> dict[str, "ReaderTensor"]:
    from gguf import GGUFReader

    return {tensor.name: tensor for tensor in GGUFReader(path).tensors}


def _largest_error(old: "ReaderTensor", new: "ReaderTensor") -> float:
    """Of all weights, relative to the largest of the block in which `new` stores it; NaN where one is no number."""
    from gguf import GGML_QUANT_SIZES
    from gguf.quants import dequantize

    width = int(old.shape[0])
    block = width if new.tensor_type.name == "F16" else GGML_QUANT_SIZES[new.tensor_type][0]
    rows = [tensor.data.reshape(-1, tensor.data.shape[-1]) for tensor in (old, new)]
    largest, step = [], max(1, CHUNK // width)
    for start in range(0, len(rows[0]), step):
        one, other = (
            dequantize(data[start : start + step], tensor.tensor_type).reshape(-1, block)
            for data, tensor in zip(rows, (old, new), strict=True)
        )
        error = np.maximum(np.abs(one - other).max(axis=1) - SMALLEST, 0)
        largest.append((error / np.maximum(np.abs(one).max(axis=1), SMALLEST)).max())
    return float(np.max(largest))


def _main(source: str, target: str, name: str) -> None:
    import ctypes

    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    sys.exit(llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(settings)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
