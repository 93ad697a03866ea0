"""What is learned once about a chat template, from renderings of a question and an answer."""

from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import shown
from hf_recipes.data.chat.message_form import MessageForm
from hf_recipes.data.chat.probes.thought_style import ANSWER, QUESTION, PlainTurn, ThoughtStyle, learn_thoughts
from hf_recipes.data.chat.probes.turn_end import TurnEnd
from hf_recipes.data.chat.rendering import Renderer
from hf_recipes.data.schemas.conversation import Message, RowProblem


class TemplateProbes:
    """What a template does with any conversation.

    Attributes:
        tail: what stands after the content of the last answer.
        end_of_turn: what the model writes at the end of an answer.
        has_own_end: whether the template itself ends the last answer with it.
        opening: what stands between a question and an answer, but for what opens thoughts.
        thoughts: how the template writes them.

    Raises:
        UserError: the template cannot show a question and an answer, or there is no token to end a turn with.
    """

    tail: str
    end_of_turn: str
    has_own_end: bool
    opening: str
    thoughts: ThoughtStyle

    def __init__(self, tokenizer: PreTrainedTokenizerBase, render: Renderer, ends: TurnEnd):
        self._render = render
        plain = self._plain_turn()
        self.tail = plain.tail
        if self._opens_another_answer(plain):
            raise UserError(
                "the chat template cannot be used for training: it begins another answer after the last one, though "
                "add_generation_prompt is false; correct it or choose another with --chat_template"
            )
        end = ends.at_end(plain.tail)
        self.has_own_end = bool(end)
        self.end_of_turn = end or ends.opener([QUESTION, ANSWER], _next_question()) or tokenizer.eos_token or ""
        if not self.end_of_turn:
            raise UserError("neither the chat template nor the tokenizer has a token that ends a turn (eos_token)")
        self.thoughts = learn_thoughts(render, plain)
        render.form = replace(render.form, thoughts=self.thoughts.field, around=self.thoughts.around)
        self._plain_prompt = plain.prompt.rstrip()
        opening = plain.generation.strip()
        self.opening = opening.removesuffix(self.thoughts.marks.start).strip() if self.thoughts.opens else opening

    def opens_thoughts(self, prompt: str, question: str) -> bool:
        """Whether `prompt` ends with what opens thoughts, though it does not just end with the `question`."""
        style, prompt = self.thoughts, prompt.rstrip()
        if not prompt.endswith(style.marks.start):
            return False
        if style.opens:
            return True
        question = question.strip()
        is_question = question.endswith(style.marks.start) and prompt.endswith(question)
        return not is_question and not self._plain_prompt.endswith(style.marks.start)

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

    def _opens_another_answer(self, plain: PlainTurn) -> bool:
        """Whether what stands after the last answer is the beginning of one, as after a question."""
        if plain.lead.strip() or plain.prompt.partition(QUESTION["content"])[2] != plain.tail:
            return False
        try:
            chat = self._render([QUESTION, ANSWER, QUESTION])
        except RowProblem:
            return False
        return not chat.partition(ANSWER["content"])[2].startswith(plain.tail)


def _next_question() -> Message:
    return {**QUESTION, "content": "PROBEnext"}
