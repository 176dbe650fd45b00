"""generate as a stage, as far as it goes without vLLM."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.fabricated_run import make

from pipeline import config as config_module
from pipeline import generate
from pipeline.errors import UserError
from pipeline.inference.engine import Completion
from pipeline.inference.kv_cache import Load
from pipeline.run.rundir import RunDir


def test_answers_that_prepare_did_not_read_cannot_be_scored(tmp_path: Path) -> None:
    run_dir = make(tmp_path, until="prepare")
    data = {"name": "trial", "runs_dir": str(tmp_path), "generate": {"mode": "score"}}
    with pytest.raises(UserError, match=r"generate\.mode is score, but prepare was done for sample"):
        generate.run(config_module.validate(data, "test"), run_dir)


def test_a_completion_that_prepare_read_is_what_is_asked_for() -> None:
    config = config_module.validate({"name": "trial"}, "test")
    row = {"response_id": "a-0", "prompt_token_ids": [1]}
    rows = [{**row, "completion_token_ids": [2, 3]}, {**row, "completion_token_ids": None}, row]
    asked = [generate.request(row, config.generate).completion_token_ids for row in rows]
    assert asked == [(2, 3), None, None]


@pytest.mark.parametrize(("mode", "tokens"), [("sample", 3 + 512), ("score", 3 + 1)])
def test_an_engine_is_told_the_longest_request_of_the_run(tmp_path: Path, mode: str, tokens: int) -> None:
    run_dir = make(tmp_path, until="prepare")
    config = config_module.validate({"name": "trial", "generate": {"mode": mode}}, "test")
    assert generate.load_of(config, run_dir, 6) == Load(6, tokens)


def test_a_completion_counts_as_part_of_the_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = make(tmp_path, until="prepare")
    rows = {"prompt_token_ids": [[1, 2], [1, 2, 3]], "completion_token_ids": [[4] * 9, None]}
    monkeypatch.setattr(generate, "read_shards", lambda *_: iter([pa.table(rows), pa.table(rows).slice(0, 0)]))
    config = config_module.validate({"name": "trial", "generate": {"mode": "score"}}, "test")
    assert generate.load_of(config, run_dir, 6).tokens == 2 + 9 + 1


class CountingTeacher:
    """Answers at once, 16 tokens of 16 log-probs each."""

    vocab_size, unk_token_id = 1000, None

    def answers(self, requests: Any) -> Any:
        for request in requests:
            logprobs_TK = np.tile(-np.log(2) * np.arange(1, 17), (16, 1)).astype(np.float32)
            ids_TK = np.tile(np.arange(16, dtype=np.int32), (16, 1))
            yield Completion(request, [0] * 16, "stop", logprobs_TK[:, 0], ids_TK, logprobs_TK, 0.1, 0.1)

    def decode(self, *_: Any, **__: Any) -> str:
        return "text"

    def convert_tokens_to_ids(self, _: str) -> None:
        return None


def peak_bytes(folder: Path, num: int) -> int:
    """What generate holds at its peak, of what Python and numpy allocate, with this many responses."""
    config = config_module.validate(
        {"name": "trial", "runs_dir": str(folder), "generate": {"num_samples": num // 6, "shard_responses": 20}}, "test"
    )
    run_dir: RunDir = make(folder, until="prepare")
    stage = run_dir.begin("generate", config, {})
    teacher: Any = CountingTeacher()
    tracemalloc.start()
    generate._generate(stage, teacher, config, teacher, generate.planned(run_dir, config), num)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(stage.shards("responses")) == num // 20
    return peak


def test_ten_times_the_responses_take_no_more_memory(tmp_path: Path) -> None:
    few, many = peak_bytes(tmp_path / "few", 300), peak_bytes(tmp_path / "many", 3000)
    assert many < 1.05 * few
