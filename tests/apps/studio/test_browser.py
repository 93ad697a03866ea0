"""The studio in Chromium: from a file to an adapter as a person gets there, and what others see."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from browser import Browser
from conftest import ROOT, write_jsonl
from hf_recipes.apps.jobs import jobs as module
from hf_recipes.apps.jobs.jobs import identity
from hf_recipes.apps.ports import free_port
from hf_recipes.apps.studio.arguments import StudioArguments
from hf_recipes.command.flags import flags_of
from hf_recipes.core.files import write_json

pytest.importorskip("gradio")
from hf_recipes.apps.studio.layout import PERIOD
from hf_recipes.apps.studio.page import TABS, Page
from hf_recipes.apps.studio.server import start
from hf_recipes.apps.studio.texts import Texts

START = 40_000 + os.getpid() % 10_000
TOAST = "[...document.querySelectorAll('.toast-body')].map(box => box.innerText).join()"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page whose jobs have no worker."""
    patch = pytest.MonkeyPatch()
    patch.setattr(module, "_start_worker", lambda job: job)
    page = Page(StudioArguments(root=[str(tmp_path_factory.mktemp("studio"))], max_upload_mb=1), flags_of)
    yield page
    page.blocks.close(verbose=False)
    patch.undo()


@pytest.fixture(scope="module")
def address(page) -> str:
    return start(page, port=free_port(START)).rstrip("/")


def opened(browser: Browser, address: str, language: str = "en", width: int = 1280) -> Browser:
    browser.viewport(width, 900, mobile=width < 600)
    browser.goto(address + "/")
    browser.wait_for(script="!!document.querySelector('#head h1')", seconds=30)
    browser.click("#language label", {"en": "English", "zh": "中文"}[language])
    browser.wait_for(Texts(language)("title"), seconds=30)
    browser.wait_for(script="!!document.querySelector('#tab_model-button, button[role=tab]')")
    return browser


def tab(browser: Browser, name: str, language: str = "en") -> None:
    browser.click("button[role=tab]", Texts(language)(f"tab {name}"))
    browser.wait_for(script=f"!!document.querySelector('#tab_{name}, [id*=tab_{name}]')?.offsetParent")


def upload(browser: Browser, *paths: Path) -> None:
    root = browser.call("DOM.getDocument")["root"]["nodeId"]
    browser.wait_for(script="!!document.querySelector('input[type=file]')")
    node = browser.call("DOM.querySelector", nodeId=root, selector="input[type=file]")["nodeId"]
    browser.call("DOM.setFileInputFiles", nodeId=node, files=list(map(str, paths)))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_both_languages_fit_a_telephone(browser, address, language, tmp_path):
    opened(browser, address, language, width=390)
    for name in TABS:
        tab(browser, name, language)
        browser.wait_for(script="document.documentElement.scrollWidth <= 390")
        browser.screenshot(tmp_path / f"{name}.png")
    other_word = Texts({"en": "zh", "zh": "en"}[language])("take empty")
    assert other_word not in browser.text
    # Also of the page before, whose last requests may be late.
    assert all(url.startswith(("http://127.0.0.1:", "data:", "blob:")) for url in browser.requests)


def test_bad_uploads_are_a_sentence_and_leave_nothing(browser, address, page, tmp_path):
    opened(browser, address)
    tab(browser, "data")
    for name, content, message in (
        ("run.py", b"import os", "run.py: not a file of data"),
        ("empty.json", b"", "empty.json: the file is empty"),
        ("picture.csv", b"\x89PNG\0\0", "picture.csv: not text, although its name says so"),
        ("large.jsonl", b"{}\n" * 400_000, "File(s) exceed the maximum allowed size of 976.6 Kb"),
    ):
        (tmp_path / name).write_bytes(content)
        upload(browser, tmp_path / name)
        browser.wait_for(script=f"({TOAST}).includes({json.dumps(message)})")
    assert not (page.roots.home / "uploads").exists()
    assert browser.evaluate("document.querySelector('#data textarea').value") == ""
    upload(browser, write_jsonl(tmp_path / "rows.jsonl", [{"input": "问", "target": "答"}]))
    browser.wait_for(script="document.querySelector('#data textarea').value == 'uploads/rows.jsonl'")


def test_the_budget_stays_where_it_is_moved_to(browser, address, page):
    opened(browser, address)
    tab(browser, "data")
    browser.type("#data textarea", write_jsonl(page.roots.home / "rows.jsonl", [{"text": "文"}]).name)
    browser.click("#do_inspect")
    browser.wait_for(script="document.querySelector('#panel_inspect').innerText.includes('hf-recipes inspect')")
    job = next(job for job in page.jobs.all() if job.kind == "inspect")
    histogram = {"kind": "histogram", "lengths": [[3, 2], [90, 1]], "edges": [3, 50, 91], "counts": [2, 1]}
    report = {"verdict": "three rows", "tone": None, "warnings": []}
    write_json(job.folder / "stdout.0", {**report, "sections": [{"title": "Training", "blocks": [histogram]}]})
    write_json(job.folder / "end.json", {"code": 0})
    browser.wait_for("0 of 3 rows are longer than 90 tokens")
    browser.type("#budget input[type=number]", "40")
    browser.wait_for("1 of 3 rows are longer than 40 tokens")
    time.sleep(2.5 * PERIOD)
    assert browser.evaluate("document.querySelector('#budget input[type=range]').value") == "40"


def test_a_second_visitor_sees_a_run_and_cannot_stop_it(browser, other, address, page):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        job = page.jobs.start("sft", [["sft"]], "someone", output_dir="runs/theirs", waits=True)
        write_json(job.folder / "process.json", identity(process.pid))
        write_jsonl(job.run / "log.jsonl", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}])
        opened(other, address)
        tab(other, "watch")
        other.click("#run_watch input")
        other.click("[role=option]", "runs/theirs")
        other.wait_for(script="!!document.querySelector('#panel_curves polyline')")
        write_jsonl(job.run / "log.jsonl", [{"step": step, "loss": 1 / step} for step in (1, 2, 3)])
        other.wait_for("step 3")
        other.click("#do_stop")
        other.wait_for("Another visitor began this")
        assert process.poll() is None
        other.type("#password input", page.password)
        other.click("#do_stop")
        other.wait_for("Stopped")
        assert process.wait(10) == -9
    finally:
        process.kill()
        process.wait()


def address_of(process: subprocess.Popen) -> str:
    for line in process.stdout:
        if match := re.search(r"studio at (http://\S+?)/? ", line):
            return match[1]
    raise AssertionError("the studio has ended")


def answer_in_two_columns(browser: Browser) -> None:
    """Of the adapted model and its base, in the chat that the page loads; then it is unloaded."""
    studio = browser.evaluate("location.origin")
    browser.click("#do_load_chat")
    browser.wait_for(script="!!document.querySelector('#panel_chat iframe')", seconds=300)
    chat = browser.evaluate("document.querySelector('#panel_chat iframe').src")
    browser.goto(chat)
    browser.wait_for("Your question", seconds=60)
    browser.type("#question textarea", "你好")
    browser.click("#question textarea")
    browser.press("Enter")
    columns = "[...document.querySelectorAll('.chat')].filter(one => one.querySelector('[data-testid=bot]')?.innerText)"
    browser.wait_for(script=f"{columns}.length == 2", seconds=120)
    opened(browser, studio)
    tab(browser, "judge")
    browser.wait_for(script="!!document.querySelector('#panel_chat iframe')", seconds=60)
    browser.click("#do_end_chat")
    browser.wait_for(script="!document.querySelector('#panel_chat iframe')", seconds=60)
    with pytest.raises(OSError):
        urllib.request.urlopen(chat, timeout=5)


@pytest.mark.slow
def test_from_a_file_to_an_adapter(browser, model_dir, tmp_path):
    """With the server killed and the page loaded again in the middle of the training."""
    rows = json.loads((ROOT / "datasets" / "alpaca" / "train.json").read_text(encoding="utf-8"))
    file = tmp_path / "mine" / "rows.json"
    file.parent.mkdir()
    file.write_text(json.dumps(rows[:40], ensure_ascii=False), encoding="utf-8")
    flags = ["--root", str(tmp_path), model_dir, "--port", str(free_port(START))]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}", "HF_DATASETS_CACHE": str(tmp_path / "cache")}

    def serve() -> subprocess.Popen:
        command = [sys.executable, str(ROOT / "scripts" / "studio.py"), *flags]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)

    server = serve()
    try:
        address = address_of(server)
        opened(browser, address)
        browser.type("#model input", model_dir)
        tab(browser, "data")
        upload(browser, file)
        browser.wait_for(script="document.querySelector('#data textarea').value == 'uploads/rows.json'")
        browser.click("#do_inspect")
        browser.wait_for(script="document.querySelectorAll('#panel_rows article').length == 3", seconds=300)
        assert "rows are trained on" in browser.text and "schema" in browser.text
        assert browser.evaluate("document.querySelectorAll('#panel_rows .tokens b').length") > 3
        tab(browser, "train")
        settings = {"max_steps": 5, "logging_steps": 1, "save_steps": 1, "eval_steps": 2}
        settings |= {"per_device_train_batch_size": 2, "validation_split_percentage": 10}
        for name, value in settings.items():
            browser.type(f"#set_{name} textarea, #set_{name} input", str(value))
        browser.wait_for(script="!!document.querySelector('#panel_plan .facts')", seconds=300)
        assert "--max_steps=5" in browser.evaluate("document.querySelector('#panel_plan code').innerText")
        browser.click("#do_start")
        tab(browser, "watch")
        browser.wait_for(script="!!document.querySelector('#panel_curves polyline')", seconds=300)
        server.send_signal(signal.SIGKILL)
        server.wait()
        server = serve()
        opened(browser, address_of(server))
        tab(browser, "watch")
        browser.wait_for(script="!!document.querySelector('#panel_watch .note.good')", seconds=300)
        log = [json.loads(line) for line in (tmp_path / "runs" / "first" / "log.jsonl").read_text().splitlines()]
        assert [row["step"] for row in log if "loss" in row] == [1, 2, 3, 4, 5]
        tab(browser, "judge")
        browser.click("#do_judge")
        browser.wait_for(script="!!document.querySelector('#panel_judge table')", seconds=300)
        assert "adapted against base" in browser.text and "Worst rows first" in browser.text
        answer_in_two_columns(browser)
        tab(browser, "take")
        browser.click("#do_zip")
        browser.wait_for(script="!!document.querySelector('#panel_files a')")
        url = browser.evaluate("document.querySelector('#panel_files a').href")
        with urllib.request.urlopen(url, timeout=30) as answer:
            names = zipfile.ZipFile(BytesIO(answer.read())).namelist()
        assert {"first/adapter_model.safetensors", "first/adapter_config.json", "first/tokenizer.json"} <= set(names)
        browser.click("#do_merge")
        merged = (
            "[...document.querySelectorAll('#panel_files a')].find(a => a.innerText.startsWith('model.safetensors'))"
        )
        browser.wait_for(script=f"!!{merged}", seconds=300)
        with urllib.request.urlopen(browser.evaluate(f"{merged}.href"), timeout=30) as answer:
            assert answer.read() == (tmp_path / "models" / "first" / "model.safetensors").read_bytes()
        browser.wait_for(script="!document.querySelector('#panel_take .note')", seconds=60)
        browser.click("#do_session")
        browser.wait_for("first.sh")
        session = (tmp_path / ".hf_recipes" / "studio" / "downloads" / "first.sh").read_text()
        assert [line.split()[1] for line in session.splitlines()[2:]] == ["sft", "evaluate", "merge"]
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
        time.sleep(0.1)
