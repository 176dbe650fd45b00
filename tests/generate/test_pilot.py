"""What a pilot says of the whole: plain multiplication, the K that is enough, and a disk that is too small."""

from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fabricated_run import make

from pipeline.config import Config, validate
from pipeline.errors import UserError
from pipeline.generate import pilot
from pipeline.inference.engine import Completion, Request
from pipeline.run.files import write_json

VOCAB = 1000
Disk = namedtuple("Disk", "total used free")


def config(folder: Path, **generate: Any) -> Config:
    settings = {"k": 16, "num_samples": 3, "pilot_prompts": 2, **generate}
    return validate({"name": "trial", "runs_dir": str(folder), "generate": settings}, "test")


def answer(request_id: str, num_tokens: int, k: int) -> Completion:
    """Each row has the masses 1/2, 1/4, 1/8, ..."""
    logprobs_TK = np.tile(-np.log(2) * np.arange(1, k + 1), (num_tokens, 1)).astype(np.float32)
    return Completion(
        request=Request(request_id, [1], 8, 1.0, 0),
        token_ids=[0] * num_tokens,
        finish_reason="stop",
        token_logprobs=logprobs_TK[:, 0],
        ids_TK=np.tile(np.arange(k, dtype=np.int32), (num_tokens, 1)),
        logprobs_TK=logprobs_TK,
        first_token_s=0.1,
        total_s=0.2,
    )


class FakeTeacher:
    """In place of models.Model: a name, a vocabulary, and a tokenizer that decodes anything."""

    name, path = "fake", "fake"

    def vocab_size(self) -> int:
        return VOCAB

    def tokenizer(self) -> Any:
        return self

    unk_token_id = None

    def decode(self, _: list[int], skip_special_tokens: bool = False) -> str:
        return "text"

    def convert_tokens_to_ids(self, _: str) -> None:
        return None


class FakeEngine:
    """In place of vLLM: answers of 4 and 6 tokens."""

    vocab_size = VOCAB

    def __init__(self, path: str, engine_args: dict[str, Any], k: int, load: Any, scoring: bool = False) -> None:
        self.k = k

    def answers(self, requests: Any) -> Any:
        for number, request in enumerate(requests):
            yield answer(request.request_id, 4 + 2 * number, self.k)


@pytest.fixture
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pilot.lookup, "find", lambda *_: FakeTeacher())
    monkeypatch.setattr(pilot.generate, "Engine", FakeEngine)


def test_the_whole_is_the_pilot_times_all_responses(tmp_path: Path) -> None:
    by_k = {8: {"mass_frac": 0.9, "bytes_per_token": 40.0}, 16: {"mass_frac": 0.95, "bytes_per_token": 80.0}}
    plan = pilot.estimate(config(tmp_path, price_per_hour=2.0), 100, [4, 6], 2.0, 30.0, by_k)
    assert plan["responses"] == 300
    assert plan["tokens"] == 300 * 5
    assert plan["tokens_per_response_error"] == pytest.approx(1.96 * 2**0.5 / 2**0.5)
    assert plan["disk_bytes"] == 300 * 5 * 80
    assert plan["generate_s"] == pytest.approx(30 + 1500 / 5)
    assert plan["cost"] == pytest.approx(2 * 330 / 3600)
    assert plan["gpu_hours"] == 0


@pytest.mark.parametrize(
    ("masses", "chosen"),
    [({8: 0.9, 16: 0.95, 32: 0.955}, 16), ({8: 0.5, 16: 0.7, 32: 0.9}, 32), ({8: 0.99, 16: 0.991, 32: 0.9911}, 8)],
)
def test_the_recommended_k_is_where_twice_as_many_hold_little_more(masses: dict[int, float], chosen: int) -> None:
    assert pilot.recommend({k: {"mass_frac": mass, "bytes_per_token": 1.0} for k, mass in masses.items()}) == chosen


def test_supports_are_measured_by_mass_and_bytes(tmp_path: Path) -> None:
    place = {"p0-0": {"response_id": "p0-0", "prompt_token_ids": [1]}}
    by_k = pilot.measure_supports([answer("p0-0", 50, 16)], place, FakeTeacher(), VOCAB, config(tmp_path, k=12))  # type: ignore[arg-type]
    assert list(by_k) == [8, 12, 16], "16 are there: nothing can be said of 32"
    assert by_k[8]["mass_frac"] == pytest.approx(1 - 2**-8)
    assert by_k[12]["mass_frac"] == pytest.approx(1 - 2**-12)
    assert by_k[8]["bytes_per_token"] < by_k[12]["bytes_per_token"]


@pytest.mark.usefixtures("_fakes")
def test_a_pilot_is_written_and_held_against_the_run(tmp_path: Path) -> None:
    run_dir = make(tmp_path, until="generate")
    assert pilot.against_actuals(run_dir) is None
    pilot.run(config(tmp_path), run_dir)
    table = pilot.against_actuals(run_dir)
    assert table is not None
    names, planned, came = (column.cells for column in table.columns)
    rows = {name: values for name, *values in zip(names, planned, came, strict=True)}
    assert rows["responses"] == ["18.0", "6.0"]
    assert rows["tokens_per_response"] == ["5.0", "4.0"]


@pytest.mark.usefixtures("_fakes")
def test_a_disk_that_is_too_small_is_told_before_generate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = make(tmp_path, until="prepare")
    monkeypatch.setattr("shutil.disk_usage", lambda _: Disk(100, 99, 1))
    with pytest.raises(UserError, match=r"0\.0 GB are free, and generate will write about .*; free some"):
        pilot.run(config(tmp_path), run_dir)


def test_a_plan_of_another_shape_does_not_hide_the_run(tmp_path: Path) -> None:
    run_dir = make(tmp_path, until="generate")
    write_json(run_dir.path / "plan.json", {"responses": 1})
    assert pilot.against_actuals(run_dir) is None
