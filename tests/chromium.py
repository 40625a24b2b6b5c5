"""A headless Chromium that tests look through, by the DevTools protocol; tests skip where there is none."""

import base64
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-port=0"),
)
STARTS_WITHIN_S = 60
KEYS = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39, "End": 35, "Home": 36, "Tab": 9}


class Page:
    """One page, and what its console said."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._last, self.complaints = socket, 0, []
        for domain in ("Page", "Runtime", "Log", "DOM", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command; events that come before it are looked at."""
        self._last += 1
        self._socket.send(json.dumps({"id": self._last, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == self._last:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self._note(message)

    def _note(self, event: dict[str, Any]) -> None:
        """Keeps what a person would see in red."""
        name, said = event.get("method"), event.get("params", {})
        if name == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(said["exceptionDetails"]))
        elif name == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(arg.get("value", arg)) for arg in said["args"]))
        elif name == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")

    def run(self, script: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, script: str, timeout_s: float = 30) -> None:
        """Returns when the expression is true."""
        deadline = time.monotonic() + timeout_s
        while not self.run(f"Boolean({script})"):
            said = f"not within {timeout_s} s: {script}"
            assert time.monotonic() < deadline, f"{said}; {self.run('document.body.innerText')}"
            time.sleep(0.1)

    def open(self, url: str) -> None:
        """Loads the page anew, even if only the part after # differs."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.protocol !== 'about:'")

    def scripts(self, *, run: bool) -> None:
        """Whether scripts of the pages that are opened run."""
        self.call("Emulation.setScriptExecutionDisabled", value=not run)

    def size(self, width: int, height: int = 1400, *, is_dark: bool = False) -> None:
        """A window of that size, in CSS pixels; a narrow one is a phone's."""
        shape = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **shape)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """One character, or one of KEYS."""
        code = {"windowsVirtualKeyCode": KEYS[key], "code": key} if key in KEYS else {}
        text = {"Enter": "\r"}.get(key, "" if key in KEYS else key)
        for kind, typed in (("keyDown", text), ("keyUp", "")):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, text=typed, **code)

    def click(self, selector: str) -> None:
        """A real click in the middle of the first element."""
        found = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({block: 'center'}); "
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=found[0], y=found[1], button="left", clickCount=1)

    def tap(self, x: float, y: float) -> None:
        """A finger on that place of the window, and off it."""
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def choose_file(self, selector: str, path: Path) -> None:
        """Gives a file to an input, as a person does who chooses it."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def screenshot(self, path: Path) -> None:
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def overflow(self) -> int:
        """Pixels that the page is wider than the window."""
        return self.run("document.documentElement.scrollWidth - window.innerWidth")


@contextmanager
def chromium(folder: Path) -> Iterator[Page]:
    """A page of a Chromium with a profile of its own in that folder; the test is skipped where there is none."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium here")
    from websockets.sync.client import connect

    command = [program, *OPTIONS, f"--user-data-dir={folder}", "about:blank"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet, start_new_session=True) as browser:
        try:
            port = port_of(folder, browser)
            with connect(f"ws://127.0.0.1:{port}{target_of(port)}", max_size=None) as socket:
                yield Page(socket)
        finally:
            os.killpg(browser.pid, signal.SIGKILL)  # a session of its own


def port_of(folder: Path, browser: subprocess.Popen[bytes]) -> int:
    """The port that DevTools listens at, as the browser writes it down."""
    file, deadline = folder / "DevToolsActivePort", time.monotonic() + STARTS_WITHIN_S
    while not (file.exists() and file.read_text().count("\n")):
        assert browser.poll() is None and time.monotonic() < deadline, "Chromium did not start"
        time.sleep(0.1)
    return int(file.read_text().split()[0])


def target_of(port: int) -> str:
    """The path of the blank page's socket."""
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/json", timeout=30) as answer:
        pages = [one for one in json.load(answer) if one["type"] == "page"]
    return "/" + pages[0]["webSocketDebuggerUrl"].split("/", 3)[3]
