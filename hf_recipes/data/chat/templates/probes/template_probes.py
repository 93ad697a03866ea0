"""Traits of a chat template, inferred once from its renderings of a question and an answer."""

from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import shown
from hf_recipes.data.chat.templates.message_form import MessageForm
from hf_recipes.data.chat.templates.probes.thought_style import (
    ANSWER,
    NEXT,
    QUESTION,
    PlainTurn,
    ThoughtStyle,
    infer_thoughts,
)
from hf_recipes.data.chat.templates.probes.turn_end import TurnEnd
from hf_recipes.data.chat.templates.rendered_text import common_length
from hf_recipes.data.chat.templates.rendering import Renderer
from hf_recipes.data.conversations.conversation import Message, RowProblem


class TemplateProbes:
    """What a template does with any conversation.

    Attributes:
        suffix: what stands after the content of the last answer.
        end_of_turn: what the model writes at the end of an answer.
        has_end: whether the template ends the last answer with a special token.
        opening: what stands between a question and an answer, but for what opens thoughts.
        thoughts: how the template writes them.

    Raises:
        UserError: the template cannot show a question and an answer, or there is no token to end a turn with.
    """

    suffix: str
    end_of_turn: str
    has_end: bool
    opening: str
    thoughts: ThoughtStyle

    def __init__(self, tokenizer: PreTrainedTokenizerBase, render: Renderer, ends: TurnEnd):
        self._render = render
        plain = self._plain_turn()
        render.opened = self._opened_answer(plain, ends)
        plain = replace(plain, whole=plain.whole.removesuffix(render.opened))
        self.suffix = plain.suffix
        end = ends.at_end(plain.suffix)
        self.has_end = bool(end)
        self.end_of_turn = end or ends.opener([QUESTION, ANSWER], NEXT) or tokenizer.eos_token or ""
        if not self.end_of_turn:
            raise UserError(
                "neither the chat template nor the tokenizer has a token that ends a turn; name one with --eos_token"
            )
        self.thoughts = infer_thoughts(render, plain)
        render.form = replace(render.form, thoughts=self.thoughts.field, around=self.thoughts.around)
        self._plain_prompt = plain.prompt.rstrip()
        opening = plain.generation.strip()
        self.opening = opening.removesuffix(self.thoughts.marks.start).strip() if self.thoughts.opens else opening

    def opens_thoughts(self, prompt: str, messages: list[Message]) -> bool:
        """Whether the prompt of `messages` ends with what opens thoughts, not just with the last question."""
        style = self.thoughts
        is_role = self._plain_prompt.endswith(style.marks.start) and not style.opens
        return not is_role and self._ends_with(prompt, style.marks.start, messages)

    def closes_thoughts(self, prompt: str, messages: list[Message]) -> bool:
        """Whether the prompt of `messages` ends with what closes thoughts."""
        return self._ends_with(prompt, self.thoughts.marks.end, messages)

    def _ends_with(self, prompt: str, mark: str, messages: list[Message]) -> bool:
        prompt, question = prompt.rstrip(), (messages[-1]["content"] or "").strip()
        if not prompt.endswith(mark):
            return False
        is_question = question.endswith(mark) and prompt.endswith(question)
        return not is_question or self._plain_prompt.endswith(mark)

    def _plain_turn(self) -> PlainTurn:
        try:
            prompt = self._prompt()
        except RowProblem as problem:
            self._render.form = MessageForm(has_parts=True)
            try:
                prompt = self._prompt()
            except RowProblem:
                raise UserError(f"the chat template cannot render a question: {shown(problem.reason)}") from None
        try:
            whole = self._render([QUESTION, ANSWER])
            if ANSWER["content"] not in whole:
                raise RowProblem("the chat template leaves out or changes a turn's text")
        except RowProblem as problem:
            raise UserError(f"the chat template cannot be used for training: {shown(problem.reason)}") from None
        return PlainTurn(prompt, whole)

    def _prompt(self) -> str:
        prompt = self._render([QUESTION], is_prompt=True)
        if QUESTION["content"] not in prompt:
            raise RowProblem("the chat template does not show every turn", "user")
        return prompt

    def _opened_answer(self, plain: PlainTurn, ends: TurnEnd) -> str:
        """What stands after the last answer to begin another, as after a question, though none is asked for."""
        try:
            alone = self._render([QUESTION])
            following = self._render([QUESTION, ANSWER, QUESTION]).partition(ANSWER["content"])[2]
        except RowProblem:
            return ""
        if following.startswith(plain.suffix):
            return ""
        rest = plain.suffix[ends.last_end(plain.suffix, common_length(plain.suffix, following), plain.prompt) :]
        between = plain.before.rpartition(QUESTION["content"])[2]
        if rest.strip() not in between and plain.prompt != alone:
            return ""  # it ends the last turn, whoever has it
        return rest if alone.endswith(rest) and rest in plain.generation else ""
