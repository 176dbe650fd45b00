"""Verifiable tasks: what of each an arm's answers did, figures of them, and the student against the other arms.

An item is one piece of evidence: its score is 1 where all its checks pass, and what is compared is paired by item.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import statistics
from pipeline.eval_sets import checkers
from pipeline.eval_sets.task_set import Check, TaskItem
from pipeline.evaluate.tasks.overlap import chrf, rouge_l
from pipeline.rows import SampleRow
from pipeline.run import metrics
from pipeline.statistics import Figure, FloatVector

OTHERS = ("teacher", "sft_only", "untrained", "other")
Rows = list[SampleRow]


@dataclass(frozen=True)
class Score:
    """What one arm's answers to one item did, check by check."""

    category: str
    passed: tuple[bool, ...]
    passed_loosely: tuple[bool, ...]
    rouge_l: float | None  # of the last answer and the reference, where there is one
    chrf: float | None


def score(item: TaskItem, answers: list[str]) -> Score:
    """`answers` has a text for each turn; an empty one passes no check."""
    last, reference = answers[-1], item.reference
    return Score(
        category=item.category,
        passed=tuple(checkers.passes(*_asked(item, check, answers)) for check in item.checks),
        passed_loosely=tuple(checkers.passes_loosely(*_asked(item, check, answers)) for check in item.checks),
        rouge_l=None if reference is None else rouge_l(last, reference),
        chrf=None if reference is None else chrf(last, reference),
    )


def scores(items: list[TaskItem], rows: Rows) -> list[Score]:
    """Of one arm's answers (rows of records.SAMPLES), in the order of the items."""
    answers: dict[str, dict[int, str]] = {item.id: {} for item in items}
    for row in rows:
        answers[row["item_id"]][row["turn"]] = row["answer"]
    return [score(item, [answers[item.id].get(turn, "") for turn in range(len(item.turns))]) for item in items]


def checked_rows(items: list[TaskItem], rows: Rows, scored: list[Score]) -> Rows:
    """One arm's answers as rows of records.TASKS: each with the checks of its turn, and whether they passed."""
    by_id = {item.id: (item, each.passed) for item, each in zip(items, scored, strict=True)}
    checked = []
    for row in rows:
        item, passed = by_id[row["item_id"]]
        outcomes = [
            {"kind": check.kind, "passed": outcome}
            for check, outcome in zip(item.checks, passed, strict=True)
            if item.turn_of(check) == row["turn"]
        ]
        checked.append({**row, "checks": outcomes})
    return checked


def figures(scored: list[Score], resamples: int, seed: int) -> dict[str, Figure]:
    """Means over items, with intervals: all checks passed (strictly, loosely, by category), checks, likeness."""
    passed = _passes(scored)
    categories = np.array([each.category for each in scored])
    measured = {
        metrics.TASK_PASS_FRAC: passed,
        metrics.TASK_LOOSE_PASS_FRAC: np.array([all(each.passed_loosely) for each in scored], np.float64),
        metrics.TASK_CHECK_FRAC: np.array([np.mean(each.passed) for each in scored], np.float64),
        metrics.TASK_ROUGE_L: np.array([each.rouge_l for each in scored if each.rouge_l is not None], np.float64),
        metrics.TASK_CHRF: np.array([each.chrf for each in scored if each.chrf is not None], np.float64),
        **{f"task_{name}_pass_frac": passed[categories == name] for name in dict.fromkeys(categories.tolist())},
    }
    return {name: statistics.mean(values, resamples, seed) for name, values in measured.items() if len(values)}


def comparisons(scored: dict[str, list[Score]], resamples: int, seed: int) -> dict[str, Figure | None]:
    """The student's share of passed items against each other arm's, paired by item; None where a ratio is not defined.

    `task_p_*` are exact McNemar's, adjusted by Holm for all arms that the student is compared with.
    """
    passed = {arm: _passes(each) for arm, each in scored.items()}
    student, teacher = passed["student"], passed["teacher"]
    compared = {metrics.RETAINED_QUALITY: statistics.defined_ratio(student, teacher, resamples, seed)}
    if "untrained" in passed:
        compared[metrics.GAP_CLOSED] = statistics.gap_closed(student, passed["untrained"], teacher, resamples, seed)
    tests: dict[str, Figure] = {}
    others = [arm for arm in OTHERS if arm in passed]
    for other in others:
        differences = student - passed[other]
        compared[f"task_difference_from_{other}"] = statistics.mean(differences, resamples, seed)
        compared[f"task_detectable_difference_{other}"] = statistics.detectable_difference(differences, len(others))
        tests[other] = statistics.sign_test(differences)
    adjusted = statistics.holm({other: test["value"] for other, test in tests.items()})
    for other, p in adjusted.items():
        compared[f"task_p_{other}"] = {"value": p, "low": None, "high": None, "num": tests[other]["num"]}
    return compared


def _passes(scored: list[Score]) -> FloatVector:
    return np.array([all(each.passed) for each in scored], np.float64)


def _asked(item: TaskItem, check: Check, answers: list[str]) -> tuple[str, dict[str, Any], str]:
    """The kind, its arguments and the answer that it is about."""
    arguments = check.args if check.earlier is None else check.args | {"earlier": answers[check.earlier]}
    return check.kind, arguments, answers[item.turn_of(check)]
