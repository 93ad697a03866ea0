"""How a chat template lays out a conversation: where each turn lies in the text, and what of it the model must say.

A second rendering, with marks around the contents, tells where the template put them and what it left out.
"""

import contextlib
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import shown, with_detail
from hf_recipes.data.schemas.conversation import Message

# Unicode noncharacters, which no text holds: start and end of an assistant's answer, and of any other turn's content;
# the last stands at the start of an assistant's thoughts.
MARKS = "\ufdd0\ufdd1\ufdd2\ufdd3"
THOUGHT = "\ufdd4"
_MARK = re.compile(f"([{MARKS}{THOUGHT}])")
THOUGHTS_LEFT_OUT = "the template leaves out the thoughts of earlier turns"


@dataclass
class Turn:
    """Where one turn lies in the rendered text; [start, end) is its content, in characters, without thoughts."""

    is_assistant: bool
    start: int
    end: int


@dataclass
class Rendered:
    """A conversation as text. `learned` holds, for each assistant turn, the characters that carry loss."""

    text: str
    turns: list[Turn] = field(default_factory=list)
    labelled: list[tuple[int, int]] = field(default_factory=list)
    note: str | None = None
    problem: str | None = None


class ChatTemplate:
    """A tokenizer's chat template with what two short conversations show of it.

    Attributes:
        generation_prompt: what comes before an answer in training as at generation; empty where the template has none.
        lead: without a generation prompt, what the template puts before an answer; the model has to say it.
        end_of_turn: the one token that is learned as the end of an answer. Where the template ends the last answer
            with none, it is the special token that begins the next turn (GLM's ``<|user|>``), else the tokenizer's
            eos; it is then put after every answer that it does not follow yet.

    Raises:
        UserError: the template cannot show a question and an answer, or there is no token to end a turn with.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.generation_prompt = self.lead = self.end_of_turn = ""
        self._end = re.compile(r"\s*")
        self._tail: re.Pattern | None = None  # up to where an end of turn is put, if the template has none
        exchange = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]
        try:
            bare = self._apply(exchange[:1])
            opened = self._apply(exchange[:1], add_generation_prompt=True)
        except Exception as error:  # a template computes what it likes
            raise UserError(f"the chat template cannot render a question: {_said(error)}") from None
        self.generation_prompt = opened[len(bare) :] if opened.startswith(bare) else ""
        rendered = self.render(exchange)
        if rendered.problem:
            raise UserError(f"the chat template cannot be used for training: {shown(rendered.problem)}")
        answer = rendered.turns[-1]
        if rendered.text.startswith(opened):
            self.lead = rendered.text[len(opened) : answer.start]
        following = self._special_after(rendered.text, answer.end)
        if following is None:
            following = self._opener_of_turns(exchange) or tokenizer.eos_token
            self._tail = re.compile(r"\s*?" + re.escape(rendered.text[answer.end :]))
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
        if not any(tools):
            with contextlib.suppress(Exception):  # some row is refused: they are rendered one by one to learn which
                texts, marked_texts = self._apply(conversations), self._apply(marked)
                return [self._locate(*row) for row in zip(texts, marked_texts, conversations, strict=True)]
        rendered = []
        for plain, other, own_tools in zip(conversations, marked, tools, strict=True):
            try:
                text = self._apply(plain, own_tools)
                marked_text = self._apply(other, own_tools)
                shows_tools = not own_tools or text != self._apply(plain)
            except Exception as error:  # a template computes what it likes
                rendered.append(Rendered("", problem=with_detail("the chat template refuses it", _said(error))))
                continue
            row = self._locate(text, marked_text, plain)
            if not shows_tools:
                row.problem = "the chat template has no place for tools (--chat_template chatml has)"
            rendered.append(row)
        return rendered

    def _locate(self, text: str, marked: str, messages: list[Message]) -> Rendered:
        """Read the marks: where each turn's content is in `text`, and from where to where it is learned."""
        pieces, position, starts, turns = _MARK.split(marked), 0, {}, []
        shown, thinks = [], False  # whether thoughts come before each turn's content
        for index, piece in enumerate(pieces):
            if index % 2 == 0:
                position += len(piece)
                continue
            if piece == THOUGHT:
                thinks = True
                continue
            kind, is_end = divmod(MARKS.index(piece), 2)
            if is_end:
                turns.append(Turn(kind == 0, starts.pop(kind, -1), position))
                shown.append(thinks)
                thinks = False
            else:
                starts[kind] = position
        if len(text) != position or "".join(pieces[::2]) != text:
            return Rendered(text, problem="the chat template changes a turn's text")
        expected = [message["role"] == "assistant" for message in messages]
        if [turn.is_assistant for turn in turns] != expected or any(t.start < 0 and not t.is_assistant for t in turns):
            return Rendered(
                text, problem=with_detail("the chat template does not show every turn", _roles(messages, turns))
            )
        cut = [
            turn.start < 0 or (_has_thoughts(message) and not thoughts_shown)
            for turn, message, thoughts_shown in zip(turns, messages, shown, strict=True)
        ]
        if cut[-1]:
            reason = "the chat template leaves out the thoughts of the last answer (--chat_template chatml shows them)"
            return Rendered(text, problem=reason)
        row = Rendered(text, turns, note=THOUGHTS_LEFT_OUT if any(cut) else None)
        before = 0
        for turn, message, following in zip(turns, messages, [*turns[1:], None], strict=True):
            if turn.is_assistant:
                start = self._start_of(text, before, turn, message)
                end = self._end_of(text, turn, following, bool(message.get("tool_calls")))
                if start < 0 or end < 0:
                    what = "start of an answer" if start < 0 else "end of a tool call"
                    return Rendered(text, problem=f"the {what} is not to be found in the rendered text")
                row.labelled.append((start, end))
            before = turn.end
        return row if self._tail is None else self._with_ends(row)

    def _start_of(self, text: str, before: int, turn: Turn, message: Message) -> int:
        """Where the model begins to say this turn, or -1."""
        opened = text.find(self.generation_prompt, before, turn.end) if self.generation_prompt else -1
        if opened >= 0:
            return opened + len(self.generation_prompt)
        if message.get("tool_calls") or turn.start < 0:
            return -1
        content, start = message["content"], turn.start
        own = content[: len(content) - len(content.rpartition("</think>")[2].lstrip())]
        for prefix in (own, own.lstrip()):
            if text.endswith(prefix, before, start):
                start -= len(prefix)
                break
        return start - len(self.lead) if text.endswith(self.lead, before, start) else start

    def _end_of(self, text: str, turn: Turn, following: Turn | None, is_call: bool) -> int:
        """Where the model has said this turn and the token that ends it, or -1."""
        limit = len(text) if following is None else max(following.start, turn.end)
        if is_call:  # the mark stands inside the call
            found = text.find(self.end_of_turn, turn.end, limit)
            if found < 0 or not self.end_of_turn:
                return limit if following is None else -1
            return found + len(self.end_of_turn)
        end = self._end.match(text, turn.end, limit) or (self._tail and self._tail.match(text, turn.end, limit))
        return end.end() if end else turn.end

    def _with_ends(self, row: Rendered) -> Rendered:
        """`row` with the end of turn put after the answers that the template ends with none."""
        answers = [turn for turn in row.turns if turn.is_assistant]
        gaps = [
            end
            for answer, (_, end) in zip(answers, row.labelled, strict=True)
            if not row.text.endswith(self.end_of_turn, answer.end, end)
        ]
        size = len(self.end_of_turn)

        def begin(position: int) -> int:
            return position + size * bisect_right(gaps, position)

        def end(position: int) -> int:
            return position + size * bisect_left(gaps, position)

        text = self.end_of_turn.join(row.text[a:b] for a, b in pairwise([0, *gaps, len(row.text)]))
        turns = [Turn(turn.is_assistant, begin(turn.start), end(turn.end)) for turn in row.turns]
        # A learned part begins before its own gap and ends after it.
        labelled = [(begin(first), begin(last)) for first, last in row.labelled]
        return Rendered(text, turns, labelled, row.note)


def _mark(message: Message) -> Message:
    """`message` with marks just inside the white space around its content, and at the start of its thoughts.

    Around the content means after the thoughts; of a turn that calls tools, around the name of the last tool.
    """
    is_assistant = message["role"] == "assistant"
    start, end = MARKS[:2] if is_assistant else MARKS[2:]
    marked, content = dict(message), message["content"]
    head = tag = ""
    if is_assistant and ("</think>" in content or "reasoning_content" in message):
        head, tag, content = content.rpartition("</think>")
        opening, think, thoughts = head.rpartition("<think>")
        if message.get("reasoning_content"):
            marked["reasoning_content"] = _surround(message["reasoning_content"], THOUGHT)
        elif thoughts.strip():
            head = opening + think + _surround(thoughts, THOUGHT)
    if message.get("tool_calls"):
        calls = [{**call, "function": dict(call["function"])} for call in message["tool_calls"]]
        last = calls[-1]["function"]
        last["name"] = f"{start}{last['name']}{end}"
        marked["tool_calls"] = calls
    else:
        content = _surround(content, start, end)
    marked["content"] = head + tag + content
    return marked


def _surround(text: str, before: str, after: str = "") -> str:
    core = text.strip()
    lead = len(text) - len(text.lstrip())
    return f"{text[:lead]}{before}{core}{after}{text[lead + len(core) :]}"


def _has_thoughts(message: Message) -> bool:
    if message["role"] != "assistant":
        return False
    head = message["content"].rpartition("</think>")[0]
    return bool(message.get("reasoning_content") or head.rpartition("<think>")[2].strip())


def _roles(messages: list[Message], turns: list[Turn]) -> str:
    return f"{len(turns)} of {len(messages)}: {', '.join(sorted({message['role'] for message in messages}))}"


def _said(error: Exception) -> str:
    """The template's own refusal as it put it; any other error with its kind."""
    return str(error) if type(error) is TemplateError else f"{type(error).__name__}: {error}"
