"""The prompts that are trained on, beside those that a server sends."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np

from hf_recipes.data.chat.encoder import ChatEncoder
from hf_recipes.data.chat.templates.rendered_text import common_length
from hf_recipes.evaluation.reports.phrases import Phrase
from hf_recipes.evaluation.reports.report import Table, visible
from hf_recipes.inspection.rows.base import Rows

ROWS = 200  # that are compared
SHOWN = 12  # tokens of a difference


def prompt_tables(rows: Rows, mask: Callable[[str], str] = str) -> list[Table]:
    """Whether the prompts of the first rows that are trained on whole are those that are served; one of them as text.

    They are compared with `ChatEncoder.served_prompt`, and with `apply_chat_template` of the tokenizer as saved.
    """
    prompts = list(islice(rows.trained_prompts(), ROWS))
    if not prompts:
        return []
    encoder = rows.chat_encoder
    served_by: dict[str, Callable[[list, Any], Sequence[int]]] = {
        "served_prompt": encoder.served_prompt,
        "apply_chat_template": lambda messages, tools: encoder.tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, return_dict=False
        ),
    }
    verdicts = {name: [0, "–"] for name in served_by}
    texts = {}
    for prompt in prompts:
        trained = list(prompt.ids)
        texts.setdefault("trained", encoder.tokenizer.decode(trained))
        for name, serve in served_by.items():
            try:
                served = np.asarray(serve(prompt.messages, prompt.tools)).tolist()
            except Exception as error:  # a template computes what it likes
                served, problem = None, " ".join(f"{type(error).__name__}: {error}".split())[:200]
            texts.setdefault(name, problem if served is None else encoder.tokenizer.decode(served))
            if served == trained:
                verdicts[name][0] += 1
            elif verdicts[name][1] == "–":
                what = problem if served is None else difference(encoder, trained, served)
                verdicts[name][1] = f"{prompt.location}: {mask(what)}"
    compared = [
        [
            name,
            Phrase("equal" if equal == len(prompts) else "different"),
            Phrase("{equal:,} of {all:,}", equal=equal, all=len(prompts)),
            first,
        ]
        for name, (equal, first) in verdicts.items()
    ]
    same: dict[str, list[str]] = {}
    for name, text in texts.items():
        same.setdefault(visible(mask(text)), []).append(name)
    shown = [[", ".join(names), text] for text, names in same.items()]
    table = Table("Prompts, trained and served", ["served by", "verdict", "equal", "first difference"], compared)
    table.note = Phrase("Of the first {count:,} rows that are not cut.", count=len(prompts))
    table.findings = [
        Phrase("prompts of {server} differ from the trained ones", server=name)
        for name, verdict, *_ in compared
        if verdict == "different"
    ]
    return [table, Table("The first of these prompts", ["by", "text"], shown)]


def difference(encoder: ChatEncoder, trained: Sequence[int], served: Sequence[int]) -> str:
    """The first tokens in which two prompts differ."""
    first = common_length(trained, served)
    texts = [encoder.tokenizer.decode(ids[first : first + SHOWN]) for ids in (trained, served)]
    return f"from token {first + 1:,} on trained {texts[0]!r}, served {texts[1]!r}"
