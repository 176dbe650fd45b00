"""The pages of `retort compare` as a person uses them: keys, mouse, a narrow screen; planted scripts stay text."""

from collections.abc import Iterator

import pytest
from support.chromium_tab import BINARIES, CHROMIUM, Tab, tab
from support.fabricated_run import make
from support.serving import serving

from pipeline.compare.blind_questions import draw
from pipeline.run import votes
from pipeline.run.rundir import RunDir

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason=f"no browser found: none of {', '.join(BINARIES)} is on the PATH"),
]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return make(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def address(run_dir: RunDir, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(run_dir.path, tmp_path_factory.mktemp("log") / "log") as (_, found):
        yield found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with tab(tmp_path_factory.mktemp("profile")) as opened:
        opened.call("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)
        yield opened


def at(number: int) -> str:
    return f"location.pathname.endsWith('/questions/{number}')"


def said(run_dir: RunDir, voter: str) -> list[str]:
    return [vote.vote for vote in votes.read(run_dir)[0] if vote.voter == voter]


def test_a_person_votes_with_the_keys_alone(browser: Tab, address: str, run_dir: RunDir) -> None:
    browser.open(address)
    browser.click("#voter")
    for letter in "bag":  # in the field these are letters, not votes
        browser.call("Input.insertText", text=letter)
        browser.press(letter)
    assert browser.value("document.querySelector('#voter').value") == "bag"
    browser.press("Enter")
    browser.until(at(1))
    for number, (key, _) in enumerate(
        (("a", "a"), ("b", "b"), ("g", "both_good"), ("x", "both_bad"), ("s", "skip")), 1
    ):
        browser.press(key)
        browser.until(at(number + 1))
        assert len(said(run_dir, "bag")) == number
    assert said(run_dir, "bag") == ["a", "b", "both_good", "both_bad", "skip"]
    browser.press("ArrowLeft")
    browser.until(at(5))
    browser.press("ArrowLeft")
    browser.until(at(4))
    assert browser.value("document.querySelector('[aria-pressed=true]').value") == "both_bad"
    browser.press("A")
    browser.until(at(6))
    assert said(run_dir, "bag")[5:] == ["a"]


def test_a_key_that_is_held_or_part_of_a_shortcut_does_not_vote_on(browser: Tab, address: str, run_dir: RunDir) -> None:
    browser.open(f"{address}questions/1?voter=held")
    browser.press("a", modifiers=2)
    browser.press("q")
    browser.press("b", repeats=30)
    browser.until(at(2))
    assert browser.value("document.querySelector('progress').value") == 1
    assert said(run_dir, "held") == ["b"]


def test_a_person_votes_with_the_mouse_and_goes_back(browser: Tab, address: str, run_dir: RunDir) -> None:
    browser.open(f"{address}questions/1?voter=mouse")
    browser.click("button[value=both_good]")
    browser.until(at(2))
    browser.click("a[data-key=ArrowLeft]")
    browser.until(at(1))
    browser.click("button[value=b]")
    browser.until(at(2))
    assert said(run_dir, "mouse") == ["both_good", "b"]


def test_the_style_is_applied_and_nothing_is_wider_than_a_telephone(browser: Tab, address: str) -> None:
    for path in ("", "questions/1", "questions/2", "done"):
        browser.open(f"{address}{path}")
        assert browser.value("innerWidth") == 390
        assert browser.value("document.documentElement.scrollWidth") <= 390
        assert browser.value("parseFloat(getComputedStyle(document.body).fontSize)") >= 18
        assert browser.value("[...document.querySelectorAll('button')].every(b => b.offsetHeight >= 40)")
    browser.open(f"{address}questions/1")
    assert browser.value("document.querySelector('.vote').getBoundingClientRect().bottom <= innerHeight")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(browser: Tab, address: str, scheme: str) -> None:
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.open(f"{address}questions/1")
    ground, text = (
        sum(map(int, browser.value(f"getComputedStyle(document.body).{name}.match(/\\d+/g)")[:3]))
        for name in ("backgroundColor", "color")
    )
    assert (ground > 600 and text < 150) if scheme == "light" else (ground < 150 and text > 600)


def test_planted_scripts_stay_text(browser: Tab, address: str, run_dir: RunDir) -> None:
    [number] = [
        n for n, asked in enumerate(draw(run_dir, 0), 1) if asked.pair.item_id == "item-0" and not asked.pair.turn
    ]
    browser.open(f"{address}questions/{number}")
    assert browser.value("document.querySelectorAll('.text')[0].textContent").count("<script>") == 1
    assert browser.value("document.querySelectorAll('img').length") == 0
    assert browser.value("window.pwned") is None
    # not even where the escaping fails: an element with a script of its own, as a planted answer would make it
    browser.value("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.pwned=1\">')")
    browser.value("new Promise(done => setTimeout(done, 300))")
    assert browser.value("window.pwned") is None
