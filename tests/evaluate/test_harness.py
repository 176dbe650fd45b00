"""lm-evaluation-harness: our call of it against its own command, both on one real vLLM server, and what we add."""

import importlib.util
import json
import os
import py_compile
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.config import Evaluate, Harness
from pipeline.errors import UserError
from pipeline.evaluate.tasks import harness
from pipeline.inference import http_server
from pipeline.inference.engine_args import engine_settings
from pipeline.inference.kv_cache import Load
from pipeline.models.lookup import Model
from pipeline.models.tokenizer.chat_template import ChatTemplate
from pipeline.records import HARNESS
from pipeline.report.tables import benchmarks
from pipeline.run.commit import Stage
from pipeline.run.files import write_json
from pipeline.run.rundir import RunDir

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


@pytest.mark.ci
@pytest.mark.engine
@pytest.mark.timeout(400)
def test_our_call_gives_the_figure_of_its_own_command(demo_teacher: Path, tmp_path: Path) -> None:
    port = http_server.free_port()
    engine = engine_settings(str(demo_teacher), {"max_model_len": 1024, "enable_prefix_caching": False}, 20)
    with http_server.running("student", engine, port, KEY, Load()) as process:
        assert process.poll() is None
        ours = harness.scored(
            settings(), "student", demo_teacher, port, KEY, 1024, ChatTemplate(Model("demo", demo_teacher).tokenizer())
        )
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
    assert student is not None
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


class Completions(BaseHTTPRequestHandler):
    """A server of completions: each token's log-prob is drawn from the prompt. Keeps the paths it is asked for."""

    paths: list[str]

    def do_POST(self) -> None:
        type(self).paths.append(self.path)
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        choices = []
        for index, tokens in enumerate(sent["prompt"]):
            drawn = -np.random.default_rng(tokens).random(len(tokens) + 1)
            logprobs = {"token_logprobs": drawn.tolist(), "top_logprobs": [{"x": float(value)} for value in drawn]}
            choices.append({"index": index, "text": "", "logprobs": logprobs})
        body = json.dumps({"choices": choices}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def listening() -> Iterator[tuple[int, list[str]]]:
    """A port that is answered on, and the paths it was asked for."""
    handler = type("Handler", (Completions,), {"paths": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port, handler.paths
        server.shutdown()


@pytest.fixture
def group(tmp_path: Path) -> Harness:
    """Tasks of twelve items and of four, in a group that weighs items alike, itself in another, and in one of tasks."""
    text = (ROOT / FOLDER / "retort_choice.yaml").read_text()
    items = (ROOT / FOLDER / "choice.jsonl").read_text().splitlines(keepends=True)
    for name, chosen in (("a_long", items), ("a_short", items[:4]), ("b_long", items), ("b_short", items[:4])):
        (tmp_path / f"{name}.jsonl").write_text("".join(chosen))
        mine = text.replace(f"{FOLDER}/choice.jsonl", f"{tmp_path}/{name}.jsonl").replace("retort_choice", name)
        (tmp_path / f"{name}.yaml").write_text(mine)
    groups = {"by_item": ("a_long, a_short", "true"), "by_task": ("b_long, b_short", "false")}
    for name, (tasks, by_size) in {**groups, "outer": ("by_item", "true")}.items():
        acc = f"{{metric: acc, aggregation: mean, weight_by_size: {by_size}}}"
        (tmp_path / f"{name}.yaml").write_text(f"group: {name}\ntask: [{tasks}]\naggregate_metric_list: [{acc}]\n")
    return settings(tasks=("outer", "by_task"), folder=str(tmp_path), chat_template=False)


def test_no_proxy_is_asked_and_groups_are_of_their_tasks_items(
    group: Harness, byte_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "example.com")
    monkeypatch.delenv("no_proxy", raising=False)
    with listening() as (port, paths), listening() as (proxy_port, proxied):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy_port}")
        found = harness.scored(
            group, "student", byte_tokenizer, port, KEY, 4096, ChatTemplate(Model("bytes", byte_tokenizer).tokenizer())
        )
    assert proxied == [], "the key is in the header"
    assert set(paths) == {"/v1/completions"}
    assert (os.environ["NO_PROXY"], os.environ.get("no_proxy")) == ("example.com", None)

    long, short = (found["values"][f"a_{name}_acc"] for name in ("long", "short"))
    assert long != short, "else all groups are the same"
    stage = stage_in(tmp_path)
    other = {**found, "rows": [{**row, "value": 1.0} for row in found["rows"]]}
    other["values"] = dict.fromkeys(found["values"], 1.0)
    for arm, scored in (("teacher", other), ("student", found)):
        write_json(stage.path / f"harness-{arm}.json", scored)
    folders = {"teacher": Path("t"), "student": Path("s")}
    measured = harness.run(Evaluate(harness=group, bootstrap=500), folders, _never, {}, stage)
    student, pooled = measured.arms["student"], (12 * long + 4 * short) / 16
    for name in ("outer_acc", "by_item_acc"):
        figure, difference = student[name], measured.comparisons[f"harness_{name}_difference_from_teacher"]
        assert figure is not None
        assert (figure["value"], figure["num"]) == (pytest.approx(pooled), 16)
        assert figure["low"] is not None
        assert difference is not None
        assert (difference["value"], difference["num"]) == (pytest.approx(pooled - 1), 16)
    assert student["by_task_acc"] == {"value": pytest.approx((long + short) / 2), "low": None, "high": None, "num": 0}
    assert "harness_by_task_acc_difference_from_teacher" not in measured.comparisons


def test_a_figure_that_is_no_number_is_null(tmp_path: Path) -> None:
    stage, folders = stage_in(tmp_path), {"teacher": Path("t"), "student": Path("s")}
    for arm in folders:
        rows = [{name: of for name, of in row(arm, n, nan).items() if name != "arm"} for n in range(3)]
        write_json(stage.path / f"harness-{arm}.json", {"values": {"t_acc": nan, "u_f1": nan}, "rows": rows})
    measured = harness.run(Evaluate(harness=Harness(tasks=("t",)), bootstrap=100), folders, _never, {}, stage)
    assert measured.arms["student"] == {"t_acc": None, "u_f1": None}
    assert set(measured.comparisons.values()) == {None}
    json.dumps([measured.arms, measured.comparisons], allow_nan=False)
    tables = benchmarks.tables({arm: {"harness": of} for arm, of in measured.arms.items()}, measured.comparisons)
    assert [[each.value for each in cells] for _, cells in tables[0].rows] == 2 * [["–", "–", "–", "0"]]


def test_a_figure_that_is_no_mean_of_items_has_no_interval() -> None:
    own = harness._figure(12.5, {("t", 0): 1.0, ("t", 1): 2.0}, 100, 0)
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
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert harness.fingerprint(Harness()) == {}
    assert harness.run(Evaluate(), {}, _never, {}, stage_in(tmp_path)) == harness.HarnessResults()
    with pytest.raises(UserError, match=r"pip install 'retort-distill\[harness\]'"):
        harness.fingerprint(settings())


def _never(arm: str, folder: Path) -> dict[str, Any]:
    raise AssertionError(f"{arm} was to be read back")
