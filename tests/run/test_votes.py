"""Votes on disk, and what they come to."""

import itertools
import multiprocessing
import os
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import fabricated_run
from support.fabricated_run import make

from pipeline.errors import UserError
from pipeline.run import votes
from pipeline.run.rundir import RunDir
from pipeline.run.votes import AnsweredTurn, AnswerPair, Vote

ITEMS = ("p", "q", "r")


def pair(item_id: str, turn: int = 0, student: str = "yes") -> AnswerPair:
    exchange = AnsweredTurn("?", {"teacher": "no", "student": student}, {"teacher": False, "student": False})
    return AnswerPair(item_id, turn, (exchange,) * (turn + 1))


def vote(
    item_id: str = "p", said: str = "a", *, turn: int = 0, a: str = "student", voter: str = "", of: str = ""
) -> Vote:
    return Vote.model_validate(
        {
            "item_id": item_id,
            "turn": turn,
            "a": a,
            "b": "teacher" if a == "student" else "student",
            "vote": said,
            "voter": voter,
            "answers_hash": of or pair(item_id, turn).hash,
            "time": "2026-01-01T00:00:00+00:00",
        }
    )


# --- pairs


def test_pairs_are_the_answers_of_teacher_and_student_turn_by_turn(tmp_path: Path) -> None:
    shown = votes.pairs(make(tmp_path))
    assert [(p.item_id, p.turn) for p in shown] == [("item-0", 0), ("item-0", 1)] + [
        (f"item-{n}", 0) for n in range(1, 8)
    ]
    second = shown[1]
    assert [e.question[:12] for e in second.exchanges] == ["question 0.0", "question 0.1"]
    assert second.exchanges[1].answers["student"].startswith("answer 0.1 of student")
    assert second.exchanges[1].answers["teacher"].startswith("answer 0.1 of teacher")
    assert shown[2].exchanges[0].is_cut_off == {"teacher": True, "student": True}
    assert not shown[3].exchanges[0].is_cut_off["student"]


def test_a_talk_ends_where_one_arm_has_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [r for r in fabricated_run.samples() if (r["item_id"], r["turn"], r["arm"]) != ("item-0", 0, "student")]
    monkeypatch.setattr(fabricated_run, "samples", lambda: rows)
    assert "item-0" not in {p.item_id for p in votes.pairs(make(tmp_path))}


def test_the_hash_covers_every_answer_in_view_and_nothing_else() -> None:
    assert pair("p").hash == pair("q").hash
    assert len({pair("p").hash, pair("p", student="").hash, pair("p", 1).hash}) == 3
    swapped = AnsweredTurn("?", {"teacher": "yes", "student": "no"}, {"teacher": False, "student": False})
    assert AnswerPair("p", 0, (swapped,)).hash != pair("p").hash


# --- the file


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def test_votes_come_back_in_order(run_dir: RunDir) -> None:
    given = [vote("p", "a", voter="Zoë\n"), vote("q", "both_bad"), vote("p", "skip", voter="Zoë\n")]
    for each in given:
        votes.append(run_dir, each)
    assert votes.read(run_dir) == (given, 0)
    assert votes.votes_path(run_dir).read_bytes().count(b"\n") == 3


def test_no_file_is_no_votes(run_dir: RunDir) -> None:
    assert votes.read(run_dir) == ([], 0)


def test_a_line_torn_anywhere_costs_that_vote_alone_and_no_later_one(run_dir: RunDir) -> None:
    path, first, torn, last = votes.votes_path(run_dir), vote("p"), vote("q"), vote("r")
    whole = torn.model_dump_json().encode()
    for kept in range(len(whole) + 1):
        path.write_bytes(first.model_dump_json().encode() + b"\n" + whole[:kept])
        votes.append(run_dir, last)
        assert votes.read(run_dir) == (
            [first, *([torn] if kept == len(whole) else []), last],
            int(0 < kept < len(whole)),
        )


@pytest.mark.parametrize(
    "line", [b"\xff\xfe", b"{}", b"[]", b"null", vote().model_dump_json().encode().replace(b'"teacher"', b'"student"')]
)
def test_a_line_that_is_no_vote_is_counted_as_such(run_dir: RunDir, line: bytes) -> None:
    votes.votes_path(run_dir).write_bytes(line + b"\n" + vote().model_dump_json().encode() + b"\n")
    assert votes.read(run_dir) == ([vote()], 1)


def test_a_vote_is_on_the_disk_before_append_returns(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[bool, int]] = []

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        synced.append((path == votes.votes_path(run_dir).resolve(), os.fstat(descriptor).st_size))

    monkeypatch.setattr(os, "fsync", fsync)
    votes.append(run_dir, vote())
    size = len(vote().model_dump_json()) + 1
    assert synced[0] == (True, size)
    assert [is_file for is_file, _ in synced] == [True, False]  # then the folder, which has a new name in it
    votes.append(run_dir, vote())
    assert synced[2:] == [(True, 2 * size)]


def test_a_full_disk_is_told(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", lambda _, data: len(data) - 1)
    with pytest.raises(UserError, match=r"votes.jsonl: the vote was not saved \(no disk space"):
        votes.append(run_dir, vote())


def test_a_file_that_is_none_is_told(run_dir: RunDir) -> None:
    votes.votes_path(run_dir).mkdir()
    with pytest.raises(UserError, match="the vote was not saved"):
        votes.append(run_dir, vote())
    with pytest.raises(UserError, match="can't be read"):
        votes.read(run_dir)


def _append_many(folder: Path, voter: str) -> None:
    for turn in range(150):
        votes.append(RunDir(folder), vote(turn=turn, voter=voter))


def test_votes_of_two_processes_stay_whole(run_dir: RunDir) -> None:
    context = multiprocessing.get_context("fork")
    others = [context.Process(target=_append_many, args=(run_dir.path, voter)) for voter in ("x", "y")]
    for other in others:
        other.start()
    for other in others:
        other.join()
    given, num_unreadable = votes.read(run_dir)
    assert num_unreadable == 0
    assert sorted((v.voter, v.turn) for v in given) == sorted(itertools.product("xy", range(150)))


# --- counting


def test_a_changed_mind_is_the_later_line_and_voters_do_not_overwrite_each_other() -> None:
    counted = votes.tally([vote(said="a"), vote(said="b", voter="Ada"), vote(said="both_good")], [pair("p")])
    assert counted.preferred == {"student": 0, "teacher": 1}
    assert counted.both_good == 1
    assert counted.num_voters == 2


def test_a_skip_takes_a_vote_back() -> None:
    counted = votes.tally([vote(said="a"), vote(said="skip")], [pair("p")])
    assert (counted.num_votes(), counted.skipped, counted.num_voters) == (0, 1, 0)
    assert counted.items == {"won": 0, "level": 0, "lost": 0}


def test_votes_on_answers_that_are_no_more_are_outdated() -> None:
    given = [vote(said="a"), vote("q"), vote("gone"), vote("q", turn=1)]
    counted = votes.tally(given, [pair("p", student="another"), pair("q")])
    assert counted.preferred == {"student": 1, "teacher": 0}
    assert counted.outdated == 3


def test_a_vote_that_was_given_anew_leaves_the_outdated_one_outdated() -> None:
    new = pair("p", student="another")
    counted = votes.tally([vote(said="a"), vote(said="b", of=new.hash)], [new])
    assert (counted.preferred["teacher"], counted.preferred["student"], counted.outdated) == (1, 0, 1)


def slow_tally(given: list[Vote], shown: list[AnswerPair]) -> tuple[dict[str, int], dict[str, int]]:
    """Votes and items by outcome, one vote after the other from the last."""
    of_votes, of_items = defaultdict(int), {"won": 0, "level": 0, "lost": 0}
    for item_id in {p.item_id for p in shown}:
        seen, ups, downs, ties = set(), 0, 0, 0
        for each in reversed(given):
            current = [p for p in shown if (p.item_id, p.turn) == (each.item_id, each.turn)]
            if each.item_id != item_id or not current or current[0].hash != each.answers_hash:
                continue
            if (each.voter, each.turn) in seen:
                continue
            seen.add((each.voter, each.turn))
            winner = {"a": each.a, "b": each.b}.get(each.vote, each.vote)
            of_votes[winner] += 1
            ups, downs = ups + (winner == "student"), downs + (winner == "teacher")
            ties += winner.startswith("both")
        if ups + downs + ties:
            of_items["won" if ups > downs else "lost" if downs > ups else "level"] += 1
    return of_votes, of_items


@given(
    st.lists(
        st.builds(
            vote,
            st.sampled_from(ITEMS),
            st.sampled_from(["a", "b", "both_good", "both_bad", "skip"]),
            turn=st.integers(0, 1),
            a=st.sampled_from(["student", "teacher"]),
            voter=st.sampled_from(["", "Ada", "Bo"]),
            of=st.sampled_from(["", "", "", "0" * 64]),
        ),
        max_size=40,
    )
)
def test_counts_equal_a_slow_independent_count(given_votes: list[Vote]) -> None:
    shown = [pair(item_id, turn) for item_id in ITEMS for turn in range(2)]
    counted = votes.tally(given_votes, shown)
    of_votes, of_items = slow_tally(given_votes, shown)
    assert counted.preferred == {arm: of_votes[arm] for arm in ("teacher", "student")}
    assert (counted.both_good, counted.both_bad, counted.skipped) == tuple(
        of_votes[choice] for choice in ("both_good", "both_bad", "skip")
    )
    assert counted.items == of_items


def test_the_side_that_was_chosen_is_counted() -> None:
    given = [vote("p", "a"), vote("q", "a", a="teacher"), vote("r", "b")]
    counted = votes.tally(given, [pair(item_id) for item_id in ITEMS])
    assert counted.chosen_a == 2
    assert counted.preferred == {"student": 1, "teacher": 2}


def test_an_item_counts_once_however_many_vote_on_it() -> None:
    given = [vote("p", "a", voter=str(n)) for n in range(9)] + [vote("p", "b", voter="other"), vote("q", "b")]
    counted = votes.tally(given, [pair("p"), pair("q")])
    assert counted.items == {"won": 1, "level": 0, "lost": 1}
    assert counted.p_value() == 1
    assert counted.win_share()["num"] == 2
