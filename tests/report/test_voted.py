"""The report's section on what people said: counts, and a difference only where one is shown."""

import itertools
import re
from html import unescape
from pathlib import Path

import pytest
from support import fabricated_run
from support.fabricated_run import make

from pipeline.compare.blind_questions import draw
from pipeline.report import page
from pipeline.report.tables import voted
from pipeline.run import votes
from pipeline.run.commit import now
from pipeline.run.rundir import RunDir
from pipeline.run.votes import Vote


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run of forty items of one turn."""
    monkeypatch.setattr(fabricated_run, "NUM_ITEMS", 40)
    rows = [row for row in fabricated_run.samples() if row["turn"] == 0]
    monkeypatch.setattr(fabricated_run, "samples", lambda: rows)
    return make(tmp_path)


def cast(run_dir: RunDir, *said: str, voter: str = "") -> None:
    """One vote an item, as `student`, `teacher`, or a choice that prefers neither."""
    for asked, what in zip(draw(run_dir, 0), said, strict=False):
        vote = {
            "item_id": asked.pair.item_id,
            "turn": 0,
            "a": asked.a,
            "b": asked.b,
            "vote": {str(asked.a): "a", str(asked.b): "b"}.get(what, what),
            "voter": voter,
            "answers_hash": asked.pair.hash,
            "time": now(),
        }
        votes.append(run_dir, Vote.model_validate(vote))


def section(run_dir: RunDir) -> str:
    """The text of the page's section, on one line."""
    [found] = re.findall(r'<section id="votes">(.*?)</section>', page.render(run_dir), re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", found)).split())


def test_a_run_without_votes_has_no_section(run_dir: RunDir) -> None:
    assert voted.summary(run_dir) is None
    assert 'id="votes"' not in page.render(run_dir)


def test_a_difference_is_told_where_the_test_shows_one(run_dir: RunDir) -> None:
    cast(run_dir, *["teacher"] * 15, *["student"] * 5, *["both_good"] * 3, *["both_bad"] * 2, "skip")
    text = section(run_dir)
    assert "One person compared teacher and student blind: 25 votes on 25 items." in text
    assert (
        "Of the 20 items with a preference the student won 25.0 % (8.7 %–49.1 %), sign test p = 0.041:"
        " people prefer the teacher's answers."
    ) in text
    assert "Votes 5 5 3 both good, 2 both bad 15 –" in text
    assert "Items 5 5 15 25.0 % 8.7 – 49.1 %" in text
    assert "Skipped: 1." in text


def test_the_student_can_win(run_dir: RunDir) -> None:
    cast(run_dir, *["student"] * 12)
    assert "won 100.0 % (73.5 %–100.0 %), sign test p < 0.001: people prefer the student's answers." in section(run_dir)


@pytest.mark.parametrize(("num", "few"), [(5, True), (6, False)])
def test_fewer_than_six_can_show_nothing(run_dir: RunDir, num: int, few: bool) -> None:
    cast(run_dir, *["student"] * num)
    assert ("no difference shown (fewer than 6 such items can show none)" in section(run_dir)) == few
    assert ("people prefer" in section(run_dir).split("Counted")[0]) == (not few)


@pytest.mark.parametrize(("wins", "losses"), [*itertools.product((0, 3, 7), (0, 3, 8))])
def test_no_difference_is_said_exactly_where_the_interval_holds_one_half(
    run_dir: RunDir, wins: int, losses: int
) -> None:
    cast(run_dir, *["student"] * wins, *["teacher"] * losses, "both_bad")
    low, high = votes.clopper_pearson(wins, wins + losses) if wins + losses else (0, 1)
    assert ("no difference shown" in section(run_dir)) == (low <= 0.5 <= high)


def test_several_people_and_their_names_stay_out(run_dir: RunDir) -> None:
    cast(run_dir, "student", "teacher", voter="Ada Lovelace")
    cast(run_dir, "student", "both_good", "skip", voter="<b>Bo</b>")
    assert "2 people compared teacher and student blind: 4 votes on 2 items." in section(run_dir)
    html = page.render(run_dir)
    assert "Lovelace" not in html
    assert "Bo<" not in html
    assert "Bo&lt;" not in html


def test_the_side_that_was_chosen_is_told(run_dir: RunDir) -> None:
    cast(run_dir, *(asked.a for asked in draw(run_dir, 0)[:7]), *(asked.b for asked in draw(run_dir, 0)[7:9]))
    assert "The answer shown as A was chosen in 7 of 9 preferences." in section(run_dir)


def test_what_is_not_counted_is_told(run_dir: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cast(run_dir, *["student"] * 8)
    with votes.votes_path(run_dir).open("a") as file:
        file.write('{"item_id": "item-')
    rows = fabricated_run.samples()
    for row in rows:
        if row["item_id"] in {asked.pair.item_id for asked in draw(run_dir, 0)[:3]}:
            row["answer"] += "."
        elif row["item_id"] == draw(run_dir, 0)[20].pair.item_id:
            row["answer"] = "same"
    monkeypatch.setattr(fabricated_run, "samples", lambda: rows)
    anew = make(tmp_path / "anew")
    votes.votes_path(run_dir).rename(votes.votes_path(anew))
    text = section(anew)
    assert "5 votes on 5 items" in text
    assert "Outdated, and not counted: 3 votes on answers that were evaluated anew since." in text
    assert "Not asked about: 1 pair of identical answers." in text
    assert "Not counted: 1 line of votes.jsonl that can't be read." in text


def test_votes_on_a_chat_set_that_is_gone_do_not_stop_the_report(
    run_dir: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cast(run_dir, "student", "teacher")
    monkeypatch.setattr(fabricated_run, "samples", lambda: [])
    anew = make(tmp_path / "anew")
    votes.votes_path(run_dir).rename(votes.votes_path(anew))
    assert "No vote on the answers as they are now." in section(anew)
    assert "Outdated, and not counted: 2 votes" in section(anew)
