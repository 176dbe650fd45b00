"""A tab of headless Chromium that takes real key presses and clicks, over the DevTools protocol through two pipes.

https://chromedevtools.github.io/devtools-protocol: JSON messages that end with a zero byte, to Chromium on its file
descriptor 3, from it on 4.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BINARIES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((found for name in BINARIES if (found := shutil.which(name))), None)
CODES = {"ArrowLeft": 37, "ArrowRight": 39, "Enter": 13}  # Windows key codes; of a letter, its capital's
LIMIT_S = 30


class Tab:
    """One page."""

    def __init__(self, to_chromium: int, from_chromium: int) -> None:
        self._to, self._from = to_chromium, os.fdopen(from_chromium, "rb")
        self._number, self._session = 0, ""
        [target] = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        self._session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]

    def call(self, method: str, **parameters: Any) -> Any:
        """The result of a method; events that come in between are dropped."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            reply = json.loads(self._message())
            if reply.get("id") == self._number:
                assert "error" not in reply, reply
                return reply["result"]

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.until("document.readyState == 'complete' && location.protocol != 'about:'")

    def value(self, expression: str) -> Any:
        """What a JavaScript expression comes to; of a promise, what that does."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until it is true of a loaded page."""
        deadline = time.monotonic() + LIMIT_S
        while not self.value(f"document.readyState == 'complete' && ({expression})"):
            assert time.monotonic() < deadline, f"never came true: {expression}; at {self.value('location.href')}"
            time.sleep(0.05)

    def press(self, key: str, *, repeats: int = 0, modifiers: int = 0) -> None:
        """A key down, held for so many repeats, and up; 2 is the modifier ctrl."""
        fields = {"key": key, "windowsVirtualKeyCode": CODES.get(key) or ord(key.upper()), "modifiers": modifiers}
        if key == "Enter":
            fields["text"] = "\r"  # a form is sent by the character, not by the key
        for number in range(repeats + 1):
            self.call("Input.dispatchKeyEvent", type="keyDown", autoRepeat=number > 0, **fields)
        self.call("Input.dispatchKeyEvent", type="keyUp", **fields)

    def click(self, selector: str) -> None:
        """A mouse click in the middle of an element."""
        box = f"(() => {{ const r = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
        x, y = self.value(f"{box} return [r.x + r.width / 2, r.y + r.height / 2]; }})()")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def _message(self) -> bytes:
        parts = []
        while (byte := self._from.read(1)) != b"\0":
            assert byte, "Chromium has ended"
            parts.append(byte)
        return b"".join(parts)


@contextmanager
def tab(profile: Path) -> Iterator[Tab]:
    """A fresh Chromium with a profile of its own, ended with the block."""
    assert CHROMIUM is not None
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()  # so 3 and 4 are taken, and subprocess's own pipe has a higher number

    def as_3_and_4() -> None:
        os.dup2(theirs_in, 3)
        os.dup2(theirs_out, 4)

    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        [CHROMIUM, *flags, "about:blank"],
        pass_fds=(3, 4),
        preexec_fn=as_3_and_4,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Tab(ours_out, ours_in)
    finally:
        process.terminate()
        process.wait(timeout=LIMIT_S)
        os.close(ours_out)
