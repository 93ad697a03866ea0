"""How a chat template lays out a conversation: where each turn is in the text, and what of it the model must write.

A second rendering, with marks around the contents, shows where the template put them and what it left out.
"""

import contextlib
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import shown, with_detail
from hf_recipes.data.schemas.conversation import Message

# Unicode noncharacters, which no text holds: around the content of an assistant's turn, around that of any other turn,
# and at the start of reasoning content.
ANSWER_START, ANSWER_END, OTHER_START, OTHER_END, REASONING = MARKS = "\ufdd0\ufdd1\ufdd2\ufdd3\ufdd4"
_MARK = re.compile(f"([{MARKS}])")
THOUGHTS_LEFT_OUT = "the template leaves out the thoughts of earlier turns"


@dataclass
class Turn:
    """Where one turn is in the rendered text; [start, end) is its content, in characters, without thoughts."""

    is_assistant: bool
    start: int
    end: int
    is_labelled: bool = True


@dataclass
class Rendered:
    """A conversation as text. `answers` are what the model must write: [start, end) of each assistant turn.

    A conversation that ends with a question is rendered up to where the answer begins.
    """

    text: str
    turns: list[Turn] = field(default_factory=list)
    answers: list[tuple[int, int]] = field(default_factory=list)
    note: str | None = None
    problem: str | None = None

    @property
    def labelled(self) -> list[tuple[int, int]]:
        """The answers that carry loss: all but those with the key ``"weight": 0``."""
        turns = (turn for turn in self.turns if turn.is_assistant)
        return [answer for answer, turn in zip(self.answers, turns, strict=True) if turn.is_labelled]


class ChatTemplate:
    """A tokenizer's chat template, with what it shows of two short conversations.

    Attributes:
        generation_prompt: what comes before an answer in training as at generation; empty where the template has none.
        answer_prefix: without a generation prompt, what the template puts before an answer; the model has to write it.
        end_of_turn: the one token that is trained on as the end of an answer. Where the template ends the last answer
            with none, it is the special token that begins the next turn (GLM's ``<|user|>``), else the tokenizer's
            eos; it is then inserted after every answer that it does not follow yet.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.generation_prompt = self.answer_prefix = self.end_of_turn = ""
        self._end = re.compile(r"\s*")
        self._suffix: re.Pattern | None = None  # up to where an end of turn is inserted, if the template has none
        self._opening: str | None = None  # of an answer in training, where it is not that of generation
        exchange = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]
        try:
            bare = self._apply(exchange[:1])
            prompt = self._apply(exchange[:1], add_generation_prompt=True)
        except Exception as error:  # a template computes what it likes
            raise UserError(f"the chat template cannot render a question: {_message(error)}") from None
        self.generation_prompt = prompt[len(bare) :] if prompt.startswith(bare) else ""
        rendered = self.render(exchange)
        if rendered.problem:
            raise UserError(f"the chat template cannot be used for training: {shown(rendered.problem)}")
        text, (question, answer) = rendered.text, rendered.turns
        if text.startswith(prompt):
            self.answer_prefix = text[len(prompt) : answer.start]
        trained = text[: self._start_of(text, question.end, answer, exchange[1])]
        if trained != prompt and trained.startswith(bare):
            self._opening = trained[len(bare) :]
        following = self._special_after(text, answer.end)
        if following is None:
            following = self._opener_of_turns(exchange) or tokenizer.eos_token
            self._suffix = re.compile(r"\s*?" + re.escape(text[answer.end :]))
        if following is None:
            raise UserError("neither the chat template nor the tokenizer has a token that ends a turn (eos_token)")
        self.end_of_turn = following
        self._end = re.compile(r"\s*" + re.escape(following))

    def _special_after(self, text: str, position: int) -> str | None:
        """The special token that follows `position` in `text`, with nothing but white space between."""
        tokens = {*self.tokenizer.all_special_tokens, *map(str, self.tokenizer.added_tokens_decoder.values())}
        rest = text[position:].lstrip()
        return max((token for token in tokens if token.strip() and rest.startswith(token)), key=len, default=None)

    def _opener_of_turns(self, exchange: list[Message]) -> str | None:
        twice = self.render(exchange * 2)
        if twice.problem:
            return None
        token = self._special_after(twice.text, twice.turns[1].end)
        return None if token == self.tokenizer.bos_token else token

    def _apply(self, conversation: list, tools: list | None = None, add_generation_prompt: bool = False):
        """The rendered text of one conversation, or the texts of a list of them."""
        return self.tokenizer.apply_chat_template(
            conversation, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    def render(self, messages: list[Message], tools: list | None = None) -> Rendered:
        return self.render_all([messages], [tools])[0]

    def render_all(self, conversations: list[list[Message]], tools: Sequence[list | None]) -> list[Rendered]:
        """Render each conversation; one that the template cannot show comes back with its `problem`."""
        marked = [[_mark(message) for message in messages] for messages in conversations]
        prompts = [self._opening is None and not has_answer(messages) for messages in conversations]
        if not any(tools) and len(set(prompts)) == 1:
            with contextlib.suppress(Exception):  # a row is refused: rendering one by one shows which
                texts, marked_texts = (self._apply(rows, None, prompts[0]) for rows in (conversations, marked))
                return [self._locate(*row) for row in zip(texts, marked_texts, conversations, strict=True)]
        rendered = []
        for messages, marked_messages, row_tools, is_prompt in zip(conversations, marked, tools, prompts, strict=True):
            try:
                text = self._apply(messages, row_tools, is_prompt)
                marked_text = self._apply(marked_messages, row_tools, is_prompt)
                shows_tools = not row_tools or text != self._apply(messages, None, is_prompt)
            except Exception as error:  # a template computes what it likes
                rendered.append(Rendered("", problem=with_detail("the chat template refuses it", _message(error))))
                continue
            row = self._locate(text, marked_text, messages)
            if not shows_tools:
                row.problem = "the chat template has no place for tools (--chat_template chatml has)"
            rendered.append(row)
        return rendered

    def _locate(self, text: str, marked: str, messages: list[Message]) -> Rendered:
        """Read the marks: where each turn's content is in `text`, and which answer begins and ends where."""
        if _MARK.sub("", marked) != text:
            return Rendered(text, problem="the chat template changes a turn's text")
        turns, shows_thoughts = _read_marks(marked)
        expected = [message["role"] == "assistant" for message in messages]
        if [turn.is_assistant for turn in turns] != expected or any(t.start < 0 and not t.is_assistant for t in turns):
            roles = ", ".join(sorted({message["role"] for message in messages}))
            detail = f"{len(turns)} of {len(messages)}: {roles}"
            return Rendered(text, problem=with_detail("the chat template does not show every turn", detail))
        left_out = [
            turn.start < 0 or (_has_thoughts(message) and not is_shown)
            for turn, message, is_shown in zip(turns, messages, shows_thoughts, strict=True)
        ]
        if left_out[-1]:
            reason = "the chat template leaves out the thoughts of the last answer (--chat_template chatml shows them)"
            return Rendered(text, problem=reason)
        row = Rendered(text, turns, note=THOUGHTS_LEFT_OUT if any(left_out) else None)
        before = 0
        for turn, message, following in zip(turns, messages, [*turns[1:], None], strict=True):
            if turn.is_assistant:
                turn.is_labelled = message.get("weight") != 0
                start = self._start_of(text, before, turn, message)
                end = self._end_of(text, turn, following, bool(message.get("tool_calls")))
                if start < 0 or end < 0:
                    what = "start of an answer" if start < 0 else "end of a tool call"
                    return Rendered(text, problem=f"the {what} is not to be found in the rendered text")
                row.answers.append((start, end))
            before = turn.end
        if self._suffix is not None:
            row = self._insert_ends_of_turns(row)
        if self._opening and not has_answer(messages):
            row.text += self._opening
        return row

    def _start_of(self, text: str, before: int, turn: Turn, message: Message) -> int:
        """Where the model begins to write this turn, or -1; `before` is where the turn before it ends."""
        opened = text.find(self.generation_prompt, before, turn.end) if self.generation_prompt else -1
        if opened >= 0:
            return opened + len(self.generation_prompt)
        if message.get("tool_calls") or turn.start < 0:
            return -1
        content, start = message["content"], turn.start
        thoughts = content[: len(content) - len(content.rpartition("</think>")[2].lstrip())]
        for prefix in (thoughts, thoughts.lstrip()):
            if text.endswith(prefix, before, start):
                start -= len(prefix)
                break
        return start - len(self.answer_prefix) if text.endswith(self.answer_prefix, before, start) else start

    def _end_of(self, text: str, turn: Turn, following: Turn | None, is_call: bool) -> int:
        """Where the model has written this turn and the token that ends it, or -1."""
        limit = len(text) if following is None else max(following.start, turn.end)
        if is_call:  # the mark is inside the call
            position = text.find(self.end_of_turn, turn.end, limit)
            if position < 0 or not self.end_of_turn:
                return limit if following is None else -1
            return position + len(self.end_of_turn)
        end = self._end.match(text, turn.end, limit) or (self._suffix and self._suffix.match(text, turn.end, limit))
        return end.end() if end else turn.end

    def _insert_ends_of_turns(self, row: Rendered) -> Rendered:
        """`row` with the end of turn after the answers that the template ends with none.

        A position moves by the insertions before it; the start of a turn or the end of an answer also by one at it.
        """
        contents = [turn for turn in row.turns if turn.is_assistant]
        insertions = [
            end
            for content, (_, end) in zip(contents, row.answers, strict=True)
            if not row.text.endswith(self.end_of_turn, content.end, end)
        ]
        size = len(self.end_of_turn)

        def after(position: int) -> int:
            return position + size * bisect_right(insertions, position)

        def before(position: int) -> int:
            return position + size * bisect_left(insertions, position)

        text = self.end_of_turn.join(row.text[a:b] for a, b in pairwise([0, *insertions, len(row.text)]))
        turns = [replace(turn, start=after(turn.start), end=before(turn.end)) for turn in row.turns]
        return Rendered(text, turns, [(after(start), after(end)) for start, end in row.answers], row.note)


def has_answer(messages: list[Message]) -> bool:
    """Whether a conversation ends with the assistant's turn, not with a question."""
    return messages[-1]["role"] == "assistant"


def _mark(message: Message) -> Message:
    """`message` with marks just inside the white space around its content, and at the start of its thoughts.

    Around the content means after the thoughts; of a turn that calls tools, around the name of the last tool.
    """
    is_assistant = message["role"] == "assistant"
    start, end = (ANSWER_START, ANSWER_END) if is_assistant else (OTHER_START, OTHER_END)
    marked, content = dict(message), message["content"]
    before = tag = ""
    if is_assistant and ("</think>" in content or "reasoning_content" in message):
        before, tag, content = content.rpartition("</think>")
        opening, think, thoughts = before.rpartition("<think>")
        if message.get("reasoning_content"):
            marked["reasoning_content"] = _surround(message["reasoning_content"], REASONING)
        elif thoughts.strip():
            before = opening + think + _surround(thoughts, REASONING)
    if message.get("tool_calls"):
        calls = [{**call, "function": dict(call["function"])} for call in message["tool_calls"]]
        last = calls[-1]["function"]
        last["name"] = f"{start}{last['name']}{end}"
        marked["tool_calls"] = calls
    else:
        content = _surround(content, start, end)
    marked["content"] = before + tag + content
    return marked


def _read_marks(marked: str) -> tuple[list[Turn], list[bool]]:
    """The turns in a marked text, at their positions in the text without marks, and whether each shows thoughts.

    The start of a turn is -1 where its mark is missing.
    """
    turns, shows_thoughts, has_thoughts, position = [], [], False, 0
    starts: dict[bool, int] = {}
    for piece in _MARK.split(marked):
        if piece == REASONING:
            has_thoughts = True
        elif piece in (ANSWER_START, OTHER_START):
            starts[piece == ANSWER_START] = position
        elif piece in (ANSWER_END, OTHER_END):
            turns.append(Turn(piece == ANSWER_END, starts.pop(piece == ANSWER_END, -1), position))
            shows_thoughts.append(has_thoughts)
            has_thoughts = False
        else:
            position += len(piece)
    return turns, shows_thoughts


def _surround(text: str, before: str, after: str = "") -> str:
    """`text` with `before` and `after` just inside the white space around it."""
    core = text.strip()
    start = len(text) - len(text.lstrip())
    return f"{text[:start]}{before}{core}{after}{text[start + len(core) :]}"


def _has_thoughts(message: Message) -> bool:
    if message["role"] != "assistant":
        return False
    before = message["content"].rpartition("</think>")[0]
    return bool(message.get("reasoning_content") or before.rpartition("<think>")[2].strip())


def _message(error: Exception) -> str:
    """The template's own refusal as it put it; any other error with its kind."""
    return str(error) if type(error) is TemplateError else f"{type(error).__name__}: {error}"
