"""comparison.html: several runs on one page, each student's quality and fidelity against what it gains in speed."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.report import charts, figures, page
from pipeline.report.figures import Cell, cell, is_number, nats, percent, times
from pipeline.report.tables.judged import JudgedTable
from pipeline.run import artifacts, metrics
from pipeline.run.files import read_json, write_text
from pipeline.run.rundir import RunDir

Row = dict[str, Any]
HASH_CHARS = 12  # of a hash the first say enough


class MeasuredRun(NamedTuple):
    """A figure of the verdict or the student, by which runs are compared."""

    label: str
    of: Callable[[Row], Row | None]  # from scores.json
    write: Callable[[float], str]
    better: str  # lower | higher


def _verdict(key: str) -> Callable[[Row], Row | None]:
    return lambda scores: scores["verdict"].get(key)


def _student(section: str, key: str) -> Callable[[Row], Row | None]:
    return lambda scores: scores["arms"]["student"].get(section, {}).get(key)


SPEED = MeasuredRun("Speed, × the teacher", _verdict(metrics.SPEED_OVER_TEACHER), times, "higher")
QUALITY = MeasuredRun("Retained quality", _verdict(metrics.RETAINED_QUALITY), percent, "higher")
KL = MeasuredRun("Forward KL, nats a token", _student("fidelity", metrics.FORWARD_KL_NATS), nats, "lower")
COLUMNS = (
    KL,
    MeasuredRun("Same first choice", _student("fidelity", metrics.TOP1_AGREEMENT_FRAC), percent, "higher"),
    MeasuredRun("Tasks passed", _student("quality", metrics.TASK_PASS_FRAC), percent, "higher"),
    QUALITY,
    MeasuredRun("Gap closed", _verdict(metrics.GAP_CLOSED), percent, "higher"),
    SPEED,
    MeasuredRun("Parameters, × the teacher", _verdict(metrics.PARAMETERS_OVER_TEACHER), times, "lower"),
)


def write(runs: list[RunDir], path: Path) -> None:
    """Write the page. Raises UserError where a run's evaluate has not finished, or is damaged."""
    for run_dir in runs:
        run_dir.check_files("evaluate")
    write_text(path, render(runs))


def render(runs: list[RunDir]) -> str:
    """The page as HTML; what can't be compared is said on it."""
    scores = {
        name: read_json(run_dir.stage_path("evaluate") / artifacts.SCORES)
        for name, run_dir in zip(_names(runs), runs, strict=True)
    }
    drawn = {}
    for name, measured in (("quality", QUALITY), ("fidelity", KL)):
        points = _points(scores, measured)
        if len(points) > 1:
            drawn[name] = charts.trade(points, front(points, measured.better), measured.label, measured.better)
    rows = [(name, [cell(each.of(of), each.write) for each in COLUMNS]) for name, of in scores.items()]
    context = {
        "table": JudgedTable("The students", ["Run", *(each.label for each in COLUMNS)], rows),
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


def _points(scores: dict[str, Row], measured: MeasuredRun) -> dict[str, tuple[Row, Row]]:
    """Speed and figure of the runs that have both."""
    points = {}
    for name, of in scores.items():
        speed, figure = SPEED.of(of), measured.of(of)
        if speed and figure and is_number(speed["value"]) and is_number(figure["value"]):
            points[name] = (speed, figure)
    return points


def _differing(runs: list[RunDir]) -> list[JudgedTable]:
    """What is not the same in all runs, of that which figures depend on; empty where all is."""
    names = _names(runs)
    found = [_conditions(run_dir) for run_dir in runs]
    rows = []
    for what in dict.fromkeys(what for conditions in found for what in conditions):
        values = [_written(conditions[what]) if what in conditions else figures.NONE for conditions in found]
        if len(set(values)) > 1:
            rows.append((what, [Cell(value) for value in values]))
    return [JudgedTable("What is not the same in all runs", ["", *names], rows)] if rows else []


def _conditions(run_dir: RunDir) -> Row:
    """What a run's figures depend on besides its student: teacher, prompts, answers, evaluate's settings, machine.

    A file that evaluate read counts by its content, not by its path.
    """
    generated, evaluated = run_dir.manifest("generate"), run_dir.manifest("evaluate")
    made = evaluated["fingerprint"]
    settings = {name: of for key in made if key.startswith("evaluate.") for name, of in _flat(key, made[key]).items()}
    read = {key.removesuffix(".hash") for key in settings if key.endswith(".hash")}
    read |= {"evaluate.risks.path", "evaluate.harness.folder"}  # have hashes by other names
    return {
        "the teacher's weights": generated["fingerprint"].get("teacher.weights"),
        "the prompts": run_dir.output_hash("prepare"),
        "the teacher's answers": run_dir.output_hash("generate"),
        "the answers that filter kept": made.get("input.filter"),
        **_flat("teacher.engine", generated["fingerprint"].get("teacher.engine")),
        **{key: value for key, value in settings.items() if key not in read},
        **_flat("version", evaluated.get("versions", {})),
        "the machine": evaluated.get("machine"),
    }


def _flat(key: str, value: Any) -> Row:
    """Nested sections key by key."""
    if not isinstance(value, dict) or not value:
        return {key: value}
    return {name: leaf for part in value for name, leaf in _flat(f"{key}.{part}", value[part]).items()}


def _written(value: Any) -> str:
    """Whole, but for hashes: what two long values differ in may stand at their ends."""
    if isinstance(value, str):
        return value[:HASH_CHARS] if re.fullmatch("[0-9a-f]{64}", value) else value
    return json.dumps(value, ensure_ascii=False)


def _names(runs: list[RunDir]) -> list[str]:
    """The folders' names; with as many folders before them as tell apart those that are called alike."""
    paths = [run_dir.path.resolve().parts for run_dir in runs]
    return [str(Path(*next((tail for tail in _tails(path) if _is_alone(tail, paths)), path))) for path in paths]


def _tails(path: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [path[-length:] for length in range(1, len(path) + 1)]


def _is_alone(tail: tuple[str, ...], paths: list[tuple[str, ...]]) -> bool:
    return sum(path[-len(tail) :] == tail for path in paths) == 1
