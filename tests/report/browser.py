"""A real headless Chromium, driven through its debugging pipe: no driver, no network, no port."""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

SECONDS = 120.0  # for anything the browser is asked; a busy machine is slow to start it

# Becomes Chromium, with the pipe's ends where it looks for them.
EXEC = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(each), fcntl.F_DUPFD, 10) for each in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""

# The box in the page around the elements that are found by the selectors, with a margin.
BOX = """(() => {
  const boxes = %s.map(each => document.querySelector(each).getBoundingClientRect());
  const least = name => Math.min(...boxes.map(box => box[name])) - 12;
  const most = name => Math.max(...boxes.map(box => box[name])) + 12;
  const [x, y] = [Math.max(0, least("left") + scrollX), Math.max(0, least("top") + scrollY)];
  return { x, y, width: most("right") + scrollX - x, height: most("bottom") + scrollY - y };
})()"""


class Browser:
    """One page. Chromium reads commands from descriptor 3 and answers on 4, JSON ended by NUL."""

    def __init__(self, program: str, folder: Path) -> None:
        read, self._write = os.pipe()
        self._read, write = os.pipe()
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        options += ["--remote-debugging-pipe", "--no-first-run", f"--user-data-dir={folder}"]
        command = [sys.executable, "-c", EXEC, str(read), str(write), program, *options]
        self._log = (folder.parent / "chromium.log").open("wb")
        self._process = subprocess.Popen(
            command, pass_fds=(read, write), stdout=self._log, stderr=self._log
        )
        os.close(read)
        os.close(write)
        self._buffer, self._number, self.events = b"", 0, list[dict[str, Any]]()
        page = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self._session: str | None = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._write)
        os.close(self._read)
        self._log.close()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the DevTools protocol, and its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if getattr(self, "_session", None):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + SECONDS
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, until - time.monotonic()))
            part = os.read(self._read, 1 << 20) if ready else b""
            if not part:
                raise AssertionError(f"chromium does not answer; see {self._log.name}")
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def open(self, place: Path | str) -> None:
        """Loads a file or an address and waits until it is complete."""
        url = place if isinstance(place, str) else place.as_uri()
        self.call("Page.navigate", url=url)
        self.wait(f"document.readyState === 'complete' && location.href === {url!r}")

    def wait(self, condition: str) -> None:
        """Until an expression is true in the page."""
        until = time.monotonic() + SECONDS
        while not self.run(condition):
            assert time.monotonic() < until, f"waited {SECONDS} s for {condition}"
            time.sleep(0.05)

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise AssertionError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def resize(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def media(self, media: str = "", **features: str) -> None:
        """`media="print"`, or features such as prefers_color_scheme="dark"."""
        named = [{"name": k.replace("_", "-"), "value": v} for k, v in features.items()]
        self.call("Emulation.setEmulatedMedia", media=media, features=named)

    def screenshot(self, path: Path, *selectors: str) -> None:
        """The whole page as PNG, or the smallest part of it that holds the named elements."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"]}
        if selectors:
            clip = self.run(BOX % json.dumps(selectors))
        shot = self.call(
            "Page.captureScreenshot", captureBeyondViewport=True, clip={**clip, "scale": 1}
        )
        path.write_bytes(base64.b64decode(shot["data"]))
