"""The chat in the terminal: a line is a question, or a command if it begins with a slash."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from hf_recipes.apps.chat.arguments import NUMBERS, decoding_of
from hf_recipes.apps.chat.engine import Engine
from hf_recipes.apps.chat.models import Answer
from hf_recipes.apps.chat.session import Session, Settings
from hf_recipes.apps.chat.texts import Texts
from hf_recipes.core.errors import UserError
from hf_recipes.core.language import locale_language
from hf_recipes.models.inference.decoding import Decoding


class Terminal:
    """One conversation over standard input and output."""

    def __init__(self, engine: Engine, decoding: Decoding, language: str | None = None, system: str = ""):
        self.engine, self.session, self.system, self.decoding = engine, Session(), system, decoding
        self.model = next(iter(engine.chat_models))
        self.texts = Texts(language or locale_language())

    def run(self) -> None:
        """Chat until /exit or the end of the input."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  gives `input` editing and history
        print(self._state("model"))
        print(self.texts("commands"))
        while True:
            try:
                line = input("\n> ").strip()
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print()
                continue
            if line == "/exit":
                return
            try:
                if line.startswith("/"):
                    self._command(*line[1:].split(maxsplit=1))
                elif line:
                    self._ask(line)
            except (UserError, ValueError) as error:
                print(error)

    def _ask(self, question: str, at: int | None = None) -> None:
        settings = Settings((self.model,), self.decoding, self.system)
        self.session.is_stopped, printed = False, ""
        answers = self.session.ask(self.engine, question, settings, at)
        for [answer] in _until_stopped(answers, self.session):
            print(answer.text[len(printed) :], end="", flush=True)
            printed = max(printed, answer.text, key=len)
        print(f"\n[{self.texts.notes(answer)}]")

    def _command(self, name: str = "", value: str = "") -> None:
        if name == "retry":
            if not (turns := self.session.columns[0]):
                print(self.texts("nothing"))
                return
            self._ask(turns[-1].question, len(turns) - 1)
        elif name == "clear":
            self.session.clear()
        elif name == "system":
            self.system = value
            print(self._state("system"))
        elif name == "model":
            if value in self.engine.chat_models:
                self.model = value
            elif value:
                print(self.texts("no command", name=value))
            print(self._state("model"))
        elif name == "set":
            self._set(*value.split(maxsplit=1))
        elif name == "read":
            answers = self.session.answers
            model = self.engine.chat_models[self.session.columns[0][-1].model] if answers else None
            print(model.decode(answers[0]) if model else self.texts("nothing"))
        elif name == "save" and value:
            self._save(Path(value).expanduser())
        else:
            print(self.texts("commands"))

    def _state(self, key: str) -> str:
        if key == "system":
            return self.texts("now", name=self.texts(key), value=self.system)
        others = " | ".join(name for name in self.engine.chat_models if name != self.model)
        return self.texts("now", name=self.texts(key), value=self.model + (f" ({others})" if others else ""))

    def _set(self, name: str = "", value: str = "") -> None:
        now = asdict(self.decoding)
        now["temperature"] = now["temperature"] if self.decoding.do_sample else 0.0
        if name in NUMBERS and value:
            now[name] = float(value)
            fixed = self.decoding.seed, self.decoding.max_thinking_tokens
            self.decoding = decoding_of(*(now[key] for key in NUMBERS), *fixed)
        elif name:
            print(self.texts("no command", name=name))
        print("  ".join(f"{key} {now[key]:g}" for key in NUMBERS))

    def _save(self, path: Path) -> None:
        text = self.session.to_jsonl()
        if not text:
            print(self.texts("nothing to save"))
            return
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            print(self.texts("exists", path=path))
        except OSError as error:
            print(self.texts("not saved", path=path, reason=error.strerror))
        else:
            print(self.texts("saved", path=path))


def _until_stopped(answers: Iterator[list[Answer]], session: Session) -> Iterator[list[Answer]]:
    """`answers`; Ctrl-C stops them, as the page's button does."""
    import signal

    def stop(*_) -> None:
        session.is_stopped = True

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield from answers
    finally:
        signal.signal(signal.SIGINT, before)
