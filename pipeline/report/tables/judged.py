"""What a judge said of the answers, as tables; the figures are those of scores.json, section `judge`."""

from dataclasses import dataclass
from typing import Any

from pipeline.console import counted
from pipeline.report.figures import ARM_NAMES, NONE, Cell, cell, percent, present_arms, whole
from pipeline.run import metrics

Row = dict[str, Any]
RIVALS = {"over_teacher": "the teacher's", "over_sft_only": "the SFT-only student's"}
WINS = {
    metrics.WIN_RATE: "Preferred, ties counted half",
    metrics.LENGTH_CONTROLLED_WIN_RATE: "The same at equal length",
    metrics.WON_FRAC: "Won",
    metrics.TIED_FRAC: "Tied",
    metrics.LOST_FRAC: "Lost",
}
LEANINGS = {
    metrics.POSITION_FLIP_FRAC: "Turns round with the order",
    metrics.FIRST_PLACE_FRAC: "Prefers the first place",
    metrics.LONGER_PREFERRED_FRAC: "Prefers the longer",
    metrics.INVALID_FRAC: "Can't be read",
}
CHECKS = {  # what it is shown, and what a judge that can be believed makes of it
    metrics.IDENTICAL_FIRST_PLACE_SCORE: ("The same answer twice: what the first place is given", "50 %"),
    "sound_over_cut_frac": (
        "A sound answer beside itself, shuffled and half gone: the sound one is preferred",
        "100 %",
    ),
    "sound_over_foreign_frac": (
        "A sound answer beside a longer one to another question: the sound one is preferred",
        "100 %",
    ),
    metrics.INVALID_FRAC: ("Verdicts that can't be read", "0 %"),
}


@dataclass(frozen=True)
class JudgedTable:
    """Rows of cells under their column heads."""

    caption: str
    head: list[str]
    rows: list[tuple[str, list[Cell]]]


def tables(arms: Row) -> list[JudgedTable]:
    """Self-checks, win-rates, leanings, categories, grades; empty where nothing was judged."""
    judged = arms.get("student", {}).get("judge", {})
    found = [
        _checks(judged.get("checks", {})),
        _by_rival("Whose answer is preferred", "The student's answer beside", WINS, judged),
        _by_rival("What the verdicts lean to", "Beside", LEANINGS, judged),
        _categories(judged),
        _grades(arms),
    ]
    return [table for table in found if table.rows]


def cost(arms: Row) -> str:
    """`350 verdicts, 35 000 tokens in, 3 500 out`, and what they cost where prices were set; empty without a judge."""
    spent = arms.get("student", {}).get("judge", {}).get("cost", {})
    if not spent:
        return ""
    verdicts, asked, answered, paid = (
        spent[name]["value"] for name in ("verdicts", "prompt_tokens", "completion_tokens", "cost")
    )
    told = f"{counted(whole(verdicts), 'verdict')}, {counted(whole(asked), 'token')} in, {whole(answered)} out"
    return f"{told}, at a cost of {paid:.2f}" if paid else told


def _checks(checks: Row) -> JudgedTable:
    rows = [
        (what, [cell(checks[name], percent), Cell(wanted), _num(checks[name])])
        for name, (what, wanted) in CHECKS.items()
        if name in checks
    ]
    return JudgedTable("Can the judge be believed?", ["It was shown", "Found", "Should be", "Cases"], rows)


def _by_rival(caption: str, head: str, columns: dict[str, str], judged: Row) -> JudgedTable:
    rows = [
        (
            whose,
            [
                *(cell(judged[over].get(name), percent) for name in columns),
                _num(judged[over].get(metrics.INVALID_FRAC)),
            ],
        )
        for over, whose in RIVALS.items()
        if over in judged
    ]
    return JudgedTable(caption, [head, *columns.values(), "Items"], rows)


def _categories(judged: Row) -> JudgedTable:
    overs = [over for over in RIVALS if judged.get(f"{over}_by_category")]
    names = (metrics.WIN_RATE, metrics.LENGTH_CONTROLLED_WIN_RATE)
    head = [f"Beside {RIVALS[over]}{extra}" for over in overs for extra in ("", ", at equal length")]
    categories = dict.fromkeys(category for over in overs for category in judged[f"{over}_by_category"])
    rows = []
    for category in categories:
        of = [judged[f"{over}_by_category"].get(category, {}) for over in overs]
        cells = [cell(figures.get(name), percent) for figures in of for name in names]
        rows.append((category, [*cells, _num(of[0].get(metrics.WIN_RATE))]))
    return JudgedTable("How often the student's answer is preferred, by category", ["Category", *head, "Items"], rows)


def _grades(arms: Row) -> JudgedTable:
    graded = {arm: arms[arm].get("judge", {}) for arm in present_arms(arms)}
    rows = [
        (
            ARM_NAMES[arm],
            [cell(of["grade"], "{:.2f}".format), cell(of.get(metrics.INVALID_FRAC), percent), _num(of["grade"])],
        )
        for arm, of in graded.items()
        if "grade" in of
    ]
    return JudgedTable("Each answer by itself", ["Arm", "Grade, 1–10", "Can't be read", "Items"], rows)


def _num(figure: Row | None) -> Cell:
    return Cell(whole(figure["num"]) if figure else NONE)
