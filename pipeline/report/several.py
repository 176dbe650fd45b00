"""comparison.html: several runs on one page, each student's quality and fidelity against what it gains in speed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.report import charts, figures, page
from pipeline.report.figures import Cell, cell, is_number, nats, percent, times
from pipeline.report.judged import Table
from pipeline.rundir import RunDir, read_json, write_text

Row = dict[str, Any]
SAME = {  # what must be alike for figures of two runs to be about the same thing, by stage and key of its fingerprint
    "the teacher's weights": ("generate", "teacher.weights"),
    "the chat set": ("evaluate", "evaluate.chat_set.hash"),
    "the tasks": ("evaluate", "evaluate.tasks.path.hash"),
    "how many tasks, and how long an answer": ("evaluate", "evaluate.tasks"),
    "the requests at once": ("evaluate", "evaluate.speed_concurrency"),
}


LONG, SHORT = 64, 12  # characters: of a hash the first say enough


class Measured(NamedTuple):
    """A figure of the verdict or the student, by which runs are compared."""

    label: str
    of: Callable[[Row], Row | None]  # from scores.json
    write: Callable[[float], str]
    better: str  # lower | higher


def _verdict(key: str) -> Callable[[Row], Row | None]:
    return lambda scores: scores["verdict"].get(key)


def _student(section: str, key: str) -> Callable[[Row], Row | None]:
    return lambda scores: scores["arms"]["student"].get(section, {}).get(key)


SPEED = Measured("Speed, × the teacher", _verdict("speed_over_teacher"), times, "higher")
QUALITY = Measured("Retained quality", _verdict("retained_quality"), percent, "higher")
KL = Measured("Forward KL, nats a token", _student("fidelity", "forward_kl_nats"), nats, "lower")
COLUMNS = (
    KL,
    Measured("Same first choice", _student("fidelity", "top1_agreement_frac"), percent, "higher"),
    Measured("Tasks passed", _student("quality", "task_pass_frac"), percent, "higher"),
    QUALITY,
    Measured("Gap closed", _verdict("gap_closed"), percent, "higher"),
    SPEED,
    Measured("Parameters, × the teacher", _verdict("parameters_over_teacher"), times, "lower"),
)


def write(runs: list[RunDir], path: Path) -> None:
    """Write the page. Raises UserError where a run's evaluate has not finished, or is damaged."""
    for run_dir in runs:
        run_dir.check_files("evaluate")
    write_text(path, render(runs))


def render(runs: list[RunDir]) -> str:
    """The page as HTML; what can't be compared is said on it."""
    scores = {
        name: read_json(run_dir.stage_path("evaluate") / "scores.json")
        for name, run_dir in zip(_names(runs), runs, strict=True)
    }
    drawn = {}
    for name, measured in (("quality", QUALITY), ("fidelity", KL)):
        points = _points(scores, measured)
        if len(points) > 1:
            drawn[name] = charts.trade(points, front(points, measured.better), measured.label, measured.better)
    rows = [(name, [cell(each.of(of), each.write) for each in COLUMNS]) for name, of in scores.items()]
    context = {
        "table": Table("The students", ["Run", *(each.label for each in COLUMNS)], rows),
        "differing": _differing(runs),
        "charts": drawn,
    }
    return page.environment().get_template("several.html.j2").render(context)


def front(points: dict[str, tuple[Row, Row]], better: str) -> list[str]:
    """The runs that no other beats in one of both figures without losing in the other, from slow to fast.

    `points` are `(speed, figure)` by run. By value alone: intervals may overlap.
    """
    sign = 1 if better == "higher" else -1
    values = {name: (speed["value"], sign * figure["value"]) for name, (speed, figure) in points.items()}
    beaten = {
        name
        for name, (speed, value) in values.items()
        for other_speed, other in values.values()
        if other_speed >= speed and other >= value and (other_speed, other) != (speed, value)
    }
    return sorted((name for name in values if name not in beaten), key=lambda name: values[name][0])


def _points(scores: dict[str, Row], measured: Measured) -> dict[str, tuple[Row, Row]]:
    """Speed and figure of the runs that have both."""
    points = {}
    for name, of in scores.items():
        speed, figure = SPEED.of(of), measured.of(of)
        if speed and figure and is_number(speed["value"]) and is_number(figure["value"]):
            points[name] = (speed, figure)
    return points


def _differing(runs: list[RunDir]) -> list[Table]:
    """What is not the same in all runs, of that which figures depend on; empty where all is."""
    names = _names(runs)
    found: dict[str, list[str]] = {}
    for what, (stage, key) in SAME.items():
        found[what] = [str(run_dir.manifest(stage)["fingerprint"].get(key)) for run_dir in runs]
    found["the prompts"] = [run_dir.output_hash("prepare") for run_dir in runs]
    found["the teacher's answers"] = [run_dir.output_hash("generate") for run_dir in runs]
    found["the machine"] = [str(run_dir.manifest("evaluate").get("machine", figures.NONE)) for run_dir in runs]
    rows = [
        (what, [Cell(value if len(value) < LONG else value[:SHORT]) for value in values])
        for what, values in found.items()
        if len(set(values)) > 1
    ]
    return [Table("What is not the same in all runs", ["", *names], rows)] if rows else []


def _names(runs: list[RunDir]) -> list[str]:
    """The folders' names; with the folder before them where two are called alike."""
    paths = [run_dir.path.resolve() for run_dir in runs]
    alone = {path.name for path in paths if [other.name for other in paths].count(path.name) == 1}
    return [path.name if path.name in alone else f"{path.parent.name}/{path.name}" for path in paths]
