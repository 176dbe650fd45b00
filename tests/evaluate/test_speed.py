"""What is sent to be timed, in which order, and what is made of the times."""

from typing import Any

import pytest

from pipeline.config import Evaluate
from pipeline.evaluate import speed
from pipeline.inference.engine_args import num_gpus
from pipeline.machine import meters


class Timed:
    """Stands in for a served arm: 100 tokens a second for each request, all at once; it notes who was asked."""

    start_s = 2.5
    gpu_bytes_before: int | None = 10
    pid = 1
    num_gpus = 0

    def __init__(self, name: str, log: list[tuple[str, int, bool]]) -> None:
        self.name, self._log = name, log

    def ask(self, requests: list[dict[str, Any]], timed: bool = False) -> dict[str, Any]:
        self._log.append((self.name, len(requests), timed))
        assert all(request["ignore_eos"] for request in requests)
        num = requests[0]["max_tokens"]
        answer = {"token_ids": [7] * num, "first_token_s": 0.04, "total_s": 0.04 + 0.01 * (num - 1)}
        return {"answers": [answer] * len(requests), "elapsed_s": num / 100}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that tells its memory and, of the GPU, energy that grows by 8 J whenever it is read."""
    counted = iter(range(0, 10**9, 8000))
    monkeypatch.setattr(meters, "peak_rss_bytes", lambda pid: 1000 + pid)
    monkeypatch.setattr(meters, "gpu_used_bytes", lambda: 50)
    monkeypatch.setattr(meters, "_gpus_mj", lambda: next(counted))
    monkeypatch.setattr(meters, "package_uj", lambda _: None)


def timed(names: str, **settings: Any) -> tuple[dict[str, list[speed.Round]], list[tuple[str, int, bool]]]:
    log: list[tuple[str, int, bool]] = []
    chosen = Evaluate(speed_tokens=8, **settings)
    prompts = {name: [[1], [2], [3]] for name in names}
    return speed.time_arms([Timed(name, log) for name in names], prompts, chosen), log  # type: ignore[misc]


def test_arms_are_timed_in_turn_after_a_warm_up() -> None:
    _, log = timed("ab", speed_concurrency=(4,), speed_rounds=4)
    assert "".join(name for name, num, _ in log if num == 4) == "ab" + "ab" + "ba" + "ab" + "ba"


def test_each_number_of_requests_is_timed_and_one_alone_always() -> None:
    rounds, log = timed("a", speed_concurrency=(8, 2, 8), speed_rounds=1)
    assert log == 2 * [("a", 1, True), ("a", 2, False), ("a", 8, False)]
    figures = speed.figures(rounds["a"])
    assert {name: figure["value"] for name, figure in figures.items()} == {
        "output_tokens_per_s": pytest.approx(800),
        "output_tokens_per_s_at_2": pytest.approx(200),
        "output_tokens_per_s_at_8": pytest.approx(800),
        "first_token_s": pytest.approx(0.04),
        "time_per_token_s": pytest.approx(0.01),
    }


def test_one_at_once_is_the_request_that_is_timed_alone() -> None:
    rounds, log = timed("a", speed_concurrency=(1,), speed_rounds=2)
    assert log == 3 * [("a", 1, True)]
    assert speed.figures(rounds["a"])["output_tokens_per_s"]["value"] == pytest.approx(100)


def test_energy_is_of_the_most_requests_at_once_and_none_where_not_told() -> None:
    rounds, _ = timed("a", speed_concurrency=(1, 4), speed_rounds=2)
    assert [measured["gpu_energy_j_per_token"] for measured in rounds["a"]] == [8 / 32, 8 / 32]
    assert [measured["cpu_energy_j_per_token"] for measured in rounds["a"]] == [None, None]


@pytest.mark.parametrize(("names", "gpu_bytes"), [("a", 40), ("ab", None)])
def test_gpu_memory_is_told_of_an_arm_that_has_the_gpu_for_itself(names: str, gpu_bytes: int | None) -> None:
    rounds, _ = timed(names, speed_concurrency=(1,), speed_rounds=1)
    [measured] = rounds["a"]
    assert (measured["load_s"], measured["peak_rss_bytes"], measured["gpu_memory_bytes"]) == (2.5, 1001, gpu_bytes)


def test_throughputs_are_compared_round_by_round_where_timed_in_turn() -> None:
    ours: list[speed.Round] = [{"output_tokens_per_s": rate} for rate in (10.0, 30.0, 20.0)]
    theirs: list[speed.Round] = [{"output_tokens_per_s": rate} for rate in (10.0, 10.0, 4.0)]
    assert speed.over(ours, theirs, together=True) == {"value": 3.0, "low": 1.0, "high": 5.0, "num": 3}
    assert speed.over(ours, theirs, together=False) == {"value": 2.0, "low": None, "high": None, "num": 1}


@pytest.mark.parametrize("together", [True, False])
def test_a_teacher_on_four_gpus_is_compared_with_four_students(together: bool) -> None:
    ours: list[speed.Round] = [{"output_tokens_per_s": 300.0, "num_gpus": 1}]
    theirs: list[speed.Round] = [{"output_tokens_per_s": 400.0, "num_gpus": 4}]
    assert speed.over(ours, theirs, together)["value"] == pytest.approx(3.0)
    assert speed.over(ours, [{"output_tokens_per_s": 400.0, "num_gpus": 0}], together)["value"] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("engine_args", "num"),
    [
        ({}, 1),
        ({"tensor_parallel_size": 4}, 4),
        ({"tensor_parallel_size": 4, "pipeline_parallel_size": 2}, 8),
        ({"tensor_parallel_size": None, "prefill_context_parallel_size": 2}, 2),
    ],
)
def test_how_many_gpus_an_engine_takes(engine_args: dict[str, Any], num: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.machine.hardware.is_cpu", lambda: False)
    assert num_gpus(engine_args) == num
    monkeypatch.setattr("pipeline.machine.hardware.is_cpu", lambda: True)
    assert num_gpus(engine_args) == 0


def test_each_round_tells_its_arms_gpus() -> None:
    Timed.num_gpus = 2
    try:
        rounds, _ = timed("a", speed_concurrency=(1,), speed_rounds=1)
    finally:
        Timed.num_gpus = 0
    assert rounds["a"][0]["num_gpus"] == 2
    assert speed.rows(rounds).column("num_gpus").to_pylist() == [2.0]
