import json
from pathlib import Path
from typing import Any

import pytest
from fabricated_run import PLANTED, figure, make, scores
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipeline import cli
from pipeline.report import several
from pipeline.rundir import RunDir


def run_with(folder: Path, kl: float, retained: float | None, speed: float) -> RunDir:
    scored = scores()
    scored["arms"]["student"]["fidelity"]["forward_kl_nats"] = figure(kl, kl - 0.1, kl + 0.1)
    scored["verdict"]["speed_over_teacher"] = figure(speed, speed - 0.2, speed + 0.2, 3)
    scored["verdict"]["retained_quality"] = None if retained is None else figure(retained, 0.5, 0.99, 40)
    return make(folder, scored=scored)


def names_of(chart: dict[str, Any]) -> list[str]:
    return [each["text"] for each in chart["layout"]["annotations"]]


def charts_of(html: str) -> dict[str, Any]:
    return {
        name: json.loads(html.split(f'id="spec-{name}">')[1].split("</script>")[0])
        for name in ("quality", "fidelity")
        if f'id="spec-{name}">' in html
    }


def test_each_run_is_a_row_and_a_point(tmp_path: Path) -> None:
    runs = [run_with(tmp_path / f"r{n}", kl, kept, speed) for n, (kl, kept, speed) in enumerate(CASES)]
    html = several.render(runs)
    drawn = charts_of(html)
    assert names_of(drawn["fidelity"]) == ["r0/trial", "r1/trial", "r2/trial", "r3/trial"]
    assert names_of(drawn["quality"]) == ["r0/trial", "r1/trial", "r2/trial"], "the fourth has no such figure"
    line = drawn["fidelity"]["data"][0]
    assert (line["x"], line["y"]) == ([1.2, 2.0], [0.3, 0.6]), "r1 is beaten by r2, r3 by r0"
    assert drawn["fidelity"]["layout"]["yaxis"]["autorange"] == "reversed"
    assert "0.600" in html
    assert "2.00×" in html
    assert "Not measured alike" not in html
    assert PLANTED not in html


CASES = [(0.3, 0.9, 1.2), (0.7, 0.7, 1.9), (0.6, 0.8, 2.0), (0.4, None, 1.1)]


def test_what_differs_between_runs_is_said(tmp_path: Path) -> None:
    one, other = run_with(tmp_path / "a", 0.3, 0.9, 1.2), run_with(tmp_path / "b", 0.4, 0.8, 1.4)
    path = other.stage_path("evaluate") / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["fingerprint"]["evaluate.tasks"] = {"limit": 40}
    path.write_text(json.dumps(manifest))
    [table] = several._differing([one, other])
    assert [(what, [each.value for each in cells]) for what, cells in table.rows] == [
        ("how many tasks, and how long an answer", ["None", str({"limit": 40})])
    ]
    assert "Not measured alike" in several.render([one, other])


points = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=3),
    st.tuples(st.integers(0, 4), st.integers(0, 4)),
    min_size=1,
    max_size=8,
)


@given(points, st.sampled_from(["higher", "lower"]))
def test_the_front_is_what_no_other_beats(found: dict[str, tuple[int, int]], better: str) -> None:
    figures = {name: ({"value": speed}, {"value": value}) for name, (speed, value) in found.items()}
    on_front = several.front(figures, better)
    sign = 1 if better == "higher" else -1

    def beats(one: tuple[int, int], other: tuple[int, int]) -> bool:
        at_least = one[0] >= other[0] and sign * one[1] >= sign * other[1]
        return at_least and (one[0] > other[0] or sign * one[1] > sign * other[1])

    assert set(on_front) == {name for name in found if not any(beats(each, found[name]) for each in found.values())}
    assert [found[name][0] for name in on_front] == sorted(found[name][0] for name in on_front)


def test_the_command_writes_one_page_for_all(tmp_path: Path) -> None:
    runs = [run_with(tmp_path / name, 0.3, 0.9, 1.2).path for name in ("a", "b")]
    result = CliRunner().invoke(cli.app, ["report", str(runs[0]), str(runs[1])])
    assert result.exit_code == 0, result.output
    assert "2 runs compared" in (runs[0].parent / "comparison.html").read_text()
    assert all((run / "report.html").is_file() for run in runs)
    (tmp_path / "a" / "comparison.html").unlink()
    twice = CliRunner().invoke(cli.app, ["report", str(runs[0]), f"{runs[0]}/../trial"])
    assert twice.exit_code == 0, twice.output
    assert not (tmp_path / "a" / "comparison.html").exists(), "one run, named twice"


def test_a_run_that_is_not_evaluated_is_named(tmp_path: Path) -> None:
    done, other = run_with(tmp_path / "a", 0.3, 0.9, 1.2), make(tmp_path / "b", until="train")
    with pytest.raises(Exception, match="evaluate"):
        several.write([done, other], tmp_path / "comparison.html")
    assert not (tmp_path / "comparison.html").exists()
