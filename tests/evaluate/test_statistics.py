import numpy as np
import pytest

from pipeline.evaluate import verdict
from pipeline.evaluate.statistics import Figure, ratio, repeated


def slow_interval(numerators: np.ndarray, denominators: np.ndarray, resamples: int) -> tuple[float, float]:
    """The same bootstrap by drawing prompts one list at a time."""
    generator = np.random.default_rng(7)
    n = len(numerators)
    draws = []
    for _ in range(resamples):
        chosen = generator.integers(0, n, n)
        draws.append(numerators[chosen].sum() / denominators[chosen].sum())
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def test_intervals_equal_a_slow_independent_bootstrap() -> None:
    generator = np.random.default_rng(0)
    tokens = generator.integers(5, 50, 40).astype(np.float64)
    values = (tokens * generator.gamma(2, 0.3, 40)).astype(np.float64)
    figure = ratio(values, tokens, 10_000, seed=0)
    low, high = slow_interval(values, tokens, 10_000)
    assert figure["value"] == pytest.approx(values.sum() / tokens.sum())
    assert figure["low"] == pytest.approx(low, rel=0.02)
    assert figure["high"] == pytest.approx(high, rel=0.02)
    assert figure["num"] == 40


def test_ninety_five_percent_intervals_cover_the_truth() -> None:
    generator = np.random.default_rng(1)
    trials, hits = 400, 0
    for trial in range(trials):
        tokens = generator.integers(20, 60, 80).astype(np.float64)
        values = (tokens * generator.gamma(2, 0.5, 80)).astype(np.float64)  # mean 1 a token
        figure = ratio(values, tokens, 400, seed=trial)
        assert figure["low"] is not None
        assert figure["high"] is not None
        hits += figure["low"] <= 1 <= figure["high"]
    assert 0.91 <= hits / trials <= 0.98


def test_resamples_drawn_in_pieces_are_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.evaluate import statistics

    values, tokens = np.arange(1.0, 9.0, dtype=np.float64), np.full(8, 2.0, np.float64)
    whole = ratio(values, tokens, 5_000, seed=0)
    monkeypatch.setattr(statistics, "MAX_WEIGHTS", 64)
    pieces = ratio(values, tokens, 5_000, seed=0)
    assert pieces["low"] == pytest.approx(whole["low"], rel=0.05)


def test_one_prompt_has_no_interval() -> None:
    assert ratio(np.array([2.0]), np.array([4.0]), 100, 0) == {
        "value": 0.5,
        "low": None,
        "high": None,
        "num": 1,
    }


def test_repeated_measurements_show_their_spread() -> None:
    assert repeated([3.0, 1.0, 2.0]) == {"value": 2.0, "low": 1.0, "high": 3.0, "num": 3}


def over(value: float, low: float, high: float) -> Figure:
    return {"value": value, "low": low, "high": high, "num": 50}


def test_no_difference_is_said_where_the_interval_holds_one() -> None:
    assert "No difference" in verdict._kl_sentence(over(0.97, 0.9, 1.04), "x")
    assert "closer" in verdict._kl_sentence(over(0.8, 0.7, 0.9), "x")
    assert "farther" in verdict._kl_sentence(over(1.2, 1.1, 1.3), "x")


def test_measures_that_speak_for_the_other_student_are_told_as_well() -> None:
    [told] = verdict._other_measures(
        {
            "chat_top1_agreement_frac_over_sft_only": over(1.05, 1.02, 1.08),
            "chat_reverse_kl_nats_over_sft_only": over(1.3, 1.2, 1.4),
            "chat_nll_nats_over_sft_only": over(0.99, 0.97, 1.01),
        },
        "chat_",
    )
    assert told == (
        "Against that student by the other measures, on the chat set – better: same first choice (1.05 (1.02–1.08)×);"
        " no difference shown: NLL of the teacher's answers (0.99 (0.97–1.01)×); worse: reverse KL (1.30 (1.20–1.40)×)."
    )
    assert verdict._other_measures({}, "") == []


def test_what_becomes_of_the_students_kl_in_its_own_text_is_told_with_its_interval() -> None:
    assert "strays" in verdict._exposure({"forward_kl_nats": over(1.4, 1.2, 1.6)})[0]
    assert "easier ground" in verdict._exposure({"forward_kl_nats": over(0.7, 0.6, 0.8)})[0]
    assert "No difference" in verdict._exposure({"forward_kl_nats": over(1.05, 0.9, 1.2)})[0]
    assert verdict._exposure({}) == []
