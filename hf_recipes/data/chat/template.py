"""What a chat template sends before an answer, and what the model has to write after it.

For an assistant's turn, the prompt is the rendering of the turns before it with `add_generation_prompt`, as a server
sends it; the answer is what the rendering with the turn adds. Both are texts of their own, so that nothing of an answer
can move into its prompt. Where the rendering with the turn does not begin with the prompt (templates that open thoughts
for generation alone, or that differ in white space), the answer begins with the first of the turn's own texts.
"""

import contextlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import shown
from hf_recipes.data.chat.dates import with_date
from hf_recipes.data.chat.message_form import MessageForm, form_of_calls
from hf_recipes.data.chat.rendered_text import common_length, end_of_calls, find_text
from hf_recipes.data.schemas.conversation import Message, RowProblem
from hf_recipes.data.schemas.thoughts import TAGS, ThoughtMarks

THOUGHTS_LEFT_OUT = "the template leaves out the thoughts of earlier turns"
TEXT_LEFT_OUT = "the template leaves out the text before an earlier call"
TOOLS_IN_SYSTEM = "the system turn describes the tools; those of the row are not shown a second time"
NO_THOUGHTS = (
    "no thoughts, though the prompt opens some: the model learns to close them at once "
    "(--thinking off closes them in the prompt, where the template can)"
)
_OPEN_TAG = re.compile(r"<(\w+)>\s*\Z")
_PROBE = {"user": "PROBEquestion", "answer": "PROBEanswer", "thoughts": "PROBEthoughts"}


@dataclass
class Example:
    """What one example shows of a conversation, of which it has the first `turns` messages.

    `prompt` is what a server sends before the last answer, `answer` what the model has to write: what the template puts
    before the turn's own texts, thoughts, the content and calls of tools, and last `end`, the special tokens that end
    the turn; `rest` is the white space that the template writes after them. `earlier` are the answers in the prompt
    that carry loss too: index of the message, range of characters. `left_out` are what the prompt does not show of
    earlier turns, `remarks` what else is to be known of the row.
    """

    prompt: str
    turns: int
    answer: str = ""
    end: str = ""
    rest: str = ""
    earlier: list[tuple[int, int, int]] = field(default_factory=list)
    is_labelled: bool = True
    left_out: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def thought_marks(tokenizer: PreTrainedTokenizerBase) -> ThoughtMarks | None:
    """What stands around thoughts in the tokenizer's chat template; None without one."""
    return ChatTemplate(tokenizer).marks if tokenizer.chat_template else None


def has_answer(messages: list[Message]) -> bool:
    """Whether a conversation ends with the assistant's turn, not with a question."""
    return messages[-1]["role"] == "assistant"


class ChatTemplate:
    """A tokenizer's chat template with the options of a run.

    Attributes:
        options: variables of the template, such as ``enable_thinking``, as `apply_chat_template` takes them.
        marks: what stands around thoughts, such as ``<think>`` and ``</think>``.
        end_of_turn: what the model writes at the end of an answer. Where the template ends the last answer with no
            special token, it is the one that begins the next turn (GLM's ``<|user|>``), else the tokenizer's eos.

    Raises:
        UserError: the template cannot show a question and an answer, or there is no token to end a turn with.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any] | None = None):
        self.tokenizer, self.options = tokenizer, dict(options or {})
        added = {str(token): token.special for token in tokenizer.added_tokens_decoder.values()}
        special = {*tokenizer.all_special_tokens, *(token for token, is_special in added.items() if is_special)}
        special = sorted((token for token in special if token.strip()), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special)) or r"(?!)")
        self._dated = with_date(tokenizer)
        self.form = MessageForm()
        self._close = ""  # what stands between thoughts and content
        self._knows_calls = False  # whether the form of calls was looked for
        question, answer = self._messages("user", "answer")
        try:
            self.prompt([question])
        except RowProblem as problem:
            self.form = MessageForm(has_parts=True)
            try:
                self.prompt([question])
            except RowProblem:
                raise UserError(f"the chat template cannot render a question: {shown(problem.reason)}") from None
        self._opens_thoughts = False
        self._inserted_end = ""
        self._tail = "\0"  # what stands after the content of the last answer
        try:
            rest = self._rest([question, answer])
        except RowProblem as problem:
            raise UserError(f"the chat template cannot be used for training: {shown(problem.reason)}") from None
        self._tail = rest[1][rest[2][1] :]
        rest = self._rest([question, answer])  # a tag that is closed in the tail is the turn's
        if self._opens_another_answer(question, answer, rest):
            raise UserError(
                "the chat template cannot be used for training: it begins another answer after the last one, though "
                "add_generation_prompt is false; correct it or choose another with --chat_template"
            )
        self.end_of_turn = self._special_end(self._tail)
        if not self.end_of_turn:
            self._inserted_end = self.end_of_turn = (
                self._opener([question, answer, question]) or tokenizer.eos_token or ""
            )
        if not self.end_of_turn:
            raise UserError("neither the chat template nor the tokenizer has a token that ends a turn (eos_token)")
        # What stands between a question and an answer, but for a tag that opens thoughts.
        self._opening = _OPEN_TAG.sub("", rest[0].partition(question["content"])[2]).strip()
        opened = self._opened_tag(rest[0], [question, answer])
        self._opens_thoughts = opened is not None
        self.marks = TAGS
        if opened:
            self.marks = ThoughtMarks(f"<{opened}>", f"</{opened}>", f"\n</{opened}>", expected=True)
        self._probe_thoughts(question, rest)
        self._pattern: tuple[str, str, str] | None = None
        with contextlib.suppress(RowProblem):
            self._pattern = self._find_pattern()

    @staticmethod
    def _messages(*names: str) -> list[Message]:
        return [{"role": "user" if name == "user" else "assistant", "content": _PROBE[name]} for name in names]

    # Rendering

    def _render(self, messages: list[Message], tools: list | None, is_prompt: bool) -> str:
        if not self._knows_calls and any(message.get("tool_calls") for message in messages):
            self._knows_calls = True
            self.form = form_of_calls(self.form, self._rendered)
        return self._rendered(self.form, messages, tools, is_prompt)

    def _rendered(self, form: MessageForm, messages: list[Message], tools: list | None, is_prompt: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                form.prepared(messages),
                chat_template=self._dated,
                tools=tools,
                tokenize=False,
                add_generation_prompt=is_prompt,
                **self.options,
            )
        except Exception as error:  # a template computes what it likes
            raise RowProblem("the chat template refuses it", _message(error)) from None

    def prompt(self, messages: list[Message], tools: list | None = None) -> str:
        """What a server sends for `messages`, which end with a question or a tool's result.

        Raises:
            RowProblem: the template refuses them or leaves out a turn.
        """
        text = self._render(messages, tools, True)
        if tools and text == self._render(messages, None, True):
            raise RowProblem("the chat template has no place for tools (--chat_template chatml has)")
        position = 0
        for message in messages:
            calls, is_system = message.get("tool_calls"), message["role"] == "system"
            span = (position, position) if calls else find_text(text, message["content"], 0 if is_system else position)
            if span is None:
                raise RowProblem("the chat template does not show every turn", message["role"])
            if calls:
                position = end_of_calls(text, calls, position)
            elif not is_system:  # which a template may write anywhere
                position = span[1]
        return text

    def examples(
        self,
        messages: list[Message],
        tools: list | None,
        labelled: Sequence[int],
        separate: Collection[int] = (),
    ) -> list[Example]:
        """The examples that the assistant's turns at the indices `labelled`, the last message among them, need.

        One example has several where each prompt begins with the prompt and the answer before it; those in `separate`
        end theirs.

        Raises:
            RowProblem: this template cannot show the conversation.
        """
        if not separate and (example := self._regular(messages, tools, labelled)):
            return [example]
        examples: list[Example] = []
        for index in reversed(labelled):
            one = self.example(messages[: index + 1], tools, messages[index + 1 : index + 2])
            start, end = len(one.prompt), len(one.prompt) + len(one.answer)
            if index not in separate and examples and examples[0].prompt.startswith(one.prompt + one.answer):
                examples[0].earlier.insert(0, (index, start, end))
            else:
                examples.insert(0, one)
        return examples

    def _regular(self, messages: list[Message], tools: list | None, labelled: Sequence[int]) -> Example | None:
        """The one example of a conversation of plain texts, if the template repeats one pattern."""
        plain = {"role", "content", "weight"}
        if self._pattern is None or len(labelled) < 2 or tools:
            return None
        if any(message.keys() - plain or message["role"] == "tool" for message in messages):
            return None
        generation, before, after = self._pattern
        last = self.example(messages)
        first = 1 if messages[0]["role"] == "system" else 0
        position = last.prompt.find(messages[first]["content"])
        for index, message in enumerate(messages[first:-1], first):
            text = message["content"]
            if text != text.strip() or not last.prompt.startswith(text, position):
                return None
            position += len(text)
            between = generation + before if message["role"] == "user" else after
            if index == len(messages) - 2:
                return last if last.prompt[position:] == generation else None
            if not last.prompt.startswith(between, position):
                return None
            position += len(between)
            if index + 1 in labelled:
                end = position + len(messages[index + 1]["content"]) + len(last.end)
                last.earlier.append((index + 1, position - len(before), end))
        return None

    def _find_pattern(self) -> tuple[str, str, str] | None:
        """What stands between a question and an answer, as a prompt and after it, and between an answer and a question.

        None where the template does not repeat one pattern.
        """
        contents = [f"PROBE{number}" for number in range(6)]
        messages = [
            {"role": "assistant" if number % 2 else "user", "content": text} for number, text in enumerate(contents)
        ]
        examples = [self.example(messages[:count]) for count in (2, 4, 6)]
        one, two, _ = examples
        if any(not b.prompt.startswith(a.prompt + a.answer) for a, b in pairwise(examples)):
            return None
        generation = one.prompt.partition(contents[0])[2]
        before = one.answer.partition(contents[1])[0]
        after = two.prompt.partition(contents[1])[2].partition(contents[2])[0]
        head = one.prompt.partition(contents[0])[0]
        body = "".join(
            text + (after if number % 2 else generation + before) for number, text in enumerate(contents[:4])
        )
        is_regular = examples[2].prompt == head + body + contents[4] + generation
        return (generation, before, after) if is_regular and after.startswith(one.end) else None

    def example(self, messages: list[Message], tools: list | None = None, following: Sequence[Message] = ()) -> Example:
        """The last turn of `messages`, which is the assistant's; `following` is the turn after it, if there is one."""
        prompt, text, (_, after) = self._rest(messages, tools)
        end, rest = self._special_end(text[after:]), ""
        if end:
            stop = text.index(end, after) + len(end)
            text, rest = text[:stop], text[stop:]
        else:
            if messages[-1].get("tool_calls") or any(message["role"] == "tool" for message in following):
                end = self._opener_of_result(messages, tools)
            end = end or self._inserted_end or self.end_of_turn
            text += end
        is_closed = not messages[-1].get("reasoning_content") and self._opened_tag(prompt, messages)
        return Example(
            prompt,
            len(messages),
            text,
            end,
            rest,
            is_labelled=messages[-1].get("weight") != 0,
            left_out=self.left_out(messages[:-1], prompt),
            remarks=[NO_THOUGHTS] if is_closed else [],
        )

    def split_thoughts(self, text: str) -> tuple[str, str]:
        """The thoughts of what a model wrote after a prompt, and its answer, empty where it was cut while thinking."""
        return self.marks.split(text, self._opens_thoughts)

    def _rest(self, messages: list[Message], tools: list | None = None) -> tuple[str, str, tuple[int, int]]:
        """The prompt, what the model has to write after it, and where in that the turn's content and calls are."""
        prompt, last = self.prompt(messages[:-1], tools), messages[-1]
        whole = self._render(messages, tools, False)
        thoughts, content, calls = last.get("reasoning_content") or "", last["content"] or "", last.get("tool_calls")
        is_prefix = whole.startswith(prompt)
        start = len(prompt) if is_prefix else common_length(prompt, whole)
        thoughts_at = find_text(whole, thoughts, start) if thoughts and self.form.thoughts else None
        begin = end = thoughts_at[1] if thoughts_at else start
        if content.strip():
            # Where the two part, they may begin with the same character by chance.
            span = None if calls else self._last_content(whole, content, end if is_prefix else 0)
            span = span or find_text(whole, content, end)
            if span is None:
                what = "text before a call" if calls else "turn's text"
                raise RowProblem(f"the chat template leaves out or changes a {what}")
            begin, end = span
        elif not calls:
            raise RowProblem("the chat template does not show every turn", "assistant")
        if calls:
            name = find_text(whole, calls[0]["function"]["name"], end)
            between = whole[end : name[0]] if name else ""
            if self.end_of_turn in between and self._opening and self._opening in between:
                raise RowProblem("the chat template ends the turn before its call")
            end = end_of_calls(whole, calls, end)
        if not is_prefix and (thoughts_at or content.strip()):
            start = thoughts_at[0] if thoughts_at else begin
        elif prompt[start:].strip():
            start = self._begin_of_call(messages, tools, whole, prompt)
        opened = self._opened_tag(prompt, messages)
        if opened and f"</{opened}>" not in whole[start : end if calls else begin]:
            closed = thoughts.strip() + (self._close or f"\n</{opened}>\n\n")
            begin = start if calls else begin
            return prompt, closed + whole[begin:], (len(closed), len(closed) + end - begin)
        if thoughts and not thoughts_at:
            raise RowProblem(
                "the chat template leaves out the thoughts of the answer (--chat_template chatml shows them)"
            )
        return prompt, whole[start:], (begin - start, end - start)

    def _last_content(self, whole: str, content: str, position: int) -> tuple[int, int] | None:
        """Where the content of the last turn is in a rendering, if it is right before what ends a turn."""
        end = len(whole) - len(self._tail)
        for text in (content, content.strip()):
            if end - len(text) >= position and whole.endswith(text + self._tail):
                return end - len(text), end
        return None

    def _opened_tag(self, prompt: str, messages: list[Message]) -> str | None:
        """The tag that the prompt opens and the template knows to close before an answer, such as ``think``."""
        opened, question = _OPEN_TAG.search(prompt), (messages[-2]["content"] or "").strip()
        if opened is None:
            return None
        if not self._opens_thoughts and question.endswith(opened[0].strip()) and prompt.rstrip().endswith(question):
            return None
        closing = f"</{opened[1]}>"
        return opened[1] if closing in str(self.tokenizer.chat_template) and closing not in self._tail else None

    def _begin_of_call(self, messages: list[Message], tools: list | None, whole: str, prompt: str) -> int:
        """Where `whole`, the rendering of `messages`, has their last call: where a text would stand in its place."""
        opened = _OPEN_TAG.search(prompt)
        if opened and whole.startswith(prompt[: opened.start()]):
            return opened.start()
        answer = {"role": "assistant", "content": "\ufffd"}
        return common_length(whole, self._render([*messages[:-1], answer], tools, False))

    @staticmethod
    def left_out(messages: list[Message], prompt: str) -> list[str]:
        """What a prompt does not show of the assistant's turns `messages` in it."""
        texts = {
            THOUGHTS_LEFT_OUT: [message.get("reasoning_content") for message in messages],
            TEXT_LEFT_OUT: [message["content"] for message in messages if message.get("tool_calls")],
        }
        return [name for name, some in texts.items() if any(find_text(prompt, text) is None for text in some if text)]

    # What ends a turn

    def _opens_another_answer(self, question: Message, answer: Message, rest: tuple[str, str, tuple[int, int]]) -> bool:
        """Whether what stands after the last answer is the beginning of one, as after a question."""
        prompt, text, (begin, _) = rest
        if text[:begin].strip() or prompt.partition(question["content"])[2] != self._tail:
            return False
        try:
            chat = self._render([question, answer, question], None, False)
        except RowProblem:
            return False
        return not chat.partition(answer["content"])[2].startswith(self._tail)

    def _special_end(self, tail: str) -> str:
        """The special tokens at the end of `tail`, which is what follows a turn's text."""
        stripped = tail.rstrip()
        runs = [match.span() for match in self._special.finditer(stripped)]
        end, stop = len(stripped), len(stripped)
        while runs and not stripped[runs[-1][1] : end].strip():
            start, after = runs.pop()
            stop = stop if after == end else after  # white space between two: the turn ends at the first
            end = start
        return stripped[end:stop]

    def last_special(self, text: str, end: int) -> int | None:
        """Where the last special token before `end` begins, if it is near."""
        return max((match.start() for match in self._special.finditer(text, max(0, end - 200), end)), default=None)

    def _opener(self, messages: list[Message], tools: list | None = None) -> str | None:
        """The special token that stands right before the last of `messages`."""
        try:
            text = self._render(messages, tools, False)
        except RowProblem:
            return None
        position = text.rfind(messages[-2]["content"] or messages[-2]["tool_calls"][-1]["function"]["name"])
        tail = text[position : text.rfind(messages[-1]["content"])]
        token = next((match[0] for match in self._special.finditer(tail)), None)
        return None if token in (self.tokenizer.bos_token, self.tokenizer.eos_token) else token

    def _opener_of_result(self, messages: list[Message], tools: list | None) -> str:
        """The special token that begins the result of a tool after `messages`."""
        result = {"role": "tool", "content": "PROBEresult"}
        if calls := messages[-1].get("tool_calls"):
            result |= {"name": calls[-1]["function"]["name"], "tool_call_id": calls[-1].get("id", "")}
        return self._opener([*messages, result], tools) or ""

    # Which form of a message shows all of it

    def _probe_thoughts(self, question: Message, plain: tuple[str, str, tuple[int, int]]) -> None:
        [answer] = self._messages("answer")
        message = {**answer, "reasoning_content": _PROBE["thoughts"]}
        adds_nothing = not plain[1][: plain[2][0]].strip()
        for name in ("reasoning_content", "reasoning", "thinking", *(["inline"] if adds_nothing else [])):
            self.form = replace(self.form, thoughts=name)
            try:
                text = self._render([question, message], None, False)
            except RowProblem:
                continue
            if text.count(_PROBE["thoughts"]) == 1 and text.count(_PROBE["answer"]) == 1:
                before, _, after = text.partition(_PROBE["thoughts"])
                self._close = after.partition(_PROBE["answer"])[0]
                start, end, close = self.marks.start, self._close.strip(), self._close.rstrip()
                if not self._opens_thoughts and before.startswith(plain[0]):
                    start = before[len(plain[0]) :].strip() or start
                direct = plain[1][: plain[2][0]].strip()
                if end:
                    self.marks = ThoughtMarks(start, end, close, "" if end in direct else direct, bool(direct))
                return
        self.form = replace(self.form, thoughts=None)


def _message(error: Exception) -> str:
    """The template's own refusal as it put it; any other error with its kind."""
    return str(error) if type(error) is TemplateError else f"{type(error).__name__}: {error}"
