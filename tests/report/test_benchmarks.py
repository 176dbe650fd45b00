from pathlib import Path

from support.fabricated_run import make, scores

from pipeline.report import page
from pipeline.report.tables import benchmarks


def test_a_table_has_every_arm_and_the_paired_difference(tmp_path: Path) -> None:
    scored = scores()
    assert benchmarks.tables(scored["arms"], scored["verdict"]) == []
    assert 'id="benchmarks"' not in page.render(make(tmp_path / "without", scored=scored))
    for arm, value in {"teacher": 0.75, "student": 0.5}.items():
        scored["arms"][arm]["harness"] = {"sums_<acc>": {"value": value, "low": value - 0.1, "high": 0.9, "num": 40}}
    scored["verdict"]["harness_sums_<acc>_difference_from_teacher"] = {
        "value": -0.25,
        "low": -0.4,
        "high": -0.1,
        "num": 40,
    }
    [table] = benchmarks.tables(scored["arms"], scored["verdict"])
    assert table.head[-2:] == ["Student less teacher", "Items"]
    [(name, cells)] = table.rows
    assert name == "sums_<acc>"
    assert [each.value for each in cells] == ["0.750", "0.500", "-0.250", "40"]
    assert cells[2].interval == "-0.400 – -0.100"
    text = page.render(make(tmp_path / "with", scored=scored))
    assert 'id="benchmarks"' in text
    assert "sums_&lt;acc&gt;" in text
    assert "sums_<acc>" not in text
