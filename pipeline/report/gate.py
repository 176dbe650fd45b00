"""Whether a run's figures are as good as they must be: `retained_quality>=0.95,kl<0.5`, for CI."""

import operator
import re
from typing import Any, NamedTuple

from pipeline.errors import UserError
from pipeline.run import artifacts
from pipeline.run.files import read_json
from pipeline.run.rundir import RunDir

OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
CONDITION = re.compile(r"\s*([\w.]+)\s*(>=|<=|>|<)\s*(-?[0-9.]+(?:e-?[0-9]+)?)\s*", re.IGNORECASE)
SHORT = {  # names that people say, for paths in scores.json
    "kl": "arms.student.fidelity.forward_kl_nats",
    "reverse_kl": "arms.student.fidelity.reverse_kl_nats",
    "agreement": "arms.student.fidelity.top1_agreement_frac",
    "acceptance": "arms.student.fidelity.acceptance_frac",
    "loops": "arms.student.quality.repetition_frac",
    "speed": "verdict.speed_over_teacher",
}

Figures = dict[str, dict[str, Any]]  # by path, each {"value", "low", "high", "num"}


class Condition(NamedTuple):
    """One thing that must be so."""

    name: str
    sign: str
    limit: float


class GateOutcome(NamedTuple):
    """A condition, and whether it holds of a run's figure."""

    condition: Condition
    figure: dict[str, Any]
    holds: bool

    def line(self) -> str:
        """As the command prints it."""
        interval = ""
        low, high = self.figure.get("low"), self.figure.get("high")
        if low is not None:
            interval = f" ({low:.4g} to {'never' if high is None else f'{high:.4g}'})"  # break-even alone may lack it
        verdict = "holds" if self.holds else "FAILS"
        return f"{verdict}  {''.join(map(str, self.condition))}: {self.figure['value']:.4g}{interval}"


def parse(text: str) -> list[Condition]:
    """The conditions of a gate. Raises UserError where one is none."""
    conditions = []
    for part in text.split(","):
        match = CONDITION.fullmatch(part)
        try:
            conditions.append(Condition(match[1], match[2], float(match[3])) if match else _none(part))
        except ValueError:
            _none(part)
    return conditions


def check(run_dir: RunDir, conditions: list[Condition]) -> list[GateOutcome]:
    """Hold a run's figures to conditions: by value, not by interval.

    Raises UserError where evaluate has not finished, and where it has no such figure, naming those that there are.
    """
    run_dir.manifest("evaluate")
    figures = _figures(read_json(run_dir.stage_path("evaluate") / artifacts.SCORES), "")
    outcomes = []
    for condition in conditions:
        figure = figures[_path(condition.name, figures)]
        holds = OPERATORS[condition.sign](figure["value"], condition.limit)
        outcomes.append(GateOutcome(condition, figure, holds))
    return outcomes


def _none(part: str) -> Condition:
    raise UserError(
        f"--gate: {part.strip()!r} is not a condition; write NAME>=NUMBER (or <=, >, <), with commas between several"
    )


def _figures(value: Any, path: str) -> Figures:
    """Every figure of scores.json that has a value, by its dotted path."""
    if not isinstance(value, dict):
        return {}
    if "value" in value:
        return {path: value} if isinstance(value["value"], int | float) else {}
    parts = (_figures(inner, f"{path}.{key}".lstrip(".")) for key, inner in value.items())
    return {name: figure for part in parts for name, figure in part.items()}


def _path(name: str, figures: Figures) -> str:
    """The path that a name means: itself, a short name's, or the only one of verdict or student that ends so."""
    name = SHORT.get(name, name)
    if name in figures:
        return name
    ends = [path for path in figures if path.endswith(f".{name}")]
    for start in ("verdict.", "arms.student.fidelity.", "arms.student."):
        found = [path for path in ends if path.startswith(start)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"--gate: {name} may be any of {', '.join(found)}; write one of them")
    known = sorted(
        {*SHORT, *(path.rpartition(".")[2] for path in figures if path.startswith(("verdict.", "arms.student.")))}
    )
    raise UserError(f"--gate: this run has no figure {name!r}; it has {', '.join(known)}")
