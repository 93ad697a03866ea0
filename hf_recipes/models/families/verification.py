"""An older checkpoint by its own code against what it was converted to: logits and greedy tokens, in float32."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hf_recipes.core.errors import UserError, say
from hf_recipes.models.families.layouts import Family
from hf_recipes.models.families.remote_code import original_class

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXTS = (
    "今天天气很好，我们去公园散步。",
    "The capital of France is",
    "def add(a, b):\n    return a + b  # 两数之和\n",
    "  12.5% 的 people 😀\t说：“好”",
)
CONTINUED = 8  # greedy tokens of each
# Of the largest logit. Another order of summation changes logits by 16 eps of float32 at the most; a head that was
# normalized and rounded to 16 bits by 1.2 eps of these.
SUMMING, ROUNDING = 256 * torch.finfo(torch.float32).eps, 4
Outputs = list[tuple[list[int], torch.Tensor]]  # the ids of each text with its continuation, and their logits (T, V)


def original_outputs(source: Path, tokenizer: "PreTrainedTokenizerBase") -> Outputs:
    """What the checkpoint's own code computes and continues `TEXTS` with.

    Raises:
        UserError: it does not run on this transformers.
    """
    rows = [tokenizer(text)["input_ids"] for text in TEXTS]
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=True)
        kind = original_class(config, str(source))
        model, report = kind.from_pretrained(source, config=config, dtype=torch.float32, output_loading_info=True)
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"its files lack {missing[0]}")
        model.eval()
        return [(ids, _logits(model, ids)) for ids in (_continued(model, row) for row in rows)]
    except UserError:
        raise
    except Exception as error:  # that code can raise anything
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"--verify: the code of {source} does not run on transformers {version('transformers')} ({why}), so that "
            "there is nothing to compare with; without --verify the proof are this package's tests, which compare each "
            "family with its published architecture in plain torch"
        ) from None


def compare(family: Family, converted: Path, expected: Outputs) -> None:
    """Compare the logits of the converted model with the original's, and say how far they are from each other."""
    model = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32).eval()
    stored = getattr(torch, str(AutoConfig.from_pretrained(converted).dtype).removeprefix("torch."))
    difference, largest, alike, count = 0.0, 1.0, 0, 0
    for ids, logits in expected:
        ours = _logits(model, ids)
        difference = max(difference, float((ours - logits).abs().nan_to_num(float("inf")).max()))
        largest = max(largest, float(logits.abs().max()))
        alike += int((ours.argmax(-1) == logits.argmax(-1)).sum())
        count += len(ids)
    rounded = family.normalized_head and stored != torch.float32
    tolerance = largest * (ROUNDING * torch.finfo(stored).eps if rounded else SUMMING)
    result = f"the largest difference of logits is {difference:.3g} (at most {tolerance:.3g})"
    if not difference <= tolerance:
        raise UserError(
            f"--verify: the converted model is another one than the original by its own code: {result}, and {alike} of "
            f"{count} greedy tokens are alike; nothing is left of it"
        )
    say(f"verified against the original's own code, in float32: {result}, {alike} of {count} greedy tokens are alike")


def _continued(model: PreTrainedModel, ids: Sequence[int]) -> list[int]:
    ids = list(ids)
    for _ in range(CONTINUED):
        ids.append(int(_logits(model, ids)[-1].argmax()))
    return ids


@torch.no_grad()
def _logits(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    return model(torch.tensor([ids]), use_cache=False).logits[0].float()
