"""Chromium without a screen, driven by its DevTools protocol: what a test needs to use a page as a person does."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ("--headless", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--no-default-browser-check")
FLAGS += ("--disable-background-networking", "--disable-component-update", "--disable-extensions", "--disable-sync")
KEYS = {"Enter": 13, "Tab": 9, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


def find_program() -> str | None:
    """The path of Chromium or Chrome."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


class Browser:
    """One Chromium with one page.

    Args:
        program: of `find_program`.
        folder: for its profile.
    """

    def __init__(self, program: str, folder: Path):
        from websockets.sync.client import connect

        sandbox = ["--no-sandbox"] if os.name == "posix" and os.geteuid() == 0 else []  # root cannot have one
        command = [program, *FLAGS, *sandbox, "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.requests: list[str] = []
        self._count, self._socket, self._open = 0, None, contextlib.ExitStack()
        try:
            port_file = folder / "DevToolsActivePort"
            self._until(lambda: port_file.is_file() and port_file.read_text().count("\n"), 30, "Chromium did not start")
            port = port_file.read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
                page = next(target for target in json.load(answer) if target["type"] == "page")
            connection = connect(page["webSocketDebuggerUrl"], max_size=None, proxy=None, ping_interval=None)
            self._socket = self._open.enter_context(connection)
            for domain in ("Page", "Network", "Runtime"):
                self.call(f"{domain}.enable")
            self.viewport(1280, 900)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._socket:
            with contextlib.suppress(Exception):  # it may answer or be gone before it does
                self.call("Browser.close")
        self._open.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.process.kill()
        self.process.wait()

    def call(self, method: str, **params) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=30))
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            if message.get("id") == self._count:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]

    def viewport(self, width: int, height: int, mobile: bool = False) -> None:
        """Size of the page in CSS pixels; `mobile` as a telephone lays it out."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def language(self, tag: str) -> None:
        """What the browser says it prefers, such as zh-CN."""
        self.call("Emulation.setUserAgentOverride", userAgent=self.evaluate("navigator.userAgent"), acceptLanguage=tag)

    def goto(self, url: str) -> None:
        self.requests.clear()
        result = self.call("Page.navigate", url=url)
        assert "errorText" not in result, f"{url}: {result['errorText']}"
        self.wait_for(script="document.readyState == 'complete'")

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, f"{script}: {result['exceptionDetails']}"
        return result["result"].get("value")

    @property
    def text(self) -> str:
        """What is to be read on the page."""
        return self.evaluate("document.body ? document.body.innerText : ''")

    def wait_for(self, text: str = "", script: str = "", seconds: float = 20) -> None:
        """Until `text` is on the page, or until `script` is true."""
        if script:
            self._until(lambda: self.evaluate(script), seconds, f"{script} did not become true")
        else:
            self._until(lambda: text in self.text, seconds, f"{text!r} did not appear")

    def click(self, selector: str, text: str = "") -> None:
        """Click the first element of a CSS selector (that has `text`) in its middle, once it has come to rest there."""
        find = (
            f"[...document.querySelectorAll({json.dumps(selector)})]"
            f".find(element => element.textContent.includes({json.dumps(text)}))"
        )
        self.wait_for(script=f"!!{find}")
        at_rest = (
            f"(async () => {{ const element = {find}; if (!element) return null;"
            "element.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const before = element.getBoundingClientRect();"
            "await new Promise(done => setTimeout(done, 60));"
            "const box = element.getBoundingClientRect(), x = box.x + box.width / 2, y = box.y + box.height / 2;"
            "const top = document.elementFromPoint(x, y);"
            "return before.x == box.x && before.y == box.y && element.contains(top) ? {x, y} : null; })()"
        )
        locations = []
        self._until(
            lambda: locations.append(self.evaluate(at_rest)) or locations[-1], 20, f"{selector} {text} is not to be had"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **locations[-1])

    def type(self, selector: str, text: str) -> None:
        """Put `text` in place of what a field has, and leave it."""
        self.click(selector)
        self.wait_for(script=f"document.activeElement.matches({json.dumps(selector)})")
        self.evaluate("document.activeElement.select()")
        self.call("Input.insertText", text=text)
        self.evaluate("document.activeElement.blur()")

    def press(self, key: str) -> None:
        code = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **code)

    def screenshot(self, path: Path) -> None:
        data = self.call("Page.captureScreenshot")["data"]
        Path(path).write_bytes(base64.b64decode(data))

    def _until(self, condition, seconds: float, failure: str) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"{failure}; on the page: {self.text[:3000] if self._socket else ''}")
            time.sleep(0.05)
