import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fabricated_run import PLANTED, figure, make, scores
from typer.testing import CliRunner

from pipeline.cli import app as cli_app
from pipeline.config import Evaluate, output_settings
from pipeline.report import several
from pipeline.run.rundir import RunDir


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
    assert rows_of(table) == [("evaluate.tasks.limit", ["–", "40"])]
    assert "Not measured alike" in several.render([one, other])


def rows_of(table: several.JudgedTable) -> list[tuple[str, list[str]]]:
    return [(what, [each.value for each in cells]) for what, cells in table.rows]


def alter(run_dir: RunDir, stage: str, key: str, value: Any) -> None:
    """Have a run's fingerprint say something else."""
    path = run_dir.stage_path(stage) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["fingerprint"][key] = value
    path.write_text(json.dumps(manifest))


FIELDS = sorted(output_settings(Evaluate()).keys() - {"chat_set"})


@pytest.mark.parametrize("field", FIELDS)
def test_no_setting_of_evaluate_can_differ_unsaid(tmp_path: Path, field: str) -> None:
    one, other = run_with(tmp_path / "a", 0.3, 0.9, 1.2), run_with(tmp_path / "b", 0.4, 0.8, 1.4)
    alter(one, "evaluate", f"evaluate.{field}", {"of": {"the": "one"}})
    alter(other, "evaluate", f"evaluate.{field}", {"of": {"the": "other"}})
    [table] = several._differing([one, other])
    assert rows_of(table) == [(f"evaluate.{field}.of.the", ["one", "other"])]


@pytest.mark.parametrize(
    ("stage", "key", "said"),
    [
        ("evaluate", "evaluate.chat_set.hash", "evaluate.chat_set.hash"),
        ("evaluate", "input.filter", "the answers that filter kept"),
        ("generate", "teacher.weights", "the teacher's weights"),
    ],
)
def test_of_a_hash_the_first_characters_are_shown(tmp_path: Path, stage: str, key: str, said: str) -> None:
    one, other = run_with(tmp_path / "a", 0.3, 0.9, 1.2), run_with(tmp_path / "b", 0.4, 0.8, 1.4)
    alter(one, stage, key, "0123456789abcdef" * 4)
    alter(other, stage, key, "f" * 64)
    [table] = several._differing([one, other])
    assert rows_of(table) == [(said, ["0123456789ab", "f" * 12])]


def test_long_values_that_begin_alike_are_told_apart(tmp_path: Path) -> None:
    one, other = run_with(tmp_path / "a", 0.3, 0.9, 1.2), run_with(tmp_path / "b", 0.4, 0.8, 1.4)
    values = ["a" * 80 + end for end in ("x", "y")]
    for run_dir, value in zip((one, other), values, strict=True):
        alter(run_dir, "evaluate", "evaluate.engine", {"hf_overrides": {"name": value}})
    [table] = several._differing([one, other])
    assert rows_of(table) == [("evaluate.engine.hf_overrides.name", values)]


def test_where_a_file_lies_is_no_difference_where_it_says_the_same(tmp_path: Path) -> None:
    one, other = run_with(tmp_path / "a", 0.3, 0.9, 1.2), run_with(tmp_path / "b", 0.4, 0.8, 1.4)
    for run_dir, path in ((one, "prompts/chat_eval.jsonl"), (other, "elsewhere/chat_eval.jsonl")):
        alter(run_dir, "evaluate", "evaluate.chat_set", path)
        alter(run_dir, "evaluate", "evaluate.chat_set.hash", "ab" * 32)
        alter(run_dir, "evaluate", "evaluate.tasks", {"path": path, "limit": 3})
        alter(run_dir, "evaluate", "evaluate.tasks.path.hash", "cd" * 32)
        alter(run_dir, "evaluate", "evaluate.risks", {"path": path, "limit": 3})
        alter(run_dir, "evaluate", "evaluate.risks.hash", "ef" * 32)
    assert several._differing([one, other]) == []


@given(
    st.lists(
        st.lists(st.sampled_from(["a", "b", "x"]), min_size=1, max_size=4), min_size=1, max_size=6, unique_by=tuple
    )
)
def test_each_run_has_a_name_of_its_own(folders: list[list[str]]) -> None:
    runs = [RunDir(Path("/nowhere", *folder)) for folder in folders]
    names = several._names(runs)
    assert len(set(names)) == len(runs)
    for name, run_dir in zip(names, runs, strict=True):
        assert str(run_dir.path).endswith(name)
    assert several._names([RunDir(Path("/n/a/x/r")), RunDir(Path("/n/b/x/r")), RunDir(Path("/n/s"))]) == [
        "a/x/r",
        "b/x/r",
        "s",
    ]


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
    result = CliRunner().invoke(cli_app.app, ["report", str(runs[0]), str(runs[1])])
    assert result.exit_code == 0, result.output
    assert "2 runs compared" in (runs[0].parent / "comparison.html").read_text()
    assert all((run / "report.html").is_file() for run in runs)
    (tmp_path / "a" / "comparison.html").unlink()
    twice = CliRunner().invoke(cli_app.app, ["report", str(runs[0]), f"{runs[0]}/../trial"])
    assert twice.exit_code == 0, twice.output
    assert not (tmp_path / "a" / "comparison.html").exists(), "one run, named twice"


def test_a_run_that_is_not_evaluated_is_named(tmp_path: Path) -> None:
    done, other = run_with(tmp_path / "a", 0.3, 0.9, 1.2), make(tmp_path / "b", until="train")
    with pytest.raises(Exception, match="evaluate"):
        several.write([done, other], tmp_path / "comparison.html")
    assert not (tmp_path / "comparison.html").exists()
