"""The tokenizer and its chat template."""

import os
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from hf_recipes.core.bounds import bounded
from hf_recipes.core.errors import UserError, say
from hf_recipes.data.chat.templates.dates import set_date
from hf_recipes.models.families.detect import refuse_unconverted
from hf_recipes.models.loading import loading_error
from hf_recipes.models.templates.options import (
    TEMPLATES,
    Thinking,
    check_options,
    choose_template,
    thinking_options,
    with_options,
)
from hf_recipes.models.tokenizers.special_tokens import read_special_tokens, set_end_token, set_pad_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ENDS = ("<|im_end|>", "<|endofchat|>")  # of turns, in bundled templates
# What a template writes literally and a tokenizer should know as one token.
_SPECIAL = re.compile(r"<\|[^|>\s']+\|>|\[gMASK\]|<sop>|<reserved_\d+>|<(?:start|end)_of_turn>")


def load_tokenizer(
    name: str,
    chat_template: str | None = None,
    *,
    template_name: str | None = None,
    template_options: Mapping[str, Any] | None = None,
    thinking: Thinking | None = None,
    date: str | None = None,
    special_tokens: str | None = None,
    eos_token: str | None = None,
    rows: int | None = None,
    ends: Collection[str] = (),
    needs_template: bool = True,
    or_plain: bool = False,
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> tuple["PreTrainedTokenizerBase", list[str]]:
    """A tokenizer that can render conversations and pad.

    Where the tokenizer puts a BOS before every text and the template does not, the template gets one, so that
    training and any later use of the saved tokenizer see exactly one.

    Args:
        chat_template: a bundled name (a file in `TEMPLATES`) or a path to a jinja file; None keeps the tokenizer's.
        template_name, template_options, thinking: see `TemplateChoice`; the template of the tokenizer, also of a
            saved one, has them at its top.
        date: see `set_date`.
        special_tokens: a file of tokens that the tokenizer gets; the template that it names is taken where no other is.
        eos_token: the end token, instead of the tokenizer's.
        rows, ends: see `set_pad_token`.
        needs_template: refuse a tokenizer without a template.
        or_plain: give a tokenizer without a template the bundled one of plain text.

    Returns:
        The tokenizer, and the special tokens that were added to it: those of the file and those of the template.
    """
    refuse_unconverted(name, trust_remote_code=trust_remote_code)
    try:
        from hf_recipes.models.families.tokenizers.sentencepiece_tokenizer import load

        tokenizer = load(name, trust_remote_code=trust_remote_code, **kwargs)
    except UserError:
        raise
    except Exception as error:  # its files can be wrong in any way
        raise loading_error(error, name) from None
    # Without vocabulary files, transformers makes an empty tokenizer of the model's class.
    if not set(tokenizer("a问", add_special_tokens=False)["input_ids"]) - {tokenizer.unk_token_id}:
        raise UserError(f"{name}: the tokenizer knows no text (its vocabulary files are missing); copy them there")
    set_date(tokenizer, date)
    added: list[str] = []
    if special_tokens is not None:
        special = read_special_tokens(special_tokens)
        added = special.add_to(tokenizer)
        chat_template = chat_template or special.chat_template
    if or_plain and chat_template is None and tokenizer.chat_template is None:
        chat_template = "plain"
        say(f"{name}: the tokenizer has no chat template; question and answer follow each other as plain text")
    if chat_template is None:
        choose_template(tokenizer, template_name, name)
    elif template_name is not None:
        raise UserError("--chat_template and --chat_template_name contradict each other; give one")
    if chat_template is not None:
        tokenizer.chat_template, written = _read_template(chat_template)
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in written if token not in vocabulary]
        tokenizer.add_special_tokens({"additional_special_tokens": missing}, replace_extra_special_tokens=False)
        added += missing
        end = next((token for token in _ENDS if token in written), None)
        if end and eos_token is None and tokenizer.eos_token != end:
            tokenizer.eos_token = end  # generation stops at the token that turns are trained to end with
            say(f"{name}: turns end with {end}; it becomes the tokenizer's eos token")
        if added:
            say(f"{name}: added the special tokens {' '.join(added)}; their embeddings are trained")
    elif tokenizer.chat_template is None and needs_template:
        raise UserError(
            f"{name}: the tokenizer has no chat template; choose one with --chat_template {' | '.join(_bundled())} "
            "or a jinja file"
        )
    if isinstance(tokenizer.chat_template, str):  # a file in the model's folder may have a byte order mark too
        tokenizer.chat_template = tokenizer.chat_template.removeprefix("\ufeff")
    if eos_token is not None:
        set_end_token(tokenizer, eos_token, name)
    elif tokenizer.eos_token is None and rows is not None:
        if needs_template and "eos_token" in tokenizer.chat_template:
            raise UserError(
                f"{name}: the tokenizer has no end token, and its chat template writes it; give --eos_token"
            )
        say(f"{name}: the tokenizer has no end token; --eos_token names one")
    if tokenizer.chat_template is None and (template_options or thinking):
        flag = f"--thinking {thinking}" if thinking else "--chat_template_kwargs"
        raise UserError(f"{flag}: {name} has no chat template; choose one with --chat_template")
    if template_options:
        check_options(tokenizer.chat_template, template_options)
    if thinking:
        template_options = thinking_options(tokenizer, thinking) | (template_options or {})
    if template_options:
        tokenizer.chat_template = with_options(tokenizer.chat_template, template_options)
    owner = f"{name}: its chat template" if chat_template is None else f"--chat_template {chat_template}: it"
    try:
        if tokenizer.chat_template is not None:
            with bounded(owner):
                tokenizer.apply_chat_template([{"role": "user", "content": "问"}], tokenize=False)
    except UserError:
        raise
    except Exception as error:  # a template can raise anything
        raise UserError(f"{owner} cannot render a question ({type(error).__name__}: {error})") from None
    set_pad_token(tokenizer, name, rows, ends)
    _ensure_one_bos(tokenizer)
    return tokenizer, added


def _bundled() -> list[str]:
    return sorted(path.name.removesuffix(".jinja") for path in TEMPLATES.iterdir() if path.name.endswith(".jinja"))


def _read_template(name: str) -> tuple[str, list[str]]:
    """The template's text and the special tokens that it writes."""
    if name in _bundled():
        text = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
        if name == "glm":  # built from the roles' names
            return text, ["[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"]
    elif os.path.isfile(name):
        try:
            with open(name, encoding="utf-8-sig") as file:
                text = file.read()
        except UnicodeDecodeError:
            raise UserError(f"--chat_template {name}: not UTF-8 text") from None
    else:
        raise UserError(f"--chat_template {name}: neither a file nor one of {', '.join(_bundled())}")
    return text, list(dict.fromkeys(_SPECIAL.findall(text)))


def _ensure_one_bos(tokenizer: "PreTrainedTokenizerBase") -> None:
    ids = tokenizer("a")["input_ids"]
    if tokenizer.chat_template is None or tokenizer.bos_token is None or not ids or ids[0] != tokenizer.bos_token_id:
        return
    if "bos_token" not in tokenizer.chat_template and tokenizer.bos_token not in tokenizer.chat_template:
        tokenizer.chat_template = "{{- bos_token }}" + tokenizer.chat_template
