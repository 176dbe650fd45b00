"""Risks and costs on the page."""

from pathlib import Path

from support.fabricated_run import figure, make, scores
from support.report_reader import page_of

from pipeline.report import page
from pipeline.report.tables import risks, served
from pipeline.run.rundir import RunDir


def test_risks_are_shown_with_their_differences_from_the_teacher(run_dir: RunDir) -> None:
    reader = page_of(run_dir)
    assert "risks" in reader.sections
    rows = [row for row in reader.rows if row[0] in ("Teacher", "Student")]
    assert any("60.0 % 30.0 – 90.0 %" in row for row in rows)  # the student makes up
    assert any("+10.0 +0.0 – +50.0" in row and "0.031" in row for row in rows)
    assert ["Teacher", "–", "–", "–", "–", "–", "–", "–", "–"] in rows  # no difference from itself
    html = page.render(run_dir)
    assert "22–44 of a kind" in html
    assert "over 60–100 openings" in html


def test_without_probes_nothing_is_said_of_risks(tmp_path: Path) -> None:
    plain = scores()
    for arm in plain["arms"].values():
        del arm["risks"]
    html = page.render(make(tmp_path, scored=plain))
    assert 'id="risks"' not in html
    assert "The probes of risk" not in html


def test_a_table_none_of_whose_figures_were_measured_is_left_out() -> None:
    arms = {arm: {"risks": {"pair_valence_gap": figure(0.5, num=9)}} for arm in ("teacher", "student")}
    assert [caption for caption, _ in risks.tables(arms)] == ["The same request for two groups"]
    assert risks.num_probes(arms) == ""


def test_throughput_has_a_column_for_each_number_at_once_in_their_order() -> None:
    speeds = {f"output_tokens_per_s_at_{num}": figure(10.0 * num) for num in (32, 1, 8)}
    arms = {"teacher": {"speed": {**speeds, "first_token_s": figure(0.04)}}, "student": {"speed": {}}}
    table = served.speed(arms)
    assert [column.label for column in table.columns[:4]] == ["1 at once", "8 at once", "32 at once", "First token"]
    assert [cell.value for cell in table.rows[0][1]] == ["10.0", "80.0", "320.0", "40.0", "–"]


def test_a_run_of_before_has_its_one_throughput(run_dir: RunDir) -> None:
    assert served.speed(scores()["arms"]).columns[0].key == "output_tokens_per_s"


def test_what_the_machine_did_not_tell_is_a_dash(run_dir: RunDir) -> None:
    [row, *_] = [row for row in page_of(run_dir).rows_of("Student") if "2.25 GB" in row]
    assert row[1:] == ["134.5 M", "538 MB", "–", "12.5", "2.25 GB", "–", "0.125 0.120 – 0.130", "–", "–"]
