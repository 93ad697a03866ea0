"""Ollama's Modelfile: a Go template that renders as the tokenizer's Jinja template does, stop texts and parameters.

The Jinja template is not parsed: it renders conversations with marks as contents, and the text between the marks is the
prefix and suffix of each role. The Go template of these is rendered and compared with the Jinja template. The variables
that Ollama has for templates are in https://github.com/ollama/ollama/blob/main/docs/template.mdx.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from hf_recipes.core.bounds import TEMPLATE, bounded
from hf_recipes.core.errors import UserError, say

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, str]]
MARK = re.compile(r"⟦\d⟧")
ROLES = ("system", "user", "assistant")
# transformers' name → Ollama's, https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx
PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
    "max_new_tokens": "num_predict",
}


@dataclass(frozen=True)
class Turns:
    """The texts of a template around the contents.

    Attributes:
        start: before everything, where no system message is first.
        before, after: prefix and suffix of each role's content.
        end: after the last turn, where the model continues.
    """

    start: str
    before: dict[str, str]
    after: dict[str, str]
    end: str
    default_system: str | None = None

    def template(self) -> str:
        """As a Go template."""
        roles = [
            f'eq .Role "{role}" }}}}{_literal(self.before[role])}{{{{ .Content }}}}{_literal(self.after[role])}'
            for role in ROLES
            if role in self.before
        ]
        start = f"{{{{ if not .System }}}}{_literal(self.start)}{{{{ end }}}}" if self.start else ""
        loop = "{{ range .Messages }}{{ if " + "{{ else if ".join(roles) + "{{ end }}{{ end }}"
        return start + loop + _literal(self.end)


def read_turns(tokenizer: "PreTrainedTokenizerBase") -> Turns:
    """The texts of a tokenizer's chat template, without the BOS at the beginning that llama.cpp adds to every text.

    A template that does more than put a prefix and a suffix around each role's content is refused.
    """
    if tokenizer.chat_template is None:
        raise UserError(
            "--format ollama: the tokenizer has no chat template; --format gguf writes the model without one, for text "
            "that is continued"
        )
    plain = _split_at_marks(tokenizer, ["user", "assistant", "user"])
    if plain is None:
        raise _not_translated("it does not render a question, an answer and another question in turn")
    start, between, again, end = plain
    full = _split_at_marks(tokenizer, ["system", "user", "assistant", "user"])
    # The prefix of every question, whatever precedes it.
    before_questions = [start, again] + ([full[1]] if full else [])
    question = _common_start([text[::-1] for text in before_questions])[::-1]
    if tokenizer.eos_token and (turn_end := re.match(rf"{re.escape(tokenizer.eos_token)}\s*", question)):
        question = question[turn_end.end() :]  # which belongs to the turn before
    question_end = _common_start([between, end])
    before = {"user": question, "assistant": between[len(question_end) :]}
    after = {"user": question_end, "assistant": again[: len(again) - len(question)]}
    start, default = start[: len(start) - len(question)], None
    if full:
        before["system"], after["system"] = full[0], full[1][: len(full[1]) - len(question)]
        prefix, suffix = before["system"], after["system"]
        if start.startswith(prefix) and start.endswith(suffix) and len(start) > len(prefix) + len(suffix):
            default = start[len(prefix) : len(start) - len(suffix)]
    else:
        say("the chat template has no form for system messages; in Ollama they are ignored")
    turns = Turns(start, before, after, end[len(question_end) :], default)
    _check(turns, tokenizer)
    return turns


def _common_start(texts: Sequence[str]) -> str:
    same = takewhile(lambda column: len(set(column)) == 1, zip(*texts, strict=False))
    return "".join(column[0] for column in same)


def _split_at_marks(tokenizer: "PreTrainedTokenizerBase", roles: Sequence[str]) -> list[str] | None:
    """The text before, between and after the contents of a conversation; None unless each content occurs once."""
    marks = [f"⟦{index}⟧" for index in range(len(roles))]
    chat = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    text = _render_jinja(tokenizer, chat)
    if text is None or MARK.findall(text) != marks:
        return None
    return MARK.split(text)


def _render_jinja(tokenizer: "PreTrainedTokenizerBase", chat: Messages) -> str | None:
    try:
        with bounded(TEMPLATE):
            text = tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=True)
    except UserError:
        raise
    except Exception:  # a template can raise anything for a role that it does not have
        return None
    ids = tokenizer("a")["input_ids"]
    if tokenizer.bos_token and ids and ids[0] == tokenizer.bos_token_id:
        text = text.removeprefix(tokenizer.bos_token)
    return text


def _check(turns: Turns, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Compare both templates on some conversations."""
    template = turns.template()
    user, answer, system = "你好，\n请问 1+1=?", "等于2。\n\n再见", "你是助手。"
    chats = [["user"], ["user", "assistant", "user"], ["user", "assistant", "user", "assistant", "user"]]
    chats += [["system", *roles] for roles in chats] if "system" in turns.before else []
    contents = {"user": user, "assistant": answer, "system": system}
    for roles in chats:
        chat = [{"role": role, "content": contents[role]} for role in roles]
        if render(template, chat) != _render_jinja(tokenizer, chat):
            raise _not_translated(f"it writes a conversation of {', '.join(roles)} in another way")


def _not_translated(why: str) -> UserError:
    return UserError(
        f"--format ollama: the chat template cannot be written as Ollama's: {why}. --format gguf keeps the template as "
        "it is, for llama.cpp's server (llama-server --jinja); or write a Modelfile by hand"
    )


def render(template: str, messages: Messages) -> str:
    """A Go template of `Turns`, rendered as by Ollama: ``range``, ``if``, ``else if``, ``.Content`` and strings."""
    has_system = any(message["role"] == "system" for message in messages)
    parts = re.split(r'\{\{ ("(?:[^"\\]|\\.)*"|.*?) \}\}', template)
    loop, close = parts.index("range .Messages"), len(parts) - 2 - parts[::-1][1::2].index("end") * 2

    def run(section: Sequence[str], message: Mapping[str, str] | None) -> str:
        text, is_active, is_decided = "", True, False
        for index, part in enumerate(section):
            if index % 2 == 0:
                text += part if is_active else ""
            elif test := re.fullmatch(r'(?:else )?if (?:eq \.Role "(\w+)"|not \.System)', part):
                matches = not has_system if message is None else message["role"] == test[1]
                is_active, is_decided = matches and not is_decided, is_decided or matches
            elif part == "end":
                is_active, is_decided = True, False
            elif is_active:
                text += message["content"] if part == ".Content" and message else json.loads(part)
        return text

    body = [run(parts[loop + 1 : close], message) for message in messages]
    return run(parts[:loop], None) + "".join(body) + run(parts[close + 1 :], None)


def _literal(text: str) -> str:
    """The text itself, or a Go string where it would be read as an action or as the end of the template."""
    if "{{" in text or "}}" in text or '"""' in text or text.startswith("}") or text.endswith(("{", '"')):
        return "{{ " + json.dumps(text, ensure_ascii=False) + " }}"
    return text


def stop_texts(turns: Turns, tokenizer: "PreTrainedTokenizerBase", generation: "GenerationConfig") -> list[str]:
    """The model's stop tokens and the token with which the template ends an answer, or where that is no token, the
    prefix of a question."""
    ids = generation.eos_token_id
    ids = ids if isinstance(ids, list) else [ids]
    stops = [tokenizer.convert_ids_to_tokens(i) for i in (*ids, tokenizer.eos_token_id) if i is not None]
    special = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    after = turns.after["assistant"]
    ends = sorted((token for token in special if token in after), key=after.index)
    stops += ends[:1] or [turns.before["user"].strip()]
    return list(dict.fromkeys(filter(None, stops)))


def modelfile(gguf_name: str, turns: Turns, stops: Sequence[str], generation: "GenerationConfig") -> str:
    lines = [f"FROM ./{gguf_name}", f'TEMPLATE """{turns.template()}"""']
    if turns.default_system:
        system = _quoted(turns.default_system, '"""{}"""', "{}")
        if system is None:
            say("the default system message cannot be quoted in a Modelfile; the template writes it, without SYSTEM")
        else:
            lines.append(f"SYSTEM {system}")
    for stop in stops:
        quoted = _quoted(stop, '"{}"', '"""{}"""', "{}")
        if quoted is None:
            raise UserError(
                f"--format ollama: the stop text {stop!r} cannot be quoted in a Modelfile; --format gguf writes the "
                "model without one"
            )
        lines.append(f"PARAMETER stop {quoted}")
    values: dict[str, Any] = {ours: getattr(generation, name, None) for name, ours in PARAMETERS.items()}
    if generation.do_sample is False:
        values |= {"temperature": 0, "top_p": None, "top_k": None, "min_p": None}
    lines += [
        f"PARAMETER {name} {value:g}" if isinstance(value, float) else f"PARAMETER {name} {value}"
        for name, value in values.items()
        if value is not None
    ]
    return "\n".join(lines) + "\n"


def _quoted(text: str, *forms: str) -> str | None:
    """`text` in the first of `forms` from which Ollama reads it unchanged, or None.

    A Modelfile has no escapes. A value ends with its line or, where it begins with one or three quotes, at the same
    quotes; see https://github.com/ollama/ollama/blob/main/parser/parser.go. Without quotes, spaces around it are lost.
    """
    for form in forms:
        quote = form.partition("{}")[0]
        if quote:
            is_safe = quote not in text and not text.startswith('"') and not text.endswith('"')
        else:
            is_safe = text == text.strip() and not re.search(r"[\r\n]", text) and not text.startswith('"')
        if is_safe:
            return form.format(text)
    return None
