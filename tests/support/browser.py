"""A real browser, and what it complains of."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

# no sandbox, as tests run as root; and nothing asked of anybody but the service
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def executable() -> str | None:
    """`FA_TUNE_CHROMIUM`, or the Chromium of this machine; None where there is none."""
    return os.environ.get("FA_TUNE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def chromium(path: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Complaints:
    """Errors of scripts, refusals of the content policy and whatever else a browser writes to its console. An answer
    404, or another status of `expected`, is a way in which the service says that there is no such thing."""

    expected: tuple[int, ...] = (404,)
    said: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.said.append(str(error)))

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type == "verbose":  # advice, such as that forms with a password should ask for a name
            return
        answer = re.search(r"Failed to load resource: the server responded with a status of (\d+)", message.text)
        if answer is None or int(answer.group(1)) not in self.expected:
            self.said.append(f"{message.type}: {message.text}")


def pixels(page: Page, canvas: str) -> Any:
    """What a canvas shows, uint8 RGBA [height, width, 4]."""
    import numpy as np

    width, height, values = page.eval_on_selector(
        canvas,
        """shown => {
          const copy = new OffscreenCanvas(shown.width, shown.height).getContext("2d", { willReadFrequently: true });
          copy.drawImage(shown, 0, 0);
          return [shown.width, shown.height, Array.from(copy.getImageData(0, 0, shown.width, shown.height).data)];
        }""",
    )
    return np.array(values, dtype=np.uint8).reshape(height, width, 4)
