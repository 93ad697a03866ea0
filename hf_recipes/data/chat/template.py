"""What a chat template sends before an answer, and what the model has to write after it.

For an assistant's turn, the prompt is the rendering of the turns before it with `add_generation_prompt`, as a server
sends it; the answer is what the rendering with the turn adds. Both are texts of their own, so that nothing of an answer
can move into its prompt. Where the rendering with the turn does not begin with the prompt (templates that open thoughts
for generation alone, or that differ in white space), the answer begins with the first of the turn's own texts.
"""

import contextlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_recipes.data.chat.example import Example
from hf_recipes.data.chat.message_form import MessageForm
from hf_recipes.data.chat.probes.repeated_turns import RepeatedTurns
from hf_recipes.data.chat.probes.shown_fields import ShownFields
from hf_recipes.data.chat.probes.template_probes import TemplateProbes
from hf_recipes.data.chat.probes.turn_end import TurnEnd
from hf_recipes.data.chat.rendered_text import NO_CALL, common_length, end_of_calls, find_text
from hf_recipes.data.chat.rendering import Renderer
from hf_recipes.data.schemas.conversation import Message, RowProblem
from hf_recipes.data.schemas.thoughts import ThoughtMarks

THOUGHTS_LEFT_OUT = "the template leaves out the thoughts of earlier turns"
TEXT_LEFT_OUT = "the template leaves out the text before an earlier call"
TOOLS_IN_SYSTEM = "the system turn describes the tools; those of the row are not shown a second time"
NO_THOUGHTS = (
    "no thoughts, though the prompt opens some: the model learns to close them at once "
    "(--thinking off closes them in the prompt, where the template can)"
)


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
        self.options = dict(options or {})
        self._render = Renderer(tokenizer, options)
        self._ends = TurnEnd(tokenizer, self._render)
        self._shown = ShownFields(self._render)
        self._probes = TemplateProbes(tokenizer, self._render, self._ends)
        self.marks, self.end_of_turn = self._probes.thoughts.marks, self._probes.end_of_turn
        self._repeated: RepeatedTurns | None = None
        with contextlib.suppress(RowProblem):
            self._repeated = RepeatedTurns.of(self.example)

    @property
    def form(self) -> MessageForm:
        return self._render.form

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
            if calls:
                position = end_of_calls(text, calls, position)
            elif (span := find_text(text, message["content"], 0 if is_system else position)) is None:
                raise RowProblem("the chat template does not show every turn", message["role"])
            elif not is_system:  # which a template may write anywhere
                position = span[1]
        self._check_shown(messages, tools, True, range(len(messages)))
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
        if self._repeated and not tools and not separate:
            example = self._repeated.example(messages, labelled, self.example)
            if example:
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

    def example(self, messages: list[Message], tools: list | None = None, following: Sequence[Message] = ()) -> Example:
        """The last turn of `messages`, which is the assistant's; `following` is the turn after it, if there is one."""
        prompt, text, (_, after) = self._answer(messages, tools)
        end, rest = self._ends.at_end(text[after:]), ""
        if end:
            stop = text.index(end, after) + len(end)
            text, rest = text[:stop], text[stop:]
        else:
            if messages[-1].get("tool_calls") or any(message["role"] == "tool" for message in following):
                end = self._opener_of_result(messages, tools, text[after:])
            end = end or self.end_of_turn
            text += end
        is_closed = not messages[-1].get("reasoning_content") and self._opens_thoughts(prompt, messages)
        return Example(
            prompt,
            len(messages),
            text,
            end,
            rest,
            is_labelled=messages[-1].get("weight") != 0,
            left_out=self.left_out(messages[:-1], tools, prompt),
            remarks=[NO_THOUGHTS] if is_closed else [],
        )

    def split_thoughts(self, text: str) -> tuple[str, str]:
        """The thoughts of what a model wrote after a prompt, and its answer, empty where it was cut while thinking."""
        return self.marks.split(text, self._probes.thoughts.opens)

    def last_special(self, text: str, end: int) -> int | None:
        """Where the last special token before `end` begins, if it is near."""
        return self._ends.last_before(text, end)

    def left_out(self, messages: list[Message], tools: list | None, prompt: str) -> list[str]:
        """What a prompt does not show of the assistant's turns in `messages`, of which it is the rendering."""
        names = {}
        for index, message in enumerate(messages):
            if message.get("reasoning_content"):
                names[index, "reasoning_content"] = THOUGHTS_LEFT_OUT
            if message.get("tool_calls") and message["content"]:
                names[index, "content"] = TEXT_LEFT_OUT
        hidden = {path for path in names if find_text(prompt, messages[path[0]][path[1]]) is None}
        if names.keys() - hidden:
            hidden |= set(self._shown.hidden(messages, tools, True, (names.keys() - hidden).__contains__))
        return list(dict.fromkeys(name for path, name in names.items() if path in hidden))

    def opens_thoughts(self, messages: list[Message], tools: list | None = None) -> bool:
        """Whether the prompt of `messages`, which end with a question, ends with what opens thoughts."""
        return self._probes.opens_thoughts(self.prompt(messages, tools), messages[-1]["content"] or "")

    def _opens_thoughts(self, prompt: str, messages: list[Message]) -> bool:
        return self._probes.opens_thoughts(prompt, messages[-2]["content"] or "")

    def _answer(self, messages: list[Message], tools: list | None = None) -> tuple[str, str, tuple[int, int]]:
        """The prompt, what the model has to write after it, and where in that the turn's content and calls are."""
        prompt, last = self.prompt(messages[:-1], tools), messages[-1]
        whole = self._render(messages, tools)
        thoughts, content, calls = last.get("reasoning_content") or "", last["content"] or "", last.get("tool_calls")
        is_prefix = whole.startswith(prompt)
        start = len(prompt) if is_prefix else common_length(prompt, whole)
        thoughts_at = self._find_thoughts(messages, tools, whole, start)
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
            begin, end = self._span_with_calls(whole, calls, begin, end, thoughts_at[1] if thoughts_at else start)
        self._check_shown(messages, tools, False, [len(messages) - 1])
        if not is_prefix and (thoughts_at or content.strip()):
            start = thoughts_at[0] if thoughts_at else begin
        elif prompt[start:].strip():
            start = self._begin_of_call(messages, tools, whole, prompt)
        style = self._probes.thoughts
        if self._opens_thoughts(prompt, messages) and style.marks.end not in whole[start : end if calls else begin]:
            closed = thoughts.strip() + style.close
            begin = start if calls else begin
            return prompt, closed + whole[begin:], (len(closed), len(closed) + end - begin)
        if thoughts and not thoughts_at:
            raise RowProblem(
                "the chat template leaves out the thoughts of the answer (--chat_template chatml shows them)"
            )
        return prompt, whole[start:], (begin - start, end - start)

    def _span_with_calls(self, whole: str, calls: list[dict], begin: int, end: int, first: int) -> tuple[int, int]:
        """Where the content, at [begin, end), and `calls` are in a rendering that has both from `first` on."""
        name = find_text(whole, calls[0]["function"]["name"], end)
        between = whole[end : name[0]] if name else ""
        opening = self._probes.opening
        if self.end_of_turn in between and opening and opening in between:
            raise RowProblem("the chat template ends the turn before its call")
        try:
            return begin, end_of_calls(whole, calls, end)
        except RowProblem:  # the content may stand after them
            return first, max(end, end_of_calls(whole, calls, first))

    def _find_thoughts(
        self, messages: list[Message], tools: list | None, whole: str, start: int
    ) -> tuple[int, int] | None:
        """Where the thoughts of the last turn are in `whole`, its rendering, from `start` on."""
        path = len(messages) - 1, "reasoning_content"
        thoughts = messages[-1].get("reasoning_content")
        span = find_text(whole, thoughts, start) if thoughts and self.form.shows_thoughts(messages[-1]) else None
        return None if span and self._shown.hidden(messages, tools, False, path.__eq__) else span

    def _last_content(self, whole: str, content: str, position: int) -> tuple[int, int] | None:
        """Where the content of the last turn is in a rendering, if it is right before what ends a turn."""
        end = len(whole) - len(self._probes.tail)
        for text in (content, content.strip()):
            if end - len(text) >= position and whole.endswith(text + self._probes.tail):
                return end - len(text), end
        return None

    def _check_shown(
        self, messages: list[Message], tools: list | None, is_prompt: bool, indices: Collection[int]
    ) -> None:
        """Raise `RowProblem` unless the rendering shows the texts and calls of the turns at `indices`.

        Text beside a call and thoughts are reported otherwise (see `left_out`).
        """

        def is_needed(path: tuple) -> bool:
            index, name, *_ = path
            return index in indices and (
                name == "tool_calls" or (name == "content" and not (is_prompt and messages[index].get("tool_calls")))
            )

        for index, name, *_ in self._shown.hidden(messages, tools, is_prompt, is_needed):
            if name == "tool_calls":
                raise RowProblem(NO_CALL)
            raise RowProblem("the chat template does not show every turn", messages[index]["role"])

    def _begin_of_call(self, messages: list[Message], tools: list | None, whole: str, prompt: str) -> int:
        """Where `whole`, the rendering of `messages`, has their last call: where a text would stand in its place."""
        if self._opens_thoughts(prompt, messages):
            before = prompt.rstrip().removesuffix(self.marks.start)
            if whole.startswith(before):
                return len(before)
        answer = {"role": "assistant", "content": "\ufffd"}
        return common_length(whole, self._render([*messages[:-1], answer], tools))

    def _opener_of_result(self, messages: list[Message], tools: list | None, tail: str) -> str:
        """The special token that begins the result of a tool after `messages`, which end with `tail`."""
        result = {"role": "tool", "content": "PROBEresult"}
        if calls := messages[-1].get("tool_calls"):
            result |= {"name": calls[-1]["function"]["name"], "tool_call_id": calls[-1].get("id", "")}
        return self._ends.opener(messages, result, tools, tail)
