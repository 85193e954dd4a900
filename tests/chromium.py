"""A headless Chromium, driven through a pair of pipes by its own protocol: no other package is needed for that."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 40.0  # seconds for anything that a page is waited for


def executable() -> str | None:
    """The browser's path, if there is one."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """A tab."""

    def __init__(self, requests: int, replies: int, downloads: Path) -> None:
        self._requests, self._replies, self._downloads = requests, replies, downloads
        self._buffer = b""
        self._count = self._seen = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Sends a command and gives its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._requests, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        while True:
            received = self._receive(deadline)
            if received.get("id") == self._count:
                if "error" in received:
                    raise RuntimeError(f"{method}: {received['error']}")
                return dict(received["result"])
            self.events.append(received)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript; of a promise, once it is there."""
        result = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def until(self, condition: str) -> None:
        """Waits until an expression is true; the page looks at every change of itself."""
        self.evaluate(
            "new Promise((resolve, reject) => {"
            f"  const look = () => {{ if ({condition}) {{ watcher.disconnect(); resolve(true); }} }};"
            "  const watcher = new MutationObserver(look);"
            "  watcher.observe(document, {subtree: true, childList: true, attributes: true, characterData: true});"
            f"  setTimeout(() => reject(new Error('never: ' + document.body.innerText)), {1000 * PATIENCE / 2});"
            "  look();"
            "})"
        )

    def event(self, method: str, **expected: Any) -> dict[str, Any]:
        """The next event of a kind whose parameters have these values; those before it are forgotten to be waited for."""
        deadline = time.monotonic() + PATIENCE
        while True:
            while self._seen < len(self.events):
                event = self.events[self._seen]
                self._seen += 1
                params = event.get("params", {})
                if event.get("method") == method and expected.items() <= params.items():
                    return dict(params)
            self.events.append(self._receive(deadline))

    def open(self, url: str) -> None:
        """Goes to a page and waits until its scripts have run."""
        self.events.clear()
        self._seen = 0
        self.send("Page.navigate", url=url)
        self.event("Page.loadEventFired")

    def download(self, selector: str) -> tuple[str, Path]:
        """Clicks on what downloads a file; gives the name that it is to have, and where it lies."""
        self._seen = len(self.events)
        self.evaluate(f"document.querySelector({selector!r}).click()")
        began = self.event("Browser.downloadWillBegin")
        self.event("Browser.downloadProgress", guid=began["guid"], state="completed")
        return str(began["suggestedFilename"]), self._downloads / str(began["guid"])

    def choose(self, selector: str, path: Path) -> None:
        """Puts a file into a file field, as its user would."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def drop(self, selector: str, path: Path) -> None:
        """Drags a file from elsewhere onto an element, and lets go."""
        box = self.evaluate(f"document.querySelector({selector!r}).getBoundingClientRect().toJSON()")
        place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.send("Input.dispatchDragEvent", type=kind, data=data, **place)

    def requested(self) -> list[str]:
        """The URLs that the page asked for."""
        return [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """What stands in the browser's console: errors of scripts, of its policy, of loading."""
        return [
            json.dumps(event["params"])
            for event in self.events
            if event.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        ]

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._replies], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._replies, 1 << 16) if ready else b""
            if not data:
                raise TimeoutError("the browser said nothing")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))


@contextlib.contextmanager
def browsing(folder: Path) -> Iterator[Page]:
    """A tab of a new browser, which keeps everything of its own in a folder."""
    ours, theirs = os.pipe(), os.pipe()
    command = [
        str(executable()), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
        f"--user-data-dir={folder / 'profile'}", "about:blank",
    ]  # fmt: skip
    # The browser reads commands from descriptor 3 and writes to 4; a shell can hand them over by these numbers.
    script = f'exec "$@" 3<&{ours[0]} 4>&{theirs[1]}'
    process = subprocess.Popen(
        ["/bin/bash", "-c", script, "chromium", *command],
        pass_fds=(ours[0], theirs[1]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(folder)},
    )
    os.close(ours[0])
    os.close(theirs[1])
    try:
        downloads = folder / "downloads"
        page = Page(ours[1], theirs[0], downloads)
        page.send(
            "Browser.setDownloadBehavior", behavior="allowAndName", downloadPath=str(downloads), eventsEnabled=True
        )
        yield page
    finally:
        process.terminate()
        process.wait()
        os.close(ours[1])
        os.close(theirs[0])
