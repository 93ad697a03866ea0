"""The chat as a page: questions, answers in one column or two, settings. `server` serves it."""

import math
import time
import traceback
from collections.abc import Iterator, Sequence
from html import escape

import gradio as gr
import torch

from hf_recipes.apps.chat.arguments import NUMBERS, decoding_of
from hf_recipes.apps.chat.engine import Engine
from hf_recipes.apps.chat.models import BASE
from hf_recipes.apps.chat.session import Exchange, Session, Settings
from hf_recipes.apps.chat.style import DOWNLOAD
from hf_recipes.apps.chat.texts import Texts
from hf_recipes.apps.labelled_page import AT_ONCE, LabelledPage, language_radio, preferred_language
from hf_recipes.core.errors import UserError
from hf_recipes.models.inference.decoding import Decoding

MAX_CHARACTERS = 100_000  # of a question or a system prompt
PERIOD = 0.05  # seconds between two updates of a growing answer


class Page(LabelledPage):
    """The page's components, in the order in which they are laid out, and what happens when they are used."""

    def __init__(self, engine: Engine, decoding: Decoding, language: str | None, system: str = "", other: str = ""):
        super().__init__("对话 · Chat")
        self.engine, self.language = engine, language
        self.fixed = decoding.seed, decoding.max_thinking_tokens
        with self.blocks:
            self._build(decoding, system, other)
            self._connect()

    def _build(self, decoding: Decoding, system: str, other: str) -> None:
        names = list(self.engine.chat_models)
        has_choice = len(names) > 1
        variants = {"send": "primary", "stop": "stop"}
        self.session, self.download = gr.State(Session()), gr.Textbox(visible=False)
        with gr.Row(elem_id="head"):
            self.title = self.labelled(gr.Markdown(), value="title")
            self.lang = language_radio(self.language or "zh")
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                with gr.Row():
                    self.chats = [self._chat(names[0]), self._chat(other or BASE, visible=bool(other))]
                self.notes = gr.HTML(elem_id="notes", padding=False)
                self.question = gr.Textbox(
                    lines=1, max_lines=10, max_length=MAX_CHARACTERS, autofocus=True, elem_id="question"
                )
                self.labelled(self.question, label="question", placeholder="question help")
                with gr.Row(elem_id="buttons"):
                    self.send, self.stop, self.retry, self.clear, self.save = (
                        self.labelled(
                            gr.Button(variant=variants.get(key, "secondary"), elem_id=key, visible=key != "stop"),
                            value=key,
                        )
                        for key in ("send", "stop", "retry", "clear", "save")
                    )
            with gr.Column(scale=1, min_width=280):
                self.model = gr.Dropdown(names, value=names[0], visible=has_choice, elem_id="model")
                self.compare_with = gr.Dropdown(["", *names], value=other, visible=has_choice, elem_id="compare_with")
                self.system = gr.Textbox(system, lines=2, max_lines=8, max_length=MAX_CHARACTERS, elem_id="system")
                self.sliders = [
                    gr.Slider(0, 2, decoding.temperature if decoding.do_sample else 0, step=0.05),
                    gr.Slider(0.05, 1, decoding.top_p, step=0.05),
                    gr.Slider(1, self.engine.max_new_tokens, decoding.max_new_tokens, step=1),
                    gr.Slider(1, 2, max(1, decoding.repetition_penalty), step=0.05),
                ]
                self.labelled(self.model, label="model")
                self.labelled(self.compare_with, label="compare with")
                self.labelled(self.system, label="system")
                for key, slider in zip(NUMBERS, self.sliders, strict=True):
                    self.labelled(slider, label=key, info=f"{key} help")
        with self.labelled(gr.Accordion(open=False), label="read"), gr.Row():
            self.decoded = [
                gr.Textbox(
                    lines=4,
                    max_lines=24,
                    min_width=280,
                    interactive=False,
                    buttons=["copy"],
                    visible=index == 0 or bool(other),
                )
                for index in range(2)
            ]

    def _chat(self, name: str, visible: bool = True) -> gr.Chatbot:
        chat = gr.Chatbot(
            label=Texts(self.lang.value).model(name),
            visible=visible,
            editable="user",
            buttons=["copy"],
            elem_classes=["chat"],
            min_width=300,
            reasoning_tags=[("<think>", "</think>")],
            allow_tags=False,
        )
        return self.labelled(chat, placeholder="empty")

    def _connect(self) -> None:
        settings = [self.lang, self.model, self.compare_with, self.system, *self.sliders]
        buttons = [self.send, self.stop, self.retry, self.clear]
        outputs = [*self.chats, self.notes, self.question, *buttons, *self.decoded]
        # One answer at a time; the position in Gradio's queue is displayed in place of the notes.
        queued = {"api_visibility": "private", "show_progress": "minimal", "show_progress_on": self.notes}
        queued |= {"concurrency_id": "answers", "trigger_mode": "once"}
        ask = [self.question.submit, self.send.click]
        gr.on(ask, self.on_ask, [self.session, self.question, *settings], outputs, **queued)
        self.retry.click(self.on_retry, [self.session, *settings], outputs, **queued)
        for chat in self.chats:
            chat.edit(self.on_edit, [self.session, *settings], outputs, **queued)
        self.stop.click(self.on_stop, [self.session], [], **AT_ONCE)
        for clear in (self.clear.click, *(chat.clear for chat in self.chats)):
            clear(self.on_clear, [self.session], [*self.chats, self.notes, *self.decoded], **AT_ONCE)
        self.save.click(self.on_save, [self.session, self.lang], [self.download], **AT_ONCE).then(
            None, [self.download], [], js=DOWNLOAD
        )
        columns = [*self.chats, self.notes, self.decoded[1]]
        choices = [self.lang, self.model, self.compare_with]
        for choice in choices:
            choice.change(self.on_choice, [self.session, *choices], columns, **AT_ONCE)
        labelled = [component for component, _ in self.labels]
        self.lang.change(self.on_language, [self.lang], [*labelled, *self.decoded], **AT_ONCE)
        self.blocks.load(self.on_load, [], [self.lang, *labelled, *self.decoded], **AT_ONCE)

    def on_load(self, request: gr.Request) -> list:
        language = self.language or preferred_language(request)
        return [language, *self.on_language(language)]

    def on_language(self, language: str) -> list:
        texts = Texts(language)
        updates = []
        for component, keys in self.labels:
            values = {name: texts(key) for name, key in keys.items()}
            if component is self.title:
                values["value"] = f"# {values['value']}"
            if component in (self.model, self.compare_with):
                first = [(texts("no comparison"), "")] if component is self.compare_with else []
                values["choices"] = first + [(texts.model(name), name) for name in self.engine.chat_models]
            updates.append(gr.update(**values))
        return [*updates, *(gr.update(label=texts(column)) for column in ("first", "second"))]

    def on_choice(self, session: Session, language: str, model: str, compare_with: str) -> list:
        texts = Texts(language)
        updates = [
            gr.update(label=texts.model(name), visible=bool(name), value=_chat_messages(column, name, texts))
            for name, column in ((model, session.columns[0]), (compare_with, session.columns[-1]))
        ]
        notes = _notes(session, (model, compare_with), texts)
        return [*updates, notes, gr.update(visible=bool(compare_with))]

    def on_ask(self, session: Session, question: str, *settings) -> Iterator[dict]:
        if question.strip():
            yield from self._answer(session, question, *settings, is_new=True)
        else:
            yield {self.notes: gr.skip()}

    def on_retry(self, session: Session, *settings) -> Iterator[dict]:
        if session.columns[0]:
            last = len(session.columns[0]) - 1
            yield from self._answer(session, session.columns[0][last].question, *settings, at=last)
        else:
            gr.Info(Texts(settings[0])("nothing"))
            yield {self.notes: gr.skip()}

    def on_edit(self, session: Session, edit: gr.EditData, *settings) -> Iterator[dict]:
        index = edit.index if isinstance(edit.index, int) else edit.index[0]
        question, at = edit.value if isinstance(edit.value, str) else "", index // 2
        if question.strip() and not index % 2 and at < len(session.columns[0]):
            yield from self._answer(session, question, *settings, at=at)
        else:
            texts = Texts(settings[0])
            columns = zip(self.chats, session.columns, settings[1:3], strict=False)
            yield {chat: _chat_messages(column, name, texts) for chat, column, name in columns}

    def on_stop(self, session: Session) -> None:
        session.is_stopped = True

    def on_clear(self, session: Session) -> list:
        if session.is_busy:
            return [gr.skip()] * 5
        session.clear()
        return [[], [], "", "", ""]

    def on_save(self, session: Session, language: str) -> str:
        text = session.to_jsonl()
        if not text:
            gr.Info(Texts(language)("nothing to save"))
        return text

    def _answer(
        self,
        session: Session,
        question: str,
        language: str,
        model: str,
        compare_with: str,
        system: str,
        *values: float,
        at: int | None = None,
        is_new: bool = False,
    ) -> Iterator[dict]:
        """The updates of the page while a question is answered."""
        texts = Texts(language)
        problem, longest = None, max(len(question), len(system))
        if longest > MAX_CHARACTERS:
            problem = texts("too long", count=longest, most=MAX_CHARACTERS)
        try:
            models = (model, compare_with) if compare_with else (model,)
            settings = Settings(models, decoding_of(*values, *self.fixed), system)
        except ValueError as error:
            problem = texts("bad setting", reason=escape(str(error)))
        if problem:
            gr.Warning(problem)
            yield {self.notes: gr.skip()}
            return
        session.is_busy, session.is_stopped = True, False
        try:
            yield self._buttons(True) | {self.notes: ""}
            yield from self._answers(session, question, settings, texts, at, is_new)
        except UserError as error:
            gr.Warning(texts("refused", reason=escape(str(error))))
        except torch.OutOfMemoryError:
            gr.Warning(texts("memory"))
        except Exception:  # a bug: the terminal shows it, and the page continues
            traceback.print_exc()
            gr.Warning(texts("failed"))
        finally:
            session.is_busy = False
        yield self._buttons(False)

    def _answers(
        self, session: Session, question: str, settings: Settings, texts: Texts, at: int | None, is_new: bool
    ) -> Iterator[dict]:
        ends: list[str | None] = []
        last = -math.inf
        for answers in session.ask(self.engine, question, settings, at):
            now, is_first = [answer.end for answer in answers], last == -math.inf
            if now == ends and time.monotonic() - last < PERIOD:
                continue
            last = time.monotonic()
            update = {self.notes: _notes(session, settings.models, texts)}
            for index, (name, answer) in enumerate(zip(settings.models, answers, strict=True)):
                is_open = answer.end is None
                update[self.chats[index]] = _chat_messages(session.columns[index], name, texts, is_open)
                if now != ends:
                    update[self.decoded[index]] = self.engine.chat_models[name].decode(answer)
            if is_first and is_new:
                update[self.question] = ""
            ends = now
            yield update

    def _buttons(self, is_answering: bool) -> dict:
        return {
            self.send: gr.update(visible=not is_answering),
            self.stop: gr.update(visible=is_answering),
            self.retry: gr.update(interactive=not is_answering),
            self.clear: gr.update(interactive=not is_answering),
        }


def _chat_messages(column: list[Exchange], model: str, texts: Texts, is_open: bool = False) -> list[dict]:
    """A column of `model` for `gr.Chatbot`; `is_open`: its last answer is still being generated."""
    messages = []
    for index, exchange in enumerate(column):
        is_last = index == len(column) - 1
        answer = exchange.answer or ("…" if is_open and is_last else texts("empty answer"))
        if exchange.model != model:
            answer += f"\n\n<small>— {escape(texts.model(exchange.model))}</small>"
        messages += [{"role": "user", "content": exchange.question}, {"role": "assistant", "content": answer}]
    return messages


def _notes(session: Session, models: Sequence[str], texts: Texts) -> str:
    """`Texts.notes` of the answers to the last question."""
    notes = [escape(texts.notes(answer)) for answer in session.answers]
    if len(notes) > 1:
        notes = [f"<b>{escape(texts.model(name))}</b> {note}" for name, note in zip(models, notes, strict=False)]
    return "<br>".join(notes)
