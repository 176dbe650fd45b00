"""`retort compare` in a process of its own, and a page as tests read it."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


class Page(HTMLParser):
    """A page's form, its links, and what A and B say."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.buttons: dict[str, bool] = {}  # each choice, and whether it is marked
        self.links: dict[str, str] = {}  # by key
        self.texts: list[str] = []  # of elements of class "text": the question, A, B at the end
        self.content: dict[str, str] = {"style": "", "script": "", "h1": ""}
        self.progress = ("", "")
        self._tag, self._is_text = "", False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self._tag, self._is_text = tag, values.get("class") == "text"
        if self._is_text:
            self.texts.append("")
        if values.get("name") == "vote":
            self.buttons[values["value"]] = values["aria-pressed"] == "true"
        elif tag == "a":
            self.links[values["data-key"]] = values["href"]
        elif tag == "progress":
            self.progress = (values["value"], values["max"])

    def handle_data(self, data: str) -> None:
        if self._tag in self.content:
            self.content[self._tag] += data
        if self._is_text:
            self.texts[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._tag, self._is_text = "", False


@contextmanager
def serving(run: Path, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The process and the address that it says; it is interrupted, as by ctrl-C, where it has not ended."""
    command = [sys.executable, "-m", "pipeline", "compare", str(run)]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, cwd=ROOT, stderr=stream)
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"http://\S+/", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "no address within a minute"
            time.sleep(0.05)
        yield process, found[0]
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
