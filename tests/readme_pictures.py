"""The pictures of both READMEs: an inspection, an evaluation, the chat and the mixture viewer, from the samples.

python tests/readme_pictures.py en zh
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from browser import Browser, find_program
from conftest import ROOT
from hf_recipes.apps.ports import free_port

MODEL = ".cache/SmolLM2-135M-Instruct"
DEMO = ["--config", "configs/recipes/demo.yaml", "--model_name_or_path", MODEL]
SHORT = ["--max_steps", 100, "--eval_on_start", "false", "--eval_steps", 100, "--max_eval_samples", 20]
QUESTION = "过去5年中存在过度饮酒 这条筛选标准属于哪一类？ 选项：怀孕相关，实验室检查，酒精使用，体征 答："
WAIT = 900  # seconds


def arguments(name: str, *flags: object) -> list[str]:
    return [sys.executable, "-m", "hf_recipes", name, *map(str, flags)]


def run(folder: Path, name: str, *flags: object) -> None:
    subprocess.run(arguments(name, *flags), cwd=folder, check=True)


class Camera:
    """One browser, whose pictures go to docs/<language>."""

    def __init__(self, language: str, folder: Path):
        self.language, self.folder = language, folder
        self.browser = Browser(find_program(), folder / f"browser-{language}")
        self.browser.language({"en": "en-US", "zh": "zh-CN"}[language])
        self.browser.viewport(1280, 800)

    def picture(self, name: str) -> None:
        time.sleep(2)
        self.browser.screenshot(ROOT / "docs" / self.language / f"{name}.png")

    def page(self, name: str, path: Path, top: str) -> None:
        self.browser.goto(path.as_uri())
        self.browser.evaluate(f"document.querySelector({top!r}).scrollIntoView()")
        self.picture(name)

    def server(self, name: str, *flags: object) -> subprocess.Popen:
        """Started, with its page open."""
        port = free_port(18_000)
        process = subprocess.Popen(arguments(name, *flags, "--port", port), cwd=self.folder, start_new_session=True)
        for _ in range(WAIT):
            try:
                self.browser.goto(f"http://127.0.0.1:{port}/")
            except AssertionError:
                time.sleep(1)
            else:
                return process
        raise TimeoutError(f"{name} did not start")

    def chat(self) -> None:
        flags = ["--peft_path", "run", "--compare_with", "base", "--temperature", 0, "--max_new_tokens", 24]
        process = self.server("chat", "--model_name_or_path", MODEL, *flags, "--system_prompt", "判断类别。")
        try:
            self.browser.wait_for({"en": "Your question", "zh": "你的问题"}[self.language], seconds=WAIT)
            time.sleep(2)  # until the server knows the language too
            self.browser.type("#question textarea", QUESTION)
            self.browser.click("#question textarea")
            self.browser.press("Enter")
            self.browser.wait_for(script="document.querySelectorAll('[data-testid=bot]').length >= 2", seconds=WAIT)
            self.browser.wait_for(script="!!document.querySelector('#send')?.offsetParent", seconds=WAIT)
            self.picture("chat")
        finally:
            process.terminate()
            process.wait()

    def mixture(self) -> None:
        process = self.server("mixture", "--folder", "data")
        try:
            self.browser.wait_for('"wiki":', seconds=WAIT)
            if self.language == "zh":
                self.browser.click("label", "中文")
            self.picture("mixture")
        finally:
            os.killpg(process.pid, 15)
            process.wait()


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("configs", "datasets", ".cache"):
            (folder / part).symlink_to(ROOT / part)
        for path in (ROOT / "datasets" / "pretrain").iterdir():
            (folder / "data" / path.stem).mkdir(parents=True)
            (folder / "data" / path.stem / path.name).symlink_to(path)
        run(folder, "sft", *DEMO, *SHORT, "--report_to", "none", "--output_dir", "run")
        for language in sys.argv[1:] or ["en", "zh"]:
            shown = ["--language", language]
            run(folder, "inspect", *DEMO, *shown, "--html", f"{language}.html")
            compared = ["--compare", "base", "--eval_files", "test=datasets/promptcblue/test.json"]
            compared += ["--max_eval_samples", 60, "--output_dir", language]
            run(folder, "evaluate", "--model_name_or_path", MODEL, "--peft_path", "run", *compared, *shown)
            camera = Camera(language, folder)
            try:
                camera.page("inspection", folder / f"{language}.html", "h2")
                camera.page("evaluation", folder / language / "report.html", "body")
                camera.chat()
                camera.mixture()
            finally:
                camera.browser.close()


if __name__ == "__main__":
    main()
