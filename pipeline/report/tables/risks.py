"""Tables of the risks: how often each arm runs one, and how that differs from the teacher."""

from dataclasses import replace
from typing import Any

from pipeline.report import figures
from pipeline.report.figures import Column, Table, percent
from pipeline.run import metrics

SHARES = {  # measure: label, of what
    metrics.HALLUCINATION_FRAC: ("Made up", "of unanswerable questions"),
    metrics.PREMISE_ACCEPTED_FRAC: ("Premise accepted", "of false premises"),
    metrics.OVER_REFUSAL_FRAC: ("Refused", "of harmless requests"),
    metrics.INJECTION_FOLLOWED_FRAC: ("Obeyed", "of texts that give orders"),
}
PAIRS = [
    Column("risks", metrics.PAIR_REFUSAL_GAP_FRAC, "One alone refused", "of pairs", percent, "lower"),
    Column("risks", metrics.PAIR_LENGTH_GAP_FRAC, "Length differs", "of the longer", percent, "lower"),
    Column("risks", metrics.PAIR_VALENCE_GAP, "Kindness differs", "words in a hundred", figures.tokens, "lower"),
    Column("risks", metrics.PAIR_VALENCE_SHIFT, "Kinder to the first", "words in a hundred", figures.tokens),
]
RECITED = [
    Column("risks", metrics.VERBATIM_TRAIN_TOKENS, "Trained on", "tokens verbatim", figures.tokens),
    Column("risks", metrics.VERBATIM_HELD_OUT_TOKENS, "Held out", "tokens verbatim", figures.tokens),
    Column("risks", metrics.VERBATIM_EXCESS_TOKENS, "More", "tokens", figures.tokens, "lower"),
    Column("risks", "verbatim_excess_tokens_difference", "Beyond the teacher's", "tokens", figures.tokens, "lower"),
]
NOTE = "95 % bootstrap interval over {num} {what}."


def tables(arms: dict[str, Any]) -> list[tuple[str, Table]]:
    """(caption, table) of what was measured; empty where no probe was asked."""
    rates = [Column("risks", key, label, unit, percent, "lower") for key, (label, unit) in SHARES.items()]
    differences = [
        column
        for key, (label, _) in SHARES.items()
        for column in (
            Column("risks", f"{key}_difference", label, "points more than the teacher", _points, "lower"),
            Column("risks", f"{key}_p", "p", "Holm", _p),
        )
    ]
    recited = [*RECITED, Column("risks", "verbatim_excess_tokens_p", "p", "permutation test", _p)]
    made = [
        ("How often each arm runs a risk", rates, "probes of a kind"),
        ("Against the teacher, paired by probe", differences, ""),
        ("The same request for two groups", PAIRS, "pairs"),
        ("Openings of the teacher's answers, gone on with word for word", recited, "openings"),
    ]
    return [
        (caption, _table(arms, columns, what))
        for caption, columns, what in made
        if any(figures.lookup(arms, arm, column) for arm in arms for column in columns)
    ]


def num_probes(arms: dict[str, Any]) -> str:
    """How many probes a kind has: `40`, or `22–44`."""
    return _nums(arms, [Column("risks", key, "", "", percent) for key in SHARES])


def _table(arms: dict[str, Any], columns: list[Column], what: str) -> Table:
    made = figures.table(arms, columns)
    note = NOTE.format(num=_nums(arms, columns), what=what) if what else "Exact McNemar tests, by Holm for each arm."
    return replace(made, notes=[note])


def _nums(arms: dict[str, Any], columns: list[Column]) -> str:
    found = (figures.lookup(arms, arm, column) for arm in arms for column in columns)
    nums = {figure["num"] for figure in found if figure}
    return "" if not nums else f"{min(nums)}" if len(nums) == 1 else f"{min(nums)}–{max(nums)}"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 0.001 else f"{value:.0e}"
