"""One user's conversation, in one column, or in two with the answers of two models."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from hf_recipes.apps.chat.engine import Engine
from hf_recipes.apps.chat.models import Answer
from hf_recipes.core.files import to_json
from hf_recipes.data.conversations.conversation import Message
from hf_recipes.models.inference.decoding import Decoding


@dataclass(frozen=True)
class Exchange:
    """A question and the answer of `model` (its name); an empty text while there is none."""

    question: str
    answer: str = ""
    model: str = ""


@dataclass(frozen=True)
class Settings:
    """The name of the model of each column, and how they answer."""

    models: tuple[str, ...]
    decoding: Decoding
    system: str = ""


@dataclass
class Session:
    """A conversation in memory; `columns` has one list of exchanges, or two with the same questions.

    `answers` are those to the last question. A question with an empty answer is displayed, but neither in the prompts
    of later ones nor saved.
    """

    columns: list[list[Exchange]] = field(default_factory=lambda: [[]])
    system: str = ""
    answers: list[Answer] = field(default_factory=list)
    answered: int = 0
    is_busy: bool = False
    is_stopped: bool = False

    def clear(self) -> None:
        self.columns, self.answers = [[]], []

    def ask(self, engine: Engine, question: str, settings: Settings, at: int | None = None) -> Iterator[list[Answer]]:
        """Answer `question` in each column, one after the other, and yield the columns' answers as they grow.

        A second column that is new starts as a copy of the first. The answers end once `is_stopped` is set. If a prompt
        is refused, the session stays as it was.

        Args:
            at: index of the question to replace; it and all exchanges after it are removed.
        """
        prompts, columns = [], []
        for index, model in enumerate(settings.models):
            exchanges = self.columns[min(index, len(self.columns) - 1)][:at]
            messages = _messages(exchanges, settings.system, question)
            prompts.append(engine.prompt(model, messages, settings.decoding))
            columns.append([*exchanges, Exchange(question, model=model)])
        self.columns, self.system = columns, settings.system
        self.answered += 1
        self.answers = answers = [Answer(prompt) for prompt in prompts]
        yield list(answers)
        for index, model in enumerate(settings.models):
            if self.is_stopped:
                answers[index] = replace(answers[index], end="stop")
                yield list(answers)
                continue
            options = {"key": self.answered, "stopped": lambda: self.is_stopped}
            for answer in engine.answer(model, prompts[index], settings.decoding, **options):
                answers[index] = answer
                columns[index][-1] = Exchange(question, answer.text, model)
                yield list(answers)

    def rows(self) -> list[dict]:
        """Each column with an answer as a row of the schema `messages`; `answered_by` names the models."""
        rows = []
        for column in self.columns:
            if answered := [exchange for exchange in column if exchange.answer]:
                models = [exchange.model for exchange in answered]
                rows.append({"messages": _messages(answered, self.system), "answered_by": models})
        return rows

    def to_jsonl(self) -> str:
        return "".join(to_json(row) + "\n" for row in self.rows())


def _messages(exchanges: list[Exchange], system: str, question: str | None = None) -> list[Message]:
    messages = [{"role": "system", "content": system}] if system.strip() else []
    for exchange in exchanges:
        if exchange.answer:
            messages.append({"role": "user", "content": exchange.question})
            messages.append({"role": "assistant", "content": exchange.answer})
    return messages + ([{"role": "user", "content": question}] if question is not None else [])
