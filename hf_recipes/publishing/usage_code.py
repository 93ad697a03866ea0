"""How a model is loaded and used: the Python in its card, before and after the model has a repository."""

import json
import re
from textwrap import indent
from typing import Literal

FOLDER = '"FOLDER"'  # where the model is, in a card that is not published yet
_CODE = re.compile(r"(```python\n)(.*?)(```)", re.DOTALL)
_BASE = re.compile(r'^base = ("[\w.-]+/[\w.-]+")', re.MULTILINE | re.ASCII)


def usage(
    *,
    base: str | None = None,
    does: Literal["answers", "continues", "scores"] = "answers",
    grows: bool = False,
    ends_with_eos: bool = False,
    system_prompt: str | None = None,
) -> str:
    """Python that loads the model in `FOLDER` as `model`, its tokenizer as `tokenizer`, and uses both once.

    Args:
        base: of an adapter; its name on a hub where it has one.
        does: answer a question, continue a text, or score an answer.
        grows: the adapter has tokens that its base may not have.
        ends_with_eos: answers end with the tokenizer's eos, of which the base may not know.
        system_prompt: that it was trained with.
    """
    kind = f"AutoModelFor{'SequenceClassification' if does == 'scores' else 'CausalLM'}"
    more = ', dtype="float32"' if does == "scores" else ""  # bfloat16 would round scores to eight bits
    lines = ["from peft import PeftModel"] if base else []
    lines += [f"from transformers import {kind}, AutoTokenizer\n"]
    if base:
        what = "" if "/" in base else "  # the base model: its folder, or its name on a hub"
        lines += [f"base = {_quoted(base)}{what}"]
    lines += [f"tokenizer = AutoTokenizer.from_pretrained({FOLDER})"]
    if base:
        more += ", num_labels=1, pad_token_id=tokenizer.pad_token_id" if does == "scores" else ""
        lines += [f"model = {kind}.from_pretrained(base{more})"]
        if grows:
            lines += ["if len(tokenizer) > model.get_input_embeddings().num_embeddings:"]
            lines += ["    model.resize_token_embeddings(len(tokenizer))"]
        lines += [f"model = PeftModel.from_pretrained(model, {FOLDER})\n"]
    else:
        lines += [f"model = {kind}.from_pretrained({FOLDER}{more})\n"]
    if does == "continues":
        lines += ['inputs = tokenizer("今天天气", return_tensors="pt").to(model.device)']
        lines += ["output = model.generate(**inputs, max_new_tokens=64)"]
        lines += ["print(tokenizer.decode(output[0], skip_special_tokens=True))"]
        return "\n".join(lines)
    turns = [("user", "你好"), *([("assistant", "你好，请问有什么可以帮你？")] if does == "scores" else [])]
    turns = [("system", system_prompt), *turns] if system_prompt else turns
    rows = "".join(f'{{"role": "{role}", "content": {_quoted(text)}}},\n' for role, text in turns)
    lines += ["messages = [", indent(rows, "    ") + "]"]
    asks = "" if does == "scores" else "    add_generation_prompt=True,\n"
    lines += ["inputs = tokenizer.apply_chat_template(", f"    messages,\n{asks}    return_dict=True,"]
    lines += ['    return_tensors="pt",', ").to(model.device)"]
    if does == "scores":
        return "\n".join([*lines, "print(model(**inputs).logits[0, 0].item())"])
    end = ", eos_token_id=tokenizer.eos_token_id" if ends_with_eos else ""
    lines += [f"output = model.generate(**inputs, max_new_tokens=256{end})"]
    lines += ['print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))']
    return "\n".join(lines)


def addressed(card: str, repo: str, target: str) -> str:
    """`card` with the repository for `FOLDER`: transformers and PEFT fetch from Hugging Face by themselves, from
    ModelScope its own client has to fetch model and base first."""
    if target == "modelscope":
        card = _CODE.sub(lambda code: f"{code[1]}{_fetching(code[2], repo)}{code[3]}", card)
    return card.replace(FOLDER, _quoted(repo))


def _fetching(code: str, repo: str) -> str:
    if FOLDER not in code:
        return code
    lines = _BASE.sub(r"base = snapshot_download(\1)", code).split("\n")
    first = next(number for number, line in enumerate(lines) if FOLDER in line or line.startswith("base = "))
    lines.insert(first, f"folder = snapshot_download({_quoted(repo)})")
    return "\n".join(["from modelscope import snapshot_download", *lines]).replace(FOLDER, "folder")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
