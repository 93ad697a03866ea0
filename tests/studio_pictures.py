"""The six pictures of docs/en/studio.md and docs/zh/studio.md: a walk through the studio with the demo's model.

python tests/studio_pictures.py en zh    # after make .cache/SmolLM2-135M-Instruct/config.json
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from browser import Browser, find_program
from conftest import ROOT
from hf_recipes.apps.ports import free_port
from hf_recipes.apps.studio.texts import Texts

CRAWL = [ROOT / "datasets" / "bilibili" / name for name in ("bili_comments.json", "bili_contents.json")]
MODEL = "SmolLM2-135M-Instruct"
SETTINGS = {
    "max_steps": 40,
    "logging_steps": 1,
    "eval_steps": 10,
    "learning_rate": "5e-4",
    "per_device_train_batch_size": 4,
    "max_length": 256,
}
WAIT = 1800  # seconds


class Walk:
    """One browser on a studio of its own."""

    def __init__(self, language: str, folder: Path):
        self.texts, self.folder, self.target = Texts(language), folder, ROOT / "docs" / language
        shutil.copytree(ROOT / ".cache" / MODEL, folder / "root" / "models" / MODEL)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(folder / "cache")}
        flags = ["--root", str(folder / "root"), "--language", language, "--port", str(free_port(17_870))]
        self.server = subprocess.Popen(
            [sys.executable, str(ROOT / "scripts" / "studio.py"), *flags],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        lines = (re.search(r"studio at (\S+) ", line) for line in self.server.stdout)
        self.address = next(match[1] for match in lines if match)
        self.browser = Browser(find_program(), folder / "browser")
        self.browser.viewport(1280, 800)

    def close(self) -> None:
        self.browser.close()
        self.server.terminate()
        self.server.wait()

    def tab(self, name: str) -> None:
        self.browser.click("button[role=tab]", self.texts(f"tab {name}"))
        time.sleep(1.5)

    def until(self, selector: str, count: int = 1) -> None:
        self.browser.wait_for(script=f"document.querySelectorAll({selector!r}).length >= {count}", seconds=WAIT)

    def picture(self, name: str, top: str = "#head") -> None:
        self.browser.evaluate("document.querySelectorAll('.toast-close').forEach(button => button.click())")
        self.browser.evaluate(f"document.activeElement.blur(); document.querySelector({top!r}).scrollIntoView()")
        time.sleep(1.5)
        self.browser.screenshot(self.target / f"studio_{name}.png")

    def run(self) -> None:
        browser = self.browser
        browser.goto(self.address)
        self.until("#head h1")
        time.sleep(2)
        browser.click("#do_check")
        self.until("#panel_model tr", 4)
        self.picture("model")
        self.tab("data")
        root = browser.call("DOM.getDocument")["root"]["nodeId"]
        node = browser.call("DOM.querySelector", nodeId=root, selector="input[type=file]")["nodeId"]
        browser.call("DOM.setFileInputFiles", nodeId=node, files=list(map(str, CRAWL)))
        browser.wait_for(script="document.querySelector('#data textarea').value.includes('contents')")
        browser.click("#do_convert")
        browser.wait_for(script="document.querySelector('#data textarea').value.endsWith('train.jsonl')", seconds=WAIT)
        browser.click("#do_inspect")
        self.until("#panel_rows article", 3)
        self.picture("data", "#budget")
        self.tab("train")
        for name, value in SETTINGS.items():
            browser.type(f"#set_{name} textarea, #set_{name} input", str(value))
        self.until("#panel_plan .facts")
        self.picture("train")
        browser.click("#do_start")
        self.tab("watch")
        self.until("#panel_watch .note.good")
        self.picture("watch")
        self.tab("judge")
        browser.click("#do_judge")
        self.until("#panel_judge table")
        self.picture("judge")
        self.tab("take")
        browser.click("#do_zip")
        self.until("#panel_files a")
        browser.click("#do_session")
        self.until("#panel_files a", 3)
        browser.click("#do_merge")
        self.until("#panel_files a", 4)
        browser.wait_for(script="!document.querySelector('#panel_take .note')", seconds=WAIT)
        self.picture("take")


if __name__ == "__main__":
    for chosen in sys.argv[1:] or ["en", "zh"]:
        with tempfile.TemporaryDirectory() as folder:
            walk = Walk(chosen, Path(folder))
            try:
                walk.run()
            finally:
                walk.close()
