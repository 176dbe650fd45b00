"""Intervals, tests and what a set can show: against slow references, and by simulation."""

import itertools
import json
import math
from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluate import verdict
from pipeline.statistics import (
    Figure,
    binomial,
    cluster_sums,
    defined,
    defined_ratio,
    detectable_difference,
    gap_closed,
    holm,
    mean,
    permutation_test,
    ratio,
    repeated,
    sign_test,
)

Vector = np.ndarray


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
    from pipeline import statistics

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


def pairs(generator: np.random.Generator, num: int, first: float, second: float, same: float) -> np.ndarray:
    """Binary outcomes of two arms that pass with these chances; in a share of the items one draw decides both."""
    draws = generator.random((num, 2))
    together = generator.random(num) < same
    draws[together, 1] = draws[together, 0]
    return (draws < [first, second]).astype(np.float64)


def covered(figure: Figure | None, truth: float) -> bool:
    assert figure is not None
    assert figure["low"] is not None
    assert figure["high"] is not None
    return figure["low"] <= truth <= figure["high"]


def compared(name: str, student: Vector, teacher: Vector, untrained: Vector, seed: int) -> tuple[Figure | None, float]:
    """A figure by its name, and what it is in truth."""
    if name == "mean":
        return mean(student, 400, seed), 0.4
    if name == "difference":
        return mean(student - teacher, 400, seed), -0.1
    if name == "retained":
        return defined_ratio(student, teacher, 400, seed), 0.8
    return gap_closed(student, untrained, teacher, 400, seed), 0.25 / 0.35


@pytest.mark.parametrize("name", ["mean", "difference", "retained", "gap"])
def test_ninety_five_percent_intervals_of_every_comparison_cover_the_truth(name: str) -> None:
    """Of 150 items that pass with .5 (teacher), .4 (student) and .15 (untrained): 800 trials, so ± 1.5 points."""
    generator = np.random.default_rng(3)
    trials, hits = 800, 0
    for trial in range(trials):
        teacher, student = pairs(generator, 150, 0.5, 0.4, 0.5).T
        untrained = (generator.random(150) < 0.15).astype(np.float64)
        hits += covered(*compared(name, student, teacher, untrained, trial))
    assert 0.93 <= hits / trials <= 0.97


def test_rows_of_one_prompt_count_as_one() -> None:
    """Ten equal rows a prompt carry one prompt's evidence: the interval is that of the prompts, however many rows."""
    generator = np.random.default_rng(4)
    values = generator.random(30)
    clusters = [f"p{n}" for n in range(30) for _ in range(10)]
    exploded = np.repeat(values, 10)
    sums, counts = cluster_sums(clusters, exploded.tolist())
    by_prompt, alone = ratio(sums, counts, 2000, 0), mean(values, 2000, 0)
    assert (by_prompt["low"], by_prompt["num"]) == (pytest.approx(alone["low"]), 30)
    too_narrow = mean(exploded, 2000, 0)
    widths = [figure["high"] - figure["low"] for figure in (by_prompt, too_narrow) if figure["high"] and figure["low"]]
    assert widths[0] > 2.5 * widths[1]


def test_clusters_may_come_in_any_order() -> None:
    sums, counts = cluster_sums(["b", "a", "b"], [1.0, 5.0, 2.0])
    assert (sums.tolist(), counts.tolist()) == ([3, 5], [2, 1])


def test_a_paired_interval_is_narrower_than_that_of_unpaired_arms() -> None:
    difficulty = np.random.default_rng(5).random(100)
    first, second = difficulty + 0.1, difficulty
    paired = mean(first - second, 2000, 0)
    assert paired["low"] == pytest.approx(0.1)
    assert paired["high"] == pytest.approx(0.1)


def test_a_ratio_over_what_may_be_nothing_is_not_defined() -> None:
    generator = np.random.default_rng(6)
    teacher, untrained = pairs(generator, 60, 0.3, 0.3, 0).T
    student = np.ones(60)
    assert gap_closed(student, untrained, teacher, 2000, 0) is None
    assert gap_closed(student, np.zeros(60), teacher, 2000, 0) is not None
    assert defined_ratio(student, np.zeros(60), 2000, 0) is None
    assert defined_ratio(student[:1], student[:1], 2000, 0) is None  # of one item nothing is known


def test_gap_closed_is_one_for_the_teacher_and_nought_for_the_untrained() -> None:
    generator = np.random.default_rng(7)
    teacher, untrained = pairs(generator, 80, 0.8, 0.2, 0).T
    for arm, value in ((teacher, 1), (untrained, 0)):
        figure = gap_closed(arm, untrained, teacher, 2000, 0)
        assert figure is not None
        assert figure == {"value": value, "low": value, "high": value, "num": 80}


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0]), max_size=11))
def test_the_sign_test_counts_every_way_the_signs_could_have_fallen(values: list[float]) -> None:
    signs = [np.sign(value) for value in values if value]
    seen = abs(sum(signs))
    ways = [abs(sum(way)) >= seen for way in product((-1, 1), repeat=len(signs))]
    assert sign_test(np.array(values)) == {
        "value": pytest.approx(sum(ways) / len(ways)),
        "low": None,
        "high": None,
        "num": len(signs),
    }


def test_mcnemar_of_many_pairs_is_the_binomial_tail() -> None:
    differences = np.array([1.0] * 40 + [-1.0] * 20 + [0.0] * 500)
    tail = sum(comb(60, k) for k in range(21)) / 2**60
    assert sign_test(differences)["value"] == pytest.approx(2 * tail)
    assert sign_test(np.array([1.0] * 6000 + [-1.0] * 6000))["value"] == 1


def test_holm_adjusts_step_by_step() -> None:
    # 3 × .01; 2 × .03; and 1 × .04 may not be below the one before it
    assert holm({"b": 0.03, "a": 0.01, "c": 0.04}) == pytest.approx({"b": 0.06, "a": 0.03, "c": 0.06})
    assert holm({"a": 0.5, "b": 0.9}) == {"a": 1, "b": 1}
    assert holm({}) == {}


def test_holm_keeps_false_findings_of_a_family_at_five_percent() -> None:
    generator = np.random.default_rng(8)
    found = [min(holm(dict(zip("abc", p, strict=True))).values()) < 0.05 for p in generator.random((4000, 3))]
    assert 0.04 <= np.mean(found) <= 0.06


@pytest.mark.parametrize(
    ("num", "discordant", "num_tests"), [(400, 0.1, 1), (400, 0.3, 3), (40, 0.25, 3), (40, 0.05, 3)]
)
def test_the_detectable_difference_is_found_four_times_in_five(num: int, discordant: float, num_tests: int) -> None:
    """With so many discordant pairs, or as many as the difference needs, by the exact test at its strictest level."""
    generator = np.random.default_rng(9)
    half = round(num * discordant / 2)
    observed = np.array([1.0] * half + [-1.0] * half + [0.0] * (num - 2 * half))
    figure = detectable_difference(observed, num_tests)
    assert figure is not None
    differ = max(discordant, figure["value"])
    ups, downs = (differ + figure["value"]) / 2, (differ - figure["value"]) / 2
    counts = generator.multinomial(num, [ups, max(0, downs), 1 - differ], size=10_000)
    found = [binomial.sign_test(int(up), int(down)) < 0.05 / num_tests for up, down, _ in counts]
    assert 0.785 <= np.mean(found) <= 0.815


def test_so_few_pairs_that_no_difference_would_show_have_none_to_tell() -> None:
    """Even 5 of 5 the same way have p = 0.0625."""
    assert detectable_difference(np.array([1.0, -1.0, 0.0, 0.0, 0.0])) is None
    assert detectable_difference(np.array([1.0, -1.0, 0.0, 0.0, 0.0, 0.0]), 3) is None


def test_the_power_of_the_sign_test_is_that_of_all_outcomes_added_up() -> None:
    num, differ, difference = 9, 0.6, 0.45
    up, down = (differ + difference) / 2, (differ - difference) / 2
    expected = 0.0
    for ups, downs in ((u, d) for u in range(num + 1) for d in range(num + 1 - u) if binomial.sign_test(u, d) < 0.05):
        ways = math.factorial(num) / math.factorial(ups) / math.factorial(downs) / math.factorial(num - ups - downs)
        expected += ways * up**ups * down**downs * (1 - differ) ** (num - ups - downs)
    assert binomial.power_of_sign_test(num, differ, difference, 0.05) == pytest.approx(expected, rel=1e-9)


def test_pairs_that_all_agree_say_nothing_of_what_could_be_detected() -> None:
    assert detectable_difference(np.zeros(50)) is None


def test_repeated_measurements_show_their_spread() -> None:
    assert repeated([3.0, 1.0, 2.0]) == {"value": 2.0, "low": 1.0, "high": 3.0, "num": 3}


def over(value: float, low: float, high: float) -> Figure:
    return {"value": value, "low": low, "high": high, "num": 50}


def test_no_difference_is_said_where_the_interval_holds_one() -> None:
    assert "was not shown to differ from" in verdict._kl_sentence(over(0.97, 0.9, 1.04), "x")
    assert "closer" in verdict._kl_sentence(over(0.8, 0.7, 0.9), "x")
    assert "farther" in verdict._kl_sentence(over(1.2, 1.1, 1.3), "x")
    assert "The KL of x is 0" in verdict._kl_sentence(None, "x")


def test_measures_that_speak_for_the_other_student_are_told_as_well() -> None:
    told = verdict._other_measures(
        {
            "chat_top1_agreement_frac_over_sft_only": over(1.05, 1.02, 1.08),
            "chat_reverse_kl_nats_over_sft_only": over(1.3, 1.2, 1.4),
            "chat_nll_nats_over_sft_only": over(0.99, 0.97, 1.01),
        },
        "chat_",
    )
    assert told == [
        "On the chat set the student is better than the SFT-only student by same first choice (1.05 (1.02–1.08)×).",
        "On the chat set the student shows no difference from the SFT-only student by NLL of the teacher's answers"
        " (0.99 (0.97–1.01)×).",
        "On the chat set the student is worse than the SFT-only student by reverse KL (1.30 (1.20–1.40)×).",
    ]
    assert verdict._other_measures({}, "") == []


def test_what_becomes_of_the_students_kl_in_its_own_text_is_told_with_its_interval() -> None:
    assert "strays" in verdict._exposure({"forward_kl_nats": over(1.4, 1.2, 1.6)})[0]
    assert "its own text is easier for it" in verdict._exposure({"forward_kl_nats": over(0.7, 0.6, 0.8)})[0]
    assert "was not shown to differ" in verdict._exposure({"forward_kl_nats": over(1.05, 0.9, 1.2)})[0]
    assert verdict._exposure({}) == []


def test_what_is_no_number_is_null_in_json() -> None:
    none, some = np.zeros(3), np.array([1.0, 2.0, 0.0])
    found = {
        "student": {"over_none": ratio(none, none, 50, 0), "infinite": ratio(some, none, 50, 0)},
        "rates": {"share": ratio(some, np.ones(3), 50, 0), "left out": None},
        "bounds": {"value": 0.5, "low": float("nan"), "high": float("inf"), "num": 3},
    }
    assert defined(found) == {
        "student": {"over_none": None, "infinite": None},
        "rates": {"share": found["rates"]["share"], "left out": None},
        "bounds": {"value": 0.5, "low": None, "high": None, "num": 3},
    }
    json.dumps(defined(found), allow_nan=False)


def apart(first: np.ndarray, second: np.ndarray) -> float:
    return abs(first.mean() - second.mean())


@pytest.mark.parametrize("sizes", [(5, 6), (3, 8), (7, 4)])
@pytest.mark.parametrize("seed", range(4))
def test_a_permutation_test_comes_near_that_of_all_relabelings(sizes: tuple[int, int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    first, second = (generator.poisson(rate, num).astype(float) for rate, num in zip((5, 3), sizes, strict=True))
    both = np.concatenate([first, second])
    chosen = [np.isin(np.arange(len(both)), each) for each in itertools.combinations(range(len(both)), sizes[0])]
    every = float(np.mean([apart(both[which], both[~which]) >= apart(first, second) - 1e-9 for which in chosen]))
    found = permutation_test(first, second, seed)
    assert found["value"] == pytest.approx(every, abs=4 * (every * (1 - every) / 10_000) ** 0.5 + 1e-3)
    assert found["num"] == min(sizes)
    turned = permutation_test(-second, -first, seed + 1)
    assert turned["value"] == pytest.approx(found["value"], abs=0.03)


def test_a_permutation_test_of_what_is_the_same_finds_nothing() -> None:
    assert permutation_test(np.full(4, 0.1), np.full(9, 0.1), 0)["value"] == 1
