"""What people say of the answers: the pairs they are asked about, and RUN/votes.jsonl with one vote a line.

The file is not part of evaluate: it is added to and never rewritten, and outlives an evaluation that is done anew.
"""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import UserError
from pipeline.run import artifacts
from pipeline.run.files import fsync_folder, json_lines, read_committed, text_hash, user_disk_errors
from pipeline.run.rundir import RunDir
from pipeline.statistics.binomial import clopper_pearson, sign_test

Arm = Literal["teacher", "student"]
Choice = Literal["a", "b", "both_good", "both_bad", "skip"]
MAX_NAME_CHARS = 80
COLUMNS = ["item_id", "turn", "arm", "question", "answer", "finish_reason"]


class Vote(BaseModel):
    """A line of votes.jsonl. Of one voter's votes on the same answers the last line holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    item_id: str
    turn: int = Field(ge=0)
    a: Arm  # whose answer was shown as A
    b: Arm
    vote: Choice
    voter: str = Field(max_length=MAX_NAME_CHARS)  # empty: gave no name
    answers_hash: str  # Pair.hash of what was shown
    time: str

    @model_validator(mode="after")
    def _two_arms(self) -> "Vote":
        if self.a == self.b:
            raise ValueError("a and b are the same arm")
        return self


@dataclass(frozen=True)
class AnsweredTurn:
    """A question, and what each arm answered."""

    question: str
    answers: dict[Arm, str]
    is_cut_off: dict[Arm, bool]


@dataclass(frozen=True)
class AnswerPair:
    """Two answers to be compared: those of the last exchange; the earlier ones of the talk are shown above them."""

    item_id: str
    turn: int
    exchanges: tuple[AnsweredTurn, ...]

    @cached_property
    def hash(self) -> str:
        """Of all that a voter reads: questions and both arms' answers, up to this turn."""
        return text_hash(json.dumps([[e.question, e.answers["teacher"], e.answers["student"]] for e in self.exchanges]))

    def is_identical(self) -> bool:
        """Whether there is nothing to choose between."""
        answers = self.exchanges[-1].answers
        return answers["teacher"] == answers["student"]


@dataclass(frozen=True)
class VoteCounts:
    """What the votes come to. Votes on one item hang together: it goes to the arm that more of them prefer."""

    preferred: dict[Arm, int]  # votes
    both_good: int
    both_bad: int
    skipped: int
    chosen_a: int  # of the preferring votes, those for the answer shown as A
    items: dict[Literal["won", "level", "lost"], int]  # by the student
    outdated: int
    num_voters: int

    def num_votes(self) -> int:
        """Those that say something."""
        return sum(self.preferred.values()) + self.both_good + self.both_bad

    def win_share(self) -> dict[str, Any]:
        """Share of the items with a preference that the student won, with its exact interval; `num` of them."""
        won, num = self.items["won"], self.items["won"] + self.items["lost"]
        low, high = clopper_pearson(won, num) if num else (None, None)
        return {"value": won / num if num else None, "low": low, "high": high, "num": num}

    def p_value(self) -> float:
        """Of the sign test over items."""
        return sign_test(self.items["won"], self.items["lost"])


def pairs(run_dir: RunDir) -> list[AnswerPair]:
    """The answers of teacher and student to the chat set, in its order; turns that one of them lacks are left out.

    Raises UserError where evaluate has not finished, or is damaged.
    """
    run_dir.check_files("evaluate")
    path = run_dir.stage_path("evaluate") / artifacts.SAMPLES
    talks: dict[str, dict[int, dict[str, dict[str, Any]]]] = defaultdict(lambda: defaultdict(dict))
    for row in read_committed(path, COLUMNS).to_pylist() if path.is_file() else ():
        talks[row["item_id"]][row["turn"]][row["arm"]] = row
    return [pair for item_id, turns in talks.items() for pair in _of_talk(item_id, turns)]


def read(run_dir: RunDir) -> tuple[list[Vote], int]:
    """The votes in the order they were given, and how many lines can't be read (a kill may tear one).

    Raises UserError where the file can't be read.
    """
    path = votes_path(run_dir)
    votes, num_unreadable = [], 0
    try:
        lines = json_lines(path) if path.exists() else []
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}); fix that and run the command again") from None
    for line in filter(bytes.strip, lines):
        try:
            votes.append(Vote.model_validate_json(line))
        except ValidationError:
            num_unreadable += 1
    return votes, num_unreadable


def append(run_dir: RunDir, vote: Vote) -> None:
    """Add a vote as one line, and return when it is on the disk. Raises UserError where it can't be written."""
    path = votes_path(run_dir)
    line = vote.model_dump_json().encode() + b"\n"
    try:
        with user_disk_errors(path):
            is_new = not path.exists()
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                size = os.fstat(descriptor).st_size
                if size and os.pread(descriptor, 1, size - 1) != b"\n":
                    line = b"\n" + line  # what a kill tore stays a line of its own
                if os.write(descriptor, line) != len(line):  # one write: other processes add whole lines too
                    raise UserError(f"{path}: the vote was not saved (no disk space?); free some space and vote again")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if is_new:
                fsync_folder(path.parent)
    except OSError as error:
        raise UserError(f"{path}: the vote was not saved ({error.strerror}); fix that and vote again") from None


def votes_path(run_dir: RunDir) -> Path:
    return run_dir.path / "votes.jsonl"


def latest(votes: Iterable[Vote], shown: Iterable[AnswerPair]) -> dict[tuple[str, str, int], Vote]:
    """Of each voter, item and turn the vote that holds, where it is about the answers that are there now."""
    hashes = {(pair.item_id, pair.turn): pair.hash for pair in shown}
    return {
        (vote.voter, vote.item_id, vote.turn): vote
        for vote in votes
        if hashes.get((vote.item_id, vote.turn)) == vote.answers_hash
    }


def tally(votes: list[Vote], shown: list[AnswerPair]) -> VoteCounts:
    """Count the votes that hold; those on answers that are no more are only counted as outdated."""
    holding = latest(votes, shown)
    given = {(vote.voter, vote.item_id, vote.turn, vote.answers_hash) for vote in votes}
    choices = Counter(vote.vote for vote in holding.values())
    preferred: Counter[Arm] = Counter()
    lead: Counter[str] = Counter()  # of each item, votes for the student less votes for the teacher
    for vote in holding.values():
        if vote.vote in ("a", "b"):
            preferred[arm := vote.a if vote.vote == "a" else vote.b] += 1
            lead[vote.item_id] += 1 if arm == "student" else -1
        elif vote.vote != "skip":
            lead[vote.item_id] += 0  # level, unless other votes decide
    return VoteCounts(
        preferred={"teacher": preferred["teacher"], "student": preferred["student"]},
        both_good=choices["both_good"],
        both_bad=choices["both_bad"],
        skipped=choices["skip"],
        chosen_a=choices["a"],
        items={
            "won": sum(n > 0 for n in lead.values()),
            "level": sum(n == 0 for n in lead.values()),
            "lost": sum(n < 0 for n in lead.values()),
        },
        outdated=len(given) - len(holding),
        num_voters=len({vote.voter for vote in holding.values() if vote.vote != "skip"}),
    )


def _of_talk(item_id: str, turns: dict[int, dict[str, dict[str, Any]]]) -> Iterable[AnswerPair]:
    """A pair for each turn that both arms reached."""
    exchanges: list[AnsweredTurn] = []
    for turn in sorted(turns):
        arms = turns[turn]
        if "teacher" not in arms or "student" not in arms:
            return
        exchanges.append(
            AnsweredTurn(
                question=arms["teacher"]["question"],
                answers={"teacher": arms["teacher"]["answer"], "student": arms["student"]["answer"]},
                is_cut_off={
                    "teacher": arms["teacher"]["finish_reason"] != "stop",
                    "student": arms["student"]["finish_reason"] != "stop",
                },
            )
        )
        yield AnswerPair(item_id, turn, tuple(exchanges))
