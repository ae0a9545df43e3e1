"""Pictures of a made site, as Chromium shows it: five pages, wide and narrow, in the light and in the dark.

By ./run docs --screenshots: ``python -m tests.site.screenshots build/docs build/screenshots``. They are for
people to look at.
"""

import base64
import functools
import http.server
import itertools
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PAGES = ("index", "install", "tutorial", "drivers", "reference/devices")
WIDTHS = (1300, 400)
HEIGHT = 1600
"""In pixels, as the widths; the second is a telephone's."""
THEMES = ("light", "dark")
PATIENCE = 120.0
"""Seconds for which Chromium may be silent."""

OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


class Browser:
    """A Chromium, spoken to over a pair of pipes: its descriptors 3 and 4. Messages end with a zero byte."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._unread = b""

    def __enter__(self) -> Self:
        self._profile = tempfile.TemporaryDirectory(prefix="aioblk-", ignore_cleanup_errors=True)
        its_input, self._to = os.pipe()
        self._from, its_output = os.pipe()
        options = (*OPTIONS, f"--user-data-dir={self._profile.name}", "about:blank")
        try:
            self._process = subprocess.Popen(
                ["bash", "-c", f'exec chromium "$@" 3<&{its_input} 4>&{its_output}', "bash", *options],
                pass_fds=(its_input, its_output),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        finally:
            os.close(its_input)
            os.close(its_output)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._to)  # which it takes for the end
        os.close(self._from)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._profile.cleanup()

    def ask(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """What it answers. Raises RuntimeError with what it refuses."""
        number = next(self._numbers)
        asked = {"id": number, "method": method, "params": parameters}
        asked |= {"sessionId": session} if session else {}
        os.write(self._to, json.dumps(asked).encode() + b"\0")
        while (answer := self._next(method)).get("id") != number:
            pass
        if "error" in answer:
            raise RuntimeError(f"Chromium, {method}: {answer['error'].get('message')}")
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self, method: str) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(self._from, 1 << 20) if ready else b""
            if not piece:
                raise RuntimeError(f"Chromium, {method}: {'has ended' if ready else 'says nothing'}")
            self._unread += piece
        message, _, self._unread = self._unread.partition(b"\0")
        read: dict[str, Any] = json.loads(message)
        return read


def picture(browser: Browser, session: str, address: str, width: int, theme: str) -> bytes:
    """A PNG of the top of a page."""
    browser.ask(
        "Emulation.setDeviceMetricsOverride",
        session,
        width=width,
        height=HEIGHT,
        deviceScaleFactor=1,
        mobile=width < 600,
    )
    browser.ask(
        "Emulation.setEmulatedMedia", session, features=[{"name": "prefers-color-scheme", "value": theme}]
    )
    browser.ask("Page.navigate", session, url=address)
    loaded = """new Promise(done => {
        const look = () => document.readyState == "complete"
            ? document.fonts.ready.then(() => requestAnimationFrame(() => requestAnimationFrame(done)))
            : setTimeout(look, 20);
        look();
    })"""
    browser.ask("Runtime.evaluate", session, expression=loaded, awaitPromise=True)
    shot = browser.ask("Page.captureScreenshot", session, format="png")
    return base64.b64decode(shot["data"])


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Nobody asks who has read what."""


def main(site: Path, target: Path) -> int:
    target.mkdir(parents=True, exist_ok=True)
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, Browser() as browser:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for page, width, theme in itertools.product(PAGES, WIDTHS, THEMES):
            (site / f"{page}.html").resolve(strict=True)
            address = f"http://127.0.0.1:{server.server_port}/{page}.html"
            # Each is a visitor for the first time: who comes back has the theme that was chosen before.
            context = browser.ask("Target.createBrowserContext")["browserContextId"]
            tab = browser.ask("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
            session = browser.ask("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
            name = f"{page.replace('/', '-')}-{width}-{theme}.png"
            (target / name).write_bytes(picture(browser, session, address, width, theme))
            browser.ask("Target.disposeBrowserContext", browserContextId=context)
        server.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
