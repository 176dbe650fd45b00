"""The schema of scores.json: a run's file is as it says, and it says what each key means."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ValidationError
from support.fabricated_run import figure, make, scores
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.evaluate import fidelity, verdict
from pipeline.evaluate.risks import risk_figures
from pipeline.records import ARMS
from pipeline.run import scores as schema
from pipeline.run.scores import Scores

SECTIONS = [each for each in vars(schema).values() if isinstance(each, type) and issubclass(each, BaseModel)]


def test_a_runs_scores_are_as_the_schema_says(tmp_path: Path) -> None:
    written = (make(tmp_path).stage_path("evaluate") / "scores.json").read_text()
    Scores.model_validate_json(written)
    Draft202012Validator(Scores.model_json_schema()).validate(json.loads(written))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("arms.student.quality.task_pass_fraction", figure(0.5)),
        ("arms.student.risks.verbatim_excess_frac", figure(0.5)),
        ("arms.student.speed.output_tokens_per_s_at_", figure(0.5)),
        ("arms.student.fidelity.nll_nats", 0.5),
        ("arms.student.fidelity.nll_nats", {"value": None, "low": None, "high": None, "num": 3}),
        ("arms.student.fidelity.nll_nats", {"value": 0.5, "num": 3}),
        ("arms.student.surprise", {}),
        ("arms.someone", {}),
        ("verdict.kl_over_teacher", figure(0.5)),
        ("more", {}),
    ],
)
def test_what_it_does_not_know_is_refused_by_both_readers(path: str, value: Any) -> None:
    scored = scores()
    *parents, name = path.split(".")
    place = scored
    for parent in parents:
        place = place[parent]
    place[name] = value
    with pytest.raises(ValidationError):
        Scores.model_validate(scored)
    assert not Draft202012Validator(Scores.model_json_schema()).is_valid(scored)


def test_a_number_that_is_none_is_refused() -> None:
    scored = scores()
    scored["arms"]["student"]["fidelity"]["nll_nats"] = figure(float("nan"))
    with pytest.raises(ValidationError):
        Scores.model_validate(scored)


def test_it_has_what_evaluate_measures() -> None:
    assert get_args(get_args(Scores.model_fields["arms"].annotation)[0]) == ARMS
    assert {*fidelity.MEASURES, "ece_frac"} == set(schema.Fidelity.model_fields)
    assert set(risk_figures.MEASURES) | {risk_figures.EXCESS} < set(schema.RiskScores.model_fields)
    for measure in risk_figures.MEASURES:
        assert re.fullmatch(schema.RISK, measure)
    patterns = schema.Verdict.PATTERNS
    for measure in verdict.OTHER_MEASURES:
        assert any(re.fullmatch(pattern, f"chat_{measure}_over_sft_only") for pattern in patterns)


def test_every_figure_says_what_it_is() -> None:
    for section in (each for each in SECTIONS if issubclass(each, schema.ScoreSection)):
        assert section.__doc__
        assert all(field.description for field in section.model_fields.values()), section


def test_the_command_prints_it_and_asks_for_no_run() -> None:
    result = CliRunner().invoke(app, ["report", "--schema"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == Scores.model_json_schema()
