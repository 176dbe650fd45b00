"""The page as a browser shows it: scripts drawn, planted ones dead, nothing fetched, paper complete."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.fabricated_run import PLANTED, make

from pipeline.report import page

BINARIES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((found for name in BINARIES if (found := shutil.which(name))), None)
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
FETCHING = ("src", "srcset", "href", "xlink:href", "poster", "data", "action")
PRINTING = "<script>dispatchEvent(new Event('beforeprint'))</script>"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason=f"no browser found: none of {', '.join(BINARIES)} is on the PATH"),
]


class Dom(HTMLParser):
    """What tests ask of a dumped DOM."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.title = ""
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.charts: dict[str, list[str]] = {}  # the classes found inside each chart
        self.widths: set[str] = set()  # of the charts' drawings
        self.open: list[bool] = []  # each <details>
        self._tag, self._chart = "", ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self._tag = tag
        self.fetched += [values[name] for name in FETCHING if tag != "a" and name in values]
        classes = values.get("class", "").split()
        if "data-spec" in values:
            self._chart = values["data-spec"].removeprefix("spec-")
            self.charts[self._chart] = []
        elif tag == "figcaption":
            self._chart = ""
        elif self._chart:
            self.charts[self._chart] += classes
        if tag == "svg" and "main-svg" in classes:
            self.widths.add(values["width"])
        if tag == "details":
            self.open.append("open" in values)

    def handle_data(self, data: str) -> None:
        if self._tag == "title":
            self.title += data
        if self._tag not in ("script", "style"):
            self.texts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""


def chromium(url: str, profile: Path, *arguments: str) -> str:
    """What headless Chromium writes to standard output, with a profile of its own."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", *arguments, url]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def dumped(html: str, folder: Path) -> Dom:
    """The DOM of a page after its scripts have run."""
    path = folder / "page.html"
    path.write_text(html, encoding="utf-8")
    return Dom(chromium(path.as_uri(), folder / "profile", "--dump-dom"))


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page.write(make(tmp_path_factory.mktemp("runs"))).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def dom(html: str, tmp_path_factory: pytest.TempPathFactory) -> Dom:
    return dumped(html.replace('class="chapter"', 'class="chapter" open'), tmp_path_factory.mktemp("shown"))


def test_a_chart_is_drawn_when_its_chapter_opens(html: str, tmp_path: Path) -> None:
    closed = dumped(html, tmp_path)
    assert [name for name, classes in closed.charts.items() if "main-svg" in classes] == ["forward_kl"]
    opening = "<script>for (const each of document.querySelectorAll('.chapter')) each.open = true;</script>"
    opened = dumped(POLICY.sub("", html).replace("</body>", f"{opening}</body>"), tmp_path)
    assert all("main-svg" in classes for classes in opened.charts.values())


def test_a_link_into_a_closed_chapter_opens_it(html: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(html, encoding="utf-8")
    shown = Dom(chromium(f"{path.as_uri()}#rows-fidelity", tmp_path / "profile", "--dump-dom"))
    assert shown.open.count(True) == dumped(html, tmp_path).open.count(True) + 2  # the chapter, and the list in it


def test_all_charts_are_drawn(dom: Dom) -> None:
    assert set(dom.charts) == {"loss", "kl", "forward_kl", "kl_by_position", "waterfall"}
    for name, classes in dom.charts.items():
        assert "main-svg" in classes, name
    assert dom.charts["loss"].count("scatter") == 2  # student and SFT only
    assert dom.charts["forward_kl"].count("point") == 4
    assert dom.charts["forward_kl"].count("errorbar") == 4
    assert dom.charts["kl_by_position"].count("scatter") == 8  # four arms, on two kinds of text
    assert dom.charts["waterfall"].count("point") == 4
    assert "modebar" not in dom.charts["loss"]


def test_planted_scripts_are_text(dom: Dom) -> None:
    assert dom.title == "trial: Retort report"
    assert "img" not in dom.tags
    # summary, two questions, two answers, two examples of what was dropped, a category, six tasks; and on the first
    # screen a question and an answer
    assert len([text for text in dom.texts if PLANTED in text]) == 8 + 6 + 2


def test_escaping_alone_holds(html: str, tmp_path: Path) -> None:
    unguarded, removed = POLICY.subn("", html)
    assert removed == 1
    assert dumped(unguarded, tmp_path).title == "trial: Retort report"


@pytest.mark.parametrize(("guarded", "title"), [(False, "pwned"), (True, "trial: Retort report")])
def test_the_policy_alone_holds(html: str, tmp_path: Path, guarded: bool, title: str) -> None:
    """Unescaped, the planted text runs without the policy, so these tests would see it; with the policy it does not."""
    head, _, _ = html.partition("<body>")
    broken = f"{head if guarded else POLICY.sub('', head)}<body>{PLANTED}</body></html>"
    assert dumped(broken, tmp_path).title == title


def test_nothing_is_fetched(dom: Dom) -> None:
    assert [target for target in dom.fetched if not target.startswith("#")] == []


def test_prompts_are_shown_by_source_and_licence(dom: Dom) -> None:
    texts = [" ".join(text.split()) for text in dom.texts]
    assert {"Prompts by source", "bad rows 2", "apache-2.0"} <= set(texts)


def test_style_sheet_fetches_nothing(html: str) -> None:
    style = html[html.index("<style>") : html.index("</style>")]
    assert not re.search(r"url\(|@import|@font-face", style)


def test_print_opens_everything_and_fits_charts_to_paper(html: str, dom: Dom, tmp_path: Path) -> None:
    # three breakdowns, two rules' examples, in each the earlier messages, two items, the config; of rows four files,
    # and in them three tasks and a probe
    assert dom.open.count(False) == 10 + 4 + 4
    printing = dumped(POLICY.sub("", html).replace("</body>", f"{PRINTING}</body>"), tmp_path)
    assert printing.open == [True] * 36
    assert printing.widths == {"640"}


def test_page_prints_to_pdf(html: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    target = tmp_path / "page.pdf"
    chromium((tmp_path / "page.html").as_uri(), tmp_path / "profile", f"--print-to-pdf={target}")
    printed = target.read_bytes()
    assert printed.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) >= 3
