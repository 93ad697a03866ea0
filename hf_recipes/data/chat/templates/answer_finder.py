"""What the model has to write after a prompt, read from the rendering with its turn."""

from hf_recipes.data.chat.templates.probes.shown_fields import ShownFields
from hf_recipes.data.chat.templates.probes.template_probes import TemplateProbes
from hf_recipes.data.chat.templates.rendered_text import common_length, end_of_calls, find_text
from hf_recipes.data.chat.templates.rendering import Renderer
from hf_recipes.data.conversations.conversation import Message, RowProblem


class AnswerFinder:
    """Reads answers from renderings of conversations that end with them."""

    def __init__(self, render: Renderer, shown: ShownFields, probes: TemplateProbes):
        self._render, self._shown, self._probes = render, shown, probes

    def after(self, prompt: str, messages: list[Message], tools: list | None) -> tuple[str, tuple[int, int]]:
        """What the model has to write after `prompt`, and where in that the content and calls of its turn are.

        Raises:
            RowProblem: the template does not show the turn.
        """
        last = messages[-1]
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
        self._shown.check(messages, tools, False, [len(messages) - 1])
        style, opens = self._probes.thoughts, self._probes.opens_thoughts(prompt, messages[:-1])
        if not is_prefix and (thoughts_at or content.strip()):
            start = self._begin_of_thoughts(whole, start, thoughts_at[0], opens) if thoughts_at else begin
        elif prompt[start:].strip():
            start = self._begin_of_call(messages, tools, whole, prompt)
        first = find_text(whole, calls[0]["function"]["name"], begin)[0] if calls and not content.strip() else begin
        if opens and not thoughts_at and (thoughts or style.marks.end not in whole[start:first]):
            close, after_block = style.close, whole.rfind(style.marks.end, start, first)
            if calls and after_block >= 0:  # of empty thoughts
                close, begin = style.marks.close, after_block + len(style.marks.end)
            elif calls:
                close, begin = close if content.strip() else close.removesuffix(style.marks.direct), start
            closed = thoughts.strip() + close
            return closed + whole[begin:], (len(closed), len(closed) + end - begin)
        if thoughts and not thoughts_at:
            raise RowProblem(
                "the chat template leaves out the thoughts of the answer (--chat_template chatml shows them)"
            )
        return whole[start:], (begin - start, end - start)

    def _span_with_calls(self, whole: str, calls: list[dict], begin: int, end: int, first: int) -> tuple[int, int]:
        """Where the content, at [begin, end), and `calls` are in a rendering that has both from `first` on."""
        name = find_text(whole, calls[0]["function"]["name"], end)
        between = whole[end : name[0]] if name else ""
        opening = self._probes.opening
        if self._probes.end_of_turn in between and opening and opening in between:
            raise RowProblem("the chat template ends the turn before its call")
        try:
            return begin, end_of_calls(whole, calls, end)
        except RowProblem:  # the content may stand after them
            return first, max(end, end_of_calls(whole, calls, first))

    def _find_thoughts(
        self, messages: list[Message], tools: list | None, whole: str, start: int
    ) -> tuple[int, int] | None:
        """Where the thoughts of the last turn are in `whole`, its rendering, from `start` on."""
        if not messages[-1].get("reasoning_content") or not self._render.form.shows_thoughts(messages[-1]):
            return None
        path = len(messages) - 1, "reasoning_content"
        is_hidden = self._shown.hidden(messages, tools, False, path.__eq__)
        return None if is_hidden else find_text(whole, messages[-1]["reasoning_content"], start)

    def _begin_of_thoughts(self, whole: str, start: int, thoughts: int, opens: bool) -> int:
        """Where what the model writes of its thoughts begins, which are at `thoughts` in a rendering."""
        mark = self._probes.thoughts.marks.start
        begin = whole.rfind(mark, max(0, start - len(mark) + 1), thoughts)  # not all of it is in the prompt
        return thoughts if opens or begin < 0 or whole[begin + len(mark) : thoughts].strip() else begin

    def _last_content(self, whole: str, content: str, position: int) -> tuple[int, int] | None:
        """Where the content of the last turn is in a rendering, if it is right before what ends a turn."""
        end = len(whole) - len(self._probes.suffix)
        for text in (content, content.strip()):
            if end - len(text) >= position and whole.endswith(text + self._probes.suffix):
                return end - len(text), end
        return None

    def _begin_of_call(self, messages: list[Message], tools: list | None, whole: str, prompt: str) -> int:
        """Where `whole`, the rendering of `messages`, has their last call: where a text would stand in its place."""
        if self._probes.opens_thoughts(prompt, messages[:-1]):
            before = prompt.rstrip().removesuffix(self._probes.thoughts.marks.start)
            if whole.startswith(before):
                return len(before)
        answer = {"role": "assistant", "content": "\ufffd"}
        return common_length(whole, self._render([*messages[:-1], answer], tools))
