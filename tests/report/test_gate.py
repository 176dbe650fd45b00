"""Conditions on a run's figures: how they are written, what they are held to, what the command answers."""

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import UserError
from pipeline.report import gate
from pipeline.rundir import RunDir, read_json


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kl<0.5", [("kl", "<", 0.5)]),
        (" retained_quality >= .95 , kl<=1e-3", [("retained_quality", ">=", 0.95), ("kl", "<=", 1e-3)]),
        ("arms.sft_only.quality.truncated_frac > -1", [("arms.sft_only.quality.truncated_frac", ">", -1.0)]),
    ],
)
def test_conditions_are_read(text: str, expected: list[tuple[str, str, float]]) -> None:
    assert gate.parse(text) == [gate.Condition(*each) for each in expected]


@pytest.mark.parametrize("text", ["kl", "kl=0.5", "kl<", "kl<a", "kl<0.5,", "kl<1.2.3", "", "kl << 2"])
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no condition; write NAME>=NUMBER"):
        gate.parse(text)


def test_figures_are_held_to_conditions_at_their_borders(run_dir: RunDir) -> None:
    value = read_json(run_dir.stage_path("evaluate") / "scores.json")["arms"]["student"]["fidelity"]["forward_kl_nats"][
        "value"
    ]
    signs = {"<": False, "<=": True, ">": False, ">=": True}
    for sign, expected in signs.items():
        [outcome] = gate.check(run_dir, [gate.Condition("kl", sign, value)])
        assert outcome.holds is expected
    assert gate.check(run_dir, gate.parse("arms.teacher.fidelity.forward_kl_nats<=0"))[0].holds


def test_a_name_that_is_none_or_may_be_several_is_told(run_dir: RunDir) -> None:
    with pytest.raises(UserError, match=r"this run has no figure 'accuracy'; it has .*forward_kl_nats.*kl"):
        gate.check(run_dir, gate.parse("accuracy>1"))


def test_evaluate_must_have_finished(run_dir: RunDir) -> None:
    run_dir.discard_from("evaluate")
    with pytest.raises(UserError, match="evaluate has not finished"):
        gate.check(run_dir, gate.parse("kl<1"))


@pytest.mark.parametrize(("conditions", "code"), [("kl<1000,kl>=0", 0), ("kl<1000,kl<0", 1), ("", 0)])
def test_the_command_ends_with_one_where_a_condition_fails(run_dir: RunDir, conditions: str, code: int) -> None:
    arguments = ["report", str(run_dir.path), *(["--gate", conditions] if conditions else [])]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code
    assert ("FAILS  kl<0" in result.stdout) is bool(code)
    assert (run_dir.path / "report.html").is_file()
