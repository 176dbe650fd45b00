"""A report as tests read it: tables, scripts, charts and sections."""

import json
from html.parser import HTMLParser
from typing import Any

from pipeline.report import page
from pipeline.run.rundir import RunDir


class Reader(HTMLParser):
    """What tests ask of a page: its tables' rows, its scripts, and the ids of its sections."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.scripts: list[str] = []
        self.specs: dict[str, Any] = {}
        self.sections: list[str] = []
        self.policy = ""
        self._inside: list[str] = []
        self._spec: str | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "section":
            self.sections.append(values["id"] or "")
        elif tag == "meta" and values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"] or ""
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "script":
            self._spec = values.get("id")
        if tag in ("td", "th", "script"):
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th", "script"):
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        where = self._inside[-1] if self._inside else ""
        if where == "script" and self._spec:
            self.specs[self._spec.removeprefix("spec-")] = json.loads(data)
        elif where == "script":
            self.scripts.append(data)
        elif where:
            self.rows[-1][-1] = f"{self.rows[-1][-1]} {data.strip()}".strip()

    def rows_of(self, name: str) -> list[list[str]]:
        return [row for row in self.rows if row and row[0] == name]


def page_of(run_dir: RunDir) -> Reader:
    return Reader(page.render(run_dir))
