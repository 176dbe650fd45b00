"""What people said of the answers, for the report: counts of votes.jsonl, and whether they show a difference."""

from typing import Any

from pipeline.console import counted
from pipeline.report.figures import NONE, Cell, cell, percent, whole
from pipeline.run import votes
from pipeline.run.rundir import RunDir
from pipeline.run.votes import VoteCounts

SIGNIFICANCE = 0.05
LEAST_ITEMS = 6  # that all go one way have p < 0.05; fewer never have


def summary(run_dir: RunDir) -> dict[str, Any] | None:
    """Sentences and a table; None where nobody has voted. Names of voters stay out: a report is passed on."""
    given, num_unreadable = votes.read(run_dir)
    if not given and not num_unreadable:
        return None
    shown = votes.pairs(run_dir)
    tally = votes.tally(given, shown)
    num_identical = sum(pair.is_identical() for pair in shown)
    return {
        "sentences": [sentence for sentence in (_who(tally), _outcome(tally)) if sentence],
        "rows": _rows(tally),
        "notes": _notes(tally, num_identical, num_unreadable),
    }


def _who(tally: VoteCounts) -> str:
    items = sum(tally.items.values())
    if not items:
        return "No vote on the answers as they are now."
    voters = "One person" if tally.num_voters == 1 else f"{whole(tally.num_voters)} people"
    return (
        f"{voters} compared teacher and student blind: {_counted(tally.num_votes(), 'vote')}"
        f" on {_counted(items, 'item')}."
    )


def _outcome(tally: VoteCounts) -> str:
    """Who is preferred, of the items where anyone is; said to be shown only where the sign test says so."""
    share, p_value = tally.win_share(), tally.p_value()
    if not share["num"]:
        return "Neither was preferred in any item: no difference shown." if sum(tally.items.values()) else ""
    told = (
        f"Of the {_counted(share['num'], 'item')} with a preference the student won {percent(share['value'])}"
        f" ({percent(share['low'])}–{percent(share['high'])}), sign test p {_p_text(p_value)}: "
    )
    if p_value >= SIGNIFICANCE:
        few = f" (fewer than {LEAST_ITEMS} such items can show none)" if share["num"] < LEAST_ITEMS else ""
        return f"{told}no difference shown{few}."
    return f"{told}people prefer the {'student' if share['value'] > 0.5 else 'teacher'}'s answers."


def _rows(tally: VoteCounts) -> list[tuple[str, list[Cell]]]:
    level = tally.both_good + tally.both_bad
    kinds = f"{whole(tally.both_good)} both good, {whole(tally.both_bad)} both bad"
    items = tally.items
    return [
        (
            "Votes",
            [
                Cell(whole(tally.preferred["student"])),
                Cell(whole(level), kinds if level else ""),
                Cell(whole(tally.preferred["teacher"])),
                Cell(NONE),
            ],
        ),
        (
            "Items",
            [
                *(Cell(whole(items[outcome])) for outcome in ("won", "level", "lost")),
                cell(tally.win_share() if items["won"] + items["lost"] else None, percent),
            ],
        ),
    ]


def _notes(tally: VoteCounts, num_identical: int, num_unreadable: int) -> list[str]:
    """What was left out, and whether a side was favoured."""
    preferring = sum(tally.preferred.values())
    notes = []
    if preferring:
        notes.append(f"The answer shown as A was chosen in {whole(tally.chosen_a)} of {whole(preferring)} preferences.")
    if tally.skipped:
        notes.append(f"Skipped: {whole(tally.skipped)}.")
    if tally.outdated:
        notes.append(
            f"Outdated, and not counted: {_counted(tally.outdated, 'vote')} on answers that were evaluated anew since."
        )
    if num_identical:
        notes.append(f"Not asked about: {_counted(num_identical, 'pair')} of identical answers.")
    if num_unreadable:
        notes.append(f"Not counted: {_counted(num_unreadable, 'line')} of votes.jsonl that can't be read.")
    return notes


def _counted(num: int, noun: str) -> str:
    return counted(whole(num), noun)


def _p_text(p_value: float) -> str:
    return f"= {p_value:.{3 if p_value < 0.1 else 2}f}" if p_value >= 0.001 else "< 0.001"
