"""The whole stage on a small run: models of one layer; in place of vLLM a process reads answers from a file."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from support import tiny_model
from support.fabricated_run import make
from tokenizers.normalizers import Lowercase
from transformers import AutoTokenizer

from pipeline import config as config_module
from pipeline import evaluate
from pipeline.errors import UserError
from pipeline.evaluate import answered, measured
from pipeline.evaluate.fidelity import MEASURES
from pipeline.inference import child_engine
from pipeline.models import lookup
from pipeline.report import page
from pipeline.report.tables.counted_rows import PLACES
from pipeline.run.rundir import RunDir
from pipeline.run.scores import Scores

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}<|im_start|>assistant "
ANSWERS = Path(__file__).parent / "task_answers.jsonl"
NUM_TASKS = 60
# Of the tasks' good answers the teacher gives 9 in 10, the student 6, SFT 3, the untrained none; and notes each asking.
ENGINE = """
import json, random, sys
answers_path, ids_path, log_path, model_path = sys.argv[1:5]
good = {row["id"]: row["answers"] for row in map(json.loads, open(answers_path))}
token_ids = json.load(open(ids_path))
arm = model_path.rsplit("/", 1)[-1]
share = {"student": 0.6, "sft_only": 0.3, "untrained": 0}.get(arm, 0.9)
turns = {}
print(json.dumps({"context_tokens": 100000, "start_s": 0.5}), flush=True)
for line in sys.stdin:
    answers = []
    for request in json.loads(line)["requests"]:
        name = request["request_id"]
        text = "I don't know."
        if name in good:
            turn = turns[name] = turns.get(name, -1) + 1
            if random.Random(name).random() < share:
                text = good[name][turn]
            print(arm, name, turn, request["max_tokens"], file=open(log_path, "a"))
        ids = [i for byte in text.encode() for i in token_ids[byte]]
        timed = {"first_token_s": 1, "total_s": 2}
        answers.append({"request_id": name, "token_ids": ids, "finish_reason": "stop", **timed})
    print(json.dumps({"answers": answers, "elapsed_s": 0.5}), flush=True)
"""


class Evaluated:
    """A run up to train, and evaluate on it."""

    def __init__(self, folder: Path, byte_tokenizer: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.log = folder, folder / "asked.txt"
        self._tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer)
        self._tokenizer.chat_template = TEMPLATE
        self._model(folder / "teacher", 0)
        self.run_dir = make(folder, until="train", teacher=str(folder / "teacher"))
        for seed, arm in enumerate(("student", "sft_only", "untrained"), 1):
            self._model(self.run_dir.stage_path("train") / arm, seed)
        manifest = self.run_dir.stage_path("prepare") / "manifest.json"
        prepared = json.loads(manifest.read_text())
        prepared["fingerprint"]["teacher.chat_template_kwargs"] = {}
        manifest.write_text(json.dumps(prepared))
        pieces = ids_of_bytes(self._tokenizer)
        (folder / "ids.json").write_text(json.dumps(pieces))
        patch.setattr(lookup, "check_weights", lambda *_: None)  # the fabricated run has a made-up hash
        command = (sys.executable, "-c", ENGINE, str(ANSWERS), str(folder / "ids.json"), str(self.log))
        patch.setattr(child_engine, "COMMAND", command)

    def do(self, **settings: Any) -> dict[str, Any]:
        sizes = {"chat_items": 4, "speed_rounds": 1, "bootstrap": 500}
        chosen = {**sizes, "tasks": {"limit": NUM_TASKS}, "risks": {"limit": 2}, **settings}
        data = {"name": "trial", "runs_dir": str(self.folder), "teacher": {"model": str(self.folder / "teacher")}}
        evaluate.run(config_module.validate({**data, "evaluate": chosen}, "test"), RunDir(self.run_dir.path))
        written = (self.run_dir.stage_path("evaluate") / "scores.json").read_text()
        Scores.model_validate_json(written)
        return json.loads(written, parse_constant=no_json)

    def _model(self, folder: Path, seed: int) -> None:
        tiny_model.save(folder, self._tokenizer, seed)


def no_json(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def ids_of_bytes(tokenizer: Any) -> list[list[int]]:
    """The token ids of each byte."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return [[tokenizer.convert_tokens_to_ids(piece)] for _, piece in sorted(bytes_to_unicode().items())]


@pytest.fixture
def evaluated(tmp_path: Path, byte_tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluated:
    return Evaluated(tmp_path, byte_tokenizer, monkeypatch)


@pytest.mark.parametrize(("has_own_tokens", "has_one_more"), [(False, False), (False, True), (True, False)])
def test_another_model_is_measured_as_far_as_it_can_be(
    evaluated: Evaluated, has_own_tokens: bool, has_one_more: bool
) -> None:
    if has_one_more:
        evaluated._tokenizer.add_tokens(["<|think|>"])
    if has_own_tokens:
        evaluated._tokenizer.backend_tokenizer.normalizer = Lowercase()
    evaluated._model(evaluated.folder / "another", 9)
    scores = evaluated.do(other=str(evaluated.folder / "another"))
    other = scores["arms"]["other"]
    assert other["quality"]["task_pass_frac"]["num"] == NUM_TASKS
    assert other["speed"]["output_tokens_per_s"]["value"] > 0
    assert "hallucination_frac_difference" in other["risks"]
    assert scores["verdict"]["task_difference_from_other"]["num"] == NUM_TASKS
    assert ("forward_kl_nats" in other.get("fidelity", {})) != has_own_tokens
    assert ("verbatim_train_tokens" in other["risks"]) == (
        "verbatim_train_tokens" in scores["arms"]["student"]["risks"] and not has_own_tokens
    )
    assert "Other model" in page.render(evaluated.run_dir)


def test_another_model_that_is_nowhere_is_named_first(evaluated: Evaluated) -> None:
    with pytest.raises(UserError, match="no-such-model"):
        evaluated.do(other="./no-such-model")
    assert not evaluated.log.exists()


def test_tasks_are_asked_scored_compared_and_shown(evaluated: Evaluated) -> None:
    scores = evaluated.do()
    passed = {arm: figures["quality"]["task_pass_frac"] for arm, figures in scores["arms"].items()}
    assert passed["teacher"]["value"] > passed["student"]["value"] > passed["sft_only"]["value"] > 0.1
    assert passed["untrained"] == {"value": 0, "low": 0, "high": 0, "num": NUM_TASKS}
    verdict = scores["verdict"]
    assert verdict["retained_quality"]["value"] == pytest.approx(verdict["gap_closed"]["value"])  # the untrained: none
    assert verdict["retained_quality"]["low"] < 0.7 < verdict["retained_quality"]["high"]
    assert any(
        claim["text"].startswith(f"Of {NUM_TASKS} checked tasks the student passes") for claim in verdict["claims"]
    )
    rows = pq.read_table(evaluated.run_dir.stage_path("evaluate") / "tasks.parquet").to_pylist()
    items = {row["item_id"] for row in rows}
    assert len(items) == NUM_TASKS
    failed = {row["item_id"] for row in rows if row["arm"] == "student" and not all(c["passed"] for c in row["checks"])}
    assert 1 - len(failed) / NUM_TASKS == pytest.approx(passed["student"]["value"])
    assert f"the same {NUM_TASKS} tasks" in page.render(evaluated.run_dir)
    left = {path.name for path in evaluated.run_dir.stage_path("evaluate").iterdir()}
    assert left == {"manifest.json", "started.json", "scores.json", *PLACES} - {"verdicts.jsonl"}


def test_the_rows_of_fidelity_and_speed_come_to_the_figures(evaluated: Evaluated) -> None:
    arms = evaluated.do()["arms"]
    folder = evaluated.run_dir.stage_path("evaluate")
    measured = pq.read_table(folder / "fidelity.parquet").to_pylist()
    kinds = {(row["section"], row["arm"]) for row in measured}
    assert kinds == {(section, arm) for arm, of in arms.items() for section in of if section.startswith("fidelity")}
    for section, arm in kinds:
        rows = [row for row in measured if (row["section"], row["arm"]) == (section, arm)]
        num_tokens = sum(row["num_tokens"] for row in rows)
        for measure in MEASURES:
            mean = sum(row["num_tokens"] * row[measure] for row in rows) / num_tokens
            figure = arms[arm][section][measure]
            assert mean == pytest.approx(figure["value"], abs=1e-9)
            assert len(rows) == figure["num"]
    rounds = [row for row in pq.read_table(folder / "speed.parquet").to_pylist() if row["arm"] == "student"]
    speeds = [row["output_tokens_per_s"] for row in rounds]
    figure = arms["student"]["speed"]["output_tokens_per_s"]
    assert (min(speeds), max(speeds), len(speeds)) == (figure["low"], figure["high"], figure["num"])


def test_a_try_that_stopped_asks_no_task_twice(evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(measured, "fidelity", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluated.do()
    scores = evaluated.do()
    asked = evaluated.log.read_text().splitlines()
    assert len(asked) == len(set(asked)) > 4 * NUM_TASKS
    assert {line.split()[-1] for line in asked} == {"256"}  # evaluate.tasks.max_tokens, not that of the chat set
    assert scores["arms"]["student"]["quality"]["task_pass_frac"]["num"] == NUM_TASKS


def test_without_tasks_there_are_no_figures_of_them(evaluated: Evaluated) -> None:
    scores = evaluated.do(tasks={"path": None})
    assert not [key for key in scores["arms"]["student"]["quality"] if key.startswith("task_")]
    assert "retained_quality" not in scores["verdict"]
    assert not evaluated.log.exists()


@pytest.mark.parametrize(("method", "is_left_out"), [(None, False), ("gptq", True)])
def test_another_model_that_transformers_cannot_load_is_left_out_of_fidelity_with_a_word(
    tmp_path: Path, method: str | None, is_left_out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(measured, "say", said.append)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": method and {"quant_method": method}}))
    folders = {"teacher": tmp_path / "none", "other": tmp_path}
    measured._leave_out_unloadable(folders)
    assert ("other" not in folders) == is_left_out == bool(said)
    assert not said or "its fidelity is not measured" in said[0]


def test_a_context_of_null_is_each_models_own(tmp_path: Path) -> None:
    """The config takes null, and so does vLLM."""
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 512}')
    config = config_module.validate({"name": "t", "teacher": {"engine": {"max_model_len": None}}}, "test")
    asked: Any = SimpleNamespace(engine_args=config.teacher.engine)
    assert answered.arm_engine("student", tmp_path, config, asked)["max_model_len"] is None
    asked.engine_args = {"max_model_len": 2048}
    assert answered.arm_engine("student", tmp_path, config, asked)["max_model_len"] == 512
