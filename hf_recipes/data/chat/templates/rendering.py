"""Messages → text by a tokenizer's chat template."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from hf_recipes.core.bounds import TEMPLATE, bounded
from hf_recipes.core.errors import UserError
from hf_recipes.data.chat.templates.dates import with_date
from hf_recipes.data.chat.templates.message_form import MessageForm, form_of_calls
from hf_recipes.data.conversations.conversation import Message, RowProblem


class Renderer:
    """Renders conversations with a tokenizer's chat template and the options of a run.

    Attributes:
        form: where the template looks for what messages hold; that of calls is probed with the first call.
        opened: what the template writes behind the last turn to begin an answer, though none is asked for; left out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any] | None = None):
        self.tokenizer, self.options = tokenizer, dict(options or {})
        self.form, self.opened = MessageForm(), ""
        self._dated = with_date(tokenizer)
        self._knows_calls = False

    def __call__(self, messages: list[Message], tools: list | None = None, is_prompt: bool = False) -> str:
        """The rendering of `messages`, with what asks for an answer where it is a prompt.

        Raises:
            RowProblem: the template refuses them.
        """
        if not self._knows_calls and any(message.get("tool_calls") for message in messages):
            self._knows_calls = True
            self.form = form_of_calls(self.form, self._rendered)
        return self._rendered(self.form, messages, tools, is_prompt)

    def tried(self, messages: list[Message], **form: Any) -> str | None:
        """The rendering with other fields of the form; None where the template refuses it."""
        try:
            return self._rendered(replace(self.form, **form), messages, None, False)
        except RowProblem:
            return None

    def _rendered(self, form: MessageForm, messages: list[Message], tools: list | None, is_prompt: bool) -> str:
        try:
            with bounded(TEMPLATE):
                text = self.tokenizer.apply_chat_template(
                    form.prepared(messages),
                    chat_template=self._dated,
                    tools=tools,
                    tokenize=False,
                    add_generation_prompt=is_prompt,
                    **self.options,
                )
            return text if is_prompt else text.removesuffix(self.opened)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # a template computes what it likes
            raise RowProblem("the chat template refuses it", _message(error)) from None


def _message(error: Exception) -> str:
    """The template's own refusal as it put it; any other error with its kind."""
    return str(error) if type(error) is TemplateError else f"{type(error).__name__}: {error}"
