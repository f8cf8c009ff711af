"""Headless Chromium for tests and measurements, through the DevTools protocol on a pipe: no driver, port or library.

The browser ends when the pipe does, so it cannot outlive the tests. Everything that a page reports as an error is kept.
"""

import base64
import contextlib
import fcntl
import json
import os
import queue
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

TIMEOUT_S = 60.0
END_TIMEOUT_S = 10.0
#: a shell rather than preexec_fn, which threads make unsafe: DevTools reads from 3 and writes to 4
_ON_A_PIPE = 'exec "$0" "$@" 3<&$READ_FD 4>&$WRITE_FD'
_OPTIONS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",  # tests run as root in containers; the only pages that it sees are ours
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
)

Json = dict[str, Any]


class BrowserError(Exception):
    """Raised when the browser cannot be started, or does not do what it is told."""


class Browser:
    """One Chromium; `page` opens a tab."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("chromium")
        if program is None:
            raise BrowserError("no chromium: run scripts/setup.sh --extras test, or apt-get install chromium")
        read_fd, self._write_fd = _pipe()
        self._read_fd, write_fd = _pipe()
        environment = {**os.environ, "READ_FD": str(read_fd), "WRITE_FD": str(write_fd), "HOME": str(folder)}
        command = ["bash", "-c", _ON_A_PIPE, program, *_OPTIONS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
        with (folder / "chromium.log").open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=environment,
                pass_fds=(read_fd, write_fd),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        os.close(read_fd)
        os.close(write_fd)
        self._lock = threading.Lock()
        self._number = 0
        self._answers: dict[int, queue.Queue[Json]] = {}
        self._pages: dict[str, Page] = {}
        self._reader = threading.Thread(target=self._read, name="devtools", daemon=True)
        self._reader.start()

    def page(self, url: str = "about:blank", width: int = 1200, height: int = 900) -> "Page":
        target = self.send("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.send("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = self._pages[session] = Page(self, session, target)
        for domain in ("Page", "Runtime", "Log"):
            page.send(f"{domain}.enable")
        page.resize(width, height)
        if url != "about:blank":
            page.open(url)
        return page

    def send(self, method: str, params: Json | None = None, session: str | None = None) -> Json:
        """The result of a command. Raises BrowserError."""
        answer: queue.Queue[Json] = queue.Queue()
        with self._lock:
            self._number += 1
            number = self._number
            self._answers[number] = answer
            message: Json = {"id": number, "method": method, "params": params or {}}
            data = json.dumps(message if session is None else {**message, "sessionId": session}).encode() + b"\0"
            while data:
                data = data[os.write(self._write_fd, data) :]
        try:
            found = answer.get(timeout=TIMEOUT_S)
        except queue.Empty:
            raise BrowserError(f"the browser did not answer {method} within {TIMEOUT_S:g} s") from None
        if "error" in found:
            raise BrowserError(f"{method}: {found['error']['message']}")
        result: Json = found["result"]
        return result

    def close(self) -> None:
        os.close(self._write_fd)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_TIMEOUT_S)
        finally:
            with contextlib.suppress(ProcessLookupError):  # its helpers may outlive it by a moment
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._reader.join(END_TIMEOUT_S)
            os.close(self._read_fd)

    def _read(self) -> None:
        rest = b""
        while piece := os.read(self._read_fd, 1 << 20):
            *messages, rest = (rest + piece).split(b"\0")
            for message in messages:
                self._take(json.loads(message))
        gone: Json = {"error": {"message": "the browser has ended"}}
        with self._lock:
            for answer in self._answers.values():
                answer.put(gone)

    def _take(self, message: Json) -> None:
        if "id" in message:
            with self._lock:
                answer = self._answers.pop(message["id"])
            answer.put(message)
        elif (page := self._pages.get(message.get("sessionId", ""))) is not None:
            page.take(message["method"], message["params"])


class Page:
    """One tab."""

    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self._browser = browser
        self._session = session
        self._target = target
        #: texts of uncaught exceptions and of what the browser logged as an error
        self.errors: list[str] = []

    def send(self, method: str, **params: Any) -> Json:
        return self._browser.send(method, params, self._session)

    def take(self, method: str, params: Json) -> None:
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(str(details.get("exception", {}).get("description", details["text"])))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)

    def resize(self, width: int, height: int) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def prefer(self, scheme: str) -> None:
        """Whether the system asks for "dark" or "light"."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", features=features)

    def run(self, script: str) -> Any:
        """The value of an expression, after its promise. Raises BrowserError with the page's exception."""
        found = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True
        )
        if "exceptionDetails" in found:
            details = found["exceptionDetails"]
            raise BrowserError(str(details.get("exception", {}).get("description", details["text"])))
        return found["result"].get("value")

    def wait(self, condition: str, timeout_s: float = 40.0) -> Any:
        """The first value of `condition` that is true. Raises BrowserError with what the page showed instead."""
        script = """new Promise((found) => {
            const end = performance.now() + %f, look = () => {
                let value = null;
                try { value = %s; } catch (error) { value = null; }
                if (value || performance.now() > end) found(value || null); else setTimeout(look, 10);
            };
            look();
        })"""
        value = self.run(script % (1000 * timeout_s, condition))
        if value is None:
            text = self.run("document.body.innerText")
            raise BrowserError(f"not within {timeout_s:g} s: {condition}\n{text}\n{self.errors}")
        return value

    def text(self, selector: str = "body") -> str:
        return str(self.run(f"document.querySelector({json.dumps(selector)}).innerText"))

    def click(self, selector: str, text: str | None = None) -> None:
        """Click the first element, of those with `text` in them."""
        chosen = f"[...document.querySelectorAll({json.dumps(selector)})]"
        having = "" if text is None else f".filter((e) => e.textContent.includes({json.dumps(text)}))"
        self.wait(f"{chosen}{having}[0]")
        self.run(f"{chosen}{having}[0].click()")

    def screenshot(self, path: Path) -> None:
        data = self.send("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        self._browser.send("Target.closeTarget", {"targetId": self._target})


def _pipe() -> tuple[int, int]:
    """A pipe whose ends are above those numbers that the browser wants."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return high[0], high[1]
