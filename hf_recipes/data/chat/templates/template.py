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
from hf_recipes.data.chat.templates.answer_finder import AnswerFinder
from hf_recipes.data.chat.templates.message_form import MessageForm
from hf_recipes.data.chat.templates.probes.repeated_turns import RepeatedTurns
from hf_recipes.data.chat.templates.probes.shown_fields import ShownFields
from hf_recipes.data.chat.templates.probes.template_probes import TemplateProbes
from hf_recipes.data.chat.templates.probes.turn_end import TurnEnd
from hf_recipes.data.chat.templates.rendered_text import end_of_calls, find_text
from hf_recipes.data.chat.templates.rendering import Renderer
from hf_recipes.data.conversations.conversation import Message, RowProblem
from hf_recipes.data.conversations.thoughts import ThoughtMarks

THOUGHTS_LEFT_OUT = "the template leaves out the thoughts of earlier turns"
TEXT_LEFT_OUT = "the template leaves out the text before an earlier call"
TOOLS_IN_SYSTEM = "the system turn describes the tools; those of the row are not shown a second time"
THOUGHTS_AFTER_CLOSED = (
    "thoughts after a prompt that has closed some: the model learns to think all the same "
    "(--thinking on opens them, where the template can)"
)
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
        self._answers = AnswerFinder(self._render, self._shown, self._probes)
        self.marks, self.end_of_turn = self._probes.thoughts.marks, self._probes.end_of_turn
        self._repeated: RepeatedTurns | None = None
        with contextlib.suppress(RowProblem):
            self._repeated = RepeatedTurns.of(self.example, str(tokenizer.chat_template))

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
        self._shown.check(messages, tools, True, range(len(messages)))
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
            example = self._repeated.example(messages, labelled, self.example, self._render)
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
        prompt = self.prompt(messages[:-1], tools)
        text, (_, after) = self._answers.after(prompt, messages, tools)
        text, end, rest = self._with_end(text, after, messages, tools, following)
        remarks = []
        if messages[-1].get("reasoning_content"):
            remarks += [THOUGHTS_AFTER_CLOSED] if self._probes.closes_thoughts(prompt, messages[:-1]) else []
        elif self._probes.opens_thoughts(prompt, messages[:-1]):
            remarks.append(NO_THOUGHTS)
        return Example(
            prompt,
            len(messages),
            text,
            end,
            rest,
            is_labelled=messages[-1].get("weight") != 0,
            left_out=self.left_out(messages[:-1], tools, prompt),
            remarks=remarks,
        )

    def split_thoughts(self, text: str) -> tuple[str, str]:
        """The thoughts of what a model wrote after a prompt, and its answer, empty where it was cut while thinking."""
        return self.marks.split(text, self._probes.thoughts.opens)

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
        return self._probes.opens_thoughts(self.prompt(messages, tools), messages)

    def _with_end(
        self, text: str, after: int, messages: list[Message], tools: list | None, following: Sequence[Message]
    ) -> tuple[str, str, str]:
        """An answer, whose own texts end at `after`, up to and with what ends its turn, the end, and the rest."""
        calls, suffix, opener = messages[-1].get("tool_calls"), self._probes.suffix, ""
        if calls and self._probes.has_end and text.endswith(suffix, after):  # behind the marks of the call
            after = len(text) - len(suffix)
        end = self._ends.at_end(text[after:])
        # Where the template ends no turn, a special token after a call is the call's.
        if not end or (calls and not self._probes.has_end):
            result = {"role": "tool", "content": "PROBEresult"}
            if calls:
                result |= {"name": calls[-1]["function"]["name"], "tool_call_id": calls[-1].get("id", "")}
            if calls or any(message["role"] == "tool" for message in following):
                opener = self._ends.opener(messages, result, tools, text[after:])
        if end and not opener:
            stop = text.index(end, after) + len(end)
            return text[:stop], end, text[stop:]
        end = opener or self.end_of_turn
        return text + end, end, ""
