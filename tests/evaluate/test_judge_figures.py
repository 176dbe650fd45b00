import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluate.judge import win_rates
from pipeline.evaluate.judge.win_rates import Clustered, Outcome, by_category, compared, length_controlled, wilson

DRAWS = Clustered(2000, seed=0)
CHOICES = ("A", "B", "tie", None)


def outcome(item: str, first: str | None, second: str | None, longer_by: int = 0, category: str = "c") -> Outcome:
    return Outcome(item, category, longer_by, (first, second))  # pyright: ignore[reportArgumentType]


def value(found: dict, name: str) -> float:
    return found[name]["value"]


def test_every_share_is_what_counting_by_hand_gives() -> None:
    found = compared(
        [
            outcome("i1", "A", "B", 10),  # wins in both orders, and is longer
            outcome("i2", "B", "A", 10),  # loses in both, though longer
            outcome("i3", "A", "A", -5),  # flips: A each time
            outcome("i4", "A", "tie", 0),  # wins in one order
            outcome("i4", "tie", "tie", 3),
            outcome("i5", None, "B", 50),  # of no use but to be counted
        ],
        DRAWS,
    )
    assert value(found, "win_rate") == pytest.approx((1 + 0 + 0.5 + 0.75 + 0.5) / 5)
    assert value(found, "won_frac") == pytest.approx(2 / 5)
    assert value(found, "tied_frac") == pytest.approx(2 / 5)
    assert value(found, "lost_frac") == pytest.approx(1 / 5)
    assert value(found, "position_flip_frac") == pytest.approx(1 / 5)
    assert value(found, "first_place_frac") == pytest.approx(5 / 7)  # A, of A B B A A A A
    assert value(found, "longer_preferred_frac") == pytest.approx((2 + 0 + 1) / 6)
    assert value(found, "invalid_frac") == pytest.approx(1 / 12)
    assert found["win_rate"]["num"] == 4
    assert found["invalid_frac"]["num"] == 5


def test_nothing_valid_leaves_the_share_of_invalid_verdicts_alone() -> None:
    found = compared([outcome("a", None, "A"), outcome("b", "A", None)], DRAWS)
    assert list(found) == ["invalid_frac"]
    assert by_category([outcome("a", None, "A")], DRAWS) == {}


@given(st.lists(st.tuples(st.sampled_from("abc"), *[st.sampled_from(CHOICES)] * 2, st.integers(-99, 99)), max_size=12))
@settings(max_examples=40, deadline=None)
def test_turning_a_pair_round_turns_its_figures_round(drawn: list) -> None:
    draws = Clustered(20, 0)
    there = compared([outcome(item, one, two, by) for item, one, two, by in drawn], draws)
    back = compared([outcome(item, two, one, -by) for item, one, two, by in drawn], draws)
    for name, turned in (("win_rate", True), ("length_controlled_win_rate", True), ("position_flip_frac", False)):
        if name in there:
            expected = 1 - value(there, name) if turned else value(there, name)
            assert value(back, name) == pytest.approx(expected, abs=1e-6)
    for name in ("first_place_frac", "longer_preferred_frac", "invalid_frac", "tied_frac"):
        assert (name in there) == (name in back)
        if name in there:
            assert value(back, name) == pytest.approx(value(there, name))
    if there.get("won_frac"):
        assert value(back, "lost_frac") == pytest.approx(value(there, "won_frac"))


def slow_interval(by_item: dict[str, list[float]], resamples: int) -> tuple[float, float]:
    lots, means = random.Random(3), []
    for _ in range(resamples):
        drawn = [score for _ in by_item for score in by_item[lots.choice(list(by_item))]]
        means.append(sum(drawn) / len(drawn))
    means.sort()
    return means[int(0.025 * resamples)], means[int(0.975 * resamples)]


def test_turns_of_an_item_are_drawn_together() -> None:
    lots = random.Random(0)
    outcomes, by_item = [], {}
    for item in range(30):
        wins = lots.random() < 0.6
        for _ in range(4):  # four turns that agree: no more evidence than one
            outcomes.append(outcome(f"i{item}", "A" if wins else "B", "B" if wins else "A"))
            by_item.setdefault(f"i{item}", []).append(float(wins))
    figure = compared(outcomes, DRAWS)["win_rate"]
    low, high = slow_interval(by_item, 4000)
    assert figure["low"] == pytest.approx(low, abs=0.04)
    assert figure["high"] == pytest.approx(high, abs=0.04)
    even = length_controlled(outcomes, DRAWS)
    assert (even["low"], even["high"]) == pytest.approx((figure["low"], figure["high"]), abs=0.03)
    apart = compared([outcome(f"{n}", *o.choices) for n, o in enumerate(outcomes)], DRAWS)["win_rate"]  # type: ignore[arg-type]
    assert apart["high"] - apart["low"] < 0.7 * (figure["high"] - figure["low"])  # type: ignore[operator]


def ascended(rows: list[tuple[list[float], float, float]], ridge: list[float]) -> list[float]:
    """The same regression by plain gradient ascent, one row at a time."""
    coefficients = [0.0] * len(ridge)
    for _ in range(30_000):
        slope = [-r * c for r, c in zip(ridge, coefficients, strict=True)]
        for features, score, weight in rows:
            rate = 1 / (1 + math.exp(-sum(f * c for f, c in zip(features, coefficients, strict=True))))
            for place, feature in enumerate(features):
                slope[place] += weight * (score - rate) * feature
        coefficients = [c + 0.1 * s for c, s in zip(coefficients, slope, strict=True)]
        if max(map(abs, slope)) < 1e-9:
            break
    return coefficients


def test_newton_finds_what_gradient_ascent_finds_for_each_resample() -> None:
    generator = np.random.default_rng(2)
    features = np.hstack([np.eye(2)[generator.integers(0, 2, 12)], np.tanh(generator.normal(size=(12, 1)))])
    scores = generator.choice([0, 0.25, 0.5, 0.75, 1], 12)
    weights = generator.integers(0, 3, (3, 12)).astype(np.float64)
    ridge = np.array([0.05, 0.05, 0.1])
    got = win_rates.logistic(features, scores, weights, ridge)
    for row, weight in zip(got, weights, strict=True):
        expected = ascended(list(zip(features.tolist(), scores.tolist(), weight.tolist(), strict=True)), ridge.tolist())
        np.testing.assert_allclose(row, expected, atol=1e-5)


def judged_by_length(level: float, slope: float, num: int, seed: int, mean_chars: float) -> list[Outcome]:
    """Verdicts drawn from the model itself; the first answer is longer by about `mean_chars`."""
    generator = np.random.default_rng(seed)
    by = generator.normal(mean_chars, 300, num).round()
    rates = 1 / (1 + np.exp(-(level + slope * np.tanh(by / by.std()))))
    wins = generator.random(num) < rates
    return [
        outcome(f"i{n}", *(("A", "B") if win else ("B", "A")), int(d))
        for n, (win, d) in enumerate(zip(wins, by, strict=True))
    ]


def test_a_win_rate_that_length_bought_is_taken_back() -> None:
    outcomes = judged_by_length(level=-0.5, slope=3, num=1500, seed=0, mean_chars=300)
    raw, even = compared(outcomes, DRAWS)["win_rate"], length_controlled(outcomes, DRAWS)
    truth = 1 / (1 + math.exp(0.5))
    assert raw["value"] > 0.65
    assert even["value"] == pytest.approx(truth, abs=0.06)
    assert even["high"] < 0.5 < raw["low"]  # type: ignore[operator]


def test_the_length_controlled_interval_covers_the_truth() -> None:
    truth, hits = 1 / (1 + math.exp(-0.4)), 0
    for seed in range(100):
        figure = length_controlled(judged_by_length(0.4, 1.0, 80, seed, 100), Clustered(300, seed))
        hits += figure["low"] <= truth <= figure["high"]  # type: ignore[operator]
    assert 88 <= hits <= 99


def test_without_a_difference_in_length_both_win_rates_are_the_same() -> None:
    outcomes = [outcome(f"i{n}", "A", "B" if n % 3 else "A") for n in range(30)]
    assert length_controlled(outcomes, DRAWS)["value"] == pytest.approx(
        compared(outcomes, DRAWS)["win_rate"]["value"], abs=1e-4
    )


def test_one_side_that_always_wins_has_a_finite_figure_near_one() -> None:
    outcomes = [outcome(f"i{n}", "A", "B", n) for n in range(20)]
    figure = length_controlled(outcomes, DRAWS)
    assert 0.99 < figure["value"] <= 1
    assert 0.9 < figure["low"] <= figure["high"] <= 1  # type: ignore[operator]


def test_categories_have_their_own_levels() -> None:
    outcomes = [outcome(f"g{n}", "A", "B", 5 * (-1) ** n, "good") for n in range(12)]
    outcomes += [outcome(f"b{n}", "B", "A", 5 * (-1) ** n, "bad") for n in range(12)]
    outcomes += [outcome("only", "A", "A", 5, "single")]
    found = by_category(outcomes, DRAWS)
    assert list(found) == ["bad", "good", "single"]
    assert value(found["good"], "win_rate") == 1
    assert value(found["good"], "length_controlled_win_rate") > 0.98
    assert value(found["bad"], "length_controlled_win_rate") < 0.02
    assert found["single"]["length_controlled_win_rate"]["low"] is None
    assert found["good"]["length_controlled_win_rate"]["num"] == 12


@pytest.mark.parametrize(
    ("wins", "num", "low", "high"), [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)]
)
def test_wilsons_interval_is_that_of_newcombe_1998(wins: int, num: int, low: float, high: float) -> None:
    figure = wilson(wins, num)
    assert figure["low"] == pytest.approx(low, abs=5e-4)
    assert figure["high"] == pytest.approx(high, abs=5e-4)


@given(st.integers(1, 200), st.floats(0, 1))
def test_wilsons_interval_holds_the_share(num: int, share: float) -> None:
    figure = wilson(share * num, num)
    assert 0 <= figure["low"] <= figure["value"] + 1e-12  # type: ignore[operator]
    assert figure["value"] - 1e-12 <= figure["high"] <= 1  # type: ignore[operator]
