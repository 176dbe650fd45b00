"""Conditions on a run's figures: how they are written, what they are held to, what the command answers."""

from pathlib import Path

import pytest
from support.fabricated_run import figure, make, scores
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.errors import UserError
from pipeline.report import gate
from pipeline.run.files import read_json
from pipeline.run.rundir import RunDir


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
    with pytest.raises(UserError, match="is not a condition; write NAME>=NUMBER"):
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


def test_speeds_costs_and_risks_are_figures_too(tmp_path: Path) -> None:
    scored = scores()
    scored["arms"]["student"]["speed"] |= {
        f"output_tokens_per_s_at_{num}": figure(rate, rate, rate, 3) for num, rate in ((1, 20.0), (16, 95.0))
    }
    scored["verdict"] |= {"break_even_output_tokens": figure(2e6, 1e6, None, 3), "distillation_s": figure(900.0)}
    run_dir = make(tmp_path, scored=scored)
    text = "output_tokens_per_s_at_16>90,speed>1.5,load_s<20,hallucination_frac<0.7,break_even_output_tokens<3e6"
    outcomes = gate.check(run_dir, gate.parse(text))
    assert [outcome.figure["value"] for outcome in outcomes] == [95.0, 1.62, 12.5, 0.6, 2e6]
    assert all(outcome.holds for outcome in outcomes)
    assert outcomes[-1].line() == "holds  break_even_output_tokens<3000000.0: 2e+06 (1e+06 to never)"
    with pytest.raises(UserError, match=r"'gpu_memory_bytes'.*tokens_per_s_at_1, output_tokens_per_s_at_16"):
        gate.check(run_dir, gate.parse("gpu_memory_bytes<1"))  # this machine did not tell


def test_evaluate_must_have_finished(run_dir: RunDir) -> None:
    run_dir.discard_from("evaluate")
    with pytest.raises(UserError, match="evaluate has not finished"):
        gate.check(run_dir, gate.parse("kl<1"))


@pytest.mark.parametrize(("conditions", "code"), [("kl<1000,kl>=0", 0), ("kl<1000,kl<0", 1), (None, 0)])
def test_the_command_ends_with_one_where_a_condition_fails(run_dir: RunDir, conditions: str | None, code: int) -> None:
    arguments = ["report", str(run_dir.path), *(["--gate", conditions] if conditions is not None else [])]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code
    assert ("FAILS  kl<0" in result.stdout) is bool(code)
    assert (run_dir.path / "report.html").is_file()


def test_a_gate_that_asks_nothing_is_no_gate(run_dir: RunDir) -> None:
    """As of a shell's variable that is not set."""
    result = CliRunner().invoke(app, ["report", str(run_dir.path), "--gate", ""])
    assert result.exit_code != 0
    assert "'' is not a condition" in str(result.exception)
