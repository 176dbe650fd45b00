"""lm-evaluation-harness: our call of it against its own command, both on one real vLLM server, and what we add."""

import json
import os
import py_compile
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline import vllm_server
from pipeline.config import Evaluate, Harness
from pipeline.errors import UserError
from pipeline.evaluate import harness
from pipeline.records import HARNESS
from pipeline.rundir import RunDir, Stage, write_json

pytest.importorskip("lm_eval")
ROOT = Path(__file__).parent.parent.parent
FOLDER = "tests/evaluate/tasks"
TASKS = ("retort_choice", "retort_words")
CHOICE, WORDS = "retort_choice_acc", "retort_words_exact_match_first_word"
KEY = "a-key-for-tests"


def settings(**fields: Any) -> Harness:
    return Harness(**{"tasks": TASKS, "folder": FOLDER, "concurrency": 1, **fields})


def row(arm: str, doc_id: int, value: float | None) -> dict[str, Any]:
    texts = {"prompt": "Q", "target": "A", "answer": '["A"]'}
    return {"arm": arm, "task": "t", "metric": "t_acc", "doc_id": doc_id, **texts, "value": value}


def stage_in(folder: Path) -> Stage:
    path = folder / "evaluate"
    path.mkdir()
    return Stage(RunDir(folder), "evaluate", path, {}, [])


@pytest.mark.engine
@pytest.mark.timeout(400)
def test_our_call_gives_the_figure_of_its_own_command(demo_teacher: Path, tmp_path: Path) -> None:
    port = vllm_server.free_port()
    engine = {"model": str(demo_teacher), "max_model_len": 1024, "dtype": "float32", "enable_prefix_caching": False}
    with vllm_server.running("student", engine, port, KEY, 0.1) as process:
        assert vllm_server.becomes_healthy(process, port)
        ours = harness.scored(settings(), "student", demo_teacher, port, KEY, 1024, {})
        arguments = {
            "model": "student",
            "base_url": f"http://127.0.0.1:{port}/v1/completions",
            "tokenizer": demo_teacher,
            "tokenizer_backend": "huggingface",
            "max_length": 1024,
        }
        command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--apply_chat_template"]
        command += ["--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())]
        command += ["--tasks", ",".join(TASKS), "--include_path", FOLDER, "--output_path", str(tmp_path)]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "OPENAI_API_KEY": KEY}, check=True, timeout=200)
    [written] = tmp_path.rglob("results_*.json")
    theirs = json.loads(written.read_text())["results"]
    assert ours["values"][CHOICE] == theirs["retort_choice"]["acc,none"]
    assert ours["values"][WORDS] == theirs["retort_words"]["exact_match,first-word"]
    assert 0 < ours["values"][CHOICE] < 1, "a figure that could have been another"
    by_item = [each["value"] for each in ours["rows"] if each["metric"] == CHOICE]
    assert len(by_item) == 12
    assert np.mean(by_item) == ours["values"][CHOICE]
    assert "Which of these is a fruit?" in ours["rows"][0]["prompt"]
    assert "<|im_start|>user" in ours["rows"][0]["prompt"], "asked in the chat template"


def test_figures_pair_the_arms_by_item(tmp_path: Path) -> None:
    stage, folders = stage_in(tmp_path), {"teacher": Path("t"), "student": Path("s")}
    outcomes = {"teacher": [1, 1, 1, 0, 1, 1, 0, 1], "student": [1, 0, 1, 0, 1, 0, 0, 1]}
    for arm, values in outcomes.items():  # as a stopped try left them: nothing is asked
        rows = [row(arm, n, value) for n, value in enumerate(values)]
        rows = [{name: of for name, of in each.items() if name != "arm"} for each in rows]
        write_json(stage.path / f"harness-{arm}.json", {"values": {"t_acc": float(np.mean(values))}, "rows": rows})
    measured = harness.run(Evaluate(harness=Harness(tasks=("t",)), bootstrap=2000), folders, _never, {}, stage)
    student = measured.arms["student"]["t_acc"]
    assert (student["value"], student["num"]) == (0.5, 8)
    assert student["low"] is not None
    assert student["high"] is not None
    assert student["low"] < 0.5 < student["high"]
    difference = measured.comparisons["harness_t_acc_difference_from_teacher"]
    assert difference is not None
    assert difference["value"] == -0.25
    assert difference["high"] == 0, "the student never wins an item: paired, no resample says so"
    over = measured.comparisons["harness_t_acc_over_teacher"]
    assert over is not None
    assert over["value"] == pytest.approx(4 / 6)
    table = pq.read_table(measured.files[0])
    assert table.schema.equals(HARNESS)
    assert table.num_rows == 16
    harness.clear(stage, folders)
    assert [path.name for path in stage.path.iterdir()] == ["harness.parquet"]


def test_a_figure_that_is_no_mean_of_items_has_no_interval() -> None:
    own = harness._figure(12.5, {0: 1.0, 1: 2.0}, 100, 0)
    assert own == {"value": 12.5, "low": None, "high": None, "num": 2}
    group = harness._figure(0.25, None, 100, 0)
    assert group == {"value": 0.25, "low": None, "high": None, "num": 0}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tasks": ("no_such_task_anywhere",)}, "has no task no_such_task_anywhere"),
        ({"folder": "nowhere/at/all"}, "nowhere/at/all: no such folder"),
    ],
)
def test_what_can_not_be_run_is_said_before_anything_is(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        harness.fingerprint(settings(**fields))


def test_the_fingerprint_changes_with_the_tasks_own_files(tmp_path: Path) -> None:
    task = tmp_path / "mine.yaml"
    task.write_text((ROOT / FOLDER / "retort_choice.yaml").read_text())
    first = harness.fingerprint(settings(tasks=("retort_choice",), folder=str(tmp_path)))
    task.write_text(task.read_text().replace("acc", "acc_norm"))
    second = harness.fingerprint(settings(tasks=("retort_choice",), folder=str(tmp_path)))
    assert first["evaluate.harness.files"] != second["evaluate.harness.files"]
    assert first["evaluate.harness.version"] == second["evaluate.harness.version"]


def test_the_fingerprint_is_the_same_after_a_run_has_left_bytecode_behind(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text((ROOT / FOLDER / "retort_choice.yaml").read_text())
    source = tmp_path / "own.py"
    source.write_text("def answer(item):\n    return item\n")
    mine = settings(tasks=("retort_choice",), folder=str(tmp_path))
    first = harness.fingerprint(mine)
    py_compile.compile(str(source))
    assert list(tmp_path.rglob("*.pyc")), "as an import leaves it"
    py_compile.compile(str(source), str(tmp_path / "own.pyc"))
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "index").write_text("1")
    (tmp_path / ".own.py.swp").write_text("1")
    assert harness.fingerprint(mine) == first
    source.write_text("def answer(item):\n    return str(item)\n")
    assert harness.fingerprint(mine) != first


def test_without_tasks_nothing_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    assert harness.fingerprint(Harness()) == {}
    assert harness.run(Evaluate(), {}, _never, {}, stage_in(tmp_path)) == harness.Measured()
    with pytest.raises(UserError, match=r"pip install 'retort-distill\[harness\]'"):
        harness.fingerprint(settings())


def _never(arm: str, folder: Path) -> dict[str, Any]:
    raise AssertionError(f"{arm} was to be read back")
