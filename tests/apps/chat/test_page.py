"""The chat's page as people use it in Chromium, and what its server answers to those who do not use the page."""

import http.client
import json
import os
import signal
import socket
import time
import urllib.error
import urllib.request

import pytest

from browser import Browser
from chatting import at_each_step
from hf_recipes.apps.chat.arguments import ChatArguments
from hf_recipes.apps.chat.launch import open_page
from hf_recipes.apps.chat.models import BASE
from hf_recipes.apps.ports import free_port
from hf_recipes.core.arguments.settings import Parser
from hf_recipes.data.files.records import read_records
from hf_recipes.data.files.sources import find_sources
from hf_recipes.data.schemas.registry import Columns, detect_schema

pytest.importorskip("gradio")
from hf_recipes.apps.chat.server import start

pytest_plugins = ["chatting"]
BOTS = "[...document.querySelectorAll('.chat')].map(c => [...c.querySelectorAll('[data-testid=bot]')].pop()?.innerText)"
IDLE = "!!document.querySelector('#send')?.offsetParent"
STEP = 0.03
START = 10_000 + os.getpid() % 20_000  # tests run in several processes


@pytest.fixture(scope="module")
def serve(engine):
    """``serve("--flag", …)`` → the address; the model takes its time over each token."""
    pages = []

    def run(*flags: str) -> str:
        flags = ("--model_name_or_path", "M", "--temperature", "0", "--max_new_tokens", "30", *flags)
        [arguments] = Parser([ChatArguments]).parse(flags)
        pages.append(open_page(engine, arguments))
        options = {"auth": arguments.auth, "max_waiting": arguments.max_waiting, "host": arguments.host}
        return start(pages[-1], port=free_port(START, arguments.host), **options).rstrip("/")

    with at_each_step(engine, lambda: time.sleep(STEP)):
        yield run
    for page in pages:
        page.blocks.close(verbose=False)


@pytest.fixture(scope="module")
def address(serve) -> str:
    return serve("--max_waiting", "1")


def opened(browser: Browser, address: str) -> Browser:
    browser.viewport(1280, 900)
    browser.goto(address + "/")
    browser.wait_for(script=IDLE)
    browser.wait_for("Your question")
    return browser


def send(browser: Browser, question: str) -> None:
    browser.type("#question textarea", question)
    browser.click("#question textarea")
    count = "document.querySelectorAll('[data-testid=bot]').length"
    before = browser.evaluate(count)
    browser.press("Enter")
    # Writing, or written already, where the machine has much else to do.
    browser.wait_for(script=f"!!document.querySelector('#stop')?.offsetParent || {count} > {before}")


def answers(browser: Browser) -> list[str]:
    return [text for text in browser.evaluate(BOTS) if text is not None]


def choose(browser: Browser, box: str, option: str) -> None:
    browser.click(f"{box} input")
    browser.click("[role=option]", option)
    browser.wait_for(script=f"document.querySelector('{box} input').value == {json.dumps(option)}")


def test_a_question_is_asked_streamed_stopped_tried_again_and_edited(browser, address, tmp_path):
    opened(browser, address)
    send(browser, "你好")
    browser.wait_for(script=f"{BOTS}[0]?.length > 4")
    before = answers(browser)[0]
    browser.wait_for(script=f"{BOTS}[0].length > {len(before) + 3}")
    browser.wait_for("30 written. Cut at the maximum length.")
    assert "11 tokens read" in browser.text
    [whole] = answers(browser)
    assert whole.startswith(before.rstrip()[:4])
    browser.screenshot(tmp_path / "answered.png")

    browser.click("#retry")
    browser.wait_for(script="!!document.querySelector('#stop')?.offsetParent")
    browser.wait_for(script=f"{BOTS}[0]?.length > 4")
    browser.click("#stop")
    browser.wait_for("Stopped.", seconds=5)
    assert answers(browser)[0] in whole and len(answers(browser)[0]) < len(whole)

    send(browser, "年龄？")
    browser.wait_for(script=f"{IDLE} && document.querySelectorAll('[data-testid=user]').length == 2")
    browser.click("button[title='Edit']")  # of the first question
    browser.wait_for(script="!!document.querySelector('.chat textarea')")
    browser.type(".chat textarea", "天气")
    browser.click("button[title='Submit']")
    browser.wait_for(script=f"{IDLE} && document.querySelectorAll('[data-testid=user]').length == 1")
    browser.wait_for("30 written.")
    assert "天气" in browser.text and "年龄" not in browser.text

    browser.click("#clear")
    browser.wait_for(script="document.querySelectorAll('[data-testid=user]').length == 0")
    assert local(browser, address)


def local(browser: Browser, address: str) -> bool:
    return all(url.startswith((f"{address}/", "data:", "blob:")) for url in browser.requests)


def test_two_columns_languages_a_telephone_and_saving(browser, address, tmp_path):
    opened(browser, address)
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    choose(browser, "#compare_with", "base model")
    elsewhere = socket.create_server(("127.0.0.1", 0))
    picture = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/seen.png"
    picture = f"![x]({picture}) <img src={picture} onerror=window.ran=1>"
    send(browser, f"你好 {picture}")
    browser.wait_for(script=f"{IDLE} && {BOTS}.length == 2 && {BOTS}[1]?.length > 4")
    left, right = answers(browser)
    assert left != right and "one.1" in browser.text and "base model" in browser.text
    browser.click("button", "What the model read")
    shown = "[...document.querySelectorAll('textarea')].map(box => box.value).filter(v => v.includes('<|im_start|>'))"
    browser.wait_for(script=f"{shown}.length == 2")
    assert all(text.startswith("<|im_start|>user\n你好 ![x]") for text in browser.evaluate(shown))
    assert browser.evaluate("typeof window.ran") == "undefined"

    browser.click("#save")
    end = time.monotonic() + 10
    while not (files := list(tmp_path.glob("chat-*.jsonl"))):
        assert time.monotonic() < end, "nothing was saved"
        time.sleep(0.05)
    [source] = find_sources([str(files[0])], "train")
    rows = [record.value for record in read_records(source)]
    schema = detect_schema(rows[0], Columns(), str(files[0]))
    assert schema.name == "messages" and [row["answered_by"] for row in rows] == [["one.1"], [BASE]]
    assert [m["role"] for m in schema.to_example(rows[1])["messages"]] == ["user", "assistant"]

    browser.click("label", "中文")
    browser.wait_for("你的问题")
    browser.wait_for("写出 30 个")
    assert "Your question" not in browser.text and "基座模型" in browser.text
    browser.viewport(390, 800, mobile=True)
    browser.wait_for(script="document.documentElement.scrollWidth <= 390")
    browser.wait_for(script="[...document.querySelectorAll('.chat')].every(c => c.getBoundingClientRect().width > 330)")
    browser.screenshot(tmp_path / "telephone.png")
    elsewhere.settimeout(0.2)
    with elsewhere, pytest.raises(TimeoutError):
        elsewhere.accept()  # no picture was asked for


def test_people_wait_in_line_and_see_nothing_of_each_other(browser, other, address):
    opened(browser, address)
    opened(other, address)
    send(browser, "甲的秘密")
    other.type("#question textarea", "乙的问题")
    other.click("#send")
    other.wait_for("queue: 1/1")
    wrap = "document.querySelector('#notes .wrap').getBoundingClientRect()"
    seen = f"(box => box.height > 15 && box.bottom <= {wrap}.bottom + 1)"  # not cut off
    other.wait_for(script=f"{seen}(document.querySelector('#notes .progress-text').getBoundingClientRect())")
    other.wait_for("written.")
    assert "甲的秘密" in browser.text and "乙的问题" not in browser.text
    assert "乙的问题" in other.text and "甲的秘密" not in other.text
    assert answers(browser)[0] and answers(other)[0]


def test_who_leaves_makes_room(browser, other, address):
    opened(other, address)
    other.type("#question textarea", "年龄？")
    other.click("#question textarea")
    other.press("Enter")
    other.wait_for(script=f"{BOTS}[0]?.length > 2")
    other.goto("about:blank")
    opened(browser, address)
    send(browser, "你好")
    browser.wait_for("30 written.", seconds=10)


def test_a_full_queue_is_said(browser, other, address):
    opened(browser, address)
    opened(other, address)
    send(browser, "你好")
    [ask, *_] = queued(address)
    assert status(address, "/gradio_api/queue/join", {"data": [], "fn_index": ask, "session_hash": "waiting"}) == 200
    other.type("#question textarea", "年龄？")
    other.click("#send")
    other.wait_for("This application is currently busy")
    assert other.evaluate("document.querySelector('#question textarea').value") == "年龄？"
    browser.wait_for(script=IDLE)


def test_a_password_is_asked_for(browser, serve, capfd):
    address = serve("--auth", "me:geheim:1")
    browser.goto(address + "/")
    browser.wait_for(script="document.querySelectorAll('input').length == 2")
    assert "Your question" not in browser.text
    for password in ("falsch", "geheim:1"):
        browser.type("input[type=text], input:not([type])", "me")
        browser.type("input[type=password]", password)
        browser.click("button", "Login")
        if password == "falsch":
            browser.wait_for("Incorrect")
            assert status(address, "/config") == 401
    browser.wait_for("Your question")
    out, err = capfd.readouterr()
    assert "geheim" not in out + err and "Traceback" not in err


@pytest.mark.parametrize("host", ["127.0.0.2", "::1"])
def test_any_address_of_this_machine_is_guarded(serve, host, capfd):
    address = serve("--host", host, "--auth", "me:x")
    assert address.startswith("http://[::1]:" if host == "::1" else "http://127.0.0.2:")
    assert status(address, "/") == 200
    assert status(address, "/", Host="rebound.example.org") == 400
    assert status(address, "/", Host="[::1]:1") == 200
    events = {"fn_index": 1, "session_hash": "a", "event_id": "b", "data": []}
    for path in ("heartbeat/abc", "queue/data?session_hash=abc"):
        assert status(address, f"/gradio_api/{path}") == 401
    for path in ("cancel", "reset", "queue/join", "run/predict"):
        assert status(address, f"/gradio_api/{path}", events) == 401
    assert "Traceback" not in capfd.readouterr().err


def test_a_request_of_no_page_is_one_line(address, capfd):
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=10)
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "A" * 22 + "==",
    }
    connection.request("GET", "/gradio_api/queue/join", headers=upgrade)
    assert connection.getresponse().status in (400, 403)
    assert status(address, "/gradio_api/queue/data?session_hash=unknown") == 404
    for path in ("run/predict", "queue/join"):
        assert status(address, f"/gradio_api/{path}", {"data": [], "fn_index": 999, "session_hash": "a"}) == 400
    out = err = ""
    while out.count("a request that cannot be answered (KeyError)\n") < 2:
        time.sleep(0.02)
        more = capfd.readouterr()
        out, err = out + more.out, err + more.err
        assert "Traceback" not in out + err


def test_an_answer_stays_within_its_message(browser, address):
    opened(browser, address)
    send(browser, "你好")
    browser.wait_for(script=IDLE)
    cover = "position:fixed;inset:0;z-index:9999"
    covered = browser.evaluate(
        f"(() => {{ const bot = [...document.querySelectorAll('.chat [data-testid=bot]')].pop();"
        f"bot.innerHTML += '<div id=cover style=\"{cover}\"></div>';"
        "const at = (x, y) => document.elementFromPoint(x, y)?.id;"
        "return [at(5, 5), at(innerWidth - 5, 5), at(innerWidth / 2, innerHeight - 5)]; })()"
    )
    assert "cover" not in covered


def status(address: str, path: str, body: dict | None = None, **headers: str) -> int:
    data = json.dumps(body).encode() if body is not None else None
    headers = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(address + path, data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def queued(address: str) -> list[int]:
    """The events that wait in the queue."""
    with urllib.request.urlopen(address + "/config", timeout=10) as answer:
        functions = json.load(answer)["dependencies"]
    return [function["id"] for function in functions if function["queue"] and function["backend_fn"]]


def test_only_the_page_is_open(address, tmp_path):
    (tmp_path / "secret.txt").write_text("x")
    assert status(address, "/") == 200
    closed = [
        "info",
        "openapi.json",
        f"file={tmp_path}/secret.txt",
        "file=https://example.org",
        "proxy=https://a.hf.space",
    ]
    closed += ["upload", "component_server", "call/on_ask", "api/on_ask", "run/on_ask", "runs", "process_recording"]
    for path in closed:
        assert status(address, f"/gradio_api/{path}") == 404, path
        assert status(address, f"/gradio_api/{path}", {"data": []}) == 404, path
    for path in ("/monitoring", "/monitoring/summary", "/docs", "/openapi.json", "/gradio_api/deep_link"):
        assert status(address, path) == 404, path
    with urllib.request.urlopen(address + "/config", timeout=10) as answer:
        functions = json.load(answer)["dependencies"]
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    assert len(queued(address)) == 4  # to ask, to retry, and an edit in each column
    for index in queued(address):
        body = {"data": [], "fn_index": index, "session_hash": "a"}
        assert status(address, "/gradio_api/run/predict", body) == 404
    assert {function["api_visibility"] for function in functions} == {"private"}
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=10)
    connection.putrequest("POST", "/gradio_api/queue/join")
    connection.putheader("Content-Length", "2000001")
    connection.endheaders()
    assert connection.getresponse().status == 413
    assert status(address, "/", Host="rebound.example.org") == 400
    assert status(address, "/", Host="localhost:1") == 200


def test_the_script_serves_until_ctrl_c(forks, base):
    port = free_port(START)
    run = forks.start("--model_name_or_path", base, "--port", port, "--gpus", "cpu", script="scripts/chat.py")
    run.wait_for(f"chat at http://127.0.0.1:{port}/ (Ctrl-C ends it)")
    assert status(f"http://127.0.0.1:{port}", "/") == 200
    run.signal(signal.SIGINT)
    assert run.code == 0 and "Traceback" not in run.err
    assert free_port(port) == port


def test_columns_are_named_in_the_page_s_language_from_the_start(engine):
    argv = ["--model_name_or_path", "M", "--compare_with", "base", "--language", "zh"]
    page = open_page(engine, Parser([ChatArguments]).parse(argv)[0])
    try:
        assert [chat.label for chat in page.chats] == ["one.1", "基座模型"]
    finally:
        page.blocks.close(verbose=False)
