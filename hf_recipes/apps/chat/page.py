"""The chat as a page: questions, answers in one column or two, settings. `chat_server` serves it."""

import math
import time
import traceback
from collections.abc import Iterator, Sequence
from html import escape

import gradio as gr
import torch

from hf_recipes.apps.chat.arguments import decoding_of
from hf_recipes.apps.chat.engine import BASE, Engine
from hf_recipes.apps.chat.session import Exchange, Session, Settings
from hf_recipes.apps.chat.style import DOWNLOAD
from hf_recipes.apps.chat.texts import LANGUAGES, Texts
from hf_recipes.core.errors import UserError
from hf_recipes.models.inference.decoding import Decoding

MOST_CHARACTERS = 100_000  # of a question or a system prompt
SLIDERS = ("temperature", "top_p", "max_new_tokens", "repetition_penalty")
PERIOD = 0.05  # seconds between two looks of the page at an answer that grows


class Page:
    """The page's components, in the order in which they are laid out, and what happens when they are used."""

    def __init__(self, engine: Engine, decoding: Decoding, language: str | None, system: str = ""):
        self.engine, self.language, self.seed = engine, language, decoding.seed
        self.labels: list[tuple[gr.blocks.Block, dict[str, str]]] = []
        self.blocks = gr.Blocks(title="对话 · Chat", fill_width=True, analytics_enabled=False)
        with self.blocks:
            self._build(decoding, system)
            self._connect()

    def _labelled(self, component, **texts: str):
        """`component`, whose properties are the `texts` of these keys in the language of the session."""
        self.labels.append((component, texts))
        return component

    def _build(self, decoding: Decoding, system: str) -> None:
        names = list(self.engine.voices)
        only = len(names) == 1
        self.session, self.download = gr.State(Session()), gr.Textbox(visible=False)
        with gr.Row(elem_id="head"):
            self.title = self._labelled(gr.Markdown(), value="title")
            self.lang = gr.Radio(
                [(name, key) for key, name in LANGUAGES.items()],
                value=self.language or "zh",
                label="语言 / Language",
                show_label=False,
                container=False,
                elem_id="language",
            )
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                with gr.Row():
                    self.chats = [self._chat(names[0]), self._chat(BASE, visible=False)]
                self.notes = gr.HTML(elem_id="notes", padding=False)
                self.question = gr.Textbox(
                    lines=1, max_lines=10, max_length=MOST_CHARACTERS, autofocus=True, elem_id="question"
                )
                self._labelled(self.question, label="question", placeholder="question help")
                with gr.Row(elem_id="buttons"):
                    self.send, self.stop, self.retry, self.clear, self.save = (
                        self._labelled(gr.Button(variant=variant, elem_id=key, visible=key != "stop"), value=key)
                        for key, variant in (
                            ("send", "primary"),
                            ("stop", "stop"),
                            ("retry", "secondary"),
                            ("clear", "secondary"),
                            ("save", "secondary"),
                        )
                    )
            with gr.Column(scale=1, min_width=280):
                self.voice = gr.Dropdown(names, value=names[0], visible=not only, elem_id="voice")
                self.beside = gr.Dropdown(["", *names], value="", visible=not only, elem_id="beside")
                self.system = gr.Textbox(system, lines=2, max_lines=8, max_length=MOST_CHARACTERS, elem_id="system")
                self.sliders = [
                    gr.Slider(0, 2, decoding.temperature if decoding.do_sample else 0, step=0.05),
                    gr.Slider(0.05, 1, decoding.top_p, step=0.05),
                    gr.Slider(1, self.engine.most_new_tokens, decoding.max_new_tokens, step=1),
                    gr.Slider(1, 2, max(1, decoding.repetition_penalty), step=0.05),
                ]
                for key, component in (("model", self.voice), ("beside", self.beside), ("system", self.system)):
                    self._labelled(component, label=key)
                for key, slider in zip(SLIDERS, self.sliders, strict=True):
                    self._labelled(slider, label=key, info=f"{key} help")
        with self._labelled(gr.Accordion(open=False), label="read"), gr.Row():
            self.read = [
                gr.Textbox(
                    lines=4, max_lines=24, min_width=280, interactive=False, buttons=["copy"], visible=index == 0
                )
                for index in range(2)
            ]

    def _chat(self, name: str, visible: bool = True) -> gr.Chatbot:
        chat = gr.Chatbot(
            label=name,
            visible=visible,
            editable="user",
            buttons=["copy"],
            elem_classes=["chat"],
            min_width=300,
            reasoning_tags=[("<think>", "</think>")],
            allow_tags=False,
        )
        return self._labelled(chat, placeholder="empty")

    def _connect(self) -> None:
        settings = [self.lang, self.voice, self.beside, self.system, *self.sliders]
        shown = [*self.chats, self.notes, self.question, self.send, self.stop, self.retry, self.clear, *self.read]
        hidden = {"api_visibility": "private", "show_progress": "hidden"}
        at_once = {**hidden, "queue": False}
        # One answer at a time; who waits sees the place in Gradio's queue where the notes will be.
        answering = {"api_visibility": "private", "show_progress": "minimal", "show_progress_on": self.notes}
        answering |= {"concurrency_id": "answers", "trigger_mode": "once"}
        asking = [self.question.submit, self.send.click]
        gr.on(asking, self.on_ask, [self.session, self.question, *settings], shown, **answering)
        self.retry.click(self.on_retry, [self.session, *settings], shown, **answering)
        for chat in self.chats:
            chat.edit(self.on_edit, [self.session, *settings], shown, **answering)
        self.stop.click(self.on_stop, [self.session], [], **at_once)
        for clear in (self.clear.click, *(chat.clear for chat in self.chats)):
            clear(self.on_clear, [self.session], [*self.chats, self.notes, *self.read], **at_once)
        self.save.click(self.on_save, [self.session, self.lang], [self.download], **at_once).then(
            None, [self.download], [], js=DOWNLOAD
        )
        columns = [*self.chats, self.notes, self.read[1]]
        for choice in (self.voice, self.beside, self.lang):
            choice.change(self.on_voices, [self.session, self.lang, self.voice, self.beside], columns, **at_once)
        labelled = [component for component, _ in self.labels]
        self.lang.change(self.on_language, [self.lang], [*labelled, *self.read], **at_once)
        self.blocks.load(self.on_load, [], [self.lang, *labelled, *self.read], **at_once)

    def on_load(self, request: gr.Request) -> list:
        preferred = (request.headers.get("accept-language") or "").lower()
        language = self.language or ("zh" if preferred.startswith("zh") else "en")
        return [language, *self.on_language(language)]

    def on_language(self, language: str) -> list:
        texts = Texts(language)
        updates = []
        for component, keys in self.labels:
            values = {name: texts(key) for name, key in keys.items()}
            if component is self.title:
                values["value"] = f"# {values['value']}"
            if component in (self.voice, self.beside):
                first = [(texts("nobody"), "")] if component is self.beside else []
                values["choices"] = first + [(texts.voice(name), name) for name in self.engine.voices]
            updates.append(gr.update(**values))
        return [*updates, *(gr.update(label=texts(column)) for column in ("first", "second"))]

    def on_voices(self, session: Session, language: str, voice: str, beside: str) -> list:
        texts = Texts(language)
        names = (voice, beside) if beside else (voice,)
        updates = [
            gr.update(label=texts.voice(name), visible=bool(name), value=_shown(column, name, texts))
            for name, column in zip((voice, beside), (session.columns[0], session.columns[-1]), strict=True)
        ]
        return [*updates, _notes(session, names, texts), gr.update(visible=bool(beside))]

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
            yield {chat: _shown(column, name, texts) for chat, column, name in columns}

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
        voice: str,
        beside: str,
        system: str,
        *values: float,
        at: int | None = None,
        is_new: bool = False,
    ) -> Iterator[dict]:
        """What the page shows while one question is answered."""
        texts = Texts(language)
        refusal, longest = None, max(len(question), len(system))
        if longest > MOST_CHARACTERS:
            refusal = texts("too long", count=longest, most=MOST_CHARACTERS)
        try:
            settings = Settings((voice, beside) if beside else (voice,), decoding_of(*values, self.seed), system)
        except ValueError as error:
            refusal = texts("bad setting", reason=escape(str(error)))
        if refusal:
            gr.Warning(refusal)
            yield {self.notes: gr.skip()}
            return
        session.is_busy, session.is_stopped = True, False
        try:
            yield self._buttons(True) | {self.notes: ""}
            yield from self._answers(session, question, settings, texts, at, is_new)
        except UserError as error:
            gr.Warning(texts("cannot be shown", reason=escape(str(error))))
        except torch.OutOfMemoryError:
            gr.Warning(texts("memory"))
        except Exception:  # ours: the terminal has it, and the page goes on
            traceback.print_exc()
            gr.Warning(texts("failed"))
        finally:
            session.is_busy = False
        yield self._buttons(False)

    def _answers(
        self, session: Session, question: str, settings: Settings, texts: Texts, at: int | None, is_new: bool
    ) -> Iterator[dict]:
        chats = self.chats[: len(settings.voices)]
        voices = [self.engine.voices[name] for name in settings.voices]
        ends: list[str | None] = []
        last = -math.inf
        for answers in session.ask(self.engine, question, settings, at):
            now, is_first = [answer.end for answer in answers], last == -math.inf
            if now == ends and time.monotonic() - last < PERIOD:
                continue
            last = time.monotonic()
            update = {
                chat: _shown(column, name, texts, is_open=answer.end is None)
                for chat, column, name, answer in zip(chats, session.columns, settings.voices, answers, strict=True)
            }
            update[self.notes] = _notes(session, settings.voices, texts)
            if now != ends:
                update |= {box: voice.read(a) for box, voice, a in zip(self.read, voices, answers, strict=False)}
            if is_first and is_new:
                update[self.question] = ""
            ends = now
            yield update

    def _buttons(self, is_answering: bool) -> dict:
        idle = {button: gr.update(interactive=not is_answering) for button in (self.retry, self.clear)}
        return {
            self.send: gr.update(visible=not is_answering),
            self.stop: gr.update(visible=is_answering),
            **idle,
        }


def _shown(column: list[Exchange], voice: str, texts: Texts, is_open: bool = False) -> list[dict]:
    """A column of `voice` as the component wants it; `is_open`: its last answer is still being written."""
    messages = []
    for index, exchange in enumerate(column):
        is_last = index == len(column) - 1
        answer = exchange.answer or ("…" if is_open and is_last else texts("empty answer"))
        if exchange.voice != voice:
            answer += f"\n\n<small>— {escape(texts.voice(exchange.voice))}</small>"
        messages += [{"role": "user", "content": exchange.question}, {"role": "assistant", "content": answer}]
    return messages


def _notes(session: Session, voices: Sequence[str], texts: Texts) -> str:
    """Of the last question: how much was read and written, what was cut, why the answers ended."""
    notes = [escape(texts.notes(answer)) for answer in session.answers]
    if len(notes) > 1:
        notes = [f"<b>{escape(texts.voice(name))}</b> {note}" for name, note in zip(voices, notes, strict=False)]
    return "<br>".join(notes)
