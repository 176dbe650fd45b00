"""Tasks of lm-evaluation-harness as a table: every arm's figure, and the student against its teacher."""

from typing import Any

from pipeline.report.figures import ARM_NAMES, Cell, cell, present_arms, whole
from pipeline.report.tables.judged import JudgedTable

Row = dict[str, Any]


def tables(arms: Row, verdict: Row) -> list[JudgedTable]:
    """One table, empty where no task was named; `arms` and `verdict` are those of scores.json."""
    present = [arm for arm in present_arms(arms) if arms[arm].get("harness")]
    names = dict.fromkeys(name for arm in present for name in arms[arm]["harness"])
    number = "{:.3f}".format
    rows = []
    for name in names:
        figures = [arms[arm]["harness"].get(name) for arm in present]
        difference = cell(verdict.get(f"harness_{name}_difference_from_teacher"), "{:+.3f}".format)
        num = Cell(whole(max((figure["num"] for figure in figures if figure), default=0)))
        rows.append((name, [*(cell(figure, number) for figure in figures), difference, num]))
    if not rows:
        return []
    head = ["Task and metric", *(ARM_NAMES[arm] for arm in present), "Student less teacher", "Items"]
    return [JudgedTable("Public benchmarks, by lm-evaluation-harness", head, rows)]
