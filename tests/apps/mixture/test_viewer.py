"""The mixture viewer: its page with Streamlit's own test runner, and as a person uses it in Chromium."""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pandas as pd
import pytest

from conftest import ROOT
from hf_recipes.apps.mixture.texts import REASONS, Texts
from hf_recipes.data.pretraining.mixture_policy import read_policy

pytest.importorskip("streamlit")
from streamlit.testing.v1 import AppTest

SCRIPT = ROOT / "scripts" / "mixture_viewer.py"
PAGE = ROOT / "hf_recipes" / "apps" / "mixture" / "viewer.py"
PASTED = "news 600\nwiki 300\nlaw 100"


@pytest.fixture
def page(monkeypatch, tmp_path):
    """The page after `page("--flag", …)`, in a working folder of its own."""

    def open_page(*flags) -> AppTest:
        monkeypatch.setattr(sys, "argv", ["mixture_viewer.py", *flags])
        monkeypatch.chdir(tmp_path)
        return checked(AppTest.from_file(str(PAGE), default_timeout=20).run())

    return open_page


def checked(app: AppTest) -> AppTest:
    assert not app.exception
    return app


def paste(app: AppTest, text: str = PASTED) -> AppTest:
    app.text_area(key="text").set_value(text)
    return checked(app.run())


def numbers(app: AppTest, **shares: float) -> AppTest:
    """Set shares in percent; AppTest cannot edit a table, so what its edits come to is put there."""
    edited = {name: share / 100 for name, share in {**shown_shares(app), **shares}.items()}
    app.session_state["shares"] = pd.Series(edited)
    return checked(app.run())


def shown_shares(app: AppTest) -> dict[str, float]:
    editor = next(table.value for table in app.dataframe if list(table.value) == ["size", "share"])
    return dict(editor["share"])


def press(app: AppTest, label: str) -> AppTest:
    return checked(next(button for button in app.button if button.label == label).click().run())


def policy(app: AppTest) -> dict:
    return json.loads(app.code[0].value)


def test_shares_begin_as_the_sizes_are_and_change_one_by_one(page):
    app = paste(page("--lang", "en"))
    assert policy(app) == {"by": "bytes", "sources": {"news": 0.6, "wiki": 0.3, "law": 0.1}}
    numbers(app, wiki=20.0)
    assert policy(app)["sources"] == {"news": 0.6, "wiki": 0.2, "law": 0.1}
    assert "sum to 90 %" in app.info[0].value
    numbers(app, news=20.0)
    press(app, "Normalise to 100 %")
    assert policy(app)["sources"] == {"news": 0.4, "wiki": 0.4, "law": 0.2}
    assert not app.info and not app.warning
    press(app, "As they are")
    assert policy(app)["sources"] == {"news": 0.6, "wiki": 0.3, "law": 0.1}
    assert not app.error


def test_temperature(page):
    app = paste(page("--lang", "en"), "news 900\nwiki 100")
    checked(app.slider(key="alpha").set_value(0.5).run())
    assert policy(app)["sources"] == {"news": 0.75, "wiki": 0.25}


def test_more_than_four_epochs_are_warned_of(page):
    app = numbers(paste(page("--lang", "en")), law=40.0)
    assert not app.warning  # four times 100
    numbers(app, law=41.0)
    assert "more than 4 times: ` law `" in app.warning[0].value
    checked(app.text_input(key="budget").set_value("500").run())
    assert not app.warning
    checked(app.radio(key="write as").set_value("epochs").run())
    assert policy(app) == {"by": "epochs", "sources": {"news": 0.5, "wiki": 0.5, "law": 2.05}}


def test_a_budget_that_is_none_is_named(page):
    app = paste(page("--lang", "en"))
    checked(app.text_input(key="budget").set_value("3 apples").run())
    assert app.error[0].value.startswith("This is no size in bytes")


def test_what_is_set_stays_when_a_source_is_added(page):
    app = paste(numbers(paste(page("--lang", "en")), news=50.0), f"{PASTED}\nqa 50")
    assert policy(app)["sources"] == {"news": 0.5, "wiki": 0.3, "law": 0.1, "qa": 0.0}


def test_no_share_is_no_policy(page):
    app = numbers(paste(page("--lang", "en"), "news 5"), news=0.0)
    assert "nothing to train on" in app.error[0].value
    assert not app.code


def test_lines_that_cannot_be_read_are_named_and_inert(page):
    app = paste(page("--lang", "zh"), "news 600\n<b>x</b> `` [a](http://b) :smile:\nwiki 300")
    assert app.warning[0].value == "未计入，或处理方式有变："
    assert app.dataframe[0].value.to_dict("records") == [
        {"行": 2, "内容": "<b>x</b> `` [a](http://b) :smile:", "原因": "找不到名称和大小"}
    ]
    assert policy(app)["sources"] == {"news": pytest.approx(2 / 3), "wiki": pytest.approx(1 / 3)}


def test_the_unit_that_is_chosen_rules(page):
    app = paste(page("--lang", "en"), "news 1.2B\nwiki 800M")
    assert app.dataframe[0].value["Why"].tolist() == ["bytes, or billions? Choose the unit above"]
    checked(app.radio(key="unit").set_value("tokens").run())
    assert policy(app) == {"by": "tokens", "sources": {"news": 0.6, "wiki": 0.4}}


def test_a_folder(page, tmp_path):
    (tmp_path / "data" / "news").mkdir(parents=True)
    (tmp_path / "data" / "news" / "a.txt").write_text("x" * 30)
    (tmp_path / "data" / "wiki.jsonl").write_text("x" * 10)
    app = page("--folder", "data", "--lang", "en")
    assert policy(app)["sources"] == {"news": 0.75, "wiki": 0.25}
    checked(app.text_input(key="folder").set_value("gone").run())
    assert app.error[0].value == "There is no such folder."


def test_saving_does_not_overwrite_unasked(page, tmp_path):
    app = press(paste(page("--lang", "en")), "Save")
    assert str(tmp_path / "mixture.json") in app.success[0].value
    saved = read_policy(str(tmp_path / "mixture.json"))
    assert (dict(saved.sources), saved.by) == (pytest.approx({"news": 0.6, "wiki": 0.3, "law": 0.1}), "bytes")
    numbers(app, news=50.0, law=20.0)
    assert "is there already" in press(app, "Save").error[0].value
    assert read_policy(str(tmp_path / "mixture.json")).sources["news"] == pytest.approx(0.6)
    app.checkbox(key="overwrite").check()
    press(app, "Save")
    assert read_policy(str(tmp_path / "mixture.json")).sources["news"] == pytest.approx(0.5)
    app.text_input(key="file").set_value("gone/mixture.json")
    assert "cannot be written (No such file or directory)" in press(app, "Save").error[0].value


def test_every_reason_has_its_words():
    folder = ROOT / "hf_recipes" / "apps" / "mixture"
    written = "".join((folder / name).read_text() for name in ("sizes.py", "pasted_sizes.py"))
    assert [reason for reason in REASONS if f'"{reason}"' not in written] == []
    assert Texts("en")("no data") == "no data file, left out"


def start(port: int, folder) -> subprocess.Popen:
    command = [sys.executable, SCRIPT, "--port", str(port), "--lang", "en"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_until_served(port: int, process: subprocess.Popen) -> None:
    end = time.monotonic() + 60
    while True:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end, "the viewer did not start"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=5):
                return
        except OSError:
            time.sleep(0.1)


def stop(process: subprocess.Popen) -> str:
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and "Traceback" not in out, out
    return out


def edit(browser, row: int, share: str) -> None:
    """Type a share in the last column of the first table, as with a keyboard."""
    browser.click("[data-testid=stDataFrame]")
    for key in ["ArrowUp"] * 9 + ["ArrowRight"] * 3 + ["ArrowDown"] * row + ["Enter"]:
        browser.press(key)
    browser.wait_for(script="document.activeElement.matches('input')")
    browser.evaluate("document.activeElement.select()")
    browser.call("Input.insertText", text=share)
    browser.press("Enter")


def test_in_chromium(browser, tmp_path):
    """Paste, change a share, save, read the file; the warning; markup in a name; the other language; a telephone."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = start(port, tmp_path)
        port = int(process.stdout.readline().rsplit(" ", 1)[1])  # --port 8501 is taken; taking 8502
    try:
        wait_until_served(port, process)
        browser.viewport(1280, 900)
        browser.goto(f"http://127.0.0.1:{port}/")
        markup = "<img src=x onerror=window.ran=1>"
        picture = "![x](http://127.0.0.1:9/seen.png)"
        browser.type("textarea", f"news 500\nwiki 300\n{markup}, 100\n{picture}, 100")
        browser.wait_for('"wiki": 0.3')
        edit(browser, 1, "20")
        browser.wait_for('"wiki": 0.2')
        assert "Repeated more than 4 times" not in browser.text
        edit(browser, 2, "50")
        browser.wait_for("Repeated more than 4 times")
        browser.click("button", "Normalise")
        browser.wait_for('"news": 0.38461538')
        browser.type('input[aria-label="File"]', "my mixture.json")
        browser.click("button", "Save")
        browser.wait_for("Saved:")
        saved = read_policy(str(tmp_path / "my mixture.json"))
        assert saved.by == "bytes"
        assert saved.sources == pytest.approx({"news": 5 / 13, "wiki": 2 / 13, markup: 5 / 13, picture: 1 / 13})

        browser.click("label", "中文")
        browser.wait_for("数据配比")
        browser.wait_for(script="!document.body.innerText.includes('Policy')")
        assert '"news": 0.38461538' in browser.text
        browser.viewport(390, 800, mobile=True)
        browser.wait_for(script="document.documentElement.scrollWidth <= 390")
        assert browser.evaluate("typeof window.ran") == "undefined"
        assert [url for url in browser.requests if not url.startswith((f"http://127.0.0.1:{port}/", "data:"))] == []
    finally:
        stop(process)


def test_without_streamlit_the_extra_is_named(monkeypatch, capsys):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "streamlit" else find(name, *rest)
    )
    monkeypatch.setattr(sys, "argv", ["mixture_viewer.py"])
    with pytest.raises(SystemExit, match="1"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "pip install -e '.[viewer]'" in capsys.readouterr().err
