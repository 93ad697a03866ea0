"""How a chat template writes thoughts, inferred from what it renders."""

import re
from dataclasses import dataclass

from hf_recipes.data.chat.templates.message_form import shows_list
from hf_recipes.data.chat.templates.rendered_text import common_length
from hf_recipes.data.chat.templates.rendering import Renderer
from hf_recipes.data.conversations.conversation import Message
from hf_recipes.data.conversations.thought_columns import THOUGHTS_KEYS
from hf_recipes.data.conversations.thoughts import TAGS, ThoughtMarks

QUESTION = {"role": "user", "content": "PROBEquestion"}
ANSWER = {"role": "assistant", "content": "PROBEanswer"}
NEXT = {"role": "user", "content": "PROBEnext"}
THOUGHTS = "PROBEthoughts"
# What may be a mark in the source of a template: a text in quotes, or in brackets of any kind.
_QUOTED = re.compile(r"'([^'\n]{2,40})'|\"([^\"\n]{2,40})\"")
_BRACKETED = re.compile(r"[<\[【◁][^<>\[\]【】◁▷\s'\"{}]{1,40}[>\]】▷]")
_WORD = re.compile(r"[^\W\d_]+")
_SIDES = {"begin": 0, "start": 0, "open": 0, "of": None, "end": 1, "stop": 1, "close": 1}


@dataclass(frozen=True)
class ThoughtStyle:
    """What stands around thoughts.

    Attributes:
        field: where the template looks for them, as `MessageForm.thoughts`.
        around: of thoughts in the content, what is before and after them.
        close: what closes thoughts before an answer, with the white space of the template.
        opens: whether a prompt opens thoughts.
    """

    marks: ThoughtMarks = TAGS
    field: str | None = None
    around: tuple[str, str] = ("<think>\n", "\n</think>\n\n")
    close: str = ""
    opens: bool = False


@dataclass(frozen=True)
class PlainTurn:
    """A question and an answer without thoughts: the prompt, and the rendering with the answer."""

    prompt: str
    whole: str

    @property
    def start(self) -> int:
        """Where in `whole` begins what the model writes."""
        return _common_marks(self.prompt, self.whole)

    @property
    def prefix(self) -> str:
        """What the model writes before the answer."""
        return "" if self.is_asked_for else self.before[self.start :]

    @property
    def added(self) -> str:
        """What a prompt has beyond the rendering with the answer."""
        return "" if self.is_asked_for else self.prompt[self.start :].strip()

    @property
    def before(self) -> str:
        return self.whole.partition(ANSWER["content"])[0]

    @property
    def is_asked_for(self) -> bool:
        """Whether the prompt ends with what stands between question and answer, however it ends the question."""
        between = _tight(self.before.rpartition(QUESTION["content"])[2])
        return bool(between) and _tight(self.prompt).endswith(between)

    @property
    def suffix(self) -> str:
        return self.whole.partition(ANSWER["content"])[2]

    @property
    def generation(self) -> str:
        """What asks for an answer after the question."""
        return self.prompt.rpartition(QUESTION["content"])[2]


def infer_thoughts(render: Renderer, plain: PlainTurn) -> ThoughtStyle:
    """The style of thoughts of a template, of which `plain` is the rendering without any."""
    chat: list[Message] = [QUESTION, {**ANSWER, "reasoning_content": THOUGHTS}]
    for name in (*THOUGHTS_KEYS, "parts"):
        if _shows(text := render.tried(chat, thoughts=name)):
            return _style(plain, text, name)
    opening, end = _opening_without_thoughts(render, plain)
    if opening:
        close = f"\n{end}\n\n" if plain.prompt.endswith("\n") else end
        marks = ThoughtMarks(opening, end, close.rstrip(), expected=True)
        for around in ((plain.prompt[plain.prompt.rindex(opening) :], close), ("", close)):
            text = render.tried(chat, thoughts="inline", around=around)
            if _shows(text) and _tight(text.partition(THOUGHTS)[0]) == _tight(plain.prompt):
                return ThoughtStyle(marks, "inline", around, close, opens=True)
        return ThoughtStyle(marks, close=close, opens=True)
    if not plain.prefix.strip() and _shows(text := render.tried(chat, thoughts="inline")):
        return _style(plain, text, "inline")
    return ThoughtStyle()


def _shows(text: str | None) -> bool:
    """Whether a rendering shows thoughts and answer once."""
    return text is not None and text.count(THOUGHTS) == text.count(ANSWER["content"]) == 1 and not shows_list(text)


def _style(plain: PlainTurn, text: str, field: str) -> ThoughtStyle:
    """The style by `text`, the rendering of the same turn with thoughts."""
    before, _, after = text.partition(THOUGHTS)
    close = after.partition(ANSWER["content"])[0]
    end = close.strip()
    if not end:
        return ThoughtStyle(field=field, close=close)
    direct, added = plain.prefix.strip(), plain.added
    opening = _opening_of(plain, end) if _tight(before) == _tight(plain.prompt) else ""
    if end not in added and plain.prompt.startswith(before.rstrip()):
        opening = opening or added  # words for which a rendering has thoughts alone
    is_open = bool(opening)
    if not opening:
        parting = common_length(plain.before, before) if plain.is_asked_for else _common_marks(plain.prompt, before)
        opening = before[parting:].strip()
        if plain.prompt[parting:].lstrip().startswith(end):  # the prompt closes thoughts at once
            opening = before[max((mark.start() for mark in _BRACKETED.finditer(before)), default=parting) :].strip()
        opening = opening or TAGS.start
    expected = is_open or bool(direct)
    marks = ThoughtMarks(opening, end, close.rstrip(), "" if end in direct else direct, expected)
    return ThoughtStyle(marks, field, close=close, opens=is_open)


def _opening_of(plain: PlainTurn, end: str) -> str:
    """What opens, at the end of the prompt, the thoughts that `end` closes; empty where the answer may begin there."""
    mirrored = end.replace("/", "", 1)
    if mirrored != end and plain.prompt.rstrip().endswith(mirrored):
        return mirrored
    return plain.prompt[plain.start :].strip() or (plain.generation.strip() if end in plain.prefix else "")


def _opening_without_thoughts(render: Renderer, plain: PlainTurn) -> tuple[str, str]:
    """What opens thoughts at the end of the prompt, and what closes them, in a template that shows none.

    They are named alike (``[THINK]`` and ``[/THINK]``), or the template cuts contents at what closes them.
    """
    source = str(render.tokenizer.chat_template)
    marks = _marks(source, render)
    prompt, added = plain.prompt.rstrip(), plain.added
    chat = render.tried([QUESTION, ANSWER, NEXT]) or ""
    after = plain.suffix + chat.partition(ANSWER["content"])[2].partition(NEXT["content"])[0]
    for opening in sorted(filter(prompt.endswith, marks), key=len, reverse=True):
        if opening.strip() != opening or opening not in plain.generation:
            continue
        for end in marks:
            if _closes(end, opening) and end not in after:
                return opening, end
    if added and added not in plain.prefix:
        for end in filter(source.__contains__, marks):
            answer = {**ANSWER, "content": f"{THOUGHTS}{end}{ANSWER['content']}"}
            text = render.tried([QUESTION, answer])
            is_cut = text and ANSWER["content"] in text and THOUGHTS not in text
            if is_cut and _tight(end) not in _tight(after + added):
                return added, end
    return "", ""


def _marks(source: str, render: Renderer) -> list[str]:
    """What may be marks: texts in the source of a template, and added tokens."""
    quoted = [one or other for one, other in _QUOTED.findall(source)]
    added = [str(token) for token in render.tokenizer.added_tokens_decoder.values()]
    return list(dict.fromkeys(mark.strip() for mark in (*_BRACKETED.findall(source), *quoted, *added) if mark.strip()))


def _closes(end: str, opening: str) -> bool:
    """Whether two marks have the same words, and one of them the sign or a word of an end."""
    one, other = _words(opening), _words(end)
    return one[1] == other[1] != [] and (other[0] or "/" in end) and not (one[0] or "/" in opening)


def _words(mark: str) -> tuple[bool, list[str]]:
    """Whether a mark names an end, and its other words."""
    words = _WORD.findall(mark.replace("_", " ").lower())
    return any(_SIDES.get(word) == 1 for word in words), [word for word in words if word not in _SIDES]


def _common_marks(one: str, other: str) -> int:
    """How many characters of two texts are alike, without a mark that they have only begun alike."""
    length = common_length(one, other)
    marks = [*_BRACKETED.finditer(one), *_BRACKETED.finditer(other)]
    return min((mark.start() for mark in marks if mark.start() < length < mark.end()), default=length)


def _tight(text: str) -> str:
    return "".join(text.split())
