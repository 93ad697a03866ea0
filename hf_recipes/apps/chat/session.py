"""One person's conversation, in one column or with the answers of two models beside each other."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from hf_recipes.apps.chat.engine import Answer, Engine
from hf_recipes.core.files import to_json
from hf_recipes.data.schemas.conversation import Message
from hf_recipes.models.inference.decoding import Decoding


@dataclass(frozen=True)
class Exchange:
    """A question and what `voice` answered; no text as long as there is none."""

    question: str
    answer: str = ""
    voice: str = ""


@dataclass(frozen=True)
class Settings:
    """Who answers, in each column, and how."""

    voices: tuple[str, ...]
    decoding: Decoding
    system: str = ""


@dataclass
class Session:
    """A conversation in memory; `columns` has one list of exchanges, or two with the same questions.

    `answers` are those to the last question. A question whose answer is empty stays to be seen; models are not shown
    it, and it is not saved.
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

        A column that is new goes on from the first. Once `is_stopped` is set, the answers end.

        Args:
            at: the place of the question that this one takes the place of; all after it goes.

        Raises:
            UserError: as `Voice.prompt`; the session is then as it was.
        """
        before = [self.columns[min(index, len(self.columns) - 1)][:at] for index in range(len(settings.voices))]
        prompts = [
            engine.prompt(voice, _messages(exchanges, settings.system, question), settings.decoding)
            for voice, exchanges in zip(settings.voices, before, strict=True)
        ]
        columns = [
            [*exchanges, Exchange(question, voice=voice)]
            for voice, exchanges in zip(settings.voices, before, strict=True)
        ]
        self.columns, self.system = columns, settings.system
        self.answered += 1
        how = {"key": self.answered, "stopped": lambda: self.is_stopped}
        self.answers = answers = [Answer(prompt) for prompt in prompts]
        yield list(answers)
        for index, voice in enumerate(settings.voices):
            if self.is_stopped:
                answers[index] = replace(answers[index], end="stop")
                yield list(answers)
                continue
            for answer in engine.answer(voice, prompts[index], settings.decoding, **how):
                answers[index] = answer
                columns[index][-1] = Exchange(question, answer.text, voice)
                yield list(answers)

    def rows(self) -> list[dict]:
        """Each column that has an answer as a row of the schema `messages`; `answered_by` names who gave each one."""
        rows = []
        for column in self.columns:
            if answered := [exchange for exchange in column if exchange.answer]:
                names = [exchange.voice for exchange in answered]
                rows.append({"messages": _messages(answered, self.system), "answered_by": names})
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
