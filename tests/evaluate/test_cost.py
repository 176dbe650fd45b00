"""Break-even and costs, against sums done by hand and a slow count of tokens."""

import json
import statistics
import time
from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fabricated_run import make

from pipeline import config as config_module
from pipeline.evaluate import speed
from pipeline.evaluate.speed import cost
from pipeline.run.rundir import RunDir, Stage

RATES = st.floats(1, 1e4)


def rounds(*rates: float, **others: float | None) -> list[speed.Round]:
    names = (speed.LOAD, speed.PEAK_RSS, speed.GPU_MEMORY, speed.CPU_ENERGY, speed.GPU_ENERGY)
    return [{speed.THROUGHPUT: rate, **dict.fromkeys(names), **others} for rate in rates]


def test_an_hour_is_saved_after_the_tokens_that_take_an_hour_longer() -> None:
    """A teacher of 100 tokens a second, a student of 150: a token saves a 300th of a second."""
    assert cost.break_even(3600, [150.0], [100.0], together=True) == {
        "value": pytest.approx(1_080_000),
        "low": pytest.approx(1_080_000),
        "high": pytest.approx(1_080_000),
        "num": 1,
    }


@given(spent_s=st.floats(1, 1e6), student=RATES, teacher=RATES)
def test_at_break_even_both_have_taken_the_same_time(spent_s: float, student: float, teacher: float) -> None:
    even = cost.break_even(spent_s, [student], [teacher], together=True)
    if student <= teacher:
        assert even is None
    elif even is not None:
        assert spent_s + even["value"] / student == pytest.approx(even["value"] / teacher, rel=1e-6)


@given(pairs=st.lists(st.tuples(RATES, RATES), min_size=1, max_size=7))
def test_rounds_in_turn_are_paired_and_others_taken_at_their_extremes(pairs: list[tuple[float, float]]) -> None:
    student, teacher = map(list, zip(*pairs, strict=True))
    each = sorted(1 / (1 / t - 1 / s) if 1 / t > 1 / s else inf for s, t in pairs)
    ratio, rate = statistics.median(s / t for s, t in pairs), statistics.median(teacher)
    middle = 1 / (1 / rate - 1 / (ratio * rate)) if ratio > 1 else inf
    paired, apart = (cost.break_even(1, student, teacher, together=together) for together in (True, False))
    if middle == inf:
        assert paired is None
    else:
        assert paired == {
            "value": pytest.approx(middle),
            "low": pytest.approx(each[0]),
            "high": pytest.approx(each[-1]) if each[-1] < inf else None,
            "num": len(pairs),
        }
    if paired is not None and apart is not None and paired["low"] is not None and apart["low"] is not None:
        assert apart["low"] <= paired["low"] * (1 + 1e-9)
        assert apart["high"] is None or (paired["high"] or inf) <= apart["high"] * (1 + 1e-9)


def test_a_round_in_which_the_student_was_slower_leaves_the_end_open() -> None:
    even = cost.break_even(100, [150.0, 150.0, 90.0], [100.0, 100.0, 100.0], together=True)
    assert even is not None
    assert (even["low"], even["high"]) == (pytest.approx(30_000), None)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run_dir = make(tmp_path_factory.mktemp("runs"), until="train")
    for name, elapsed_s in (("prepare", 10.0), ("generate", 2000.0), ("filter", 90.0), ("train", 1500.0)):
        path = run_dir.stage_path(name) / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"elapsed_s": elapsed_s}))
    return RunDir(run_dir.path)


def opened(done: RunDir) -> Stage:
    """Evaluate, begun 400 s ago."""
    config = config_module.validate({"name": "trial", "runs_dir": str(done.path.parent)}, "test")
    stage = done.begin("evaluate", config, {"evaluate.seed": 0})
    stage.began = time.monotonic() - 400
    return stage


def compared(done: RunDir, price: float | None) -> dict[str, Any]:
    times = {"student": rounds(200.0, 220.0), "teacher": rounds(100.0, 100.0)}
    return cost.comparisons(done, opened(done), times, True, price)


def test_the_run_costs_the_time_of_all_stages_at_the_machines_price(done: RunDir) -> None:
    found = compared(done, 1.8)
    assert found["distillation_s"]["value"] == pytest.approx(4000, abs=5)
    assert found["distillation_cost"]["value"] == pytest.approx(2.0, abs=0.01)
    assert found["break_even_output_tokens"]["low"] == pytest.approx(4000 / (1 / 100 - 1 / 220), rel=0.01)
    assert found["break_even_output_tokens"]["high"] == pytest.approx(800_000, rel=0.01)


def test_a_run_that_was_stopped_took_at_least_so_long(done: RunDir) -> None:
    manifest = done.stage_path("generate") / "manifest.json"
    kept = manifest.read_text()
    for num_tries, told in (
        (1, "took 1.11 hours"),
        (2, "took at least 1.11 hours"),
        (None, "took at least 1.11 hours"),
    ):
        manifest.write_text(json.dumps({**json.loads(kept), "num_tries": num_tries}))
        found = compared(done, None)
        assert found["distillation_s"]["low"] == (None if num_tries == 1 else found["distillation_s"]["value"])
        said = cost.sentence({}, found)
        assert told in said
        assert ("saved that time after at least " in said) == (num_tries != 1)
    manifest.write_text(kept)


def test_evaluates_own_earlier_tries_are_paid_for_too(done: RunDir) -> None:
    stage = opened(done)
    stage.spent_s, stage.num_tries = 10_000.0, 2
    found = cost.comparisons(done, stage, {"student": rounds(200.0), "teacher": rounds(100.0)}, True, None)
    assert found["distillation_s"] is not None
    assert found["distillation_s"]["value"] == pytest.approx(14_000, abs=5)
    assert found["distillation_s"]["low"] is not None


def test_without_a_price_there_are_hours_and_no_costs(done: RunDir) -> None:
    found = compared(done, None)
    assert set(found) == {"distillation_s", "break_even_output_tokens"}
    assert found["break_even_output_tokens"]["high"] == pytest.approx(800_000, rel=0.01)


def test_on_gpus_all_is_of_a_machine_that_is_full(done: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight GPUs: eight students of 300 tokens a second, or two teachers of 400 on four GPUs each."""
    monkeypatch.setattr("pipeline.machine.hardware.num_gpus", lambda: 8)
    times = {"student": rounds(300.0, num_gpus=1), "teacher": rounds(400.0, num_gpus=4)}
    assert cost.machine_gpus(times.values()) == 8
    found: Any = cost.comparisons(done, opened(done), times, True, 7.2)
    assert found["machine_gpus"]["value"] == 8
    assert found["distillation_cost"]["value"] == pytest.approx(8.0, abs=0.01)
    assert found["break_even_output_tokens"]["value"] == pytest.approx(4000 / (1 / 800 - 1 / 2400), rel=0.01)
    figure = {"value": 1.0, "low": None, "high": None, "num": 1}
    costs: Any = {"cost": {"cost_per_million_output_tokens": figure}}
    said = cost.sentence({"student": costs, "teacher": costs}, found)
    assert "hours of this machine (8 GPUs) and cost 8" in said
    assert said.endswith("Costs and tokens assume a machine that serves the arm on all of its GPUs.")


@pytest.mark.parametrize(("rate", "num_gpus", "cost_of_million"), [(300.0, 1, 1 / 1.2), (400.0, 4, 2.5)])
def test_a_million_tokens_cost_the_part_of_the_machine_that_they_take(
    tmp_path: Path, rate: float, num_gpus: int, cost_of_million: float
) -> None:
    found: Any = cost.figures(tiny(tmp_path), rounds(rate, num_gpus=num_gpus), 7.2, num_gpus=8)
    assert found["num_gpus"]["value"] == num_gpus
    assert found["cost_per_million_output_tokens"]["value"] == pytest.approx(cost_of_million)


def test_an_arm_may_run_on_more_gpus_than_this_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.machine.hardware.num_gpus", lambda: 8)
    assert cost.machine_gpus([rounds(1.0, num_gpus=16), rounds(1.0, num_gpus=1)]) == 16
    assert cost.machine_gpus([rounds(1.0), rounds(1.0)]) == 0


def test_a_million_tokens_cost_the_seconds_they_take(byte_tokenizer: Path, tmp_path: Path) -> None:
    folder = tiny(tmp_path)
    found = cost.figures(folder, rounds(100.0, 50.0, 200.0), 3.6)
    assert found["cost_per_million_output_tokens"] == {"value": 10.0, "low": 5.0, "high": 20.0, "num": 3}
    assert "cost_per_million_output_tokens" not in cost.figures(folder, rounds(100.0), None)


def test_what_the_machine_does_not_tell_is_none_and_memory_is_the_most_of_the_rounds(tmp_path: Path) -> None:
    times = rounds(100.0, load_s=3.0, peak_rss_bytes=100) + rounds(100.0, load_s=3.0, peak_rss_bytes=140)
    found = cost.figures(tiny(tmp_path), times, None)
    assert found["peak_rss_bytes"] == {"value": 140, "low": None, "high": None, "num": 1}
    assert found["load_s"] == {"value": 3, "low": None, "high": None, "num": 1}
    assert [found[name] for name in ("gpu_memory_bytes", "cpu_energy_j_per_token", "gpu_energy_j_per_token")] == 3 * [
        None
    ]
    energies = rounds(1.0, cpu_energy_j_per_token=0.5) + rounds(1.0, cpu_energy_j_per_token=0.75)
    assert cost.figures(tiny(tmp_path), energies, None)["cpu_energy_j_per_token"] == {
        "value": 0.625,
        "low": 0.5,
        "high": 0.75,
        "num": 2,
    }


def test_parameters_are_counted_once_and_bytes_are_the_files(tmp_path: Path) -> None:
    folder = tiny(tmp_path)
    found = cost.size(folder)
    assert found["num_parameters"]["value"] == 6 * 5 + 7
    assert found["weights_bytes"]["value"] == (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("even", "said"),
    [
        (None, "never pays for itself"),
        (
            {"value": 1.5e6, "low": 1.25e6, "high": None, "num": 3},
            "1.5 million output tokens (1.2 million to",
        ),
    ],
)
def test_the_sentence_says_when_or_that_never(even: Any, said: str) -> None:
    hours = {"value": 5400.0, "low": None, "high": None, "num": 1}
    found: Any = {"distillation_s": hours, "break_even_output_tokens": even}
    told = cost.sentence({}, found)
    assert told.startswith("The run took 1.50 hours of this machine. ")
    assert said in told


def test_the_sentence_gives_prices_where_there_is_one() -> None:
    figure = {"value": 2.0, "low": None, "high": None, "num": 1}
    costs: Any = {"cost": {"cost_per_million_output_tokens": figure}}
    found: Any = {"distillation_s": figure, "break_even_output_tokens": None, "distillation_cost": figure}
    told = cost.sentence({"student": costs, "teacher": costs}, found)
    assert "and cost 2. A million output tokens cost 2 (teacher: 2)" in told


def tiny(folder: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    (folder / "config.json").write_text("{}")
    save_file({"a": torch.zeros(6, 5), "b": torch.zeros(7)}, folder / "model.safetensors")
    return folder
