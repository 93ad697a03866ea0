"""Variables of a chat template, such as ``enable_thinking``, as lines at its top.

There they are defaults of whoever renders the template: training, evaluation, and plain transformers or vLLM with the
saved tokenizer send the same prompts. A value that is given to `apply_chat_template` comes before them.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

from hf_recipes.core.arguments.command_line import nearest
from hf_recipes.core.arguments.settings import setting
from hf_recipes.core.bounds import TEMPLATE, bounded
from hf_recipes.core.errors import UserError, say
from hf_recipes.data.chat.templates.dates import today

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = files("hf_recipes.models") / "templates"  # the bundled ones
Thinking = Literal["on", "off", "keep"]
# What transformers gives to a template by itself.
RESERVED = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message")
_OPTION = re.compile(r"\{%- set (\w+) = \1 if \1 is defined else [^\n]* -?%\}\n")
_BLOCK = re.compile(r"\{[{%].*?[%}]\}", re.DOTALL)
_NAME = re.compile(r"(?<![\w.'\"<|/])\w*(?:think|reason)\w*(?![\w'\">|(])", re.IGNORECASE)
# How a template uses a number, such as a budget of tokens; NAME is the variable.
_NUMBER = r"\bNAME\s*(?:[<>]|[=!]?=\s*[-+]?\d|\|\s*(?:int|float|default\(\s*[-+]?\d))|\d\s*[<>]=?\s*NAME\b"
_OPPOSITE = re.compile(r"(?:^|_)(?:no|not|dis\w*|skip|without|hide)(?:_|$)")
_QUESTION = {"role": "user", "content": "PROBEquestion"}
_THOUGHTS = dict.fromkeys(("reasoning_content", "reasoning", "thinking"), "PROBEthoughts")


@dataclass
class TemplateChoice:
    """Which chat template, and its variables."""

    chat_template: str | None = setting("A bundled template (chatml, llama2, vicuna, …) or a jinja file.")
    chat_template_name: str | None = setting(
        "Which one, of a tokenizer with several; by default that named default, and tool_use for rows with tools."
    )
    chat_template_kwargs: str | None = setting(
        "Variables of the template as JSON, such as '{\"enable_thinking\": false}'; saved with it."
    )
    thinking: Thinking | None = setting(
        "Think or do not, by the variable that the template has for it; keep also shows the thoughts of earlier turns."
    )

    def template_settings(self) -> dict[str, Any]:
        """Keywords of `load_tokenizer`."""
        return {
            "chat_template": self.chat_template,
            "template_name": self.chat_template_name,
            "template_options": read_options(self.chat_template_kwargs),
            "thinking": self.thinking,
        }


@dataclass
class TemplateArguments(TemplateChoice):
    """The template of what is rendered, and the date that it prints."""

    chat_template_date: str | None = setting(
        "What a template prints as today's date, such as 2026-11-29; by default the day of the run's first start."
    )

    def keep_date(self, begun: str | None = None) -> None:
        """Print one date from now on: that of the flag, or `begun`, or today's."""
        self.chat_template_date = self.chat_template_date or begun or today()

    def template_settings(self) -> dict[str, Any]:
        return {**super().template_settings(), "date": self.chat_template_date}


def read_options(value: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """The variables of ``--chat_template_kwargs``."""
    flag = f"--chat_template_kwargs {value}"
    try:
        options = json.loads(value, parse_constant=_no_constant) if isinstance(value, str) else dict(value or {})
    except ValueError as error:
        raise UserError(f"{flag}: not JSON ({error})") from None
    if not isinstance(options, dict):
        raise UserError(f'{flag}: expected a JSON object, such as {{"enable_thinking": false}}')
    for name in options:
        if not name.isidentifier() or name in RESERVED:
            raise UserError(f"{flag}: {name} is no variable that can be set")
    return options


def check_options(template: str, options: Mapping[str, Any]) -> None:
    """Refuse options that have no effect, for the template has no such name anywhere."""
    names = set(re.findall(r"\b[A-Za-z_]\w*", " ".join(_BLOCK.findall(template))))
    for name in options.keys() - names:
        hint = nearest(name, names.difference(RESERVED))
        raise UserError(f"--chat_template_kwargs: {name}: the chat template has no such variable{hint}")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is none of its numbers")


def choose_template(tokenizer: "PreTrainedTokenizerBase", name: str | None, source: str) -> None:
    """Leave the tokenizer one template: the one called `name`, else ``default``, or ``tool_use`` where tools are given.

    That is how `apply_chat_template` chooses, of several.
    """
    templates = tokenizer.chat_template
    if not isinstance(templates, dict):
        if name is not None:
            raise UserError(f"--chat_template_name {name}: {source} has one chat template, without a name")
        return
    listed = ", ".join(sorted(templates))
    chosen = name or ("default" if "default" in templates else None)
    if chosen not in templates:
        raise UserError(f"--chat_template_name {chosen or ''}: {source} has the chat templates {listed}; name one")
    has_tools = name is None and "tool_use" in templates
    if name is None and len(templates) > 1:
        used = f"{chosen} is used" + (", for rows with tools tool_use" if has_tools else "")
        say(f"{source}: of the chat templates {listed} the one named {used} (--chat_template_name)")
    tokenizer.chat_template = templates[chosen]
    if has_tools:
        default, tool_use = (templates[one].removesuffix("\n") for one in (chosen, "tool_use"))
        # transformers' Jinja drops the line feed after a block.
        tokenizer.chat_template = f"{{% if tools is not none %}}\n{tool_use}{{% else %}}\n{default}{{% endif %}}"


def with_options(template: str, options: Mapping[str, Any]) -> str:
    """`template` with `options` as its defaults, in place of those of the same names that it had."""
    start = 0
    kept = []
    while line := _OPTION.match(template, start):
        start = line.end()
        kept += [line[0]] if line[1] not in options else []
    rest = template[start:]
    # White space at the beginning of a template is its own; transformers' Jinja drops the line feed after a block.
    end = "%}" if rest[:1].isspace() else "-%}"
    new = [
        f"{{%- set {name} = {name} if {name} is defined else {_literal(value)} {end}\n"
        for name, value in options.items()
    ]
    return "".join([*kept, *new]) + rest


def _literal(value: Any) -> str:
    """A value of JSON as Jinja writes it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def thinking_options(tokenizer: "PreTrainedTokenizerBase", thinking: Thinking) -> dict[str, Any]:
    """The variables by which the tokenizer's template does what ``--thinking`` asks, found by trying them."""
    options = _switch(tokenizer, thinking != "off")
    if thinking == "keep":
        options |= _keep(tokenizer, options)
    values = ", ".join(f"{name} {_literal(value)}" for name, value in options.items())
    say(
        f"--thinking {thinking}: "
        + (f"the chat template's {values}" if values else "no variable of the chat template is to be set")
    )
    return options


def thinking_templates(tokenizer: "PreTrainedTokenizerBase") -> dict[str, str]:
    """The tokenizer's template with its switch of thinking ``on`` and ``off``, the one that it has by default first.

    Empty where it has no switch.
    """
    templates = {
        name: with_options(tokenizer.chat_template, _switch(tokenizer, is_on))
        for name, is_on in (("on", True), ("off", False))
    }
    prompts = {name: _render(tokenizer, [_QUESTION], {"chat_template": text}) for name, text in templates.items()}
    if None in prompts.values() or prompts["on"] == prompts["off"]:
        return {}
    default = _render(tokenizer, [_QUESTION], {})
    return dict(sorted(templates.items(), key=lambda item: prompts[item[0]] != default))


def _variables(template: str) -> Iterator[tuple[str, list[Any]]]:
    """Names that may be switches of thinking, and the values that may be theirs; none of numbers."""
    for name in dict.fromkeys(_NAME.findall(template)):
        if re.search(_NUMBER.replace("NAME", name), template):
            continue
        texts = re.findall(rf"\b{name}\s*[!=]=\s*['\"](\w+)['\"]", template)
        yield name, [True, False, *dict.fromkeys(texts)]


def _render(tokenizer: "PreTrainedTokenizerBase", messages: list[dict], options: Mapping[str, Any]) -> str | None:
    try:
        with bounded(TEMPLATE):
            return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
    except UserError:
        raise
    except Exception:  # a template computes what it likes
        return None


def _states(tokenizer: "PreTrainedTokenizerBase", choices: list[dict[str, Any]]) -> list[tuple[int, str] | None]:
    """For each choice of options, how much a prompt asks to think, and the prompt; None where the template fails.

    That is 2 where the prompt opens thoughts, 0 where it closes them, else 1.
    """
    from hf_recipes.data.chat.templates.template import ChatTemplate  # loads transformers

    templates: list[ChatTemplate | None] = []
    for options in choices:
        try:
            templates.append(ChatTemplate(tokenizer, options))
        except UserError:
            templates.append(None)
    ends = tuple({template.marks.end for template in templates if template})

    def state(template: ChatTemplate) -> tuple[int, str]:
        prompt = template.prompt([_QUESTION])
        return (0 if prompt.rstrip().endswith(ends) else 2 if template.opens_thoughts([_QUESTION]) else 1), prompt

    return [template and state(template) for template in templates]


def _switch(tokenizer: "PreTrainedTokenizerBase", on: bool) -> dict[str, Any]:
    by_text: dict[str, Any] = {}
    for name, values in _variables(tokenizer.chat_template):
        *all_states, default = _states(tokenizer, [*({name: value} for value in values), {}])
        states = {value: state for value, state in zip(values, all_states, strict=True) if state}
        degrees = {degree for degree, _ in states.values()}
        if len(degrees) > 1:
            wanted = (max if on else min)(degrees)
            if len(values) > 2 and default and default[0] == wanted:
                return {}  # any of several degrees
            return {name: next(value for value, (degree, _) in states.items() if degree == wanted)}
        if {True, False} <= states.keys():
            true, false = states[True][1], states[False][1]
            is_printed = "True" in true and "True" not in false
            if true != false and not is_printed:
                by_text = by_text or {name: on is not bool(_OPPOSITE.search(name))}
    return by_text


def _keep(tokenizer: "PreTrainedTokenizerBase", options: Mapping[str, Any]) -> dict[str, Any]:
    answer = {"role": "assistant", "content": "PROBEanswer", **_THOUGHTS}
    inline = {"role": "assistant", "content": "<think>\nPROBEthoughts\n</think>\n\nPROBEanswer"}
    has_field = "PROBEthoughts" in (_render(tokenizer, [_QUESTION, answer], options) or "")
    chat = [_QUESTION, answer if has_field else inline, _QUESTION]

    def shows(more: Mapping[str, Any]) -> bool:
        return "PROBEthoughts" in (_render(tokenizer, chat, {**options, **more}) or "")

    if shows({}):
        say("--thinking keep: the chat template shows the thoughts of earlier turns anyway")
        return {}
    for name, values in _variables(tokenizer.chat_template):
        for value in values:
            if name not in options and shows({name: value}):
                return {name: value}
    say("--thinking keep: the chat template always leaves out the thoughts of earlier turns")
    return {}
